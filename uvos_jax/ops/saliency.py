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
    y, x = np.indices((H, W))
    step = (H * W / (rows * cols)) ** 0.5
    place = jnp.asarray(np.stack([y, x], axis=-1) * (compactness / step), jnp.float32)
    ones = jnp.ones((H, W, 1), jnp.float32)
    pixels = jnp.concatenate([lab.astype(jnp.float32), place, ones], axis=-1)
    # Both ways between pixels and cells are products of small matrices, one per shift of the nine:
    # gathers and scatters are slow where they are not needed.
    over_rows, over_cols = (jnp.asarray(m) for m in (_memberships(H, rows), _memberships(W, cols)))
    shifts = [(i, j) for i in range(3) for j in range(3)]

    def means(shares: jax.Array, old: jax.Array) -> jax.Array:
        """Centres of cells when `shares [9,H,W]` says which pixels follow which shift."""
        total = sum(
            jnp.einsum("hw,hwd,hr,wc->rcd", shares[k], pixels, over_rows[i], over_cols[j])
            for k, (i, j) in enumerate(shifts)
        )
        count = total[..., -1:]
        return jnp.where(count > 0, total / jnp.maximum(count, 1.0), old)

    def refine(_, carry):
        _, centres = carry
        distance = jnp.stack(
            [
                jnp.sum(
                    (pixels - jnp.einsum("hr,rcd,wc->hwd", over_rows[i], centres, over_cols[j]))
                    ** 2,
                    axis=-1,
                )
                for i, j in shifts
            ]
        )
        best = jnp.argmin(distance, axis=0)
        return best, means(jax.nn.one_hot(best, 9, axis=0), centres)

    best = jnp.full((H, W), shifts.index((1, 1)))
    start = jnp.zeros((rows, cols, pixels.shape[-1]), jnp.float32)
    centres = means(jax.nn.one_hot(best, 9, axis=0), start)
    best, centres = jax.lax.fori_loop(0, iterations, refine, (best, centres))
    row = jnp.clip(jnp.asarray((y * rows) // H) + best // 3 - 1, 0, rows - 1)
    col = jnp.clip(jnp.asarray((x * cols) // W) + best % 3 - 1, 0, cols - 1)
    return row * cols + col, centres.reshape(rows * cols, -1)[:, :3]


@lru_cache(maxsize=32)
def _memberships(size: int, cells: int) -> np.ndarray:
    """Which cell a pixel along one axis belongs to after a shift by -1, 0, 1: `[3,size,cells]`."""
    home = (np.arange(size) * cells) // size
    moved = [np.clip(home + shift, 0, cells - 1) for shift in (-1, 0, 1)]
    return np.stack([np.eye(cells, dtype=np.float32)[m] for m in moved])


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
