"""Closed-form, exactly invertible motion of a layer: deformation, similarity, camera.

A layer has canonical coordinates `u` (pixels, centred on the layer); at continuous time t

    x = C_t( S_t( D_t(u) ) )

with D a stack of shears (additive coupling, area preserving), S a similarity along a trajectory and
C the camera seen through parallax 1/z. Points are `[...,2]` arrays in (x, y), image coordinates
centred on the principal point. Layer parameters are dictionaries of scalars or small vectors.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Layer = dict[str, Any]


def _rotate(p: jax.Array, angle: jax.Array) -> jax.Array:
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([c * p[..., 0] - s * p[..., 1], s * p[..., 0] + c * p[..., 1]], axis=-1)


def deform(layer: Layer, u: jax.Array, t: jax.Array) -> jax.Array:
    """D: two pairs of shears along x and y, amplitudes in canonical pixels."""
    x, y = u[..., 0], u[..., 1]
    for j in range(layer["shear_amplitude"].shape[0]):
        a, w, phase, rate = (layer[f"shear_{k}"][j] for k in _SHEAR)
        x = x + a[0] * jnp.sin(w[0] * y + phase[0] + rate[0] * t)
        y = y + a[1] * jnp.sin(w[1] * x + phase[1] + rate[1] * t)
    return jnp.stack([x, y], axis=-1)


def undeform(layer: Layer, p: jax.Array, t: jax.Array) -> jax.Array:
    """Inverse of `deform`: the same shears backwards."""
    x, y = p[..., 0], p[..., 1]
    for j in reversed(range(layer["shear_amplitude"].shape[0])):
        a, w, phase, rate = (layer[f"shear_{k}"][j] for k in _SHEAR)
        y = y - a[1] * jnp.sin(w[1] * x + phase[1] + rate[1] * t)
        x = x - a[0] * jnp.sin(w[0] * y + phase[0] + rate[0] * t)
    return jnp.stack([x, y], axis=-1)


_SHEAR = ("amplitude", "frequency", "phase", "rate")


def local_time(layer: Layer, t: jax.Array) -> jax.Array:
    """Time as the trajectory sees it: straight, or stopping and going (speed 1 + cos)."""
    k = layer["gate_frequency"]
    return t + layer["gate"] * jnp.sin(k * t + layer["gate_phase"]) / k


def trajectory(layer: Layer, t: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Centre `[2]`, angle and log-scale at time t (t = 0 is the middle of the clip)."""
    s = local_time(layer, t)
    sway = layer["sway_amplitude"] * jnp.sin(layer["sway_frequency"] * s + layer["sway_phase"])
    center = layer["center"] + layer["velocity"] * s + 0.5 * layer["acceleration"] * s**2 + sway
    swing = layer["swing_amplitude"] * jnp.sin(layer["sway_frequency"] * s + layer["swing_phase"])
    angle = layer["angle"] + layer["spin"] * s + swing
    return center, angle, layer["growth"] * s


def place(layer: Layer, p: jax.Array, t: jax.Array) -> jax.Array:
    """S, and for a limb the similarity of the body it hangs on."""
    center, angle, scale = trajectory(layer, t)
    p = _rotate(p, angle) * jnp.exp(scale)
    p = p + center
    return _parent(layer, p, t, inverse=False)


def unplace(layer: Layer, p: jax.Array, t: jax.Array) -> jax.Array:
    """Inverse of `place`."""
    p = _parent(layer, p, t, inverse=True)
    center, angle, scale = trajectory(layer, t)
    return _rotate(p - center, -angle) * jnp.exp(-scale)


def _parent(layer: Layer, p: jax.Array, t: jax.Array, *, inverse: bool) -> jax.Array:
    """Limbs move with their body; for other layers `parent` is an identity trajectory."""
    if "parent" not in layer:
        return p
    center, angle, scale = trajectory(layer["parent"], t)
    if inverse:
        return _rotate(p - center, -angle) * jnp.exp(-scale)
    return _rotate(p, angle) * jnp.exp(scale) + center


def camera_at(camera: Layer, t: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pan `[2]`, log-zoom and roll of the camera at continuous time t."""
    smooth = camera["pan"] * t + jnp.sum(
        camera["wave_amplitude"] * jnp.sin(camera["wave_frequency"] * t + camera["wave_phase"]),
        axis=0,
    )
    table = camera["shake"]
    position = jnp.clip(t - camera["shake_start"], 0.0, table.shape[0] - 1.001)
    low = jnp.floor(position).astype(jnp.int32)
    fraction = position - low
    shake = table[low] * (1 - fraction) + table[low + 1] * fraction
    followed, _, _ = trajectory(camera["target"], t)
    follow = camera["follow"] * (followed - camera["target"]["center"])
    return smooth + shake + follow, camera["zoom"] * t, camera["roll"] * t


def view(camera: Layer, layer: Layer, p: jax.Array, t: jax.Array) -> jax.Array:
    """C: world coordinates of a layer to the image.

    A pan moves a point by pan times its inverse depth, which grows downwards on an inclined layer
    (`tilt`, per pixel). Vertical pans stretch such a layer by an exponential, which is invertible
    for any pan and agrees with the plane's homography to first order.
    """
    pan, zoom, roll = camera_at(camera, t)
    z, tilt = layer["z"], layer["tilt"]
    x = p[..., 0] - pan[0] * (1 / z + tilt * p[..., 1])
    y = p[..., 1] * jnp.exp(-tilt * pan[1]) - pan[1] / z
    return _rotate(jnp.stack([x, y], axis=-1) * jnp.exp(zoom / z), roll)


def unview(camera: Layer, layer: Layer, x: jax.Array, t: jax.Array) -> jax.Array:
    """Inverse of `view`."""
    pan, zoom, roll = camera_at(camera, t)
    z, tilt = layer["z"], layer["tilt"]
    p = _rotate(x, -roll) * jnp.exp(-zoom / z)
    y = (p[..., 1] + pan[1] / z) * jnp.exp(tilt * pan[1])
    return jnp.stack([p[..., 0] + pan[0] * (1 / z + tilt * y), y], axis=-1)


def depth(camera: Layer, layer: Layer, x: jax.Array, t: jax.Array) -> jax.Array:
    """Depth `[...]` of a layer at image points; beyond the horizon ten times that of its middle."""
    return 1 / jnp.maximum(
        1 / layer["z"] + layer["tilt"] * unview(camera, layer, x, t)[..., 1], 0.1 / layer["z"]
    )


def layer_to_image(layer: Layer, camera: Layer, u: jax.Array, t: jax.Array) -> jax.Array:
    """Canonical coordinates `[...,2]` to centred image coordinates at time t."""
    return view(camera, layer, place(layer, deform(layer, u, t), t), t)


def image_to_layer(layer: Layer, camera: Layer, x: jax.Array, t: jax.Array) -> jax.Array:
    """Centred image coordinates `[...,2]` to canonical coordinates at time t; exact inverse."""
    return undeform(layer, unplace(layer, unview(camera, layer, x, t), t), t)
