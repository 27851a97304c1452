"""Object centres: boxes of masks, Gaussian maps around a centre, peaks of a heat map.

CenterNet's way of pointing at an object (Zhou, Wang, Kraehenbuehl 2019): a map that is 1 at the
centre of its bounding box and falls off within a radius that grows with the box. Points are
(x, y) in pixels, x to the right.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from uvos_jax.ops.pooling import max_pool
from uvos_jax.ops.resize import resize_bilinear, resize_nearest


def bounding_boxes(masks: Bool[Array, "B H W"]) -> tuple[Int[Array, "B 4"], Bool[Array, " B"]]:
    """First and last foreground pixel on both axes.

    Returns:
      (left, top, right, bottom), inclusive, zeros for an empty mask; and which masks are not empty.
    """

    def ends(line: jax.Array) -> tuple[jax.Array, jax.Array]:
        n = line.shape[-1]
        last = n - 1 - jnp.argmax(line[:, ::-1], axis=-1)
        return jnp.argmax(line, axis=-1), last

    columns, rows = jnp.any(masks, axis=1), jnp.any(masks, axis=2)
    (left, right), (top, bottom) = ends(columns), ends(rows)
    filled = jnp.any(columns, axis=-1)
    boxes = jnp.stack([left, top, right, bottom], axis=-1).astype(jnp.int32)
    return jnp.where(filled[:, None], boxes, 0), filled


def box_centres(boxes: Int[Array, "B 4"]) -> Int[Array, "B 2"]:
    """(x, y), rounded down."""
    return (boxes[:, :2] + boxes[:, 2:]) // 2


def corner_radius(
    height: Float[Array, " B"], width: Float[Array, " B"], *, min_overlap: float = 0.7
) -> Float[Array, " B"]:
    """How far both corners of a box may move before its overlap falls below `min_overlap`.

    CornerNet's rule (Law & Deng, ECCV 2018): the least of three quadratic solutions, each taken as
    `(b + sqrt(b^2 - 4 a c)) / 2`, without the division by a, as every released descendant does.
    """
    m, total, area = min_overlap, height + width, height * width
    solutions = []
    for a, b, c in (
        (1.0, total, area * (1 - m) / (1 + m)),
        (4.0, 2 * total, (1 - m) * area),
        (4 * m, -2 * m * total, (m - 1) * area),
    ):
        solutions.append((b + jnp.sqrt(jnp.maximum(b * b - 4 * a * c, 0.0))) / 2)
    return jnp.minimum(jnp.minimum(solutions[0], solutions[1]), solutions[2])


def draw_gaussians(
    centres: Int[Array, "B 2"], radii: Int[Array, " B"], size: tuple[int, int]
) -> Float[Array, "B h w"]:
    """Gaussians of peak 1 with sigma (2r + 1) / 6, cut off outside the square of side 2r + 1."""
    r = radii.astype(jnp.float32)[:, None, None]
    y, x = jnp.meshgrid(jnp.arange(size[0]), jnp.arange(size[1]), indexing="ij")
    dx, dy = (
        (axis[None] - centres[:, i, None, None]).astype(jnp.float32)
        for i, axis in enumerate((x, y))
    )
    sigma = (2 * r + 1) / 6
    values = jnp.exp(-(dx**2 + dy**2) / (2 * sigma**2))
    return jnp.where((jnp.abs(dx) <= r) & (jnp.abs(dy) <= r), values, 0.0)


def centre_maps(
    masks: Bool[Array, "B H W"], size: tuple[int, int], *, mark_empty: bool
) -> Float[Array, "B h w"]:
    """The map a mask asks for: a Gaussian at its box's centre, on a grid of `size`.

    Args:
      mark_empty: what an empty mask gives: a single 1 in the top left cell (as the released
        loaders do), or nothing.
    """
    small = resize_nearest(masks[..., None], size)[..., 0]
    boxes, filled = bounding_boxes(small)
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(jnp.float32)
    radii = jnp.maximum(jnp.floor(corner_radius(sides[:, 1], sides[:, 0])), 0).astype(jnp.int32)
    maps = draw_gaussians(box_centres(boxes), radii, size)
    return maps if mark_empty else jnp.where(filled[:, None, None], maps, 0.0)


def gaussian_prior(
    centres: Float[Array, "B 2"],
    size: tuple[int, int],
    grid: tuple[int, int],
    *,
    sigma: float,
) -> Float[Array, "B h w"]:
    """`exp(-|p - c|^2 / (2 sigma^2))` over an image of `size`, then resized to `grid`.

    Args:
      centres: (x, y) in pixels of the image, as is sigma.
    """
    y, x = (jnp.arange(n, dtype=jnp.float32) for n in size)
    c = centres.astype(jnp.float32)
    rows = jnp.exp(-((y - c[:, 1:]) ** 2) / (2 * sigma**2))
    columns = jnp.exp(-((x - c[:, :1]) ** 2) / (2 * sigma**2))
    return resize_bilinear((rows[:, :, None] * columns[:, None, :])[..., None], grid)[..., 0]


def top_peaks(
    heat: Float[Array, "B h w"], count: int
) -> tuple[Float[Array, "B K"], Int[Array, "B K 2"]]:
    """The highest local maxima (of 3x3 cells), best first.

    Returns:
      values (0 where there are fewer than `count` peaks) and (x, y) on the grid of the map.
    """
    B, h, w = heat.shape
    highest = max_pool(heat[..., None], 3, 1, 1)[..., 0]
    peaks = jnp.where(heat == highest, heat, 0.0).reshape(B, h * w)
    values, index = jax.lax.top_k(peaks, count)
    return values, jnp.stack([index % w, index // w], axis=-1)
