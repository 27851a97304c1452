"""Colour spaces."""

from __future__ import annotations

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


def rgb_to_lab(rgb: Float[Array, "*S 3"]) -> Float[Array, "*S 3"]:
    """CIE L*a*b* (D65) of sRGB values in [0, 1]: L in [0, 100], a and b about [-127, 127]."""
    x = rgb.astype(jnp.float32)
    linear = jnp.where(x > 0.04045, ((jnp.maximum(x, 0.0) + 0.055) / 1.055) ** 2.4, x / 12.92)
    xyz = jnp.einsum("...c,kc->...k", linear, jnp.asarray(_XYZ, jnp.float32))
    f = jnp.where(xyz > 0.008856, jnp.cbrt(jnp.maximum(xyz, 0.0)), 7.787 * xyz + 16 / 116)
    fx, fy, fz = f[..., 0], f[..., 1], f[..., 2]
    L = jnp.where(xyz[..., 1] > 0.008856, 116 * fy - 16, 903.3 * xyz[..., 1])
    return jnp.stack([L, 500 * (fx - fy), 200 * (fy - fz)], axis=-1)


def rgb_to_lab_bytes(rgb: Float[Array, "*S 3"]) -> Float[Array, "*S 3"]:
    """8-bit L*a*b* as OpenCV stores it: `255/100 L`, `a + 128`, `b + 128`, rounded to 0..255."""
    lab = rgb_to_lab(rgb)
    scaled = lab * jnp.asarray([2.55, 1.0, 1.0]) + jnp.asarray([0.0, 128.0, 128.0])
    return jnp.clip(jnp.round(scaled), 0.0, 255.0)
