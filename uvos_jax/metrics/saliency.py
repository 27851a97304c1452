"""Salient-object measures of one map: MAE, F, S, E, weighted F. Host code in float64.

Formulas as in PySODMetrics (`sod_metrics.py@lartpang/PySODMetrics`), which agrees with the MATLAB
code of the papers: F (Achanta et al., 2009), S (Fan et al., ICCV 2017), E (Fan et al., IJCAI 2018),
weighted F (Margolin et al., CVPR 2014). Maps are min-max normalised first, unless constant.

Measures that depend on a threshold are curves over 256 thresholds. A data set's maximum is taken
on the averaged curve, so it is not the mean of the images' maxima.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from uvos_jax.errors import ShapeError

BETA2 = 0.3
_EPS = np.spacing(1.0)
_Counts = np.ndarray | np.integer | int


@dataclasses.dataclass(frozen=True)
class SaliencyScores:
    """Scores of one map; curves `[256]` are over thresholds 255, 254, ..., 0."""

    mae: float
    s_measure: float
    weighted_f: float
    f_adaptive: float
    e_adaptive: float
    f_curve: np.ndarray
    e_curve: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


def saliency_scores(pred: np.ndarray, gt: np.ndarray) -> SaliencyScores:
    """All measures of one map.

    Args:
      pred: uint8 `[H,W]`.
      gt: bool `[H,W]`.

    Raises:
      ShapeError: the shapes differ, `pred` is not uint8 or `gt` not bool.
    """
    if pred.shape != gt.shape or pred.ndim != 2 or pred.dtype != np.uint8 or gt.dtype != bool:
        raise ShapeError(
            f"expected a uint8 map and a bool annotation [H,W] of one size, got {pred.dtype} "
            f"{pred.shape} and {gt.dtype} {gt.shape}"
        )
    p = normalise(pred)
    adaptive = p >= min(2 * p.mean(), 1.0)
    precision, recall, f_curve, e_curve = _curves(p, gt)
    return SaliencyScores(
        mae=float(np.abs(p - gt).mean()),
        s_measure=s_measure(p, gt),
        weighted_f=weighted_f(p, gt),
        f_adaptive=_f_of_binary(adaptive, gt),
        e_adaptive=float(
            _e_measure(
                np.count_nonzero(adaptive & gt),
                np.count_nonzero(adaptive & ~gt),
                int(gt.sum()),
                gt.size,
            )
        ),
        f_curve=f_curve,
        e_curve=e_curve,
        precision=precision,
        recall=recall,
    )


def normalise(pred: np.ndarray) -> np.ndarray:
    """uint8 map to float64 in [0,1], stretched to its own range unless constant."""
    p = pred / 255.0
    low, high = p.min(), p.max()
    return p if low == high else (p - low) / (high - low)


def _f_of_binary(mask: np.ndarray, gt: np.ndarray) -> float:
    hit = np.count_nonzero(mask & gt)
    if hit == 0:
        return 0.0
    precision, recall = hit / np.count_nonzero(mask), hit / np.count_nonzero(gt)
    return (1 + BETA2) * precision * recall / (BETA2 * precision + recall)


def _curves(p: np.ndarray, gt: np.ndarray) -> tuple[np.ndarray, ...]:
    levels = (p * 255).astype(np.uint8)
    # Pixels at or above each threshold, thresholds descending.
    inside = np.cumsum(np.bincount(levels[gt], minlength=256)[::-1])
    outside = np.cumsum(np.bincount(levels[~gt], minlength=256)[::-1])
    area = int(gt.sum())
    precision = inside / np.maximum(inside + outside, 1)
    recall = inside / max(area, 1)
    weight = BETA2 * precision + recall
    f = (1 + BETA2) * precision * recall / np.where(weight > 0, weight, 1.0)
    return precision, recall, f, _e_measure(inside, outside, area, gt.size)


def _e_measure(inside: _Counts, outside: _Counts, area: int, size: int) -> np.ndarray | np.float64:
    """E of binary maps from how many of their pixels lie inside and outside the annotation.

    The alignment takes one of four values per map, so counts suffice. A perfect map scores
    size/(size-1), slightly above 1, as in the reference.
    """
    inside, outside = np.asarray(inside, np.float64), np.asarray(outside, np.float64)
    total = inside + outside
    if area == 0:
        enhanced = size - total
    elif area == size:
        enhanced = total
    else:
        mean_p, mean_g = total / size, area / size
        enhanced = np.zeros_like(total)
        cells = (
            (inside, 1 - mean_p, 1 - mean_g),
            (outside, 1 - mean_p, -mean_g),
            (area - inside, -mean_p, 1 - mean_g),
            (size - area - outside, -mean_p, -mean_g),
        )
        for count, a, b in cells:
            alignment = 2 * a * b / (a * a + b * b + _EPS)
            enhanced = enhanced + count * (alignment + 1) ** 2 / 4
    return enhanced / (size - 1 + _EPS)


def s_measure(p: np.ndarray, gt: np.ndarray, alpha: float = 0.5) -> float:
    """Structure measure: object-aware and region-aware similarity, weighted by `alpha`."""
    share = gt.mean()
    if share == 0:
        return float(1 - p.mean())
    if share == 1:
        return float(p.mean())
    similarity = share * _object_score(p[gt]) + (1 - share) * _object_score(1 - p[~gt])
    return float(max(0.0, alpha * similarity + (1 - alpha) * _region_score(p, gt)))


def _object_score(values: np.ndarray) -> float:
    mean = values.mean()
    deviation = values.std(ddof=1) if values.size > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + deviation + _EPS)


def _region_score(p: np.ndarray, gt: np.ndarray) -> float:
    """SSIM-like scores of the quadrants around the centroid, weighted by area."""
    H, W = gt.shape
    y, x = (int(np.round(c)) + 1 for c in np.argwhere(gt).mean(0))
    quadrants = (
        (slice(0, y), slice(0, x)),
        (slice(0, y), slice(x, W)),
        (slice(y, H), slice(0, x)),
        (slice(y, H), slice(x, W)),
    )
    weights = [y * x / gt.size, y * (W - x) / gt.size, (H - y) * x / gt.size]
    weights.append(1 - sum(weights))
    return sum(w * _ssim(p[q], gt[q]) for w, q in zip(weights, quadrants, strict=True) if p[q].size)


def _ssim(p: np.ndarray, g: np.ndarray) -> float:
    mean_p, mean_g, n = p.mean(), g.mean(), p.size - 1 + _EPS
    var_p, var_g = ((p - mean_p) ** 2).sum() / n, ((g - mean_g) ** 2).sum() / n
    covariance = ((p - mean_p) * (g - mean_g)).sum() / n
    a = 4 * mean_p * mean_g * covariance
    b = (mean_p**2 + mean_g**2) * (var_p + var_g)
    if a != 0:
        return a / (b + _EPS)
    return 1.0 if b == 0 else 0.0


def weighted_f(p: np.ndarray, gt: np.ndarray) -> float:
    """Weighted F (beta = 1): errors count by their neighbourhood and distance to the object."""
    if not gt.any():
        return 0.0
    distance, (rows, columns) = ndimage.distance_transform_edt(~gt, return_indices=True)
    error = np.abs(p - gt)
    # Each background pixel takes the error of its nearest foreground pixel before smoothing.
    spread = np.where(gt, error, error[rows, columns])
    weights = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 5.0**2))
    weights /= weights.sum()
    for axis in (0, 1):
        spread = ndimage.convolve1d(spread, weights, axis=axis, mode="constant")
    relieved = np.where(gt & (spread < error), spread, error)
    importance = np.where(gt, 1.0, 2 - np.exp(np.log(0.5) / 5 * distance))
    weighted = relieved * importance
    hit = gt.sum() - weighted[gt].sum()
    recall = 1 - weighted[gt].mean()
    precision = hit / (hit + weighted[~gt].sum() + _EPS)
    return float(2 * recall * precision / (recall + precision + _EPS))
