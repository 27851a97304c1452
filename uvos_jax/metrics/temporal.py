"""Temporal (in)stability T: how much the outline changes from frame to frame. Lower is better.

Perazzi et al. (CVPR 2016), section 5.3, as implemented in `t_stability.py@fperazzi/davis`: outlines
are described by shape contexts (Belongie et al., 2002) and matched by dynamic time warping; T is
five times the mean cost of the matched points. Outlines have data-dependent length and are made on
the host; costs and warping, along anti-diagonals, are jitted for a few padded sizes, in float64
because ties in the path decide the value.

The two official implementations differ from each other by 1-2 % on most pairs and more on a few,
because ties are resolved differently; comparisons closer than that have no meaning.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.metrics.contours import longest_polygon, upsample

RADIAL_EDGES = np.logspace(np.log10(1 / 8), np.log10(2.0), 5)
ANGLES = 12
#: the published numbers are the mean cost times this.
SCALE = 5.0
_EPS = 2.2204e-16
_BUCKET = 64  # outlines are padded to a multiple of this, so that few sizes are compiled


def temporal_stability(masks: np.ndarray) -> np.ndarray:
    """T of each pair of consecutive masks.

    Args:
      masks: `[T,H,W]`, non-zero is foreground.

    Returns:
      float64 `[T-1]`; NaN where either mask has no outline.
    """
    return stability_of_outlines([outline(np.asarray(mask) != 0) for mask in masks])


def outline(mask: np.ndarray) -> np.ndarray | None:
    """Shape contexts `[n,60]` of the longest outline of a bool mask `[H,W]`, or None if empty."""
    polygon = longest_polygon(mask)
    return None if polygon is None else shape_contexts(upsample(polygon))


def shape_contexts(points: np.ndarray) -> np.ndarray:
    """Normalised histograms `[n,60]` of where the other points `[n,2]` lie, seen from each point.

    Five rings of radius 1/8 to 2 mean distances times twelve angles; the point itself counts.
    """
    points = points.astype(np.float64)
    n = len(points)
    dx = points[None, :, 0] - points[:, None, 0]
    dy = points[None, :, 1] - points[:, None, 1]
    distance = np.sqrt(dx * dx + dy * dy)
    distance /= distance.mean()
    ring = len(RADIAL_EDGES) - np.searchsorted(RADIAL_EDGES, distance, side="right")
    angle = np.fmod(np.fmod(np.arctan2(dy, dx), 2 * np.pi) + 2 * np.pi, 2 * np.pi)
    sector = np.minimum((angle / (2 * np.pi / ANGLES)).astype(int), ANGLES - 1)
    near = ring > 0
    row = np.broadcast_to(np.arange(n)[:, None], near.shape)
    bins = len(RADIAL_EDGES) * ANGLES
    index = row[near] * bins + (ring[near] - 1) * ANGLES + sector[near]
    histograms = np.bincount(index, minlength=n * bins).reshape(n, bins)
    return histograms / (histograms.sum(1, keepdims=True) + _EPS)


def stability_of_outlines(outlines: Sequence[np.ndarray | None]) -> np.ndarray:
    """T `[len-1]` of consecutive outlines; NaN where one is None."""
    pairs = itertools.pairwise(outlines)
    return np.array([stability_of_pair(first, second) for first, second in pairs])


def stability_of_pair(first: np.ndarray | None, second: np.ndarray | None) -> float:
    """T of two outlines given by their shape contexts `[n,60]` and `[m,60]`."""
    if first is None or second is None:
        return float("nan")
    cost = matching_cost(first, second)
    # The first path finds where the outlines agree best; the second starts right after it.
    i, j = _cheapest_cell(warp(cost), cost)
    path = warp(np.roll(cost, (-(i + 1), -(j + 1)), (0, 1)))
    pairs = (path + np.array([i + 1, j + 1])) % cost.shape
    for axis in (0, 1):
        pairs = _cheapest_per(pairs, cost, axis)
    return SCALE * float(cost[pairs[:, 0], pairs[:, 1]].mean())


def matching_cost(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Chi-squared distances `[n,m]` in [0,1] between histograms `[n,k]` and `[m,k]`, float64."""
    n, m = len(first), len(second)
    size = -(-max(n, m) // _BUCKET) * _BUCKET
    first, second = (np.pad(h, ((0, size - len(h)), (0, 0))) for h in (first, second))
    with jax.enable_x64(True):
        return np.asarray(_matching_cost(first, second.T))[:n, :m]


@jax.jit
def _matching_cost(first: jax.Array, second: jax.Array) -> jax.Array:
    """Adds up one histogram bin at a time: no `[n,m,k]` array, and contiguous rows."""

    def add_bin(k, total):
        g, h = first[:, k, None], second[k][None]
        difference = g - h
        return total + difference * difference / (g + h + _EPS)

    size = first.shape[0]
    zeros = jnp.zeros((size, size), first.dtype)
    return 0.5 * jax.lax.fori_loop(0, first.shape[1], add_bin, zeros)


def warp(cost: np.ndarray) -> np.ndarray:
    """Cheapest monotone path from corner to corner of a cost matrix `[n,m]`, the first cell free.

    Moves go right, down and diagonally and cost what their target costs.

    Returns:
      cells `[steps,2]` of the path, from the end to the start.
    """
    n, m = cost.shape
    size = -(-max(n, m) // _BUCKET) * _BUCKET
    padded = np.zeros((size, size))
    padded[:n, :m] = cost
    with jax.enable_x64(True):
        moves = np.asarray(_moves(padded))
    # Cell (i,j) is entry (i+j-1)*size + i of the moves; indexing bytes by one running number is
    # several times faster than indexing an array by two.
    into = moves.tobytes()
    back = (2 * size + 1, size + 1, size)  # of a diagonal move, one from above, one from the left
    entry = (n + m - 3) * size + n - 1
    entries = []
    while entry >= 0:
        entries.append(entry)
        entry -= back[into[entry]]
    entries.append(-size)  # where the first cell would be
    diagonal, i = np.divmod(np.array(entries), size)
    return np.stack([i, diagonal + 1 - i], -1)


_DIAGONAL, _UP, _LEFT = range(3)


@jax.jit
def _moves(cost: jax.Array) -> jax.Array:
    """How the cheapest path enters each cell of a square matrix `[n,n]`.

    Anti-diagonals depend on the two before them only, so one scan step serves a whole diagonal.
    Among equals the diagonal move is taken, then the one from above.

    Returns:
      uint8 `[2n-2,n]`: the move into cell (i,j) at [i+j-1,i].
    """
    n = cost.shape[0]
    # Rows padded to 2n and read with stride 2n-1: row i moves i places to the right. What is not
    # in the matrix is infinitely dear, so no step has to know where its diagonal begins and ends.
    skewed = jnp.pad(cost, ((0, 0), (0, n)), constant_values=jnp.inf)
    skewed = skewed.reshape(-1)[: n * (2 * n - 1)].reshape(n, 2 * n - 1).T
    outside = jnp.full(1, jnp.inf, cost.dtype)

    def diagonal(before, two_before, cells):
        up, left, corner = before[:-1], before[1:], two_before[:-1]
        straight = jnp.minimum(up, left)
        # Arithmetic on the codes is measurably faster here than nested selects.
        move = (corner > straight).astype(jnp.uint8) * (_UP + (left < up).astype(jnp.uint8))
        return jnp.concatenate([outside, jnp.minimum(corner, straight) + cells]), move

    def two_diagonals(carry, cells):
        # Two a step halve the cost of the loop; without the barrier XLA computes the first twice.
        before, two_before = carry
        first, first_move = diagonal(before, two_before, cells[0])
        first = jax.lax.optimization_barrier(first)
        second, second_move = diagonal(first, before, cells[1])
        return (second, first), jnp.stack([first_move, second_move])

    nothing = jnp.full(n + 1, jnp.inf, cost.dtype)
    start = (nothing.at[1].set(0.0), nothing)
    return jax.lax.scan(two_diagonals, start, skewed[1:].reshape(n - 1, 2, n))[1].reshape(-1, n)


def _cheapest_cell(path: np.ndarray, cost: np.ndarray) -> tuple[int, int]:
    """The cheapest cell of a path, the start left out; the first found from the end."""
    cells = path[:-1] if len(path) > 1 else path
    i, j = cells[np.argmin(cost[cells[:, 0], cells[:, 1]])]
    return int(i), int(j)


def _cheapest_per(pairs: np.ndarray, cost: np.ndarray, axis: int) -> np.ndarray:
    """Keeps, for every index along `axis`, its cheapest pair; the first on ties."""
    price = cost[pairs[:, 0], pairs[:, 1]]
    order = np.lexsort((np.arange(len(pairs)), price, pairs[:, axis]))
    pairs = pairs[order]
    first = np.concatenate([[True], pairs[1:, axis] != pairs[:-1, axis]])
    return pairs[first]
