"""Cross entropy of the hardest pixels only (bootstrapped; Wu, Shen, van den Hengel, 2016)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def bootstrapped_cross_entropy(
    logits: Float[Array, "B h w 2"],
    target: Float[Array, "B h w"],
    weights: Float[Array, "B h w"],
    *,
    fraction: float = 0.25,
) -> Float[Array, "B"]:
    """Per image the mean over the `int(fraction h w)` pixels of highest cross entropy.

    Args:
      logits: of background and foreground.
      target: probability of foreground, hard or soft.
      weights: 1 counts, 0 (void) has no loss; void pixels still fill up the share of the hardest
        if there are not enough others, as in the release.
      fraction: of pixels that are kept, at least one.
    """
    h, w = target.shape[1:]
    logs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    loss = -(target * logs[..., 1] + (1.0 - target) * logs[..., 0]) * weights
    kept = max(int(fraction * h * w), 1)
    hardest, _ = jax.lax.top_k(loss.reshape(-1, h * w), kept)
    return jnp.mean(hardest, axis=1)
