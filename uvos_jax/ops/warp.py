"""Sampling images at arbitrary positions: backward warping by flow, occlusion from two flows.

Pixel positions count from 0 at the centre of the first pixel; flow is `(u right, v down)` in pixels
of the image it moves. Everything is differentiable in the image and in the positions.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from uvos_jax.errors import ConfigError, ShapeError

Padding = Literal["border", "zeros", "reflection"]
PADDINGS = ("border", "zeros", "reflection")


def _check(image: Array, positions: Array, padding: str) -> None:
    if padding not in PADDINGS:
        raise ConfigError(f"warp: padding {padding!r} is unknown: use one of {PADDINGS}")
    if image.shape[0] != positions.shape[0] or min(image.shape[1:3]) < 1:
        raise ShapeError(
            f"warp: expected an image [B,H,W,C] and positions [B,h,w,2] of the same batch size, "
            f"got {image.shape} and {positions.shape}"
        )


def _reflect(x: Array, n: int, *, align_corners: bool) -> Array:
    """Folds positions back into the image, at the border pixels' centres or at their edges."""
    if n == 1:
        return jnp.zeros_like(x)
    low, span = (0.0, n - 1.0) if align_corners else (-0.5, float(n))
    distance = jnp.abs(x - low)
    flips = jnp.floor(distance / span)
    rest = distance - flips * span
    return jnp.where(flips % 2 == 0, rest, span - rest) + low


def sample(
    image: Float[Array, "B H W C"],
    positions: Float[Array, "B h w 2"],
    *,
    padding: Padding = "border",
    align_corners: bool = True,
) -> Float[Array, "B h w C"]:
    """Bilinear samples of `image` at pixel `positions` (x, y).

    Args:
      padding: outside the image `border` repeats the nearest pixel, `zeros` fades to 0 over one
        pixel, `reflection` mirrors the image.
      align_corners: where `reflection` puts its mirrors (see `grid_sample`); otherwise unused.

    Raises:
      ConfigError: unknown `padding`.
      ShapeError: different batch sizes or an empty image.
    """
    _check(image, positions, padding)
    B, H, W, C = image.shape
    x, y = positions[..., 0], positions[..., 1]
    if padding == "reflection":
        x = _reflect(x, W, align_corners=align_corners)
        y = _reflect(y, H, align_corners=align_corners)
    if padding != "zeros":
        x, y = jnp.clip(x, 0, W - 1), jnp.clip(y, 0, H - 1)
    x0, y0 = jnp.floor(x), jnp.floor(y)
    wx, wy = (x - x0)[..., None], (y - y0)[..., None]
    flat = image.reshape(B, H * W, C)
    gather = jax.vmap(lambda pixels, index: jnp.take(pixels, index, axis=0, mode="clip"))

    def corner(dx: int, dy: int) -> Array:
        cx, cy = x0 + dx, y0 + dy
        column = jnp.clip(cx, 0, W - 1).astype(jnp.int32)
        row = jnp.clip(cy, 0, H - 1).astype(jnp.int32)
        values = gather(flat, row * W + column)
        if padding == "zeros":
            inside = (cx >= 0) & (cx <= W - 1) & (cy >= 0) & (cy <= H - 1)
            values = jnp.where(inside[..., None], values, 0)
        return values

    top = corner(0, 0) * (1 - wx) + corner(1, 0) * wx
    bottom = corner(0, 1) * (1 - wx) + corner(1, 1) * wx
    return (top * (1 - wy) + bottom * wy).astype(image.dtype)


def grid_sample(
    image: Float[Array, "B H W C"],
    grid: Float[Array, "B h w 2"],
    *,
    padding: Padding = "zeros",
    align_corners: bool = False,
) -> Float[Array, "B h w C"]:
    """Bilinear samples at normalised positions (x, y) in [-1, 1], as PyTorch's `grid_sample`.

    Args:
      align_corners: True puts -1 and 1 at the centres of the corner pixels, False at the image's
        outer edges.

    Raises:
      ConfigError: unknown `padding`.
      ShapeError: different batch sizes or an empty image.
    """
    size = jnp.asarray([image.shape[2], image.shape[1]], grid.dtype)
    if align_corners:
        positions = (grid + 1) / 2 * (size - 1)
    else:
        positions = ((grid + 1) * size - 1) / 2
    return sample(image, positions, padding=padding, align_corners=align_corners)


def pixel_grid(H: int, W: int, dtype: jnp.dtype = jnp.float32) -> Float[Array, "H W 2"]:
    """Position (x, y) of every pixel."""
    y, x = jnp.meshgrid(jnp.arange(H, dtype=dtype), jnp.arange(W, dtype=dtype), indexing="ij")
    return jnp.stack([x, y], axis=-1)


def backward_warp(
    image: Float[Array, "B H W C"],
    flow: Float[Array, "B H W 2"],
    *,
    padding: Padding = "border",
) -> Float[Array, "B H W C"]:
    """Fetches for every pixel p what `image` shows at `p + flow(p)`.

    With the flow from frame t to t+1 and frame t+1 as the image, the result looks like frame t
    wherever nothing is occluded. `border` equals FlowNet2's `Resample2d`.

    Raises:
      ConfigError: unknown `padding`.
      ShapeError: image and flow of different size.
    """
    if image.shape[:3] != flow.shape[:3]:
        raise ShapeError(
            f"backward_warp: expected image and flow of one size, got {image.shape} and "
            f"{flow.shape}; resize the flow and scale its values first"
        )
    # positions in float32: bfloat16 cannot tell neighbouring pixels apart beyond 256
    positions = pixel_grid(*image.shape[1:3]) + flow.astype(jnp.float32)
    return sample(image, positions, padding=padding)


def forward_backward_occlusion(
    forward: Float[Array, "B H W 2"],
    backward: Float[Array, "B H W 2"],
    *,
    relative: float = 0.01,
    absolute: float = 0.5,
) -> Bool[Array, "B H W"]:
    """Pixels of the first frame that have no partner in the second.

    The way there and back should end where it began: a pixel is occluded if
    `|f + b(p + f)|^2 > relative (|f|^2 + |b(p + f)|^2) + absolute` (Sundaram, Brox, Keutzer, ECCV
    2010), or if it leaves the image.

    Args:
      forward: flow from the first to the second frame.
      backward: flow from the second to the first.
    """
    back = backward_warp(backward, forward)
    gap = jnp.sum((forward + back) ** 2, axis=-1)
    lengths = jnp.sum(forward**2, axis=-1) + jnp.sum(back**2, axis=-1)
    H, W = forward.shape[1:3]
    target = pixel_grid(H, W) + forward
    limit = jnp.asarray([W - 1, H - 1], forward.dtype)
    outside = jnp.any((target < 0) | (target > limit), axis=-1)
    return (gap > relative * lengths + absolute) | outside
