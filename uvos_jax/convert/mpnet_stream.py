"""The network of MP-Net's release (Torch7), which MP-Net is and of which LVO has a copy.

The file names nothing, so layers are known by the order in which they run: `SpatialConvolution.1`
... `.16` and `SpatialBatchNormalization.1` ... `.15`. Kernels may be flattened to
`(out, in * k * k)`; very old files keep `running_std`, which is `1 / sqrt(var + eps)`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from uvos_jax.convert.readers import Source, read_official
from uvos_jax.convert.table import CONV, Entry, Layout, NameTable
from uvos_jax.convert.torch7_file import modules, read_torch7_object
from uvos_jax.errors import CheckpointError
from uvos_jax.modules.layers import BN_EPSILON
from uvos_jax.modules.mpnet_stream import FIRST_EPSILON

#: Kernels of the sixteen convolutions.
KERNELS = (7, 5, 5, *(3,) * 12, 1)
NORMS = (
    ("weight", "params", "scale"),
    ("bias", "params", "bias"),
    ("running_mean", "batch_stats", "mean"),
    ("running_var", "batch_stats", "var"),
)
CONVOLUTION, NORM = "SpatialConvolution", "SpatialBatchNormalization"


def load(source: Source) -> dict[str, np.ndarray]:
    """Official arrays by kind, number in order and field, from a Torch7 file or a mapping.

    Raises:
      CheckpointError: the file cannot be read or has no convolutions.
    """
    if isinstance(source, (str, os.PathLike)) and not str(source).endswith(
        (".npz", ".safetensors")
    ):
        layers = [(m.name, m.fields) for m in modules(read_torch7_object(source))]
        arrays = numbered(layers)
        if not arrays:
            raise CheckpointError(
                f"{source} holds no {CONVOLUTION}: pass the network file of MP-Net's release"
            )
    else:
        arrays = read_official(source)
    return _with_variances(arrays)


def numbered(layers: Any) -> dict[str, np.ndarray]:
    """Arrays of convolutions and BatchNorms as `<kind>.<number>.<field>`.

    Args:
      layers: (class name, mapping of fields) in the order in which they run.
    """
    arrays: dict[str, np.ndarray] = {}
    counts = {CONVOLUTION: 0, NORM: 0}
    fields = ("weight", "bias", "running_mean", "running_var", "running_std")
    for name, values in layers:
        kind = next((k for k in counts if name.rpartition(".")[2].startswith(k)), None)
        if kind is None:
            continue
        counts[kind] += 1
        for field in fields:
            if isinstance(values.get(field), np.ndarray):
                arrays[f"{kind}.{counts[kind]}.{field}"] = values[field]
    return arrays


def _with_variances(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    result = {}
    for name, value in arrays.items():
        if name.endswith(".running_std"):
            epsilon = FIRST_EPSILON if name.startswith(f"{NORM}.1.") else BN_EPSILON
            name = name.removesuffix("_std") + "_var"
            value = (1.0 / np.square(np.asarray(value, np.float64)) - epsilon).astype(np.float32)
        result[name] = value
    return result


def _perhaps_flat(kernel: int) -> Layout:
    def to_ours(x: np.ndarray) -> np.ndarray:
        return CONV.to_ours(x.reshape(x.shape[0], -1, kernel, kernel) if x.ndim == 2 else x)

    return Layout(f"OIHW, perhaps flat, kernel {kernel}", to_ours, CONV.to_official)


def stream_table(prefix: str) -> NameTable:
    """Layers by order; ours are `<prefix>/block<i>` and `<prefix>/classifier`."""
    entries = []
    for i, kernel in enumerate(KERNELS, start=1):
        path = f"{prefix}/block{i}/conv" if i < len(KERNELS) else f"{prefix}/classifier"
        name = f"{CONVOLUTION}.{i}"
        layout = _perhaps_flat(kernel)
        entries.append(Entry((f"{name}.weight",), (f"params/{path}/kernel",), layout))
        entries.append(Entry((f"{name}.bias",), (f"params/{path}/bias",)))
        if i < len(KERNELS):
            entries += [
                Entry((f"{NORM}.{i}.{a}",), (f"{kind}/{prefix}/block{i}/norm/{b}",))
                for a, kind, b in NORMS
            ]
    return NameTable(tuple(entries))
