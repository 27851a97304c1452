"""Surface colour: 1/f noise in two palette directions, piecewise regions, patterns, gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def noise_tiles(
    key: jax.Array, count: int, size: int, beta: jax.Array, cutoff: jax.Array
) -> jax.Array:
    """Periodic fields `[count,size,size,2]` with spectrum 1/f^beta, mean 0, unit variance.

    The two fields of a tile are independent: real and imaginary part of one transform.

    Args:
      beta: `[count]`, 0.7 (rough) to 1.8 (cloudy).
      cutoff: `[count]`, frequencies above this share of the Nyquist rate fade out, as in layers
        out of focus.
    """
    f = jnp.fft.fftfreq(size) * size
    radius = jnp.sqrt(f[:, None] ** 2 + f[None, :] ** 2)
    log_radius = jnp.log(jnp.maximum(radius, 1.0))
    gain = jnp.exp(
        -beta[:, None, None] * log_radius - (radius / (cutoff[:, None, None] * size / 2)) ** 2
    )
    gain = jnp.where(radius > 0, gain, 0.0)
    # White noise is as white in the frequency domain: no forward transform is needed. Uniform
    # phases and magnitudes are close enough to normal ones after the inverse transform.
    parts = jax.random.uniform(key, (count, size, size, 2), minval=-1.0, maxval=1.0)
    field = jnp.fft.ifft2(gain * (parts[..., 0] + 1j * parts[..., 1]))
    fields = jnp.stack([field.real, field.imag], axis=-1)
    return fields / (jnp.std(fields, axis=(1, 2), keepdims=True) + 1e-6)


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
