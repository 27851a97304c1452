"""The motion-based bilateral network: what moves like sure background is background.

Positions of low objectness are counted in a coarse lattice over place and flow (splat), the counts
are spread by one learned filter per axis, and every position reads the value of its cell (slice).
Each filter is a banded matrix, so that filtering is four small matrix products.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

#: Standard deviation, in cells, that the filters along the flow start with.
SIGMA = 3.0


def lattice_cells(
    flow: Float[Array, "h w 2"], lattice: tuple[int, int, int, int]
) -> Int[Array, "h w"]:
    """Flat index of the cell of every position in a lattice over (y, x, dy, dx).

    The limits of place are those of the frame; the limits of dy and dx are those of this flow.
    Nearest cell: the floor, plus one where the remainder exceeds a half.
    """
    h, w, _ = flow.shape
    flow = flow.astype(jnp.float32)
    dy, dx = flow[..., 1], flow[..., 0]
    y, x = jnp.broadcast_to(jnp.arange(h)[:, None], (h, w)), jnp.broadcast_to(jnp.arange(w), (h, w))

    def cell(value: jax.Array, low: jax.Array, high: jax.Array, count: int) -> jax.Array:
        at = (value - low) / jnp.maximum(high - low, 1e-6) * (count - 1)
        floor = jnp.clip(jnp.floor(at), 0, count - 2)
        return (floor + (at - floor > 0.5)).astype(jnp.int32)

    ny, nx, ndy, ndx = lattice
    parts = (
        cell(y.astype(jnp.float32), jnp.float32(0), jnp.float32(h), ny),
        cell(x.astype(jnp.float32), jnp.float32(0), jnp.float32(w), nx),
        cell(dy, dy.min(), dy.max(), ndy),
        cell(dx, dx.min(), dx.max(), ndx),
    )
    return ((parts[0] * nx + parts[1]) * ndy + parts[2]) * ndx + parts[3]


def splat(cells: jax.Array, values: jax.Array, lattice: tuple[int, int, int, int]) -> jax.Array:
    """Sums of `values` per cell, `[ny,nx,ndy,ndx]`."""
    size = int(np.prod(lattice))
    return jax.ops.segment_sum(values.reshape(-1), cells.reshape(-1), size).reshape(lattice)


def toeplitz(kernel: jax.Array, size: int) -> jax.Array:
    """Matrix `[size,size]` of the correlation with `kernel` (odd length) under zero padding."""
    half = kernel.shape[0] // 2
    offset = jnp.arange(size)[None] - jnp.arange(size)[:, None] + half  # column - row
    inside = (offset >= 0) & (offset < kernel.shape[0])
    return jnp.where(inside, kernel[jnp.clip(offset, 0, kernel.shape[0] - 1)], 0.0)


class BilateralFilter(nn.Module):
    """Splat, four 1-D filters, slice, ReLU.

    Attributes:
      lattice: cells along (y, x, dy, dx).
      kernels: lengths of the filters along the same axes; odd.
    """

    lattice: tuple[int, int, int, int] = (18, 18, 40, 40)
    kernels: tuple[int, int, int, int] = (37, 37, 21, 21)

    @nn.compact
    def __call__(self, cells: Int[Array, "h w"], values: Float[Array, "h w"]) -> jax.Array:
        """Filtered `values [h,w]`, not negative."""

        def uniform(_, shape):
            return jnp.full(shape, 1.0 / shape[0], jnp.float32)

        def gaussian(_, shape):
            x = jnp.arange(shape[0]) - shape[0] // 2
            g = jnp.exp(-0.5 * (x / SIGMA) ** 2)
            return (g / g.sum()).astype(jnp.float32)

        volume = splat(cells, values, self.lattice)
        starts = {"y": uniform, "x": uniform, "dx": gaussian, "dy": gaussian}
        axes = {"y": 0, "x": 1, "dx": 3, "dy": 2}
        for name, init in starts.items():
            axis = axes[name]
            kernel = self.param(name, init, (self.kernels[axis],))
            matrix = toeplitz(kernel, self.lattice[axis])
            volume = jnp.moveaxis(jnp.tensordot(matrix, volume, axes=(1, axis)), 0, axis)
        return nn.relu(volume.reshape(-1)[cells])
