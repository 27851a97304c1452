"""Dense CRF on probability maps that are already on disk, whichever program made them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from uvos_jax.data.video_io import VIDEO_SUFFIXES, list_images, open_video, read_mask
from uvos_jax.errors import DataError, ShapeError
from uvos_jax.ops.crf import dense_crf
from uvos_jax.predict.predictor import FrameResult


def find_sequences(probs: str | Path) -> list[tuple[str, Path]]:
    """(name, path) of every sequence below `probs`.

    A sequence is a folder of 8-bit PNGs (what `uvos predict --save probs` writes) or an npz file
    with `probs` `[T,H,W]`; `probs` may also be one of these itself.

    Raises:
      DataError: nothing there.
    """
    probs = Path(probs)
    if not probs.exists():
        raise DataError(f"{probs} does not exist: give the folder with the probability maps")
    if probs.suffix == ".npz":
        return [(probs.stem, probs)]
    if probs.is_dir() and list_images(probs):
        return [(probs.resolve().name, probs)]
    inside = sorted(probs.iterdir()) if probs.is_dir() else []
    found = [
        (p.stem if p.is_file() else p.name, p)
        for p in inside
        if not p.name.startswith(".")
        and ((p.is_dir() and list_images(p)) or (p.is_file() and p.suffix == ".npz"))
    ]
    if not found:
        raise DataError(
            f"{probs} holds no probability maps: expected SEQUENCE/00000.png or SEQUENCE.npz; "
            "`uvos predict --save probs --out OUT` writes them to OUT/probs"
        )
    names = [name for name, _ in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{probs} has both a folder and a file for {twice[0]!r}: remove one")
    return found


def find_video(images: str | Path, name: str) -> Path:
    """The frames that belong to sequence `name`: a folder, `NAME/frames`, or a video file.

    Raises:
      DataError: there are none.
    """
    images = Path(images)
    if not images.exists():
        raise DataError(f"{images} does not exist: give the folder with the frames")
    candidates = [images / name, images / name / "frames"]
    candidates += [images / f"{name}{suffix}" for suffix in VIDEO_SUFFIXES]
    for path in candidates:
        if path.is_file() or (path.is_dir() and list_images(path)):
            return path
    own = images.parent.name if images.name in ("frames", "Imgs") else images.stem
    if own == name and (images.is_file() or list_images(images)):
        return images
    raise DataError(
        f"{images} has no frames for sequence {name!r}: expected a folder {name}/ or "
        f"{name}/frames/ with images, or a video {name}.mp4"
    )


def read_probabilities(path: str | Path) -> dict[str | int, np.ndarray]:
    """Where each frame's map is, without reading all of them: see `load_probability`.

    Returns the maps of an npz (by frame name if it has `names`, else by index) or the paths of a
    folder's PNGs by stem.

    Raises:
      DataError: a damaged npz, or one without `probs` `[T,H,W]`.
    """
    path = Path(path)
    if path.is_dir():
        return {p.stem: p for p in list_images(path)}
    try:
        with np.load(path) as file:
            maps = file.get("probs")
            names = [str(n) for n in file["names"]] if "names" in file else None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {error}; write it again with np.savez") from error
    if maps is None or maps.ndim != 3:
        raise DataError(
            f"{path} has {'no array' if maps is None else f'shape {maps.shape} as'} 'probs': "
            "expected 'probs' of shape [T,H,W]"
        )
    if names is not None and len(names) != len(maps):
        raise DataError(f"{path} has {len(names)} names for {len(maps)} maps: expected as many")
    return dict(zip(names or range(len(maps)), maps, strict=True))


def load_probability(entry: np.ndarray | Path) -> np.ndarray:
    """A map as float32 in [0,1]; 8-bit values are divided by 255.

    Raises:
      DataError: a palette PNG: that is a mask, and its ids are not probabilities.
    """
    if isinstance(entry, Path):
        with Image.open(entry) as image:
            is_label = image.mode in ("P", "1")
        if is_label:
            raise DataError(
                f"{entry} is a label map (palette or 1-bit PNG), not probabilities: predict with "
                "--save probs and give the folder OUT/probs"
            )
        entry = read_mask(entry)
    return (entry / np.float32(255) if entry.dtype == np.uint8 else entry).astype(np.float32)


def refine_sequence(
    probs: str | Path, images: str | Path, *, preset: str, iterations: int | None = None
) -> Iterator[FrameResult]:
    """Yields the refined frames of one sequence, in the order of the frames.

    Frames without a map are left out (published archives often lack the last one).

    Raises:
      DataError: a map belongs to no frame, or cannot be read.
      ShapeError: a map's size is not that of its frame.
    """
    maps = read_probabilities(probs)
    reader = open_video(images)
    for index, frame in enumerate(reader):
        name = reader.frame_name(index)
        entry = maps.pop(name, maps.pop(index, None))
        if entry is None:
            continue
        prob = load_probability(entry)
        if prob.shape != frame.shape[:2]:
            raise ShapeError(
                f"the map of frame {name!r} in {probs} is {prob.shape[1]}x{prob.shape[0]}, the "
                f"frame is {frame.shape[1]}x{frame.shape[0]}: resize the maps to the frames first"
            )
        refined = np.asarray(dense_crf(frame, prob, preset=preset, iterations=iterations))
        yield FrameResult(index, name, frame, refined, (refined > 0.5).astype(np.uint8))
    if maps:
        raise DataError(
            f"{probs} has {len(maps)} maps without a frame in {images}, the first is "
            f"{next(iter(maps))!r}: give the frames that the maps were made from"
        )
