"""True Gaussian smoothing by shift and add, an alternative to the spatial lattice."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

#: The kernel is cut off where it has fallen to exp(-8).
_REACH = 4.0


def gaussian_smooth(
    x: Float32[Array, "N"], size: tuple[int, int], sdims: tuple[float, float]
) -> Float32[Array, "N"]:
    """sum_j exp(-|p_i - p_j|^2 / 2) x_j over an image, with positions p in units of `sdims`.

    Zero outside the image; its own transpose. Not normalised (the lattice's filter differs from
    it by a constant factor as well, so compare them only under a normalisation).
    """
    y = x.reshape(size)
    for axis, (length, sigma) in enumerate(zip(size, sdims, strict=True)):
        radius = min(math.ceil(_REACH * sigma), length - 1)
        taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).astype(np.float32)
        pad = [(0, 0), (0, 0)]
        pad[axis] = (radius, radius)
        padded = jnp.pad(y, pad)
        y = sum(
            float(tap) * jax.lax.slice_in_dim(padded, i, i + length, axis=axis)
            for i, tap in enumerate(taps)
        )
    return y.reshape(-1)
