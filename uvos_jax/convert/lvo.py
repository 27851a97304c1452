"""Weights for LVO under the names of its parts; the authors published none of the whole.

`part="appearance"`: the Caffe layers `conv1_1` ... `conv5_3`, `fc6` of DeepLab-LargeFOV.
`part="motion"`: MP-Net in the order of its file, `SpatialConvolution.1` ... `.16` and
`SpatialBatchNormalization.1` ... `.15`; kernels may be flattened to `(out, in * k * k)`, as Torch7
stores them. The whole table adds names of our own for the memory, with one convolution per gate:
x to z, r and candidate (with biases), h to the same.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from uvos_jax.convert import caffe_names, mpnet_stream
from uvos_jax.convert.mpnet_stream import stream_table
from uvos_jax.convert.readers import TORCH7_SUFFIXES, Source, read_official
from uvos_jax.convert.table import CONV, Entry, Layout, NameTable, conv, joined
from uvos_jax.errors import UnsupportedError

#: Layers of the released segmentation network behind fc6.
BEHIND_FC6 = ((r"^fc[78]", "behind fc6, which is where LVO takes its features"),)


def appearance_table(config: Any) -> NameTable:
    """DeepLab-LargeFOV up to fc6, under its Caffe names."""
    if config.backbone != "vgg_largefov":
        raise UnsupportedError(
            f"DeepLab-LargeFOV weights do not fit model.backbone={config.backbone!r}: use "
            "model.backbone='vgg_largefov'"
        )
    names = [f"conv{i}_{j}" for i, n in enumerate(config.counts, 1) for j in range(1, n + 1)]
    tables = [caffe_names.conv(n, f"appearance/{n}", bias=True) for n in (*names, "fc6")]
    return joined([*tables, NameTable((), BEHIND_FC6)])


def motion_table(config: Any) -> NameTable:
    """MP-Net by the order of its layers."""
    del config
    return stream_table("motion")


def load(source: Source) -> dict[str, np.ndarray]:
    """Official arrays by name; of a Torch7 file, the layers of MP-Net in order.

    Raises:
      CheckpointError: a file cannot be read.
    """
    if isinstance(source, (str, os.PathLike)) and str(source).endswith(TORCH7_SUFFIXES):
        return mpnet_stream.load(source)
    return read_official(source)


def _gates(count: int) -> Layout:
    """Kernels or biases of single gates, side by side on our last axis."""

    def to_ours(*gates: np.ndarray) -> np.ndarray:
        gates = [CONV.to_ours(g) if g.ndim == 4 else g for g in gates]
        return np.concatenate(gates, axis=-1)

    def to_official(x: np.ndarray) -> Any:
        parts = np.split(x, count, axis=-1)
        parts = [CONV.to_official(p) if p.ndim == 4 else p for p in parts]
        return tuple(parts) if count > 1 else parts[0]

    return Layout(f"{count} gates", to_ours, to_official)


def table(config: Any) -> NameTable:
    """The whole network; the memory under names of ours.

    Raises:
      UnsupportedError: a configuration that lacks a stream, the GRU or its other direction.
    """
    for field, needed in (("streams", "both"), ("cell", "gru"), ("memory", "bidirectional")):
        if config[field] != needed:
            raise UnsupportedError(
                f"the table of LVO's weights does not fit model.{field}={config[field]!r}: it is "
                f"for {needed!r}; convert with the configuration lvo:full"
            )
    # Torch's names go z, r, h; our gates are stored as r, z, candidate.
    gate_names = ("r", "z", "h")
    x_names = [f"memory.x{g}" for g in gate_names]
    memory = NameTable(
        (
            Entry(
                tuple(f"{n}.weight" for n in x_names),
                ("params/recurrence/input/kernel",),
                _gates(3),
            ),
            Entry(
                tuple(f"{n}.bias" for n in x_names), ("params/recurrence/input/bias",), _gates(3)
            ),
            Entry(
                ("memory.hr.weight", "memory.hz.weight"),
                ("params/recurrence/gate_kernel",),
                _gates(2),
            ),
            Entry(("memory.hh.weight",), ("params/recurrence/candidate_kernel",), _gates(1)),
        )
    )
    layers = ("appearance_head", "project1", "project2", "head", "classifier")
    own = [conv(f"memory.{name}", name, bias=True) for name in layers]
    return joined([appearance_table(config), motion_table(config), memory, *own])


PARTS = {"appearance": appearance_table, "motion": motion_table}
