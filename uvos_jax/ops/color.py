"""Colour spaces."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

#: Linear sRGB to XYZ, rows divided by the D65 white point.
_XYZ = np.asarray(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
) / np.asarray([[0.950456], [1.0], [1.088754]])

#: L*a*b* of the cube roots of XYZ, before 16 is taken off L.
_LAB = np.asarray([[0.0, 116.0, 0.0], [500.0, -500.0, 0.0], [0.0, 200.0, -200.0]])


def rgb_to_lab(rgb: Float[Array, "*S 3"]) -> Float[Array, "*S 3"]:
    """CIE L*a*b* (D65) of sRGB values in [0, 1]: L in [0, 100], a and b about [-127, 127]."""
    # Planes, and powers by logarithms: XLA's CPU back end multiplies by a 3x3 matrix from the
    # right, and takes cube roots, an order of magnitude more slowly.
    x = jnp.moveaxis(rgb.astype(jnp.float32), -1, 0)
    steep = jnp.exp(2.4 * jnp.log((jnp.maximum(x, 0.04045) + 0.055) / 1.055))
    linear = jnp.where(x > 0.04045, steep, x / 12.92)
    xyz = _by_planes(_XYZ, linear)
    root = jnp.exp(jnp.log(jnp.maximum(xyz, 0.008856)) / 3)
    f = jnp.where(xyz > 0.008856, root, 7.787 * xyz + 16 / 116)
    lab = _by_planes(_LAB, f) - jnp.asarray([16.0, 0.0, 0.0]).reshape(3, *[1] * (x.ndim - 1))
    return jnp.moveaxis(lab, 0, -1)


def _by_planes(matrix: np.ndarray, planes: jax.Array) -> jax.Array:
    flat = planes.reshape(3, -1)
    product = jnp.matmul(jnp.asarray(matrix, jnp.float32), flat, precision="highest")
    return product.reshape(planes.shape)


def rgb_to_lab_bytes(rgb: Float[Array, "*S 3"]) -> Float[Array, "*S 3"]:
    """8-bit L*a*b* as OpenCV stores it: `255/100 L`, `a + 128`, `b + 128`, rounded to 0..255."""
    lab = rgb_to_lab(rgb)
    scaled = lab * jnp.asarray([2.55, 1.0, 1.0]) + jnp.asarray([0.0, 128.0, 128.0])
    return jnp.clip(jnp.round(scaled), 0.0, 255.0)
