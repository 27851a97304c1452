"""Is a copy of a data set complete, and laid out so that it can be read?

`check` looks at folders and file names (and into the files, if asked) and either counts what is
there or raises one sentence that names what is missing.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from uvos_jax.data.sources import SOURCES, source_class
from uvos_jax.data.sources.annotated import DatasetSource, missing_files
from uvos_jax.data.sources.layouts import Dataset, find_dataset
from uvos_jax.data.splits.davis import FRAMES
from uvos_jax.errors import ConfigError, DataError, UvosError

#: Sequences (images) of the official sets by (data set, split).
OFFICIAL_SEQUENCES = {
    ("davis16", "train"): 30, ("davis16", "val"): 20,
    ("davis17", "train"): 60, ("davis17", "val"): 30,
    ("youtube_objects", None): 126,
    ("fbms", "train"): 29, ("fbms", "test"): 30,
    ("segtrack", None): 14,
    ("visal", None): 17,
    ("davsod", "train"): 61, ("davsod", "val"): 46, ("davsod", "test"): 80,
    ("davsod", "easy"): 35, ("davsod", "normal"): 25, ("davsod", "difficult"): 20,
    ("youtube_vos", "train"): 3471,
    ("msra10k", None): 10000,
    ("duts", "train"): 10553, ("duts", "test"): 5019,
    ("dut_omron", None): 5168,
    ("ecssd", None): 1000,
}  # fmt: skip
#: How many gaps a message names.
_SHOWN, _NAMED = 4, 20


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a split holds.

    Attributes:
      split: its name, or None where the set has no splits.
      layout: sentence of where it was found.
      sequences / frames / annotated: numbers of videos (images), frames, frames with annotation.
      official: sequences of the official set, or None where that is not known.
    """

    split: str | None
    layout: str
    sequences: int
    frames: int
    annotated: int
    official: int | None


def checkable() -> dict[str, type[DatasetSource]]:
    """The data sets that can be checked and prepared, by name."""
    module = DatasetSource.__module__
    return {n: source_class(n) for n, place in SOURCES.items() if place.startswith(f"{module}:")}


def check(
    dataset: str,
    root: str | Path,
    *,
    split: str | None = None,
    partial: bool = False,
    decode: bool = False,
    **options: Any,
) -> list[Counts]:
    """Checks a copy of a data set.

    Args:
      dataset: one of `checkable()`.
      split: only this one; all splits of the set by default.
      partial: do not compare with the official numbers, for copies that are a part on purpose.
      decode: also read every file.
      options: of the layout (DAVIS: `resolution`; FlyingThings3D: `render`, `side`, `labels`).

    Returns:
      counts for every split.

    Raises:
      DataError: something is missing or unreadable; one sentence that names it.
      ConfigError: no such data set, split or option.
    """
    known = checkable()
    if dataset not in known:
        raise ConfigError(f"data set {dataset!r} is unknown: use one of {', '.join(known)}")
    cls = known[dataset]
    unknown = sorted(set(options) - set(cls.OPTIONS))
    if unknown:
        has = f"it has {', '.join(cls.OPTIONS)}" if cls.OPTIONS else "it has none"
        raise ConfigError(f"data set {dataset!r} has no option {unknown[0]!r}: {has}")
    if split is not None and split not in cls.SPLITS:
        has = f"use one of {', '.join(cls.SPLITS)}" if cls.SPLITS else "it has no splits"
        raise ConfigError(f"data set {dataset!r} has no split {split!r}: {has}")
    splits = (split,) if split or not cls.SPLITS else cls.SPLITS
    counts = []
    for one in splits:
        try:
            found = find_dataset(dataset, root, split=one, **options)
        except UvosError as error:
            hint = "" if split or not cls.SPLITS else f" (split {one}; check one with --split)"
            raise type(error)(f"{error}{hint}") from error
        problems = _problems(cls, found, one, partial=partial)
        if problems:
            more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            where = f", split {one}" if one else ""
            raise DataError(
                f"{dataset} in {root}{where} is incomplete: {'; '.join(problems[:_SHOWN])}{more}"
            )
        if decode:
            made = cls(str(root), one, clips="frames", **options)
            for index in range(len(made)):
                made[index]
        counts.append(
            Counts(
                one,
                found.layout,
                len(found.sequences),
                sum(len(s.images) for s in found.sequences),
                sum(len(s.frames) for s in found.sequences),
                OFFICIAL_SEQUENCES.get((dataset, one)),
            )
        )
    return counts


def _problems(
    cls: type[DatasetSource], found: Dataset, split: str | None, *, partial: bool
) -> list[str]:
    """Everything that is missing, a phrase for each."""
    problems = []
    if found.absent:
        names = ", ".join(found.absent[:_NAMED])
        more = f" and {len(found.absent) - _NAMED} more" if len(found.absent) > _NAMED else ""
        count = len(found.absent) + len(found.sequences)
        problems.append(
            f"{len(found.absent)} of the {count} sequences in the split's list are missing "
            f"({names}{more})"
        )
    for files in found.sequences:
        problems += missing_files(files, dense=cls.DENSE)
    if partial:
        return problems
    if cls.DATASET in ("davis16", "davis17"):
        for files in found.sequences:
            official, here = FRAMES.get(files.name), len(files.images)
            if official and here != official:
                problems.append(
                    f"sequence {files.name!r} has {here} frames, officially {official} "
                    "(--partial accepts a part)"
                )
    official, here = OFFICIAL_SEQUENCES.get((cls.DATASET, split)), len(found.sequences)
    # Papers and re-packed copies leave the sequence "penguin" of SegTrack v2 out.
    accepted = {official, 13} if cls.DATASET == "segtrack" else {official}
    if official and here not in accepted and not found.absent:
        stills = all(len(f.images) == 1 for f in found.sequences)
        problems.append(
            f"it has {here} {'images' if stills else 'sequences'}, the official set {official} "
            "(--partial accepts a part)"
        )
    return problems
