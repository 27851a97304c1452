"""Official MATNet weights: `encoder_<epoch>.pt` and `decoder_<epoch>.pt`, converted together.

Both are torch state dicts, perhaps with DataParallel's `module.`. Parts of them the released
network never uses: two bottlenecks and BatchNorms in each transition, the first side convolution
and two dilated convolutions of each refinement, three of four mask heads.

`part="backbone"` reads an ImageNet ResNet (`resnet101-*.pth` of torchvision) into both trunks,
which is where training starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from uvos_jax.convert.backbones import resnet
from uvos_jax.convert.readers import Source, read_official
from uvos_jax.convert.table import (
    Entry,
    Layout,
    NameTable,
    batch_norm,
    conv,
    dense,
    joined,
)
from uvos_jax.errors import CheckpointError, UnsupportedError

#: Trunks of ours by the suffix of the official names.
TRUNKS = {"1": "appearance", "2": "motion"}
#: Settings of the released network.
RELEASED = {"transition": "mat", "soft_attention": True, "bridge": "ssa", "boundary": True}
UNUSED = (
    (r"coa_res\d\.(bottolneck[12]|bna|bnb)\.", "unused in the released network"),
    (r"RF\d\.convFS1\.", "unused in the released network"),
    (r"decoder\.pred[345]\.", "unused in the released network"),
)
UNUSED_PYRAMID = ((r"RF\d\.pdc\.block[23]\.", "unused in the released network"),)
CLASSIFIER = ((r"^fc\.(weight|bias)$", "classifier of ImageNet"),)


def load(source: Source) -> dict[str, np.ndarray]:
    """Official arrays by name, `encoder.` and `decoder.` before the names of the two files.

    Raises:
      CheckpointError: a file is neither of both, or one is given twice.
    """
    if isinstance(source, Mapping):
        return read_official(source)
    paths = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    arrays: dict[str, np.ndarray] = {}
    for path in paths:
        read = read_official(path)
        if "conv1_1.weight" in read:
            read = {f"encoder.{name}": x for name, x in read.items()}
        elif "pred2.weight" in read:
            read = {f"decoder.{name}": x for name, x in read.items()}
        if arrays.keys() & read.keys():
            raise CheckpointError(
                f"{path} holds the same part of MATNet as another file: give one encoder_*.pt and "
                "one decoder_*.pt"
            )
        arrays |= read
    for part, other in (("encoder", "decoder"), ("decoder", "encoder")):
        if arrays and all(name.startswith(f"{part}.") for name in arrays):
            raise CheckpointError(
                f"MATNet's weights are two files and only the {part}'s was given: add "
                f"{other}_*.pt of the same epoch"
            )
    return arrays


def table(config: Any) -> NameTable:
    """Names of the release and our paths for a MATNet with the given `model` section.

    Raises:
      UnsupportedError: the configuration has other parts than the release.
    """
    for field, released in RELEASED.items():
        if config[field] != released:
            raise UnsupportedError(
                f"official MATNet weights do not fit model.{field}={config[field]!r}: the release "
                f"has {released!r}; convert with the configuration matnet:full"
            )
    tables = [_trunk(config.block_counts, suffix, path) for suffix, path in TRUNKS.items()]
    for k in (3, 4, 5):
        names = (
            ("proja", "project_appearance"),
            ("projb", "project_motion"),
            ("proj1", "attend_appearance"),
            ("proj2", "attend_motion"),
        )
        tables += [
            conv(f"coa_res{k}.{name}", f"transition{k}/step/{path}", bias=True)
            for name, path in names
        ]
    for k in (2, 3, 4, 5):
        gate = f"gated_res{k}"
        tables += [
            dense(f"{gate}.excitation_1.0", f"gate{k}/squeeze", bias=True),
            dense(f"{gate}.excitation_2.0", f"gate{k}/excite", bias=True),
            dense(f"{gate}.global_attention.0", f"gate{k}/scale", bias=True),
            conv(f"{gate}.spatial.conv", f"gate{k}/conv"),
            batch_norm(f"{gate}.spatial.bn", f"gate{k}/norm"),
        ]
    encoder = joined(tables).renamed("encoder.", "encoder")
    ignored = UNUSED + (UNUSED_PYRAMID if config.shared_dilation else ())
    return joined([encoder, _decoder(config), NameTable((), ignored)])


def _trunk(block_counts: Any, suffix: str, path: str) -> NameTable:
    """`conv1_1`, `bn1_1`, `res2_1.0.conv1`, ... for a trunk of ours."""
    plain = resnet(block_counts)

    def renamed(name: str) -> str:
        head, _, rest = name.partition(".")
        if head.startswith("layer"):
            head = f"res{int(head[-1]) + 1}"
        return f"{head}_{suffix}.{rest}"

    entries = tuple(Entry(tuple(map(renamed, e.names)), e.paths, e.layout) for e in plain.entries)
    return NameTable(entries, plain.ignored).renamed(ours=path)


def _decoder(config: Any) -> NameTable:
    names = ["GC.conv_l1", "GC.conv_l2", "GC.conv_r1", "GC.conv_r2", "convG1", "convG2"]
    tables = [conv(name, name.replace(".", "/"), bias=True) for name in names]
    for k in (4, 3, 2):
        for name in ("convFS2", "convFS3", "convMM1", "convMM2"):
            tables.append(conv(f"RF{k}.{name}", f"RF{k}/{name}", bias=True))
        tables.append(conv(f"RF{k}.pdc.block0", f"RF{k}/pyramid0", bias=True))
        for i in (1,) if config.shared_dilation else (1, 2, 3):
            tables.append(conv(f"RF{k}.pdc.block{i}.conv", f"RF{k}/pyramid{i}", bias=True))
        tables.append(batch_norm(f"RF{k}.pdc.bn", f"RF{k}/pyramid_norm"))
    for k in (5, 4, 3, 2):
        for i in (1, 2):
            tables.append(batch_norm(f"bdry{k}.bn{i}", f"bdry{k}/bn{i}"))
        for i in (1, 2, 3):
            tables.append(conv(f"bdry{k}.conv{i}", f"bdry{k}/conv{i}", bias=True))
    tables += [conv("pred2", "pred2", bias=True), conv("concat", "concat", bias=True)]
    return joined(tables).renamed("decoder.", "decoder")


def backbone_table(config: Any) -> NameTable:
    """An ImageNet ResNet for both trunks."""
    plain = resnet(config.block_counts)
    entries = []
    for entry in plain.entries:
        collection, _, rest = entry.paths[0].partition("/")
        paths = tuple(f"{collection}/encoder/{trunk}/{rest}" for trunk in TRUNKS.values())
        entries.append(Entry(entry.names, paths, _twice(entry.layout)))
    return NameTable(tuple(entries), plain.ignored + CLASSIFIER)


def _twice(layout: Layout) -> Layout:
    """One official array for two of ours."""

    def to_ours(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return layout.to_ours(x), layout.to_ours(x)

    return Layout(f"{layout.name}, twice", to_ours, lambda first, _: layout.to_official(first))


PARTS = {"backbone": backbone_table}
