"""Edges of a picture, without learning."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from uvos_jax.ops.color import rgb_to_lab


def edge_contrast(frames: Real[Array, "*B H W 3"]) -> Float[Array, "*B H W 2"]:
    """How steeply lightness and colour change, beside the mean of the frame: `g / (g + mean g)`.

    Args:
      frames: RGB, 0..255.

    Returns:
      of L and of (a, b) of CIE L*a*b*, 0..1: one half where a pixel's slope is the frame's mean,
      0 throughout where nothing changes. Slopes are central differences.
    """
    lab = rgb_to_lab(frames.astype(jnp.float32) / 255)
    lead = [(0, 0)] * (lab.ndim - 3)
    padded = jnp.pad(lab, [*lead, (1, 1), (1, 1), (0, 0)], mode="edge")
    across = padded[..., 1:-1, 2:, :] - padded[..., 1:-1, :-2, :]
    down = padded[..., 2:, 1:-1, :] - padded[..., :-2, 1:-1, :]
    squared = across**2 + down**2
    slopes = jnp.sqrt(jnp.stack([squared[..., 0], squared[..., 1] + squared[..., 2]], axis=-1))
    # a slope of a thousandth of the lightness is no edge in a frame of one colour either
    return slopes / (slopes + slopes.mean(axis=(-3, -2), keepdims=True) + 0.1)
