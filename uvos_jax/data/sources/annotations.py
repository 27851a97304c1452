"""What the values of an annotation file mean, per data set.

- `ids`: the value is the object's id, 255 is void (DAVIS-17, YouTube-VOS);
- `nonzero`: everything above 0 is foreground (DAVIS-16, YouTube-Objects, SegTrack v2);
- `above_128`: everything above half of the scale; in files that hold only 0 and 1, the 1
  (saliency sets);
- `fbms`: grey levels above a tenth of full scale, two sequences having levels of their own; in
  colour files white is background (`fbms_data_utils.py@antonilo/unsupervised_detection`).

Several files for one frame hold one object each; they are numbered in the order given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from uvos_jax.data.video_io import read_mask
from uvos_jax.errors import DataError

#: 7-bit luma weights of ITU-R 601, in thousandths (as grey conversion of colour annotations).
_LUMA = (299, 587, 114)
_FBMS_LEVELS = {"marple7": 0.05, "marple2": 0.4}


def read_annotation(paths: Sequence[Path], rule: str) -> np.ndarray:
    """The annotation of one frame, uint8 `[H,W]`: 0 background, ids, 255 void (rule `ids` only).

    Args:
      paths: the annotation file, or one per object.
      rule: see the table of this module.

    Raises:
      DataError: a file is missing or unreadable, or the objects' files differ in size.
    """
    first = _read(paths[0], rule)
    if len(paths) == 1:
        return first
    objects = (first > 0).astype(np.uint8)
    for number, path in enumerate(paths[1:], 2):
        mask = _read(path, rule)
        if mask.shape != first.shape:
            raise DataError(
                f"{path}: the object is {mask.shape[1]}x{mask.shape[0]} but its annotation "
                f"{paths[0].name} is {first.shape[1]}x{first.shape[0]}; all objects of a frame "
                "must have one size"
            )
        objects[mask > 0] = number
    return objects


def above_128(values: np.ndarray) -> np.ndarray:
    """Foreground of a saliency annotation, uint8 0/1."""
    return (values > (128 if values.max(initial=0) > 1 else 0)).astype(np.uint8)


def _read(path: Path, rule: str) -> np.ndarray:
    if rule == "fbms":
        return _read_fbms(Path(path))
    values = read_mask(path)
    if rule == "above_128":
        return above_128(values)
    return values if rule == "ids" else (values > 0).astype(np.uint8)


def _read_fbms(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            values = np.asarray(image.convert("RGB") if path.suffix == ".ppm" else image)
    except (FileNotFoundError, UnidentifiedImageError, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as an annotation ({error})") from error
    if values.ndim == 3:
        white = (values == 255).all(-1)
        grey = values.astype(np.int64) @ np.array(_LUMA) / 1000.0
        values = np.where(white, 0.0, grey)
    level = _FBMS_LEVELS.get(path.parent.parent.name, 0.1)
    full = 65535.0 if values.dtype == np.uint16 else 255.0
    return (values / full > level).astype(np.uint8)
