"""Silhouettes: compositions of star-shaped parts, evaluated as an approximate signed distance."""

from __future__ import annotations

import jax
import jax.numpy as jnp

#: Angles at which a part's radius is tabulated.
ANGLES = 64


def star_distance(table: jax.Array, p: jax.Array) -> jax.Array:
    """Approximate signed distance (positive inside) of points `[...,2]` in units of the radius."""
    r = jnp.sqrt(jnp.sum(p * p, axis=-1) + 1e-12)
    position = (jnp.arctan2(p[..., 1], p[..., 0]) / (2 * jnp.pi)) % 1.0 * ANGLES
    low = jnp.floor(position).astype(jnp.int32) % ANGLES
    fraction = position - jnp.floor(position)
    radius = table[low] * (1 - fraction) + table[(low + 1) % ANGLES] * fraction
    return radius - r


def silhouette(shape: dict, u: jax.Array) -> jax.Array:
    """Signed value in canonical pixels, positive inside, of a composition of parts.

    `shape` has per part: `table [P,ANGLES]`, `offset [P,2]` and `size [P]` in units of the
    object's radius, `sign [P]` (+1 added, -1 cut out, 0 absent), and for the whole `radius` and
    `stretch [2]` in pixels and ratio. Parts after the first are blended smoothly.
    """
    p = u / (shape["radius"] * shape["stretch"])
    value = star_distance(shape["table"][0], (p - shape["offset"][0]) / shape["size"][0])
    value = value * shape["size"][0]
    for k in range(1, shape["table"].shape[0]):
        size = shape["size"][k]
        part = star_distance(shape["table"][k], (p - shape["offset"][k]) / size) * size
        value = jnp.select(
            [shape["sign"][k] > 0, shape["sign"][k] < 0],
            [smooth_maximum(value, part), jnp.minimum(value, -part)],
            value,
        )
    return value * shape["radius"] * jnp.min(shape["stretch"])


def smooth_maximum(a: jax.Array, b: jax.Array, width: float = 0.1) -> jax.Array:
    """Maximum whose kink is rounded over `width`."""
    h = jnp.maximum(width - jnp.abs(a - b), 0.0) / width
    return jnp.maximum(a, b) + 0.25 * width * h * h
