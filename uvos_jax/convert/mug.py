"""Official MuG weights: the released network, and the network that makes its first labels.

The checkpoint (`*checkpoint_latest.pth.tar`) is a torch pickle `{"epoch", "state_dict",
"best_loss"}` whose keys carry DataParallel's `module.`; it holds 246 arrays, of which 34 are
counters, and fits the configuration `mug:release`. The label network (`sal.pth`, 1034 arrays below
`CAM.`) is converted with `part="cam"` and the configuration `mug:release_cam`. It lists two layers
under two names each (the stem also as `block0`, the last BatchNorm also as `denseblock4.32`); the
name PyTorch loads last is the one that counts.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from uvos_jax.convert.readers import Source, read_official
from uvos_jax.convert.table import (
    COUNTERS,
    TRANSPOSED_CONV,
    Entry,
    Layout,
    NameTable,
    array,
    batch_norm,
    conv,
    dense,
    joined,
)
from uvos_jax.errors import UnsupportedError

#: The configuration official weights belong to, unless another is given.
CONFIG = "mug:release"


def load(source: Source) -> dict[str, np.ndarray]:
    """Official arrays by name, without the prefix of DataParallel."""
    return {k.removeprefix("module."): v for k, v in read_official(source).items()}


def table(config: Any) -> NameTable:
    """Names of the release and our paths for a MuG with the given `model` section.

    Raises:
      UnsupportedError: the configuration is not of the released network.
    """
    if config.variant != "release" or config.rounds > 1:
        raise UnsupportedError(
            f"official MuG weights do not fit model.variant={config.variant!r} with "
            f"model.rounds={config.rounds}: convert with the configuration mug:release"
        )
    tables = [network_table(config)]
    if config.pseudo_labels == "cam":
        tables.append(cam_table(config))
    return joined(tables)


def network_table(config: Any) -> NameTable:
    """The 246 names of the saliency network."""

    def block(name: str, path: str, projected: bool) -> NameTable:
        parts = []
        for i in (1, 2):
            parts.append(conv(f"{name}.conv{i}", f"{path}/conv{i}"))
            parts.append(batch_norm(f"{name}.bn{i}", f"{path}/bn{i}"))
        if projected:
            parts.append(conv(f"{name}.downsample.0", f"{path}/downsample_0"))
            parts.append(batch_norm(f"{name}.downsample.1", f"{path}/downsample_1"))
        return joined(parts)

    gray = [conv("conv1", "conv1"), batch_norm("bn1", "bn1")]
    for stage in range(1, len(config.widths) + 1):
        for i in range(config.blocks):
            gray.append(block(f"layer{stage}.{i}", f"layer{stage}_{i}", i == 0 and stage > 1))
    biased = {"bias": True}
    colour = [conv(f"rgb_encoder.conv{i}", f"rgb_encoder/conv{i}", **biased) for i in range(1, 7)]
    colour += [conv(f"decoder.conv{i}", f"decoder/conv{i}", **biased) for i in range(7, 12)]
    return joined(
        [
            joined(gray).renamed("gray_encoder.", "gray_encoder"),
            *colour,
            conv("rgb_encoder.downsample.1", "rgb_encoder/downsample_1", **biased),
            conv("decoder.upsample.1", "decoder/upsample_1", **biased),
            array("normalize.mean", "normalize/mean"),
            array("normalize.std", "normalize/std"),
            *(
                block(name, name, True)
                for name in ("fusion3_1", "fusion3_2", "fusion2_1", "fusion2_2")
            ),
            *(
                conv(f"weak_conv1.{name}", f"weak_conv1/{name}", **biased)
                for name in ("conv_l1", "conv_l2", "conv_r1", "conv_r2")
            ),
            batch_norm("weak_bn", "weak_bn/bn"),
            *(conv(f"weak_conv2_{i}", f"weak_conv2_{i}", **biased) for i in (1, 2, 3)),
            conv("memory_encoder.1", "memory_encoder_1"),
            batch_norm("memory_encoder.2", "memory_encoder_2/bn"),
            dense("linear_e", "linear_e"),
        ]
    )


def _also(official: NameTable, other: NameTable) -> NameTable:
    """The entries of `official`, whose arrays the file also holds under the names of `other`."""
    entries = []
    for a, b in zip(official.entries, other.entries, strict=True):
        base = a.layout
        layout = Layout(
            f"{base.name}, under two names",
            lambda first, last, base=base: base.to_ours(last),
            lambda x, base=base: (base.to_official(x),) * 2,
        )
        entries.append(Entry(a.names + b.names, a.paths, layout))
    return NameTable(tuple(entries), official.ignored)


def cam_table(config: Any) -> NameTable:
    """The 1034 names of the label network."""
    features = "CAM.feature.features"
    path = "pseudo_labeller"
    parts = [conv(f"CAM.preds.{i}", f"{path}/preds_{i}", bias=True) for i in range(4)]
    parts.append(conv("CAM.upscale", f"{path}/upscale", bias=True, layout=TRANSPOSED_CONV))
    inside = [
        _also(conv("conv0", "conv0"), conv("block0.0", "conv0")),
        _also(batch_norm("norm0", "norm0"), batch_norm("block0.1", "norm0")),
    ]
    blocks = tuple(config.cam_blocks)
    for b, count in enumerate(blocks, start=1):
        for i in range(count):
            name, ours = f"denseblock{b}.{i}", f"denseblock{b}_{i}"
            for k in (1, 2):
                inside.append(batch_norm(f"{name}.norm{k}", f"{ours}_norm{k}"))
                inside.append(conv(f"{name}.conv{k}", f"{ours}_conv{k}"))
        if b < len(blocks):
            inside.append(batch_norm(f"transition{b}.0", f"transition{b}_norm"))
            inside.append(conv(f"transition{b}.2", f"transition{b}_conv"))
    last = f"denseblock{len(blocks)}.{blocks[-1]}"
    inside.append(_also(batch_norm(last, "norm5"), batch_norm("norm5", "norm5")))
    parts.append(joined(inside).renamed(f"{features}.", f"{path}/feature"))
    return dataclasses.replace(joined(parts), ignored=COUNTERS)


PARTS = {"cam": cam_table}
