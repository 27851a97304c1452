"""How two sets of result maps differ: after a change of weights, code or platform."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from uvos_jax.errors import DataError
from uvos_jax.evaluation import masks
from uvos_jax.metrics.sparse import iou


@dataclasses.dataclass(frozen=True)
class Difference:
    """One frame of both sets: `overlap` is J between the two, `pixels` how many differ."""

    sequence: str
    frame: str
    overlap: float
    pixels: int
    total: int


def compare_masks(
    first: str | Path, second: str | Path, *, allow_missing: bool = False
) -> list[Difference]:
    """Compares the foregrounds of two result folders `<sequence>/<frame>.png`.

    Args:
      first, second: folders of result maps, binarised by the DAVIS-16 rule (all ids count).
      allow_missing: whether frames that only one folder has are left out.

    Raises:
      DataError: a folder holds no masks, the sets of frames differ, or sizes differ.
    """
    first, second = Path(first), Path(second)
    frames = [_frames(folder) for folder in (first, second)]
    only = [sorted(frames[i] - frames[1 - i]) for i in (0, 1)]
    if not allow_missing and any(only):
        which, names = (first, only[0]) if only[0] else (second, only[1])
        raise DataError(
            f"{len(names)} masks are only in {which}, first {names[0]}; compare complete sets or "
            "allow missing frames"
        )
    shared = sorted(frames[0] & frames[1])
    if not shared:
        raise DataError(f"{first} and {second} have no frame in common")
    differences = []
    for name in shared:
        paths = first / name, second / name
        a, b = (masks.binary_result(path, merge_objects=True) for path in paths)
        masks.check_size(paths[1], b, a.shape, paths[0])
        sequence, _, frame = name.rpartition("/")
        pixels = int(np.count_nonzero(a != b))
        differences.append(Difference(sequence, frame[:-4], iou(a, b), pixels, a.size))
    return differences


def _frames(folder: Path) -> set[str]:
    if not folder.is_dir():
        raise DataError(f"results folder {folder} does not exist")
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*.png")}
    if not found:
        raise DataError(f"{folder} holds no PNG: expected <sequence>/<frame>.png")
    return found
