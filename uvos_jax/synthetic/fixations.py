"""Made-up fixations of synthetic clips: people look at the middle of the salient object."""

from __future__ import annotations

import jax
import jax.numpy as jnp

#: Standard deviation of a fixation map as a share of the root of the object's area.
SPREAD = 0.4


def fixation_maps(masks: jax.Array) -> jax.Array:
    """Gaussians over the objects of masks `[...,H,W]` (0 background): float32, maximum 1.

    Frames without object have no fixations: zeros.
    """
    H, W = masks.shape[-2:]
    inside = (masks > 0).astype(jnp.float32)
    area = jnp.sum(inside, axis=(-2, -1), keepdims=True)
    y = jnp.arange(H, dtype=jnp.float32)[:, None]
    x = jnp.arange(W, dtype=jnp.float32)[None, :]
    mean_y, mean_x = (
        jnp.sum(inside * axis, axis=(-2, -1), keepdims=True) / jnp.maximum(area, 1.0)
        for axis in (y, x)
    )
    variance = jnp.maximum(SPREAD**2 * area, 1.0)
    distance = (y - mean_y) ** 2 + (x - mean_x) ** 2
    return jnp.where(area > 0, jnp.exp(-0.5 * distance / variance), 0.0)
