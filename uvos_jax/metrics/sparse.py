"""Region similarity on sparsely annotated videos (YouTube-Objects, FBMS-59, SegTrack v2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from uvos_jax.errors import DataError, ShapeError


def iou(pred: np.ndarray, gt: np.ndarray) -> float:
    """J of two bool masks `[H,W]` on the host; 1 if both are empty."""
    if pred.shape != gt.shape:
        raise ShapeError(f"pred has shape {pred.shape} but gt has {gt.shape}")
    union = int(np.count_nonzero(pred | gt))
    return int(np.count_nonzero(pred & gt)) / union if union else 1.0


def sparse_sequence_j(
    pred: np.ndarray | Mapping[int, np.ndarray],
    gt: Iterable[np.ndarray],
    frame_ids: Sequence[int],
    *,
    skip_empty: bool = True,
) -> np.ndarray:
    """J on the annotated frames only.

    Args:
      pred: masks of the video by frame index: `[T,H,W]` or a mapping.
      gt: annotations `[H,W]`, one per entry of `frame_ids`.
      frame_ids: indices of the annotated frames.
      skip_empty: whether frames with an empty annotation are left out (NaN); else they score 1
        when the prediction is empty too, and 0 when it is not.

    Returns:
      float64, one value per annotated frame.

    Raises:
      DataError: the number of annotations and of frames differ, or a frame is not predicted.
    """
    values = []
    gt = list(gt)
    if len(gt) != len(frame_ids):
        raise DataError(f"{len(gt)} annotations for {len(frame_ids)} annotated frames")
    for index, target in zip(frame_ids, gt, strict=True):
        target = np.asarray(target) != 0
        if skip_empty and not target.any():
            values.append(np.nan)
            continue
        try:
            mask = pred[index]
        except (KeyError, IndexError) as error:
            raise DataError(f"annotated frame {index} has no prediction") from error
        values.append(iou(np.asarray(mask) != 0, target))
    return np.array(values)


def averages(
    sequences: Mapping[str, np.ndarray], categories: Mapping[str, str] | None = None
) -> dict[str, float]:
    """The averages in circulation over per-frame values of sequences (NaN: frame left out).

    Returns:
      `sequences` (mean of sequence means), `frames` (mean of all frames) and, with `categories`
      (sequence -> category), `categories` (mean of category means of sequence means).
    """
    kept = {name: v[~np.isnan(v)] for name, v in sequences.items()}
    means = {name: float(v.mean()) for name, v in kept.items() if v.size}
    if not means:
        names = ("sequences", "frames", *(("categories",) if categories is not None else ()))
        return dict.fromkeys(names, float("nan"))
    out = {
        "sequences": float(np.mean(list(means.values()))),
        "frames": float(np.concatenate(list(kept.values())).mean()),
    }
    if categories is not None:
        groups: dict[str, list[float]] = {}
        for name, value in means.items():
            groups.setdefault(categories[name], []).append(value)
        out["categories"] = float(np.mean([np.mean(v) for v in groups.values()]))
    return out
