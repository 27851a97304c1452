"""A clip from one image and its mask, in the manner of Lucid data dreaming (Khoreva et al. 2017).

The background moves by a small affine map, the object by a shift and a smooth deformation; what
the object uncovers is filled by diffusion from its surroundings.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from uvos_jax.synthetic.degrade import _blur


def _fill(image: jax.Array, mask: jax.Array) -> jax.Array:
    """Replaces masked pixels of `[H,W,3]` by their surroundings, coarse to fine."""
    known = (1.0 - mask)[..., None]
    filled = image * known
    result, weight = filled, known
    for sigma in (2.0, 6.0, 16.0):
        blurred, amount = _blur(filled, sigma), _blur(known, sigma)
        estimate = blurred / (amount + 1e-4)
        trust = jnp.clip(amount * 4, 0.0, 1.0)
        result = jnp.where(weight > 0.99, result, estimate * trust + result * (1 - trust))
    mean = jnp.sum(filled, (0, 1)) / (jnp.sum(known) + 1e-4)
    empty = _blur(known, 16.0) < 1e-3
    return jnp.where(known > 0, image, jnp.where(empty, mean, result))


def _sample(image: jax.Array, x: jax.Array, y: jax.Array, *, mirror: bool) -> jax.Array:
    """Bilinear samples of `[H,W,C]`; outside it mirrors or reads zero."""
    mode = "reflect" if mirror else "constant"

    def one(channel):
        return jax.scipy.ndimage.map_coordinates(channel, [y, x], order=1, mode=mode)

    return jnp.stack([one(image[..., c]) for c in range(image.shape[-1])], axis=-1)


def pseudo_video(
    key: jax.Array, image: jax.Array, mask: jax.Array, frames: int = 2
) -> dict[str, jax.Array]:
    """Moves object and background of a still apart over `frames` frames.

    Ranges (over the whole clip): background rotation 3 degrees, scale 5 %, shift 5 % of the
    image; object shift 5 % and deformation up to 5 % of its size. Object, background or both move,
    each with probability one third.

    Args:
      image: f32 `[H,W,3]` in [0,1] (or uint8). mask: `[H,W]`, positive = object.

    Returns:
      `video` f32 `[T,H,W,3]` in [0,1] and `mask` u8 `[T,H,W]`.
    """
    if image.dtype == jnp.uint8:
        image = image.astype(jnp.float32) / 255
    H, W = mask.shape
    alpha = (mask > 0).astype(jnp.float32)
    k = jax.random.split(key, 12)
    moves = jax.random.randint(k[0], (), 0, 3)
    back_moves, object_moves = (moves != 0).astype(jnp.float32), (moves != 1).astype(jnp.float32)
    y, x = jnp.meshgrid(
        jnp.arange(H, dtype=jnp.float32), jnp.arange(W, dtype=jnp.float32), indexing="ij"
    )
    total = alpha.sum() + 1e-6
    cx, cy = (alpha * x).sum() / total, (alpha * y).sum() / total
    size = jnp.sqrt(total)
    background = _fill(image, jnp.clip(_blur(alpha[..., None], 1.5)[..., 0] * 4, 0, 1))

    angle = back_moves * jax.random.uniform(k[1], (), minval=-1, maxval=1) * jnp.deg2rad(3.0)
    zoom = back_moves * jax.random.uniform(k[2], (), minval=-0.05, maxval=0.05)
    shift = back_moves * jax.random.uniform(k[3], (2,), minval=-0.05, maxval=0.05)
    shift = shift * jnp.asarray([W, H])
    slide = object_moves * jax.random.uniform(k[4], (2,), minval=-0.05, maxval=0.05)
    slide = slide * jnp.asarray([W, H])
    bend = object_moves * jax.random.uniform(k[5], (2,), minval=0.0, maxval=0.05) * size
    wave = 2 * jnp.pi / (size * jax.random.uniform(k[6], (2,), minval=0.8, maxval=2.0))
    phase = jax.random.uniform(k[7], (2,), maxval=2 * jnp.pi)

    def frame(s):
        a, z = s * angle, 1 + s * zoom
        dx, dy = x - W / 2 - s * shift[0], y - H / 2 - s * shift[1]
        bx = (jnp.cos(a) * dx + jnp.sin(a) * dy) / z + W / 2
        by = (-jnp.sin(a) * dx + jnp.cos(a) * dy) / z + H / 2
        behind = _sample(background, bx, by, mirror=True)
        ox, oy = x - s * slide[0], y - s * slide[1]
        ox = ox + s * bend[0] * jnp.sin(wave[0] * (oy - cy) + phase[0])
        oy = oy + s * bend[1] * jnp.sin(wave[1] * (ox - cx) + phase[1])
        cut = _sample(jnp.concatenate([image * alpha[..., None], alpha[..., None]], -1), ox, oy,
                      mirror=False)  # fmt: skip
        a_object = cut[..., 3:]
        rgb = behind * (1 - a_object) + cut[..., :3]
        return jnp.clip(rgb, 0, 1), (a_object[..., 0] > 0.5).astype(jnp.uint8)

    times = jnp.linspace(-0.5, 0.5, frames) if frames > 1 else jnp.zeros(1)
    video, masks = jax.lax.map(frame, times)
    gain = 1 + 0.03 * jax.random.normal(k[8], (frames, 1, 1, 3))
    return {"video": jnp.clip(video * gain, 0, 1), "mask": masks}
