"""Making exact flow look estimated, so that networks do not rely on what estimators cannot give."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def _blur(x: jax.Array, sigma: float) -> jax.Array:
    """Separable Gaussian over axes -3 and -2 of `[...,H,W,C]`."""
    radius = max(1, int(np.ceil(2 * sigma)))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps = taps / taps.sum()
    for axis in (x.ndim - 3, x.ndim - 2):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (radius, radius)
        padded = jnp.pad(x, widths, mode="edge")
        x = sum(
            float(w) * jax.lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis)
            for i, w in enumerate(taps)
        )
    return x


def degrade_flow(key: jax.Array, flow: jax.Array, occluded: jax.Array | None = None) -> jax.Array:
    """Estimator-like errors on exact flow `[...,H,W,2]` (px).

    Smears motion boundaries, fills occluded pixels (`[...,H,W]` bool) from their surroundings,
    adds a scale error, smooth noise of half to one and a half pixel, and block smoothing.
    """
    keys = jax.random.split(key, 6)
    if occluded is not None:
        known = 1.0 - occluded[..., None].astype(flow.dtype)
        filled = _blur(flow * known, 4.0) / (_blur(known, 4.0) + 1e-3)
        flow = flow * known + filled * (1 - known)
    amount = jax.random.uniform(keys[0], (), minval=0.0, maxval=1.0)
    soft = _blur(flow, 1.0) * (1 - amount) + _blur(flow, 2.5) * amount
    scale = 1 + 0.05 * jax.random.normal(keys[1])
    H, W = flow.shape[-3:-1]
    coarse = jax.random.normal(keys[2], (*flow.shape[:-3], max(H // 16, 2), max(W // 16, 2), 2))
    noise = jax.image.resize(coarse, flow.shape, "linear")
    strength = jax.random.uniform(keys[3], (), minval=0.1, maxval=0.6)
    rough = soft * scale + strength * noise
    blocks = jnp.repeat(jnp.repeat(rough[..., ::8, ::8, :], 8, axis=-3), 8, axis=-2)
    blocks = blocks[..., :H, :W, :]
    mix = 0.3 * jax.random.bernoulli(keys[4], 0.3)
    return rough * (1 - mix) + _blur(blocks, 3.0) * mix
