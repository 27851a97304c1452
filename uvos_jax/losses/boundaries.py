"""Targets made from masks: object boundaries, and background that looks like an edge (MATNet)."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from uvos_jax.errors import ConfigError
from uvos_jax.ops.pooling import max_pool
from uvos_jax.types import VOID


def boundary_target(masks: Integer[Array, "*B H W"], radius: int = 2) -> Float[Array, "*B H W"]:
    """1 where another label lies within Euclidean distance `radius`, on both sides of a border.

    Borders between two instances count; those of void regions and of the image do not.

    Args:
      masks: 0 background, object ids, 255 void.
      radius: in pixels, at least 1.
    """
    if radius < 1:
        raise ConfigError(f"the radius of boundaries must be at least 1 pixel, got {radius}")
    H, W = masks.shape[-2:]
    r = int(radius)
    pads = [(0, 0)] * (masks.ndim - 2) + [(r, r), (r, r)]
    labels = masks.astype(jnp.int32)
    padded = jnp.pad(labels, pads, constant_values=VOID)
    edge = jnp.zeros(masks.shape, bool)
    for dy, dx in itertools.product(range(-r, r + 1), repeat=2):
        if (dy, dx) != (0, 0) and dy * dy + dx * dx <= radius * radius:
            other = padded[..., r + dy : r + dy + H, r + dx : r + dx + W]
            edge |= (labels != other) & (labels != VOID) & (other != VOID)
    return edge.astype(jnp.float32)


def dilate(maps: Float[Array, "*B H W"], size: int) -> Float[Array, "*B H W"]:
    """Maximum over odd `size` x `size` windows."""
    if size < 1 or size % 2 == 0:
        raise ConfigError(f"the window of a dilation must be odd, got {size}")
    H, W = maps.shape[-2:]
    x = maps.reshape(-1, H, W, 1)
    return max_pool(x, size, 1, size // 2).reshape(maps.shape)


def hard_negatives(
    edges: Float[Array, "*B H W"],
    foreground: Float[Array, "*B H W"],
    *,
    margin: int = 11,
    spread: int = 5,
    stretch: bool = True,
) -> Float[Array, "*B H W"]:
    """How much each background pixel looks like an edge, 0..1: `dilate(e (1 - dilate(m)))`.

    Args:
      edges: edge probability.
      foreground: 1 on objects.
      margin: window by which objects are widened before edges near them are dropped.
      spread: window by which what is left is widened.
      stretch: min-max every map to 0..1, as the release's resize of float images does; a constant
        map becomes 0.
    """
    hard = dilate(edges * (1.0 - dilate(foreground, margin)), spread)
    if not stretch:
        return hard
    low = jnp.min(hard, axis=(-2, -1), keepdims=True)
    span = jnp.max(hard, axis=(-2, -1), keepdims=True) - low
    return (hard - low) / jnp.where(span > 0, span, 1.0)


def sobel_edges(frames: Float[Array, "*B H W 3"]) -> Float[Array, "*B H W"]:
    """Sobel magnitude of the grey value over its maximum in each frame: 0..1.

    A stand-in for learned edge maps; it fires on texture as well.
    """
    grey = jnp.mean(frames.astype(jnp.float32), axis=-1)
    H, W = grey.shape[-2:]
    lead = [(0, 0)] * (grey.ndim - 2)
    padded = jnp.pad(grey, [*lead, (1, 1), (1, 1)], mode="edge")
    smooth, slope = np.asarray([1.0, 2.0, 1.0]), np.asarray([-1.0, 0.0, 1.0])

    def filtered(rows: np.ndarray, cols: np.ndarray) -> jax.Array:
        taps = itertools.product(range(3), repeat=2)
        return sum(
            float(rows[i] * cols[j]) * padded[..., i : i + H, j : j + W]
            for i, j in taps
            if rows[i] * cols[j]
        )

    magnitude = jnp.hypot(filtered(smooth, slope), filtered(slope, smooth))
    top = jnp.max(magnitude, axis=(-2, -1), keepdims=True)
    return magnitude / jnp.where(top > 0, top, 1.0)
