"""Saliency of single images without training: ranking on a graph of superpixels.

Graph-based manifold ranking with the boundary prior (Yang, Zhang, Lu, Ruan, Yang, CVPR 2013):
what lies along one side of the image is taken for background, everything else is ranked by how
well it can be reached from there over a graph of similar neighbours; the product of what all four
sides leave over marks seeds of the foreground, from which a second ranking starts. Made of fixed
shapes throughout (superpixels are as many as seeds, and neighbourhoods are those of the seeds'
grid), so that it runs inside jit.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from uvos_jax.ops.color import rgb_to_lab


def superpixels(
    lab: Float[Array, "H W 3"],
    cells: tuple[int, int],
    *,
    iterations: int = 4,
    compactness: float = 10.0,
) -> tuple[Int[Array, "H W"], Float[Array, "N 3"]]:
    """Local k-means over colour and place from a grid of seeds, in the manner of SLIC.

    A pixel can only join the cell it starts in or one of the eight around it.

    Args:
      lab: L*a*b* colours. cells: seeds along both axes; N is their product.
      compactness: how many units of colour one seed distance weighs.

    Returns:
      the superpixel of every pixel, row-major in the grid of seeds, and their mean colours.
    """
    H, W, _ = lab.shape
    rows, cols = cells
    y, x = jnp.meshgrid(jnp.arange(H), jnp.arange(W), indexing="ij")
    home_y, home_x = (y * rows) // H, (x * cols) // W
    step = (H * W / (rows * cols)) ** 0.5
    place = jnp.stack([y, x], axis=-1).astype(jnp.float32) * (compactness / step)
    pixels = jnp.concatenate([lab.astype(jnp.float32), place], axis=-1).reshape(H * W, 5)
    shifts = [(dy, dx) for dy in (0, -1, 1) for dx in (0, -1, 1)]
    near = jnp.stack(
        [
            jnp.clip(home_y + dy, 0, rows - 1) * cols + jnp.clip(home_x + dx, 0, cols - 1)
            for dy, dx in shifts
        ]
    ).reshape(9, H * W)

    def means(labels: jax.Array, old: jax.Array) -> jax.Array:
        ones = jnp.ones((H * W,), jnp.float32)
        count = jax.ops.segment_sum(ones, labels, rows * cols)[:, None]
        total = jax.ops.segment_sum(pixels, labels, rows * cols)
        return jnp.where(count > 0, total / jnp.maximum(count, 1.0), old)

    labels = near[0]
    centres = means(labels, jnp.zeros((rows * cols, 5), jnp.float32))

    def refine(_, carry):
        labels, centres = carry
        distance = jnp.sum((pixels[None] - centres[near]) ** 2, axis=-1)
        best = jnp.argmin(distance, axis=0)
        labels = jnp.take_along_axis(near, best[None], axis=0)[0]
        return labels, means(labels, centres)

    labels, centres = jax.lax.fori_loop(0, iterations, refine, (labels, centres))
    return labels.reshape(H, W), centres[:, :3]


@lru_cache(maxsize=16)
def _graph(cells: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Edges `[N,N]` bool and the four sides `[4,N]` (top, bottom, left, right).

    Joined are neighbours and neighbours of neighbours, and all superpixels on the border.
    """
    rows, cols = cells
    y, x = (i.reshape(-1) for i in np.indices(cells))
    apart = np.maximum(np.abs(y[:, None] - y), np.abs(x[:, None] - x))
    sides = np.stack([y == 0, y == rows - 1, x == 0, x == cols - 1])
    border = sides.any(0)
    edges = (apart <= 2) | (border[:, None] & border)
    np.fill_diagonal(edges, False)
    return edges, sides.astype(np.float32)


def _stretched(x: jax.Array) -> jax.Array:
    low, high = jnp.min(x, axis=-1, keepdims=True), jnp.max(x, axis=-1, keepdims=True)
    return (x - low) / jnp.maximum(high - low, 1e-12)


def rank_nodes(
    colours: Float[Array, "N 3"],
    cells: tuple[int, int],
    *,
    alpha: float = 0.99,
    sharpness: float = 10.0,
) -> Float[Array, " N"]:
    """Saliency of superpixels, in [0, 1]: both stages of manifold ranking.

    `f = (D - alpha W)^-1 y` with zero diagonal, `w_ij = exp(-sharpness d_ij)` on the graph's edges
    and d the colour distance, stretched to [0, 1] over the edges of the image.
    """
    edges, sides = _graph(tuple(cells))
    edges = jnp.asarray(edges)
    gaps = jnp.sum((colours[:, None] - colours[None]) ** 2, axis=-1)
    distance = jnp.sqrt(jnp.maximum(gaps, 0.0))
    low = jnp.min(jnp.where(edges, distance, jnp.inf))
    high = jnp.max(jnp.where(edges, distance, -jnp.inf))
    scaled = (distance - low) / jnp.maximum(high - low, 1e-12)
    weights = jnp.where(edges, jnp.exp(-sharpness * scaled), 0.0)
    ranking = jnp.linalg.inv(jnp.diag(jnp.sum(weights, axis=1)) - alpha * weights)
    ranking = ranking * (1.0 - jnp.eye(len(colours)))
    background = jnp.einsum("nm,sm->sn", ranking, jnp.asarray(sides))
    seeds = jnp.prod(1.0 - _stretched(background), axis=0)
    queries = (seeds >= jnp.mean(seeds)).astype(jnp.float32)
    return _stretched(ranking @ queries)


def manifold_ranking_saliency(
    frames: Float[Array, "B H W 3"], cells: tuple[int, int] = (16, 16), **options: float
) -> Float[Array, "B H W"]:
    """Saliency in [0, 1] of RGB images with values 0..255; `options` are of `rank_nodes`."""

    def one(frame: jax.Array) -> jax.Array:
        labels, colours = superpixels(rgb_to_lab(frame / 255.0), cells)
        return rank_nodes(colours, cells, **options)[labels]

    return jax.vmap(one)(frames.astype(jnp.float32))
