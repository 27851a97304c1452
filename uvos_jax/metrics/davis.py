"""DAVIS measures: region similarity J, contour accuracy F, temporal stability T.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation"
(CVPR 2016). J and F follow `metrics.py@davisvideochallenge/davis2017-evaluation` count for count:
void pixels are removed from both masks first, boundaries are those of `seg2bmap`, and matching
within a tolerance is a dilation by a disk. T is in `uvos_jax.metrics.temporal`.

`j_and_f` works on bit-packed masks inside one jitted program (0.5 ms a 854x480 frame on one core,
packing included); `pair_counts` gives the integers behind it, from which the evaluator forms
ratios in float64.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32, Int32

from uvos_jax.errors import ConfigError, ShapeError
from uvos_jax.metrics import bitmask
from uvos_jax.metrics.bitmask import Mask, OtherMask, Words
from uvos_jax.metrics.temporal import temporal_stability

__all__ = [
    "BOUND_TH",
    "boundary_f",
    "boundary_radius",
    "j_and_f",
    "pair_counts",
    "ratios",
    "region_similarity",
    "temporal_stability",
]

#: tolerance of the contour measure as a fraction of the image diagonal.
BOUND_TH = 0.008


def boundary_radius(height: int, width: int, bound_th: float | int = BOUND_TH) -> int:
    """Radius in pixels of the tolerance disk: `bound_th` itself if >= 1, else of the diagonal.

    Raises:
      ConfigError: `bound_th` is not positive, or above 1 and no whole number.
    """
    if not bound_th > 0:
        raise ConfigError(f"bound_th {bound_th} is not positive: the official value is {BOUND_TH}")
    if bound_th < 1:
        return math.ceil(bound_th * math.hypot(height, width))
    if bound_th != int(bound_th):
        raise ConfigError(f"bound_th {bound_th} is no whole number of pixels: round it")
    return int(bound_th)


def _check(pred: Mask, gt: OtherMask, void: OtherMask | None) -> None:
    for name, mask in (("gt", gt), ("void", void)):
        if mask is not None and mask.shape != pred.shape:
            raise ShapeError(
                f"{name} has shape {tuple(mask.shape)} but pred has {tuple(pred.shape)}: masks are "
                "compared at one size; resize the prediction to the annotation"
            )


def region_similarity(
    pred: Mask, gt: OtherMask, void: OtherMask | None = None
) -> Float32[Array, "*batch"]:
    """J, intersection over union of each mask; 1 where both are empty.

    Args:
      pred, gt: `[...,H,W]`, any dtype; non-zero is foreground.
      void: pixels that count for neither, or None.

    Raises:
      ShapeError: the masks differ in shape.
    """
    _check(pred, gt, void)
    return _region_similarity(pred, gt, void)


@jax.jit
def _region_similarity(pred, gt, void):
    pred, gt = jnp.asarray(pred) != 0, jnp.asarray(gt) != 0
    if void is not None:
        keep = jnp.asarray(void) == 0
        pred, gt = pred & keep, gt & keep
    intersection = (pred & gt).sum((-1, -2), dtype=jnp.int32)
    union = (pred | gt).sum((-1, -2), dtype=jnp.int32)
    return _safe_ratio(intersection, union, 1.0)


def boundary_f(
    pred: Mask, gt: OtherMask, void: OtherMask | None = None, bound_th: float | int = BOUND_TH
) -> Float32[Array, "*batch"]:
    """F, harmonic mean of boundary precision and recall within a tolerance; see `j_and_f`."""
    return j_and_f(pred, gt, void, bound_th=bound_th)[1]


def j_and_f(
    pred: Mask, gt: OtherMask, void: OtherMask | None = None, *, bound_th: float | int = BOUND_TH
) -> tuple[Float32[Array, "*batch"], Float32[Array, "*batch"]]:
    """J and F of each mask, in one jitted pass; usable inside jit.

    F compares boundary pixels: precision is the share of predicted ones within the tolerance disk
    of an annotated one, recall the reverse. Both boundaries empty: 1; exactly one empty: 0.

    Args:
      pred, gt: `[...,H,W]`, any dtype; non-zero is foreground.
      void: pixels removed from both masks before anything else, or None.
      bound_th: tolerance, in pixels if >= 1, else as a fraction of the image diagonal.

    Raises:
      ShapeError: the masks differ in shape.
    """
    _check(pred, gt, void)
    radius = boundary_radius(*pred.shape[-2:], bound_th)
    return _j_and_f(pred, gt, void, radius)


@partial(jax.jit, static_argnames="radius")
def _j_and_f(pred, gt, void, radius):
    width = pred.shape[-1]
    pred, gt = bitmask.pack(pred), bitmask.pack(gt)
    if void is not None:
        keep = ~bitmask.pack(void)
        pred, gt = pred & keep, gt & keep
    counts = pair_counts(pred, gt, width=width, radius=radius)
    intersection, union, n_pred, n_gt, hit_pred, hit_gt = jnp.moveaxis(counts, -1, 0)
    precision = _safe_ratio(hit_pred, n_pred, 1.0)
    recall = _safe_ratio(hit_gt, n_gt, 1.0)
    total = precision + recall
    f = jnp.where(total > 0, 2 * precision * recall / jnp.where(total > 0, total, 1.0), 0.0)
    return _safe_ratio(intersection, union, 1.0), f


def _safe_ratio(part: Array, whole: Array, empty: float) -> Array:
    return jnp.where(whole > 0, part / jnp.maximum(whole, 1), jnp.float32(empty))


@partial(jax.jit, static_argnames=("width", "radius"))
def pair_counts(pred: Words, gt: Words, *, width: int, radius: int) -> Int32[Array, "*batch 6"]:
    """The six integers behind J and F of packed masks (void already removed from both).

    Returns:
      per mask: pixels in the intersection, in the union, boundary pixels of `pred`, of `gt`,
      those of `pred` near one of `gt`, those of `gt` near one of `pred`.
    """
    edge_pred, edge_gt = bitmask.boundary(pred, width), bitmask.boundary(gt, width)
    near_pred, near_gt = (bitmask.dilate_disk(e, radius) for e in (edge_pred, edge_gt))
    parts = (pred & gt, pred | gt, edge_pred, edge_gt, edge_pred & near_gt, edge_gt & near_pred)
    return jnp.stack([bitmask.count(part) for part in parts], -1)


def ratios(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """J and F in float64 from the integers of `pair_counts`, on the host."""
    intersection, union, n_pred, n_gt, hit_pred, hit_gt = np.moveaxis(
        np.asarray(counts).astype(np.float64), -1, 0
    )

    def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.where(whole > 0, part / np.maximum(whole, 1), 1.0)

    precision, recall = ratio(hit_pred, n_pred), ratio(hit_gt, n_gt)
    total = precision + recall
    f = np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1.0), 0.0)
    return ratio(intersection, union), f
