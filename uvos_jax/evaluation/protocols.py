"""What it means to score one sequence, per data set: frames, measures, averages, in words and code.

A protocol turns the files of one sequence into rows of per-frame values, and rows into the
numbers of the data set. Sequences are streamed in short runs of frames, so memory does not depend
on their number or length.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from uvos_jax.errors import ConfigError, DataError
from uvos_jax.evaluation import masks
from uvos_jax.evaluation.layouts import SequenceFiles
from uvos_jax.evaluation.splits import counts_for_stability
from uvos_jax.metrics import bitmask, davis
from uvos_jax.metrics.statistics import statistics

#: frames scored by one jitted call; shorter runs are padded so that one size compiles once.
CHUNK = 16


@dataclasses.dataclass
class Row:
    """Scores of one sequence, or of one object of it.

    Attributes:
      name: of the sequence, or `sequence_k` for object k.
      frames: names of the evaluated frames.
      values: measure -> one value per frame (NaN: not defined there).
      stats: the row's numbers, for example `J_mean`.
      group: category, where the data set has them.
      curves: measure -> curve averaged over the frames (saliency only).
    """

    name: str
    frames: tuple[str, ...]
    values: dict[str, np.ndarray]
    stats: dict[str, float]
    group: str | None = None
    curves: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)


@dataclasses.dataclass(frozen=True)
class Protocol(ABC):
    """Base of the protocols.

    Attributes:
      measures: what is computed, a subset of `available`.
      merge_objects: whether several ids of an indexed result count as one foreground.
    """

    measures: tuple[str, ...]
    merge_objects: bool = False

    name: ClassVar[str] = ""
    available: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        unknown = [m for m in self.measures if m not in self.available]
        if unknown or not self.measures:
            raise ConfigError(
                f"measures {', '.join(unknown) or '(none)'} are not defined for {self.name}: "
                f"use {', '.join(self.available)}"
            )

    @property
    @abstractmethod
    def statement(self) -> str:
        """The protocol in words, printed in every report."""

    def frames(self, sequence: SequenceFiles) -> tuple[str, ...]:
        """Frames that a result must have."""
        return sequence.frames

    @abstractmethod
    def score(self, sequence: SequenceFiles, results: Path) -> list[Row]:
        """Scores the masks in the folder `results` of this sequence."""

    def summarise(self, rows: list[Row]) -> dict[str, float]:
        """The data set's numbers: each statistic averaged over the rows, all weighing the same."""
        names = dict.fromkeys(key for row in rows for key in row.stats)
        return {
            name: _mean([row.stats[name] for row in rows if name in row.stats]) for name in names
        }

    def groups(self, rows: list[Row]) -> dict[str, dict[str, float]]:
        """Numbers per category, empty where the data set has none."""
        names = sorted({row.group for row in rows if row.group is not None})
        return {n: Protocol.summarise(self, [r for r in rows if r.group == n]) for n in names}


def _mean(values: list[float]) -> float:
    kept = [v for v in values if not np.isnan(v)]
    return float(np.mean(kept)) if kept else float("nan")


def binary_pairs(
    sequence: SequenceFiles, results: Path, frames: tuple[str, ...], *, merge_objects: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (result, annotation) as bool `[H,W]` for the named frames, read one at a time."""
    files = dict(zip(sequence.frames, sequence.annotations, strict=True))
    for frame in frames:
        path = results / f"{frame}.png"
        pred = masks.binary_result(path, merge_objects=merge_objects)
        gt = masks.annotation(files[frame], sequence.rule)
        masks.check_size(path, pred, gt.shape, files[frame][0])
        yield pred, gt


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

    def add(self, pred: np.ndarray, gt: np.ndarray) -> None:
        """Takes the masks of the next frame, bool `[H,W]` of one size."""
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
        stats = {
            f"{name}_{which}": number
            for name, v in values.items()
            for which, number in statistics(v)._asdict().items()
        }
        return values, stats


PROTOCOLS: dict[str, type[Protocol]] = {p.name: p for p in (Davis16,)}
