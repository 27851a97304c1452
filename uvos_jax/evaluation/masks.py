"""Reading mask files made by any program, and turning their values into foreground.

Every failure is one `DataError` that names the file: nothing is resized, converted or skipped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from uvos_jax.data.sources.annotations import read_annotation
from uvos_jax.errors import DataError

#: Pillow modes with one value per pixel.
_SINGLE_CHANNEL = {"1", "L", "P", "I", "I;16", "I;16B", "F"}


def read_values(path: str | Path) -> tuple[np.ndarray, bool]:
    """The stored values `[H,W]` of a one-channel image, and whether they are palette indices.

    Palette images give their indices, not their colours; a palette that is a grey ramp counts as a
    grey image.

    Raises:
      DataError: the file is missing, damaged, or has several channels.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
            if mode not in _SINGLE_CHANNEL:
                raise DataError(
                    f"{path}: a mask has one channel, this {image.format} file has mode {mode} "
                    f"({len(image.getbands())} channels); save it as an 8-bit grey or indexed PNG"
                )
            indexed = mode == "P" and not _is_grey_ramp(image)
            values = np.asarray(image)
    except FileNotFoundError as error:
        raise DataError(f"{path}: the mask file does not exist") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as an image ({error}); write it again") from error
    return (values.astype(np.uint8) if values.dtype == bool else values), indexed


def _is_grey_ramp(image: Image.Image) -> bool:
    palette = np.asarray(image.getpalette() or [], np.uint8).reshape(-1, 3)
    return palette.size > 0 and (palette == np.arange(len(palette), dtype=np.uint8)[:, None]).all()


def check_size(path: Path, values: np.ndarray, expected: tuple[int, int], annotation: Path) -> None:
    """Raises `DataError` if a result has not the annotation's size."""
    if values.shape != tuple(expected):
        raise DataError(
            f"{path}: the result is {values.shape[1]}x{values.shape[0]} but its annotation "
            f"{annotation.name} is {expected[1]}x{expected[0]}; save results at the "
            "annotation's size (resize probabilities, then threshold)"
        )


def binary_result(path: Path, *, merge_objects: bool = False) -> np.ndarray:
    """A result map as bool `[H,W]` by the DAVIS-16 rule.

    Values within {0,255} or {0,1}: above 0. Anything else: above half of that frame's maximum, so
    soft maps are thresholded relative to themselves (`eval_result.m@jponttuset/davis-matlab`).
    An indexed PNG with several object ids is refused unless `merge_objects`, because that rule
    would silently keep only its highest ids.
    """
    values, indexed = read_values(path)
    top = values.max(initial=0)
    if indexed:
        if not merge_objects:
            ids = np.unique(values[values > 0])
            if ids.size > 1:
                raise DataError(
                    f"{path}: this indexed PNG holds {ids.size} object ids "
                    f"({', '.join(map(str, ids[:5]))}) but the protocol scores one foreground; "
                    "merge them with merge_objects=True (--merge-objects) or evaluate as davis17"
                )
        return values > 0
    if top in (0, 1, 255) and not np.any((values > 0) & (values < top)):
        return values > 0
    return values > top / 2


def object_ids(path: Path) -> np.ndarray:
    """The object ids of an indexed or grey PNG, integer `[H,W]`."""
    values, _ = read_values(path)
    if values.dtype.kind == "f":
        raise DataError(f"{path}: object ids are integers, this file holds floating-point values")
    return values


def soft_result(path: Path) -> np.ndarray:
    """A saliency map as uint8 `[H,W]`."""
    values, indexed = read_values(path)
    if indexed or values.dtype != np.uint8:
        raise DataError(
            f"{path}: a saliency map is an 8-bit grey image with values 0..255; "
            f"this file is {'indexed' if indexed else values.dtype}"
        )
    top = values.max(initial=0)
    return values * np.uint8(255) if top == 1 else values


def annotation(paths: tuple[Path, ...], rule: str) -> np.ndarray:
    """Foreground of an annotated frame, bool `[H,W]`; several files (one per object) are united.

    The rules are those of `uvos_jax.data.sources.annotations`.
    """
    return read_annotation(paths, rule) > 0
