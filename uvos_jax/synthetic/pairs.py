"""Two frames out of a still, by a simulated motion field (after Wang, Shen, Shao, TIP 2018).

Object and background move by similarities of their own. The field between them is blended over a
narrow band and carries smooth noise, and the still is pulled along it: nothing is cut out or filled
in, the surroundings stretch. (`pseudo_video` composes layers instead.) The ranges are ours; the
paper's generator is known by its idea only.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from uvos_jax.synthetic.degrade import _blur

#: (object, background): largest shift as a share of the sides, rotation in degrees, scale change.
RANGES = ((0.12, 10.0, 0.10), (0.05, 3.0, 0.03))
#: Blending band and noise: widths as shares of the shorter side, noise amplitude in pixels.
EDGE, NOISE_WIDTH, NOISE_PX = 0.02, 0.1, 0.7


def _similarity(
    key: jax.Array,
    grid: jax.Array,
    center: jax.Array,
    limits: tuple[float, float, float],
    motion: jax.Array | float,
) -> jax.Array:
    """Field `[H,W,2]` (px) of a random similarity about `center` (x, y)."""
    H, W = grid.shape[:2]
    shift, degrees, scale = limits
    u = jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0) * motion
    angle, zoom = u[2] * jnp.deg2rad(degrees), 1.0 + u[3] * scale
    d = grid - center
    turned = jnp.stack(
        [
            jnp.cos(angle) * d[..., 0] - jnp.sin(angle) * d[..., 1],
            jnp.sin(angle) * d[..., 0] + jnp.cos(angle) * d[..., 1],
        ],
        axis=-1,
    )
    return zoom * turned - d + shift * u[:2] * jnp.asarray([W, H], jnp.float32)


def saliency_pair(
    key: jax.Array, image: jax.Array, mask: jax.Array, *, motion: float = 1.0
) -> dict[str, jax.Array]:
    """A still and its moved copy, as two frames of a clip.

    The field `v` lives on the first frame: it shows at `p` what the second, the still itself, shows
    at `p + v(p)`, so `v` is exactly the flow from the first to the second frame.

    Args:
      image: `[H,W,3]`, f32 in [0,1] or uint8. mask: `[H,W]`, positive = object.
      motion: factor on all motions; 0 gives two equal frames.

    Returns:
      `video` f32 `[2,H,W,3]` in [0,1], `mask` u8 `[2,H,W]`, `flow_fw` f32 `[2,H,W,2]` in pixels
      (the second is zero and means nothing: there is no third frame).
    """
    if image.dtype == jnp.uint8:
        image = image.astype(jnp.float32) / 255
    H, W = mask.shape
    alpha = (mask > 0).astype(jnp.float32)
    y, x = jnp.meshgrid(
        jnp.arange(H, dtype=jnp.float32), jnp.arange(W, dtype=jnp.float32), indexing="ij"
    )
    grid = jnp.stack([x, y], axis=-1)
    total = jnp.sum(alpha)
    middle = jnp.asarray([(W - 1) / 2, (H - 1) / 2], jnp.float32)
    center = jnp.sum(alpha[..., None] * grid, axis=(0, 1)) / jnp.maximum(total, 1.0)
    center = jnp.where(total > 0, center, middle)
    of_object, of_background, of_noise = jax.random.split(key, 3)

    side = min(H, W)
    near = _blur(alpha[..., None], max(EDGE * side, 0.5))
    near = jnp.maximum(near, alpha[..., None])  # the object itself moves as one
    noise = _blur(jax.random.normal(of_noise, (H, W, 2)), max(NOISE_WIDTH * side, 1.0))
    noise = noise * (NOISE_PX * motion / (jnp.std(noise) + 1e-6))
    field = (
        near * _similarity(of_object, grid, center, RANGES[0], motion)
        + (1.0 - near) * _similarity(of_background, grid, middle, RANGES[1], motion)
        + noise
    )
    where = [grid[..., 1] + field[..., 1], grid[..., 0] + field[..., 0]]

    def pulled(channel: jax.Array) -> jax.Array:
        return jax.scipy.ndimage.map_coordinates(channel, where, order=1, mode="nearest")

    moved = jnp.stack([pulled(image[..., c]) for c in range(3)], axis=-1)
    moved_mask = pulled(alpha) > 0.5
    return {
        "video": jnp.clip(jnp.stack([moved, image]), 0.0, 1.0),
        "mask": jnp.stack([moved_mask, alpha > 0]).astype(jnp.uint8),
        "flow_fw": jnp.stack([field, jnp.zeros_like(field)]),
    }
