"""Unary energies from probabilities: the plain one, and the one of MATNet and AGS."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

#: Probabilities are kept this far from zero before the logarithm (`utils.py@pydensecrf`).
CLIP = 1e-5


def from_probabilities(
    probs: Float[Array, "L *n"], *, scale: float | None = None, clip: float | None = CLIP
) -> Float[Array, "L *n"]:
    """-log(p), with p first mixed with the uniform distribution (scale < 1), then clipped.

    Args:
      scale: confidence in (0, 1]: p becomes `scale * p + (1 - scale) / L`.
      clip: smallest p; None for no clipping.
    """
    if scale is not None:
        probs = scale * probs + (1.0 - scale) / probs.shape[0]
    return -jnp.log(probs if clip is None else jnp.clip(probs, clip, 1.0))


def from_labels(
    labels: jax.Array, num_labels: int, *, confidence: float, zero_unsure: bool = True
) -> jax.Array:
    """Energies `[L,...]` of given integer labels, each right with probability `confidence`.

    With `zero_unsure`, 0 means "unknown" (all labels equal) and label i stands for i-1.
    """
    index = labels.astype(jnp.int32) - int(zero_unsure)
    hit = jnp.arange(num_labels).reshape(-1, *[1] * labels.ndim) == index[None]
    miss = (1.0 - confidence) / (num_labels - 1)
    energy = jnp.where(hit, -jnp.log(jnp.float32(confidence)), -jnp.log(jnp.float32(miss)))
    if zero_unsure:
        energy = jnp.where(labels[None] == 0, jnp.log(jnp.float32(num_labels)), energy)
    return energy


def stretch(probs: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Min-max to 0..1, the first step of COSNet's and others' scripts; a constant map is kept."""
    low, high = jnp.min(probs), jnp.max(probs)
    span = high - low
    return jnp.where(span > 0, (probs - low) / jnp.where(span > 0, span, 1.0), probs)


def rescored(foreground: Float[Array, "*n"], *, tau: float = 1.05) -> Float[Array, "2 *n"]:
    """MATNet's and AGS's energies: a negative log taken twice.

    `e = -log(1-p+1e-8) / (tau sigmoid(1-p))` is handed to label 1 *as a probability* and
    `-log(p+1e-8) / (tau sigmoid(p))` to label 0; both are clipped and `-log` is taken again
    (`apply_densecrf_davis.py@tfzhou/MATNet`, `davis_crf.py@wenguanwang/AGS`). A non-linear
    re-scoring, not a likelihood; kept because the published masks were made with it.
    """
    p = foreground
    label1 = -jnp.log(1.0 - p + 1e-8) / (tau * jax.nn.sigmoid(1.0 - p))
    label0 = -jnp.log(p + 1e-8) / (tau * jax.nn.sigmoid(p))
    return from_probabilities(jnp.stack([label0, label1]))
