"""From the masks of the data contract to binary targets and pixel weights; weighted means."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from uvos_jax.types import VOID


def binary_target(masks: Integer[Array, "*B H W"]) -> Float[Array, "*B H W"]:
    """1 where any object is, 0 for background and void."""
    return ((masks > 0) & (masks < VOID)).astype(jnp.float32)


def pixel_weights(
    masks: Integer[Array, "*B H W"],
    valid: Bool[Array, "*B"] | None = None,
    has_mask: Bool[Array, "*B"] | None = None,
) -> Float[Array, "*B H W"]:
    """1 for pixels that count, 0 for void ones and for frames that are padding or unannotated.

    Args:
      masks: 0 background, object ids, 255 void.
      valid: False for frames that only fill up a clip; None means all are real.
      has_mask: False for frames without annotation; None means all have one.
    """
    weights = (masks != VOID).astype(jnp.float32)
    for frames in (valid, has_mask):
        if frames is not None:
            weights = weights * frames[..., None, None].astype(jnp.float32)
    return weights


def weighted_mean(
    values: Float[Array, "*S"],
    weights: Float[Array, "*S"],
    axis: int | tuple[int, ...] | None = None,
) -> Float[Array, "..."]:
    """`sum(w v) / sum(w)` over `axis`; 0 where all weights are 0."""
    total = jnp.sum(weights, axis=axis)
    return jnp.sum(jax.lax.mul(values, weights), axis=axis) / jnp.where(total > 0, total, 1.0)
