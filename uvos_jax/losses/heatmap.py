"""Losses of maps that point at object centres."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def penalty_reduced_focal(
    logits: Float[Array, "B h w"],
    target: Float[Array, "B h w"],
    weights: Float[Array, " B"],
    *,
    alpha: float = 2.0,
    beta: float = 4.0,
    clip: float = 1e-4,
) -> Float[Array, ""]:
    """CornerNet's focal loss: `-1/N sum (1-p)^a log p` at peaks, `(1-y)^b p^a log(1-p)` elsewhere.

    `p = sigmoid(logits)` clipped to [clip, 1 - clip]; peaks are the cells where the target is 1
    and N is their number in the batch (Law & Deng, ECCV 2018, eq. 1).

    Args:
      target: Gaussians of peak 1.
      weights: of the maps; 0 leaves one out.

    Returns:
      The loss; without any peak the second term alone, undivided.
    """
    p = jnp.clip(jax.nn.sigmoid(logits.astype(jnp.float32)), clip, 1.0 - clip)
    w = weights.astype(jnp.float32)[:, None, None]
    peak = (target >= 1.0).astype(jnp.float32)
    positive = (1.0 - p) ** alpha * jnp.log(p) * peak
    negative = (1.0 - target) ** beta * p**alpha * jnp.log(1.0 - p) * (1.0 - peak)
    count = jnp.sum(peak * w)
    return -jnp.sum((positive + negative) * w) / jnp.maximum(count, 1.0)
