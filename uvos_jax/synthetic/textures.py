"""Surface colour: 1/f noise in two palette directions, piecewise regions, patterns, gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def noise_tile(key: jax.Array, size: int, beta: jax.Array, cutoff: jax.Array) -> jax.Array:
    """Two independent periodic fields `[size,size,2]` with spectrum 1/f^beta, unit variance.

    Args:
      beta: spectral exponent, 0.7 (rough) to 1.6 (cloudy).
      cutoff: frequencies above this share of the Nyquist rate fade out (out-of-focus layers).
    """
    white = jax.random.normal(key, (size, size, 2))
    spectrum = jnp.fft.fft2(white[..., 0] + 1j * white[..., 1])
    f = jnp.fft.fftfreq(size) * size
    radius = jnp.sqrt(f[:, None] ** 2 + f[None, :] ** 2)
    gain = jnp.where(radius > 0, jnp.maximum(radius, 1.0) ** -beta, 0.0)
    gain = gain * jnp.exp(-((radius / (cutoff * size / 2)) ** 2))
    field = jnp.fft.ifft2(spectrum * gain)
    fields = jnp.stack([field.real, field.imag], axis=-1)
    return fields / (jnp.std(fields, axis=(0, 1)) + 1e-6)


def fetch(tile: jax.Array, q: jax.Array) -> jax.Array:
    """Bilinear samples of a periodic tile `[N,N,2]` at points `q [...,2]` in tile pixels."""
    size = tile.shape[0]
    low = jnp.floor(q)
    fraction = q - low
    x0, y0 = (low[..., i].astype(jnp.int32) % size for i in (0, 1))
    x1, y1 = (x0 + 1) % size, (y0 + 1) % size
    flat = tile.reshape(size * size, -1)
    fx, fy = fraction[..., :1], fraction[..., 1:]
    top = flat[y0 * size + x0] * (1 - fx) + flat[y0 * size + x1] * fx
    bottom = flat[y1 * size + x0] * (1 - fx) + flat[y1 * size + x1] * fx
    return top * (1 - fy) + bottom * fy


def surface_color(texture: dict, u: jax.Array) -> jax.Array:
    """RGB in about [0,1] of canonical points `u [...,2]`.

    `texture`: `tile [N,N,2]`, `tile_matrix [2,2]` (pixels to tile pixels), `base [3]`,
    `direction [2,3]`, `cell_center [K,2]`, `cell_color [K,3]`, `cell_warp`, `wave [2]`,
    `wave_color [3]`, `wave_sharpness`, `gradient [2,3]`.
    """
    noise = fetch(texture["tile"], u @ texture["tile_matrix"])
    # Region borders follow the noise, so that they look grown rather than ruled.
    p = u + texture["cell_warp"] * noise

    def nearer(best, cell):
        center, color = cell
        distance = jnp.sum((p - center) ** 2, axis=-1)
        closer = distance < best[0]
        return (
            jnp.where(closer, distance, best[0]),
            jnp.where(closer[..., None], color, best[1]),
        ), None

    start = (jnp.full(u.shape[:-1], jnp.inf), jnp.zeros((*u.shape[:-1], 3)))
    (_, regions), _ = jax.lax.scan(
        nearer, start, (texture["cell_center"], texture["cell_color"]), unroll=2
    )
    phase = u @ texture["wave"] + 0.7 * noise[..., 0]
    wave = jnp.tanh(texture["wave_sharpness"] * jnp.sin(phase))[..., None]
    return (
        texture["base"]
        + regions
        + noise @ texture["direction"]
        + wave * texture["wave_color"]
        + u @ texture["gradient"]
    )


def hsv_to_rgb(h: jax.Array, s: jax.Array, v: jax.Array) -> jax.Array:
    """RGB `[...,3]` of hue, saturation, value in [0,1]."""
    k = (jnp.asarray([5.0, 3.0, 1.0]) + h[..., None] * 6.0) % 6.0
    ramp = jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)
    return v[..., None] * (1 - s[..., None] * ramp)
