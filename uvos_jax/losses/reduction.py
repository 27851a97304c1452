"""How per-pixel losses become one number: a mean, or Caffe's sum over a frame."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from uvos_jax.errors import ConfigError

REDUCTIONS = ("sum_per_frame", "mean")


def reduce_pixels(
    values: Float[Array, "B T H W"], weights: Float[Array, "B T H W"], reduction: str
) -> Float[Array, ""]:
    """One number from the losses of all pixels.

    Args:
      weights: 1 for pixels that count, else 0.
      reduction: `mean` over the pixels that count; `sum_per_frame`: summed over the pixels of a
        frame and averaged over the frames that have any, as Caffe's losses do. A rate of 1e-8 with
        that sum at 473x473 is one of 2.2e-3 with the mean.

    Returns:
      the loss; 0 when no pixel counts.

    Raises:
      ConfigError: another reduction.
    """
    if reduction not in REDUCTIONS:
        raise ConfigError(f"reduction {reduction!r} is unknown: use one of {REDUCTIONS}")
    if reduction == "mean":
        count = jnp.sum(weights)
    else:
        count = jnp.sum(jnp.any(weights > 0, axis=(2, 3)).astype(jnp.float32))
    return jnp.sum(weights * values) / jnp.maximum(count, 1.0)
