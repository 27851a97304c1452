"""Erosion of masks and exact Euclidean distances to them, jittable."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from uvos_jax.errors import ConfigError


def erode(mask: Bool[Array, "*B H W"], window: int) -> Bool[Array, "*B H W"]:
    """True where the whole square window around a pixel is; what lies outside the image does not
    count (equal to a grey erosion with mirrored borders).

    Args:
      window: side in pixels; the window of an even one reaches one pixel further up and left.

    Raises:
      ConfigError: a window below 1.
    """
    if window < 1:
        raise ConfigError(f"erode: the window must be at least 1 pixel, got {window}")
    before, after = window // 2, (window - 1) // 2
    x = (~mask).astype(jnp.int32)
    for axis in (mask.ndim - 2, mask.ndim - 1):
        total = jnp.cumsum(x, axis=axis)
        n = x.shape[axis]
        index = jnp.arange(n)
        high = jnp.take(total, jnp.minimum(index + after, n - 1), axis=axis)
        low = jnp.take(total, jnp.maximum(index - before - 1, 0), axis=axis)
        shape = [1] * mask.ndim
        shape[axis] = n
        low = jnp.where((index - before - 1 >= 0).reshape(shape), low, 0)
        x = (high - low > 0).astype(jnp.int32)
    return x == 0


def distance_to(mask: Bool[Array, "*B H W"]) -> Float[Array, "*B H W"]:
    """Euclidean distance in pixels from every pixel to the nearest true one; inf if there is none.

    Distances along rows by running maxima, then the minimum over rows of
    `(y - y')^2 + g(y', x)^2`, a scan over `y'`.
    """
    H, W = mask.shape[-2:]
    x = jnp.arange(W, dtype=jnp.float32)
    axis = mask.ndim - 1
    left = lax.cummax(jnp.where(mask, x, -jnp.inf), axis=axis)
    right = lax.cummin(jnp.where(mask, x, jnp.inf), axis=axis, reverse=True)
    along = jnp.minimum(x - left, right - x)
    square = jnp.moveaxis(along * along, -2, 0)  # [H,*B,W]
    rows = jnp.arange(H, dtype=jnp.float32).reshape(H, *([1] * (mask.ndim - 1)))

    def nearer(best: jax.Array, inputs: tuple) -> tuple[jax.Array, None]:
        y, of_row = inputs
        return jnp.minimum(best, of_row + (rows - y) ** 2), None

    start = jnp.full(square.shape, jnp.inf, jnp.float32)
    best, _ = lax.scan(nearer, start, (jnp.arange(H, dtype=jnp.float32), square))
    return jnp.sqrt(jnp.moveaxis(best, 0, -2))
