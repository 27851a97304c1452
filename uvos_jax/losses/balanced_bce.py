"""Cross entropies against the imbalance of foreground and background.

COSNet's code and paper balance differently; both forms are here. All take logits, binary targets
and pixel weights (1 counts, 0 does not) of equal shape `[B,H,W]`, compute in float32 and never
take the logarithm of a probability.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uvos_jax.losses.masks import weighted_mean


def _cross_entropies(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`-log s` and `-log(1-s)` of `s = sigmoid(logits)`."""
    logits = logits.astype(jnp.float32)
    return jax.nn.softplus(-logits), jax.nn.softplus(logits)


def ratio_weighted_bce(
    logits: Float[Array, "B H W"],
    target: Float[Array, "B H W"],
    weights: Float[Array, "B H W"],
    *,
    min_ratio: float = 0.0,
) -> Float[Array, ""]:
    """`(1/r) mean[-o log s - (1-o) log(1-s)]` with r the share of foreground in the batch.

    One scalar reweights the whole batch; foreground and background keep their natural balance
    (`train_iteration_conf.py@carrierlxk/COSNet`, which divides by zero on an empty mask).

    Args:
      min_ratio: lower bound of r. r is never taken below one pixel of those that count; a batch
        without foreground then weighs as much as its number of pixels, so recipes that meet empty
        masks often should set a bound of about 0.01.

    Returns:
      The loss; 0 when no pixel counts.
    """
    positive, negative = _cross_entropies(logits)
    mean = weighted_mean(target * positive + (1.0 - target) * negative, weights)
    count = jnp.maximum(jnp.sum(weights), 1.0)
    ratio = jnp.sum(target * weights) / count
    return mean / jnp.maximum(ratio, jnp.maximum(1.0 / count, min_ratio))


def class_weighted_bce(
    logits: Float[Array, "B H W"],
    target: Float[Array, "B H W"],
    weights: Float[Array, "B H W"],
) -> Float[Array, ""]:
    """`-mean[(1-eta) o log s + eta (1-o) log(1-s)]`, eta = foreground / background pixels.

    The form of the paper (COSNet, section 3.3), with eta counted per image and clipped to [0,1],
    since an object larger than the background would otherwise turn the sign of its own term. The
    paper writes a sum over pixels; the mean makes learning rates independent of the image size.

    Returns:
      The mean over all pixels that count; 0 when none does.
    """
    positive, negative = _cross_entropies(logits)
    foreground = jnp.sum(target * weights, axis=(1, 2), keepdims=True)
    background = jnp.sum((1.0 - target) * weights, axis=(1, 2), keepdims=True)
    eta = jnp.clip(foreground / jnp.maximum(background, 1.0), 0.0, 1.0)
    return weighted_mean((1.0 - eta) * target * positive + eta * (1.0 - target) * negative, weights)


def mean_absolute_error(
    logits: Float[Array, "B H W"],
    target: Float[Array, "B H W"],
    weights: Float[Array, "B H W"],
) -> Float[Array, ""]:
    """`mean |s - o|` with `s = sigmoid(logits)`; 0 when no pixel counts."""
    return weighted_mean(jnp.abs(jax.nn.sigmoid(logits.astype(jnp.float32)) - target), weights)
