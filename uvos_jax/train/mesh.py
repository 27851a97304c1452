"""Devices and shardings: the only file that names them.

A mesh has two axes. `data` splits the batch; `fsdp` splits large parameters and their optimiser
state as well as the batch, so that memory per device falls with its size. XLA inserts the
collectives (jit with NamedSharding, GSPMD); with a sharded batch, BatchNorm statistics are those of
the global batch without further ado.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uvos_jax.errors import ConfigError

BATCH_AXES = ("data", "fsdp")
#: Arrays with fewer elements are replicated: splitting them saves nothing.
MIN_SHARDED_SIZE = 2**14


def make_mesh(data: int = -1, fsdp: int = 1, devices: Any = None) -> Mesh:
    """A mesh over all devices (of all processes); `data=-1` takes what `fsdp` leaves.

    Raises:
      ConfigError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if fsdp < 1 or count % fsdp:
        raise ConfigError(f"mesh.fsdp={fsdp} must divide the number of devices, {count}")
    data = count // fsdp if data == -1 else data
    if data * fsdp != count:
        raise ConfigError(
            f"mesh axes data={data} and fsdp={fsdp} multiply to {data * fsdp}, but there are "
            f"{count} devices; set mesh.data=-1 to use all"
        )
    grid = np.asarray(devices).reshape(data, fsdp)
    return Mesh(grid, BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First axis split over all devices."""
    return NamedSharding(mesh, P(BATCH_AXES))


def parameter_shardings(mesh: Mesh, tree: Any) -> Any:
    """Shardings of a state tree: large arrays split over `fsdp` on their last divisible axis."""
    size = mesh.shape["fsdp"]

    def shard(x: Any) -> NamedSharding:
        shape = getattr(x, "shape", ())
        if size == 1 or math.prod(shape) < MIN_SHARDED_SIZE:
            return replicated(mesh)
        for axis in reversed(range(len(shape))):
            if shape[axis] % size == 0:
                spec = [None] * len(shape)
                spec[axis] = "fsdp"
                return NamedSharding(mesh, P(*spec))
        return replicated(mesh)

    return jax.tree.map(shard, tree)


def local_batch_size(global_batch: int, mesh: Mesh) -> int:
    """Examples each process must supply.

    Raises:
      ConfigError: the global batch does not divide over devices and processes.
    """
    devices = mesh.devices.size
    if global_batch % devices:
        raise ConfigError(
            f"data.batch_size={global_batch} (global) must be a multiple of the {devices} devices"
        )
    return global_batch // jax.process_count()


def place_batch(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Turns this process' part of a batch into global arrays split over the mesh."""
    sharding = batch_sharding(mesh)

    def place(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and jax.process_count() == 1:
            return jax.device_put(x, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return {k: place(v) for k, v in batch.items()}


#: Dense peak of one chip in FLOP/s with bfloat16 inputs, from the vendors' data sheets; the key is
#: looked for in `device_kind`, the first match counts.
PEAK_BFLOAT16 = {
    "TPU v6": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
}
#: The same with float32 inputs where matrix units round them to TF32 (NVIDIA's default in JAX);
#: TPUs round to bfloat16.
PEAK_TF32 = {"H200": 495e12, "H100 PCIe": 378e12, "H100": 495e12, "A100": 156e12}


def peak_flops(compute_dtype: str = "bfloat16", kind: str | None = None) -> float | None:
    """FLOP/s one device could reach at best, None for a device that is not in the table."""
    kind = jax.devices()[0].device_kind if kind is None else kind
    table = PEAK_BFLOAT16
    if compute_dtype == "float32":
        table = PEAK_TF32 | {k: v for k, v in PEAK_BFLOAT16.items() if k.startswith("TPU")}
    return next((peak for name, peak in table.items() if name in kind), None)


def to_host(tree: Any, mesh: Mesh) -> Any:
    """The whole arrays of a tree as numpy, on every process (all must call)."""
    if all(x.is_fully_addressable for x in jax.tree.leaves(tree)):
        return jax.device_get(tree)
    tree = jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), tree)
