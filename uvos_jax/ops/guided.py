"""Enlarging maps along the edges of a larger picture: the guided filter.

He, Sun, Tang: Guided Image Filtering, ECCV 2010 (TPAMI 2013, equations 14 to 16 for colour); at two
resolutions as in He, Sun: Fast Guided Filter, arXiv 1505.00996, 2015, with its radius in pixels of
the small picture. In each window the map is the linear function of colour that fits it best; a
pixel takes the mean of those of all windows that hold it. Found on the small picture, they are
enlarged and applied to the colours of the large one, so that the map ends where the object does.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from uvos_jax.ops.blur import box_mean
from uvos_jax.ops.resize import resize_bilinear

__all__ = ["guided_enlarge"]


def guided_enlarge(
    x: Float[Array, "*B h w"],
    small: Float[Array, "*B h w 3"],
    large: Float[Array, "*B H W 3"],
    *,
    radius: int = 3,
    epsilon: float = 1e-3,
) -> Float[Array, "*B H W"]:
    """A map at the size of `large`, of which `small` is the picture at the map's own size.

    Linear in `x`; a constant map stays so. Values may leave the range of `x` a little.

    Args:
      small, large: RGB in [0, 1].
      radius: of the windows, in pixels of `small`.
      epsilon: variance of colour within a window (of values in [0, 1]) below which it is ignored.

    Returns:
      float32.
    """
    small, x = small.astype(jnp.float32), x.astype(jnp.float32)[..., None]
    channels = small - 0.5  # squares lose least about zero
    red, green, blue = jnp.split(channels, 3, axis=-1)
    products = [red * red, red * green, red * blue, green * green, green * blue, blue * blue]
    means = box_mean(jnp.concatenate([channels, x, channels * x, *products], axis=-1), radius)
    mean, mean_x, with_x, squares = jnp.split(means, (3, 4, 7), axis=-1)
    covariance = with_x - mean * mean_x
    slope = _solved(squares, mean, covariance, epsilon)
    offset = mean_x - jnp.sum(slope * mean, axis=-1, keepdims=True)
    line = box_mean(jnp.concatenate([slope, offset], axis=-1), radius)
    line = resize_bilinear(line, large.shape[-3:-1])
    return jnp.sum(line[..., :3] * (large.astype(jnp.float32) - 0.5), axis=-1) + line[..., 3]


def _solved(squares: Array, mean: Array, right: Array, epsilon: float) -> Array:
    """Solves for `[...,3]` with the covariance of colour plus epsilon, by its LDL' factors.

    Args:
      squares: `[...,6]`, means of the products rr, rg, rb, gg, gb, bb. mean: of r, g, b.
    """
    rr, rg, rb, gg, gb, bb = (squares[..., i] for i in range(6))
    r, g, b = (mean[..., i] for i in range(3))
    rr, gg, bb = rr - r * r + epsilon, gg - g * g + epsilon, bb - b * b + epsilon
    rg, rb, gb = rg - r * g, rb - r * b, gb - g * b
    under_r, second = rg / rr, rb / rr
    gg, gb = gg - rg * under_r, gb - rb * under_r
    third = gb / gg
    bb = bb - rb * second - gb * third
    p, q, s = (right[..., i] for i in range(3))
    q = q - under_r * p
    s = (s - second * p - third * q) / bb
    q = q / gg - third * s
    return jnp.stack([p / rr - under_r * q - second * s, q, s], axis=-1)
