"""Name tables of layers that several Caffe releases share.

A Caffe file stores, per layer, a list of unnamed blobs; a blob is called `<layer>:<index>` here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from uvos_jax.convert.table import CONV, IDENTITY, Entry, Layout, NameTable, joined
from uvos_jax.modules.backbones.resnet import BLOCKS

#: Per-channel values, which Caffe keeps as `(1, C, 1, 1)`.
CHANNELS = Layout("1C11 to C", lambda x: x.reshape(-1), lambda x: x.reshape(1, -1, 1, 1))

#: Blobs of the ConvLSTM layer (agethen/ConvLSTM-for-Caffe) that belong to layers without weights.
PLACEHOLDERS = ((r"^[^:]+:[1289]$", "placeholder blob of a ConvLSTM layer"),)


def conv(name: str, path: str, *, bias: bool = False) -> NameTable:
    """A Convolution layer: weight `(out, in, kh, kw)`, then its bias."""
    entries = [Entry((f"{name}:0",), (f"params/{path}/kernel",), CONV)]
    if bias:
        entries.append(Entry((f"{name}:1",), (f"params/{path}/bias",)))
    return NameTable(tuple(entries))


def batch_norm(name: str, path: str) -> NameTable:
    """A BN layer of the PSPNet fork: slope, bias, running mean, running variance."""
    paths = (
        f"params/{path}/scale",
        f"params/{path}/bias",
        f"batch_stats/{path}/mean",
        f"batch_stats/{path}/var",
    )
    return NameTable(
        tuple(Entry((f"{name}:{i}",), (path,), CHANNELS) for i, path in enumerate(paths))
    )


def _divided(mean: np.ndarray, var: np.ndarray, factor: np.ndarray) -> tuple:
    factor = float(np.reshape(factor, -1)[0])
    scale = 0.0 if factor == 0 else 1.0 / factor
    return mean.reshape(-1) * np.float32(scale), var.reshape(-1) * np.float32(scale)


#: A BatchNorm layer keeps sums and the factor to divide them by; going back, the factor is 1.
STATISTICS = Layout(
    "C, C, 1 to C, C", _divided, lambda mean, var: (mean, var, np.ones(1, np.float32))
)


def batch_norm_scale(norm: str, scale: str, path: str) -> NameTable:
    """A BatchNorm layer (mean, variance, factor) and the Scale layer (slope, bias) behind it."""
    statistics = Entry(
        tuple(f"{norm}:{i}" for i in range(3)),
        (f"batch_stats/{path}/mean", f"batch_stats/{path}/var"),
        STATISTICS,
    )
    slope = Entry((f"{scale}:0",), (f"params/{path}/scale",))
    return NameTable((statistics, slope, Entry((f"{scale}:1",), (f"params/{path}/bias",))))


def conv_lstm(name: str, path: str) -> NameTable:
    """A ConvLSTM layer: input kernel, recurrent kernel and bias, peepholes i, f, o of `(h, w)`.

    Gates are in the order i, f, o, g, as ours are.
    """
    entries = [
        Entry((f"{name}:0",), (f"params/{path}/input/kernel",), CONV),
        Entry((f"{name}:3",), (f"params/{path}/recurrent_kernel",), CONV),
        Entry((f"{name}:4",), (f"params/{path}/recurrent_bias",), IDENTITY),
    ]
    for index, gate in enumerate("ifo", start=5):
        entries.append(Entry((f"{name}:{index}",), (f"params/{path}/peephole_{gate}",)))
    return NameTable(tuple(entries), PLACEHOLDERS)


def new_parameter(path: str, shape: Sequence[int]) -> NameTable:
    """A parameter of ours that no release has: it starts at zero."""
    zeros = Layout("zeros", lambda: np.zeros(tuple(shape), np.float32), lambda x: ())
    return NameTable((Entry((), (f"params/{path}",), zeros),))


def psp_resnet(block_counts: Sequence[int] = BLOCKS[50]) -> NameTable:
    """`conv1_1_3x3_s2`, ..., `conv5_3_1x1_increase` of the prototxts of hszhao/PSPNet."""
    tables = []
    for i in (1, 2, 3):
        name = f"conv1_{i}_3x3" + ("_s2" if i == 1 else "")
        tables += [conv(name, f"conv1_{i}"), batch_norm(f"{name}/bn", f"bn1_{i}")]
    for stage, count in enumerate(block_counts, start=1):
        for block in range(count):
            official, ours = f"conv{stage + 1}_{block + 1}", f"layer{stage}_{block}"
            for i, part in enumerate(("1x1_reduce", "3x3", "1x1_increase"), start=1):
                tables.append(conv(f"{official}_{part}", f"{ours}/conv{i}"))
                tables.append(batch_norm(f"{official}_{part}/bn", f"{ours}/bn{i}"))
            if block == 0:
                tables.append(conv(f"{official}_1x1_proj", f"{ours}/downsample_0"))
                tables.append(batch_norm(f"{official}_1x1_proj/bn", f"{ours}/downsample_1"))
    return joined(tables)


def resnet(block_counts: Sequence[int] = BLOCKS[101], suffix: str = "") -> NameTable:
    """`conv1`, `bn_conv1`, `scale_conv1`, `res2a_branch1`, ..., `res5c_branch2c` (He et al. 2016).

    Args:
      suffix: behind every layer's name, `_motion` in FusionSeg.
    """
    tables = [
        conv(f"conv1{suffix}", "conv1"),
        batch_norm_scale(f"bn_conv1{suffix}", f"scale_conv1{suffix}", "bn1"),
    ]

    def conv_bn(name: str, conv_path: str, bn_path: str) -> NameTable:
        return conv(f"res{name}{suffix}", conv_path) + batch_norm_scale(
            f"bn{name}{suffix}", f"scale{name}{suffix}", bn_path
        )

    for stage, count in enumerate(block_counts, start=1):
        for block in range(count):
            # short stages count blocks with letters, long ones as a, b1, b2, ...
            letter = "abc"[block] if count <= 3 else f"b{block}" if block else "a"
            official, ours = f"{stage + 1}{letter}", f"layer{stage}_{block}"
            for i, part in enumerate("abc", start=1):
                tables.append(
                    conv_bn(f"{official}_branch2{part}", f"{ours}/conv{i}", f"{ours}/bn{i}")
                )
            if block == 0:
                shortcut = (f"{ours}/downsample_0", f"{ours}/downsample_1")
                tables.append(conv_bn(f"{official}_branch1", *shortcut))
    return joined(tables)
