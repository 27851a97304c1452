"""From object-level maps to instances: the unsupervised task of DAVIS-2017.

As in the release (`README.md`, `proposal_selection_un.py@carrierlxk/AGNN`): AGNN's map says where
primary objects are, class-agnostic mask proposals say where one object ends and the next begins.
Proposals of the first frame that agree with the map become objects 1, 2, ...; the others frames'
proposals are then assigned to them along the optical flow. The release used proposals, refinement
and association (MergeTrack) of PReMVOS, which are not part of this library: proposals and flow are
inputs here, and the association is a greedy one by overlap. `components_as_proposals` makes
proposals of the map alone, if there are no better ones.

Host code on NumPy arrays; maps as `uvos predict --save probs` writes them, uint8 `[T,H,W]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from uvos_jax.errors import DataError, ShapeError
from uvos_jax.ops.crf import dense_crf
from uvos_jax.ops.warp import backward_warp

MIN_AREA = 200
NMS_OVERLAP = 0.35
MAX_OBJECTS = 20
#: (overlap, score of a proposal on the map, score that suffices anywhere), strict and fallback.
STRICT = (0.09, 0.56, 0.89)
FALLBACK = (0.08, 0.56, 0.7)

Proposals = tuple[np.ndarray, np.ndarray]
"""Masks bool `[P,H,W]` and scores in [0,1] `[P]` of one frame."""


def binary_map(
    heat: np.ndarray, image: np.ndarray | None = None, *, preset: str = "agnn"
) -> np.ndarray:
    """Foreground bool `[H,W]` of a map uint8 `[H,W]`: sigmoid, CRF if an image is given, 0.5.

    `sigmoid(0.1 (x - 0.02))` saturates: every value of 1 or more lies above 0.5, which is why the
    CRF (on the frame uint8 `[H,W,3]`) has so much to say.
    """
    soft = 1.0 / (1.0 + np.exp(-0.1 * (heat.astype(np.float32) - 0.02)))
    if image is not None:
        soft = np.asarray(dense_crf(image, soft, preset=preset))
    return soft > 0.5


def box_masks(masks: np.ndarray) -> np.ndarray:
    """Every mask `[P,H,W]` filled up to its bounding box."""
    boxes = np.zeros_like(masks)
    for box, mask in zip(boxes, masks, strict=True):
        y, x = np.nonzero(mask)
        if len(y):
            box[y.min() : y.max() + 1, x.min() : x.max() + 1] = True
    return boxes


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks; 0 if both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


def suppressed(boxes: np.ndarray, scores: np.ndarray, candidates: Sequence[int]) -> list[int]:
    """Non-maximum suppression: candidates best first, none overlapping a better one's box."""
    kept: list[int] = []
    for i in sorted(candidates, key=lambda i: -scores[i]):
        if all(overlap(boxes[i], boxes[j]) <= NMS_OVERLAP for j in kept):
            kept.append(i)
    return kept


def select_proposals(binary: np.ndarray, masks: np.ndarray, scores: np.ndarray) -> list[int]:
    """Indices of the proposals that become objects, best first.

    Args:
      binary: where primary objects are, bool `[H,W]`. masks, scores: see `Proposals`.

    Raises:
      ShapeError: the sizes do not agree.
    """
    masks, scores = np.asarray(masks, bool), np.asarray(scores, np.float64)
    if masks.ndim != 3 or masks.shape[1:] != binary.shape or scores.shape != masks.shape[:1]:
        raise ShapeError(
            f"expected masks [P,H,W] and scores [P] for a map of {binary.shape}, got "
            f"{masks.shape} and {scores.shape}"
        )
    boxes = box_masks(masks)
    large = [i for i in range(len(masks)) if np.count_nonzero(masks[i]) >= MIN_AREA]
    candidates = suppressed(boxes, scores, large)
    on_map = {i: overlap(boxes[i], binary) for i in candidates}
    for least_overlap, score, sure in (STRICT, FALLBACK):
        kept = [
            i
            for i in candidates
            if (on_map[i] > least_overlap and scores[i] > score) or scores[i] > sure
        ]
        if kept:
            return suppressed(boxes, scores, kept)[:MAX_OBJECTS]
    return []


def components_as_proposals(heat: np.ndarray, threshold: int = 128) -> Proposals:
    """Connected parts of a map uint8 `[H,W]` as proposals, scored by their mean value / 255."""
    labels, count = ndimage.label(heat >= threshold)
    masks = np.stack([labels == i for i in range(1, count + 1)]) if count else None
    if masks is None:
        return np.zeros((0, *heat.shape), bool), np.zeros(0)
    return masks, np.array([heat[m].mean() / 255.0 for m in masks])


def associate(
    previous: np.ndarray, flow: np.ndarray, proposals: Proposals, *, least: float = 0.3
) -> np.ndarray:
    """Ids uint8 `[H,W]` of the next frame.

    Every object is moved along the flow; the pairs of object and proposal that overlap most are
    matched first, each once. An object without a match keeps its moved mask. Where masks meet, the
    better match wins.

    Args:
      previous: ids of the frame before. flow: from the next frame back to it, `[H,W,2]` pixels.
      least: overlap below which nothing matches.
    """
    masks, _ = proposals
    ids = [int(i) for i in np.unique(previous) if i]
    if not ids:
        return np.zeros_like(previous)
    stacked = np.stack([previous == i for i in ids], axis=-1).astype(np.float32)
    warped = backward_warp(jnp.asarray(stacked)[None], jnp.asarray(flow, jnp.float32)[None])
    moved = np.moveaxis(np.asarray(warped)[0] > 0.5, -1, 0)
    table = np.array([[overlap(m, p) for p in masks] for m in moved]).reshape(len(ids), -1)
    final = {i: (0.0, mask) for i, mask in zip(ids, moved, strict=True)}
    for _ in range(min(table.shape)):
        a, b = np.unravel_index(np.argmax(table), table.shape)
        if table[a, b] < least:
            break
        final[ids[a]] = (table[a, b], masks[b])
        table[a, :] = table[:, b] = -1.0
    result = np.zeros_like(previous)
    for i, (_, mask) in sorted(final.items(), key=lambda item: item[1][0]):
        result[mask] = i
    return result


def segment_instances(
    heat: np.ndarray,
    proposals: Sequence[Proposals],
    flow: np.ndarray,
    *,
    frames: np.ndarray | None = None,
) -> np.ndarray:
    """Instance ids of a video, uint8 `[T,H,W]`: 0 background, objects from 1.

    Args:
      heat: AGNN's maps uint8 `[T,H,W]`.
      proposals: per frame.
      flow: forward, frame t to t+1, `[T-1,H,W,2]` pixels; its negative at the target stands for
        the flow back.
      frames: uint8 `[T,H,W,3]` for the CRF on the first map; None goes without.

    Raises:
      DataError: not one set of proposals per map and one flow less.
    """
    heat = np.asarray(heat)
    if not (len(heat) == len(proposals) == len(flow) + 1):
        raise DataError(
            f"got {len(heat)} maps, {len(proposals)} proposals and {len(flow)} flows: expected "
            "proposals for every map and a flow from each frame to the next"
        )
    numbers = ObjectNumbers()
    none = np.zeros((*heat.shape[1:], 2), np.float32)
    return np.stack(
        [
            numbers.step(
                None if frames is None else frames[t],
                heat[t] / 255.0,
                *proposals[t],
                flow=-np.asarray(flow[t - 1]) if t else none,
            )
            for t in range(len(heat))
        ]
    )


class ObjectNumbers:
    """Instance ids of a video that arrives frame by frame.

    Attributes:
      needs_flow: whether `step` takes optical flow.
    """

    needs_flow = True

    def __init__(self):
        self._ids: np.ndarray | None = None

    def step(
        self,
        frame: np.ndarray | None,
        prob: np.ndarray,
        proposals: np.ndarray | None = None,
        scores: np.ndarray | None = None,
        flow: np.ndarray | None = None,
    ) -> np.ndarray:
        """Ids uint8 `[H,W]` of the next frame; objects are those of the first.

        Args:
          frame: uint8 `[H,W,3]` for the CRF on the first map; None goes without.
          prob: AGNN's map `[H,W]` in [0,1]; taken in steps of 1/255, as saved maps are.
          proposals, scores: see `Proposals`; None takes the connected parts of the map.
          flow: from this frame to the one before, `[H,W,2]` pixels.

        Raises:
          ShapeError: the sizes do not agree.
        """
        heat = np.round(np.asarray(prob) * 255).astype(np.uint8)
        if proposals is None:
            proposals, scores = components_as_proposals(heat)
        if self._ids is None:
            ids = np.zeros(heat.shape, np.uint8)
            chosen = select_proposals(binary_map(heat, frame), proposals, scores)
            for number, i in reversed(list(enumerate(chosen, start=1))):  # the best is written last
                ids[np.asarray(proposals[i], bool)] = number
        else:
            ids = associate(self._ids, flow, (np.asarray(proposals, bool), scores))
        self._ids = ids
        return ids
