"""Official FusionSeg weights: three Caffe files, for the streams and for their fusion.

`appearance_stream.caffemodel`, `motion_stream.caffemodel` (layers named alike, with `_motion`
behind) and `joint_stream.caffemodel`, of which two exist, trained on the halves of DAVIS. Each
converts alone as a part; all three together make a whole network.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from uvos_jax.convert.caffe_names import conv, resnet
from uvos_jax.convert.readers import Source, read_official
from uvos_jax.convert.table import NameTable, joined
from uvos_jax.errors import CheckpointError, UnsupportedError

#: Names of the classifiers without their number, suffix of all names.
STREAM_NAMES = {
    "appearance": ("fc1_binary_seg", ""),
    "motion": ("fc1_binary_seg_flow", "_motion"),
}


def load(source: Source) -> dict[str, np.ndarray]:
    """Official arrays by name; those of several files carry `appearance/`, `motion/`, `joint/`.

    Args:
      source: one file or mapping of a part; the three files in any order; or a mapping of part to
        the mapping of its arrays.

    Raises:
      CheckpointError: a file cannot be read, or two of them are the same part.
    """
    if isinstance(source, Mapping):
        if source and all(isinstance(value, Mapping) for value in source.values()):
            parts = {part: dict(arrays) for part, arrays in source.items()}
            return {f"{p}/{k}": np.asarray(v) for p, a in parts.items() for k, v in a.items()}
        return read_official(source)
    if isinstance(source, (str, os.PathLike)):
        return read_official(source)
    arrays: dict[str, np.ndarray] = {}
    origin: dict[str, Any] = {}
    for path in source:
        own = read_official(path)
        part = _part_of(own)
        if part in origin:
            raise CheckpointError(
                f"{origin[part]} and {path} both hold FusionSeg's {part} part: give one file each "
                "of appearance, motion and joint"
            )
        origin[part] = path
        arrays |= {f"{part}/{name}": value for name, value in own.items()}
    return arrays


def _part_of(arrays: Mapping[str, Any]) -> str:
    if "conva:0" in arrays:
        return "joint"
    return "motion" if any(name.startswith("conv1_motion:") for name in arrays) else "appearance"


def stream_table(config: Any, stream: str) -> NameTable:
    """Names of one stream's file and our paths below `<stream>/`."""
    head, suffix = STREAM_NAMES[stream]
    tables = [resnet(config.block_counts, suffix).renamed(ours="resnet")]
    for i in range(len(config.rates)):
        tables.append(conv(f"{head}_c{i}{suffix}", f"classifier{i}", bias=True))
    return joined(tables).renamed(ours=stream)


def joint_table(config: Any) -> NameTable:
    """Names of the fusion network's file.

    Raises:
      UnsupportedError: the configuration fuses as the paper does.
    """
    if config.fusion != "release_sum" or config.streams != "joint":
        field = "streams" if config.streams != "joint" else "fusion"
        raise UnsupportedError(
            f"official FusionSeg weights do not fit model.{field}={config[field]!r}: the release "
            "adds up three convolutions of both streams; convert with the configuration "
            "fusionseg:full, or a stream alone with part='appearance' or 'motion'"
        )
    names = ("conv1", "conva", "convm", "conv2")
    return joined(conv(name, f"joint/{name}", bias=True) for name in names)


def table(config: Any) -> NameTable:
    """Names of the three files together, each behind its part, as `load` returns them."""
    streams = [stream_table(config, s).renamed(f"{s}/") for s in STREAM_NAMES]
    return joined([*streams, joint_table(config).renamed("joint/")])


PARTS = {
    "appearance": lambda config: stream_table(config, "appearance"),
    "motion": lambda config: stream_table(config, "motion"),
    "joint": joint_table,
}
