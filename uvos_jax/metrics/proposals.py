"""Matching object proposals to annotated objects: the unsupervised task of DAVIS-2017.

Every proposal (an id that lasts through the video) is compared with every object; the assignment
that maximises the mean of J and F decides. As in `evaluation.py@davisvideochallenge/
davis2017-evaluation`, unmatched proposals cost nothing and absent ones score as empty masks.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from uvos_jax.errors import ShapeError
from uvos_jax.metrics import bitmask, davis

MAX_PROPOSALS = 20
_BUCKET = 4  # ids are padded to a multiple, so that few sizes are compiled


def pairwise_j_and_f(
    pred: np.ndarray,
    gt: np.ndarray,
    *,
    num_proposals: int,
    num_objects: int,
    void: np.ndarray | None = None,
    bound_th: float | int = davis.BOUND_TH,
) -> tuple[np.ndarray, np.ndarray]:
    """J and F of every proposal with every object of one frame.

    Args:
      pred: proposal ids `[H,W]`, 0 background.
      gt: object ids `[H,W]`, 0 background; ids above `num_objects` are ignored.
      num_proposals, num_objects: ids 1..n are compared; those not in the frame are empty masks.
      void: pixels `[H,W]` removed from all masks, or None.

    Returns:
      two float64 `[num_proposals+1,num_objects]`; the last row is an empty proposal.
    """
    if pred.shape != gt.shape or pred.ndim != 2:
        raise ShapeError(f"pred {pred.shape} and gt {gt.shape} must both be [H,W] of one size")
    keep = np.ones(gt.shape, bool) if void is None else np.asarray(void) == 0
    height, width = gt.shape
    counts = _pairwise_counts(
        _packed_ids(pred, num_proposals + 1, keep),
        _packed_ids(gt, num_objects, keep),
        width=width,
        radius=davis.boundary_radius(height, width, bound_th),
    )
    return davis.ratios(np.asarray(counts)[: num_proposals + 1, :num_objects])


def _packed_ids(ids: np.ndarray, count: int, keep: np.ndarray) -> np.ndarray:
    """Masks of ids 1..count, packed; padded with empty masks. The id beyond the last is empty."""
    words = np.zeros(
        (-(-count // _BUCKET) * _BUCKET, ids.shape[0], bitmask.num_words(ids.shape[1])), np.uint32
    )
    for i in np.unique(ids[keep]):
        if 0 < i <= count:
            words[i - 1] = bitmask.pack_host((ids == i) & keep)
    return words


@partial(jax.jit, static_argnames=("width", "radius"))
def _pairwise_counts(pred: jax.Array, gt: jax.Array, *, width: int, radius: int) -> jax.Array:
    """The integers of `davis.pair_counts` for all pairs, `[P,O,6]`; each mask is dilated once."""
    edge_p, edge_g = bitmask.boundary(pred, width), bitmask.boundary(gt, width)
    near_p, near_g = (bitmask.dilate_disk(e, radius) for e in (edge_p, edge_g))
    n_p, n_g = bitmask.count(edge_p), bitmask.count(edge_g)

    def one(p, e_p, close_p, n):
        parts = (p & gt, p | gt, e_p & near_g, edge_g & close_p)
        inter, union, hit_p, hit_g = (bitmask.count(part) for part in parts)
        return jnp.stack([inter, union, jnp.full_like(inter, n), n_g, hit_p, hit_g], -1)

    return jax.lax.map(lambda x: one(*x), (pred, edge_p, near_p, n_p))


def match(j: np.ndarray, f: np.ndarray | None = None) -> np.ndarray:
    """The proposal of each object by Hungarian assignment.

    Args:
      j, f: `[P,O,T]` with P >= O; the score of a pair is the mean over frames of J, or of J and F.

    Returns:
      int `[O]`, row of the proposal that object o is matched with.
    """
    score = j.mean(-1) if f is None else (j.mean(-1) + f.mean(-1)) / 2
    if score.shape[0] < score.shape[1]:
        raise ShapeError(
            f"{score.shape[0]} proposals for {score.shape[1]} objects: pad with empty proposals"
        )
    rows, columns = linear_sum_assignment(-score)
    return rows[np.argsort(columns)]
