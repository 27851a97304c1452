"""Probabilities as log-odds, which add up."""

from __future__ import annotations

import jax
import jax.numpy as jnp

#: Probabilities are kept this far from 0 and 1.
EDGE = 1e-3


def log_odds(probs: jax.Array, edge: float = EDGE) -> jax.Array:
    """`log(p / (1 - p))` of probabilities, which are kept `edge` off 0 and 1."""
    p = jnp.clip(probs.astype(jnp.float32), edge, 1 - edge)
    return jnp.log(p) - jnp.log1p(-p)
