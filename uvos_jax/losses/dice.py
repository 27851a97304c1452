"""Overlap losses: differentiable stand-ins for the region similarity J."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def soft_iou_loss(
    logits: Float[Array, "B H W"],
    target: Float[Array, "B H W"],
    weights: Float[Array, "B H W"],
    *,
    smooth: float = 1.0,
) -> Float[Array, ""]:
    """`1 - (sum s o + e) / (sum (s + o - s o) + e)` per image, averaged over images that count.

    Unlike cross entropies it does not care how small the object is (Rahman & Wang, ISVC 2016).

    Args:
      weights: 1 for pixels that count; an image without any is left out.
      smooth: e, in pixels; an empty mask predicted empty then costs nothing.

    Returns:
      The mean; 0 when no image counts.
    """
    s = jax.nn.sigmoid(logits.astype(jnp.float32))
    overlap = jnp.sum(s * target * weights, axis=(1, 2))
    union = jnp.sum((s + target - s * target) * weights, axis=(1, 2))
    loss = 1.0 - (overlap + smooth) / (union + smooth)
    counts = (jnp.sum(weights, axis=(1, 2)) > 0).astype(jnp.float32)
    return jnp.sum(loss * counts) / jnp.maximum(jnp.sum(counts), 1.0)
