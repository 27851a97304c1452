"""The Resample layer of the FlowNet fork of Caffe, which SegFlow feeds its flow branch with.

Linear interpolation by a triangle kernel that widens when an image shrinks (antialiasing),
normalised over the pixels inside the image. Two habits of that layer are kept: shrinking either
axis switches antialiasing on for both, and the half-pixel offset of x is taken from the ratio of y
and the other way round, which shows when the ratios differ.
"""

from __future__ import annotations

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from uvos_jax.errors import ShapeError


@lru_cache(maxsize=128)
def _triangle_matrix(n_in: int, n_out: int, other_ratio: float, antialias: bool) -> np.ndarray:
    """Weights float32 `[n_out,n_in]` of one axis; rows sum to 1 (or are 0 if nothing is near)."""
    ratio = n_in / n_out
    position = np.arange(n_out) * ratio + other_ratio / 2 - 0.5
    scale = 1 / ratio if antialias else 1.0
    distance = np.abs(position[:, None] - np.arange(n_in)[None, :]) * scale
    weight = np.maximum(1 - distance, 0)
    total = weight.sum(1, keepdims=True)
    return (weight / np.where(total > 0, total, 1)).astype(np.float32)


def resample_flownet(
    x: Float[Array, "*B H W C"], size: tuple[int, int], *, antialias: bool = True
) -> Float[Array, "*B h w C"]:
    """Resizes to `size` (h, w) as the Resample layer does with type LINEAR.

    Raises:
      ShapeError: an empty image or size.
    """
    H, W = x.shape[-3:-1]
    if len(size) != 2 or min(size) < 1 or min(H, W) < 1:
        raise ShapeError(f"resample_flownet: cannot go from {(H, W)} to {tuple(size)}")
    ratio_y, ratio_x = H / size[0], W / size[1]
    wide = antialias and (ratio_x > 1 or ratio_y > 1)
    rows = jnp.asarray(_triangle_matrix(H, size[0], ratio_x, wide), x.dtype)
    columns = jnp.asarray(_triangle_matrix(W, size[1], ratio_y, wide), x.dtype)
    precision = lax.Precision.HIGHEST
    x = jnp.einsum("hH,...HWC->...hWC", rows, x, precision=precision)
    return jnp.einsum("wW,...hWC->...hwC", columns, x, precision=precision)
