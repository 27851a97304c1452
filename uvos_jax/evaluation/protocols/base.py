"""What it means to score one sequence, per data set: frames, measures, averages, in words and code.

A protocol turns the files of one sequence into rows of per-frame values, and rows into the
numbers of the data set. Sequences are streamed frame by frame, so memory does not depend on their
number or length.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from uvos_jax.data.sources.layouts import SequenceFiles
from uvos_jax.errors import ConfigError
from uvos_jax.evaluation import masks


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
    suffix: ClassVar[str] = ".png"  # of the result files
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
            name: mean([row.stats[name] for row in rows if name in row.stats]) for name in names
        }

    def groups(self, rows: list[Row]) -> dict[str, dict[str, float]]:
        """Numbers per category, empty where the data set has none."""
        names = sorted({row.group for row in rows if row.group is not None})
        return {n: Protocol.summarise(self, [r for r in rows if r.group == n]) for n in names}


def mean(values: Sequence[float]) -> float:
    """Mean of what is not NaN; NaN if nothing is left."""
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
