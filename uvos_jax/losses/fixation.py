"""Losses of predicted fixation maps against blurred maps of human fixations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def has_fixations(fixations: Float[Array, "B T H W"]) -> Float[Array, "B T"]:
    """1 for frames with fixations, 0 for frames whose map is zero everywhere: those have none."""
    return jnp.any(fixations > 0, axis=(2, 3)).astype(jnp.float32)


def soft_bce(
    logits: Float[Array, "B T H W"], fixations: Float[Array, "B T H W"]
) -> Float[Array, "B T H W"]:
    """Cross entropy of `sigmoid(logits)` with a target between 0 and 1, per pixel."""
    logits = logits.astype(jnp.float32)
    target = jnp.clip(fixations.astype(jnp.float32), 0.0, 1.0)
    return target * jax.nn.softplus(-logits) + (1.0 - target) * jax.nn.softplus(logits)


def kl_divergence(
    logits: Float[Array, "B T H W"], fixations: Float[Array, "B T H W"], *, epsilon: float = 1e-7
) -> Float[Array, "B T"]:
    """`sum q log(q / p)`, both maps made to sum to one: q of the fixations, p of the sigmoid.

    Args:
      epsilon: added to p and q in the logarithm.

    Returns:
      one value per frame; of no meaning where there are no fixations.
    """
    predicted = jax.nn.sigmoid(logits.astype(jnp.float32))
    p = predicted / jnp.maximum(jnp.sum(predicted, axis=(2, 3), keepdims=True), epsilon)
    total = jnp.sum(fixations, axis=(2, 3), keepdims=True)
    q = fixations / jnp.where(total > 0, total, 1.0)
    return jnp.sum(q * (jnp.log(q + epsilon) - jnp.log(p + epsilon)), axis=(2, 3))
