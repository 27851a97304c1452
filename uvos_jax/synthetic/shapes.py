"""Silhouettes: compositions of star-shaped parts, evaluated as an approximate signed distance."""

from __future__ import annotations

import jax
import jax.numpy as jnp

#: Angles at which a part's radius is tabulated.
ANGLES = 64


def sample_radius_table(key: jax.Array) -> jax.Array:
    """Radius over angle `[ANGLES]` with mean about 1: Fourier, super-ellipse or polygon."""
    keys = jax.random.split(key, 8)
    theta = 2 * jnp.pi * jnp.arange(ANGLES) / ANGLES
    k = jnp.arange(1, 7)
    amplitude = 0.17 * jax.random.normal(keys[0], (6,)) / k**0.8
    phase = jax.random.uniform(keys[1], (6,), maxval=2 * jnp.pi)
    fourier = 1 + jnp.sum(amplitude * jnp.cos(k * theta[:, None] + phase), axis=-1)
    exponent = jnp.exp(jax.random.uniform(keys[2], (), minval=jnp.log(1.2), maxval=jnp.log(6.0)))
    ratio = jnp.exp(jax.random.uniform(keys[3], (), minval=-0.5, maxval=0.5))
    c, s = jnp.abs(jnp.cos(theta)) / ratio, jnp.abs(jnp.sin(theta)) * ratio
    ellipse = ((c + 1e-6) ** exponent + (s + 1e-6) ** exponent) ** (-1 / exponent)
    corners = jax.random.randint(keys[4], (), 3, 9)
    wobble = jnp.exp(0.35 * jax.random.normal(keys[5], (12,)))
    position = theta / (2 * jnp.pi) * corners
    low = jnp.floor(position).astype(jnp.int32)
    fraction = position - low
    start, end = wobble[low % corners], wobble[(low + 1) % corners]
    # Straight edges between two vertices, in polar form.
    step = 2 * jnp.pi / corners
    edge = (
        start * end * jnp.sin(step)
        / jnp.maximum(start * jnp.sin(fraction * step) + end * jnp.sin((1 - fraction) * step), 1e-3)
    )  # fmt: skip
    kind = jax.random.choice(keys[6], 3, p=jnp.asarray([0.6, 0.2, 0.2]))
    table = jnp.stack([fourier, ellipse, edge])[kind]
    return jnp.clip(table, 0.3, 2.2)


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
