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
