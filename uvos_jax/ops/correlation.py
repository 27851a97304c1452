"""Cost volumes: how well each pixel of one feature map matches the other map's surroundings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from uvos_jax.errors import ConfigError, ShapeError


def correlation(
    first: Float[Array, "B H W C"],
    second: Float[Array, "..."],
    radius: int,
    *,
    step: int = 1,
    kernel_size: int = 1,
    normalize: bool = True,
) -> Float[Array, "B H W D"]:
    """Products of `first` at p and `second` at `p + step (dx, dy)`, for all |dx|, |dy| <= radius.

    Channel `(dy + radius)(2 radius + 1) + dx + radius` holds displacement (dx, dy); beyond the
    border `second` is 0. FlowNetC uses radius 10, step 2 (441 maps), PWC-Net radius 4 (81).

    Args:
      kernel_size: odd side of the window over which products are summed.
      normalize: divide by the number of channels and the window's area (a mean); otherwise a sum.

    Raises:
      ShapeError: the maps differ in shape. ConfigError: a negative radius or an even window.
    """
    if first.ndim != 4 or first.shape != second.shape:
        raise ShapeError(
            "correlation: expected two maps of one shape [B,H,W,C], got "
            f"{first.shape} and {second.shape}"
        )
    if radius < 0 or step < 1 or kernel_size < 1 or kernel_size % 2 == 0:
        raise ConfigError(
            "correlation: expected radius >= 0, step >= 1 and an odd kernel_size, got "
            f"radius {radius}, step {step}, kernel_size {kernel_size}"
        )
    H, W, C = first.shape[1:]
    reach, count = radius * step, 2 * radius + 1
    padded = jnp.pad(second, ((0, 0), (reach, reach), (reach, reach), (0, 0)))

    # One row of displacements at a time; rematerialised, or its gradient would keep `count`
    # copies of the second map.
    @jax.checkpoint
    def row(dy: Array) -> Array:
        rows = lax.dynamic_slice_in_dim(padded, dy * step, H, axis=1)
        shifted = (rows[:, :, dx * step : dx * step + W] for dx in range(count))
        return jnp.stack([jnp.sum(first * s, axis=-1, dtype=jnp.float32) for s in shifted], -1)

    volume = jnp.moveaxis(lax.map(row, jnp.arange(count)), 0, 3)
    volume = volume.reshape(*first.shape[:3], count * count)
    if kernel_size > 1:
        half = kernel_size // 2
        volume = lax.reduce_window(
            volume,
            0.0,
            lax.add,
            (1, kernel_size, kernel_size, 1),
            (1, 1, 1, 1),
            ((0, 0), (half, half), (half, half), (0, 0)),
        )
    if normalize:
        volume = volume / (C * kernel_size**2)
    return volume.astype(first.dtype)
