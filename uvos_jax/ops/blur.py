"""Averages in windows."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def _rows(size: int, deviation: float) -> np.ndarray:
    """Rows of weights `[size,size]`: a Gaussian mean that ends at the border."""
    at = np.arange(size)
    weights = np.exp(-0.5 * ((at[:, None] - at) / deviation) ** 2)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def gaussian_mean(x: Float[Array, "*B H W C"], deviation: float) -> Float[Array, "*B H W C"]:
    """Mean in a Gaussian window of this deviation, in pixels; windows end at the border.

    Two products with a matrix each, which for pictures of some hundred pixels a side take less time
    than sums over the taps of a window.
    """
    rows, columns = (jnp.asarray(_rows(n, deviation)) for n in x.shape[-3:-1])
    return jnp.einsum("yh,...hwc,xw->...yxc", rows, x, columns)
