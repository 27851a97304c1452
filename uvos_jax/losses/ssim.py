"""Structural similarity (Wang, Bovik, Sheikh, Simoncelli, TIP 2004) through a Gaussian window."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from uvos_jax.errors import ShapeError

K1, K2 = 0.01, 0.03


@lru_cache(maxsize=32)
def _window_matrix(n: int, window: int, sigma: float) -> np.ndarray:
    """`[n - window + 1, n]`: row i weighs the samples of the window that begins at i."""
    offsets = np.arange(window) - (window - 1) / 2
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    weights /= weights.sum()
    matrix = np.zeros((n - window + 1, n), np.float32)
    for i, row in enumerate(matrix):
        row[i : i + window] = weights
    return matrix


def ssim(
    a: Float[Array, "B H W C"],
    b: Float[Array, "B H W C"],
    *,
    window: int = 11,
    sigma: float = 1.5,
) -> Float[Array, "B h w C"]:
    """SSIM of images with values in [0,1], at every place where the whole window fits.

    With the defaults that is what `tf.image.ssim` averages.

    Raises:
      ShapeError: an image smaller than the window.
    """
    H, W = a.shape[1:3]
    if min(H, W) < window:
        raise ShapeError(
            f"ssim: images of {H}x{W} are smaller than the window of {window}x{window}; use "
            "larger images or a smaller window"
        )
    rows, columns = (jnp.asarray(_window_matrix(n, window, sigma)) for n in (H, W))

    def smooth(x: jax.Array) -> jax.Array:
        # variances are small differences of products: full precision
        x = jnp.einsum("ih,bhwc->biwc", rows, x, precision="highest")
        return jnp.einsum("jw,biwc->bijc", columns, x, precision="highest")

    mean_a, mean_b = smooth(a), smooth(b)
    products, squares = mean_a * mean_b, mean_a**2 + mean_b**2
    covariance = smooth(a * b) - products
    variances = smooth(a * a + b * b) - squares
    c1, c2 = K1**2, K2**2
    return ((2 * products + c1) * (2 * covariance + c2)) / ((squares + c1) * (variances + c2))


def structural_dissimilarity(
    a: Float[Array, "B H W C"],
    b: Float[Array, "B H W C"],
    *,
    window: int = 11,
    sigma: float = 1.5,
) -> Float[Array, "B"]:
    """`(1 - SSIM) / 2` of whole images: the mean over all places and channels."""
    return (1.0 - jnp.mean(ssim(a, b, window=window, sigma=sigma), axis=(1, 2, 3))) / 2.0
