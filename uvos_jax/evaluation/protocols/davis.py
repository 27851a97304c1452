"""The DAVIS protocols: one foreground (2016) and unsupervised objects (2017)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from uvos_jax.data.sources.layouts import SequenceFiles
from uvos_jax.errors import DataError
from uvos_jax.evaluation import masks
from uvos_jax.evaluation.protocols.base import Protocol, Row, binary_pairs, mean
from uvos_jax.evaluation.splits import counts_for_stability
from uvos_jax.metrics import bitmask, davis, proposals, temporal
from uvos_jax.metrics.statistics import statistics
from uvos_jax.types import VOID

#: frames scored by one jitted call; shorter runs are padded so that one size compiles once.
CHUNK = 16


def j_and_f_of_run(pred: list[np.ndarray], gt: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """J and F in float64 of up to `CHUNK` equally sized bool masks."""
    height, width = pred[0].shape
    packed = []
    for run in (pred, gt):
        words = bitmask.pack_host(np.stack(run))
        packed.append(np.pad(words, [(0, CHUNK - len(run)), (0, 0), (0, 0)]))
    counts = davis.pair_counts(*packed, width=width, radius=davis.boundary_radius(height, width))
    j, f = davis.ratios(np.asarray(counts)[: len(pred)])
    return j, f


class Davis16(Protocol):
    """One foreground; first and last frame not evaluated."""

    name = "davis16"
    available = ("J", "F", "T")

    @property
    def statement(self) -> str:
        text = (
            "DAVIS-2016: one foreground (annotation above 0; results above 0 if their values are "
            "0/255 or 0/1, else above half of each frame's maximum), frames 1..N-2 (first and last "
            "not evaluated), mean, recall (above 0.5) and decay per sequence, unweighted mean over "
            f"sequences; contour tolerance {davis.BOUND_TH} of the diagonal"
        )
        if "T" in self.measures:
            text += (
                "; T over consecutive results, averaged over the sequences that DAVIS flags as "
                "stable (and sequences foreign to DAVIS-2016)"
            )
        return text + "."

    def frames(self, sequence: SequenceFiles) -> tuple[str, ...]:
        if len(sequence.frames) < 3:
            raise DataError(
                f"sequence {sequence.name!r} has {len(sequence.frames)} annotated frames: the "
                "DAVIS-16 protocol drops the first and the last and needs at least 3"
            )
        return sequence.frames[1:-1]

    def score(self, sequence: SequenceFiles, results: Path) -> list[Row]:
        frames = self.frames(sequence)
        stable = "T" in self.measures and counts_for_stability(sequence.name)
        scorer = SequenceScorer(measures=tuple(m for m in self.measures if m != "T" or stable))
        for pred, gt in binary_pairs(sequence, results, frames, merge_objects=self.merge_objects):
            scorer.add(pred, gt)
        values, stats = scorer.finish()
        return [Row(sequence.name, frames, values, stats, sequence.group)]


class SequenceScorer:
    """Feeds on (result, annotation) pairs in temporal order; gives values and statistics."""

    def __init__(self, measures: tuple[str, ...] = ("J", "F")):
        self.measures = measures
        self._pred: list[np.ndarray] = []
        self._gt: list[np.ndarray] = []
        self._values: dict[str, list[np.ndarray]] = {"J": [], "F": []}
        self._stability: list[float] = []
        self._count = 0
        self._outline: np.ndarray | None = None

    def add(self, pred: np.ndarray, gt: np.ndarray) -> None:
        """Takes the masks of the next frame, bool `[H,W]` of one size."""
        if "T" in self.measures:
            outline = temporal.outline(pred)
            if self._count:
                self._stability.append(temporal.stability_of_pair(self._outline, outline))
            self._outline = outline
        self._count += 1
        if self._pred and pred.shape != self._pred[-1].shape:
            self._flush()  # a sequence may change its size; runs may not
        self._pred.append(pred)
        self._gt.append(gt)
        if len(self._pred) == CHUNK:
            self._flush()

    def _flush(self) -> None:
        if self._pred:
            for name, part in zip("JF", j_and_f_of_run(self._pred, self._gt), strict=True):
                self._values[name].append(part)
            self._pred, self._gt = [], []

    def finish(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Per-frame values and `J_mean`, `J_recall`, `J_decay`, ... of what was added."""
        self._flush()
        values = {
            name: np.concatenate(parts)
            for name, parts in self._values.items()
            if name in self.measures
        }
        stats = _statistics_of(values)
        if "T" in self.measures:
            # A pair's value stands at its first frame; the last frame has none.
            values["T"] = np.array([*self._stability, np.nan])
            stats["T_mean"] = mean(self._stability)
        return values, stats


def _statistics_of(values: dict[str, np.ndarray]) -> dict[str, float]:
    return {
        f"{name}_{which}": number
        for name, v in values.items()
        for which, number in statistics(v)._asdict().items()
    }


class Davis17Unsupervised(Protocol):
    """Several objects; proposals are matched to them."""

    name = "davis17"
    available = ("J", "F")

    @property
    def statement(self) -> str:
        return (
            "DAVIS-2017 unsupervised: all frames, objects are the ids of the first annotated "
            "frame (255 is void and removed from all masks), up to "
            f"{proposals.MAX_PROPOSALS} proposals per sequence matched to objects by Hungarian "
            f"assignment on the mean of {' and '.join(self.measures)}, unmatched proposals not "
            "penalised; mean, recall and decay per object, unweighted mean over objects; row "
            "<sequence>_<k> is annotated object k."
        )

    def score(self, sequence: SequenceFiles, results: Path) -> list[Row]:
        per_frame: list[tuple[np.ndarray, np.ndarray]] = []
        num_objects = 0
        for t, (frame, files) in enumerate(zip(sequence.frames, sequence.annotations, strict=True)):
            path = results / f"{frame}.png"
            gt, pred = masks.object_ids(files[0]), masks.object_ids(path)
            masks.check_size(path, pred, gt.shape, files[0])
            void = gt == VOID
            if t == 0:
                num_objects = int(np.where(void, 0, gt).max(initial=0))
                if num_objects == 0:
                    raise DataError(f"{files[0]}: the first frame has no object to match")
            count = int(pred.max(initial=0))
            if count > proposals.MAX_PROPOSALS:
                raise DataError(
                    f"{path}: proposal id {count} exceeds {proposals.MAX_PROPOSALS}, the most the "
                    "task allows; save ids 1..20 and 0 for background"
                )
            per_frame.append(
                proposals.pairwise_j_and_f(
                    pred, gt, num_proposals=count, num_objects=num_objects, void=void
                )
            )
        count = max(num_objects, *(len(j) - 1 for j, _ in per_frame))
        scores = {
            name: np.stack([_with_absent(frame[k], count) for frame in per_frame], -1)
            for k, name in enumerate(("J", "F"))
        }
        chosen = proposals.match(*(scores[name] for name in self.measures))
        rows = []
        for o, proposal in enumerate(chosen):
            values = {name: scores[name][proposal, o] for name in self.measures}
            rows.append(
                Row(f"{sequence.name}_{o + 1}", sequence.frames, values, _statistics_of(values))
            )
        return rows

    def summarise(self, rows: list[Row]) -> dict[str, float]:
        summary = super().summarise(rows)
        if set(self.measures) == {"J", "F"}:
            summary = {"JF_mean": (summary["J_mean"] + summary["F_mean"]) / 2, **summary}
        return summary


def _with_absent(scores: np.ndarray, count: int) -> np.ndarray:
    """Rows for `count` proposals; those that a frame lacks score as its empty one (the last)."""
    present, empty = scores[:-1], scores[-1:]
    return np.concatenate([present, np.repeat(empty, count - len(present), axis=0)])
