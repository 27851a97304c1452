"""Numbered objects instead of one foreground: carried from a first mask, or found (DAVIS-2017).

For systems that say so in `object_modes`: `first_mask` (one-shot: the ids of frame 0 travel through
the video) and `instances` (the foreground is split into objects that keep their ids). Like masks
they leave frame by frame, and memory does not grow with the video.
"""

from __future__ import annotations

import collections
import dataclasses
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from uvos_jax.data.video_io import VideoReader, open_video, read_mask
from uvos_jax.errors import ConfigError, DataError, ShapeError, UnsupportedError
from uvos_jax.predict.flow import flow_of_video
from uvos_jax.predict.results import FrameResult
from uvos_jax.predict.windows import windows

__all__ = ["check_mode", "first_mask_of", "iter_first_mask", "iter_instances"]

#: Which flow joins the objects of neighbouring frames: from a frame to the one before.
_BACKWARD = types.SimpleNamespace(flow_direction="backward", flow_at_end="zero")
_WHAT = {
    "first_mask": "carries no first mask along",
    "instances": "tells no objects apart",
}
_OPTION = {"first_mask": "--first-mask", "instances": "--instances"}


def check_mode(system: Any, mode: str) -> None:
    """Raises `UnsupportedError` if the system cannot number objects in this way."""
    if mode not in system.object_modes:
        able = {"first_mask": "mug does", "instances": "agnn, iet and mug do"}[mode]
        raise UnsupportedError(
            f"{system.spec.name} {_WHAT[mode]} ({able}): leave {_OPTION[mode]} out, or take "
            "another system"
        )


def first_mask_of(path: str | Path, reader: VideoReader) -> np.ndarray:
    """The ids of a video's first frame, uint8 `[H,W]`.

    Args:
      path: a mask (palette, grey or 1-bit; a mask of 0 and 255 marks one object), or a folder that
        holds `VIDEO/FRAME.png` in the DAVIS layout.

    Raises:
      DataError: no such mask, no object in it, or void pixels. ShapeError: of another size than
        the frames.
    """
    path = Path(path)
    if path.is_dir():
        path = path / reader.name / f"{reader.frame_name(0)}.png"
    mask = np.array(read_mask(path))
    ids = set(np.unique(mask).tolist()) - {0}
    if ids == {255}:
        mask, ids = (mask > 0).astype(np.uint8), {1}
    if not ids:
        raise DataError(f"first mask {path} marks no object: give ids from 1 on, 0 is background")
    if 255 in ids:
        raise DataError(
            f"first mask {path} holds 255 (void) beside the ids {sorted(ids - {255})}: give every "
            "pixel an id or 0"
        )
    if mask.shape != tuple(reader.size):
        raise ShapeError(
            f"first mask {path} is {mask.shape[1]}x{mask.shape[0]}, the frames of {reader.name} "
            f"are {reader.size[1]}x{reader.size[0]}: give a mask of the frames' size"
        )
    return mask


def iter_first_mask(predictor: Any, video: Any, mask: np.ndarray) -> Iterator[FrameResult]:
    """Yields the ids of every frame, given those of the first (one-shot).

    `prob` is the share of all objects in a pixel's labels.

    Args:
      mask: ids uint8 `[H,W]` of frame 0, see `first_mask_of`.

    Raises:
      UnsupportedError: the system has no such mode.
    """
    check_mode(predictor.system, "first_mask")
    reader = open_video(video)
    follower = predictor.system.follow(predictor.variables, mask)
    for window in windows(reader, predictor.chunk):
        labels, share = follower.step(window.frames[: window.count])
        for t in range(window.count):
            index = window.start + t
            frame, name = window.frames[t], reader.frame_name(index)
            yield FrameResult(index, name, frame, share[t], labels[t])


def iter_instances(
    predictor: Any,
    video: Any,
    *,
    proposals: str | Path | None = None,
    flow: Any = None,
    stream: bool = False,
) -> Iterator[FrameResult]:
    """Yields the ids of the objects of every frame.

    Args:
      proposals: folder with `VIDEO/FRAME.npz`, each with `masks [N,H,W]` bool and `scores [N]` in
        [0,1] of an instance segmenter; None takes the connected parts of the foreground.
      flow: provider of optical flow for systems that follow objects along it (see `Predictor`).

    Raises:
      UnsupportedError: the system has no such mode. ConfigError: flow that is of no use.
      DataError, ShapeError: proposals are missing, damaged or of another size.
    """
    check_mode(predictor.system, "instances")
    reader = open_video(video)
    numbers = predictor.system.number_objects(predictor.variables)
    if flow is not None and not numbers.needs_flow:
        raise ConfigError(
            f"{predictor.system.spec.name} joins objects by their features, not along optical "
            f"flow: leave flow={str(flow)!r} out"
        )
    results = predictor.iter_predict(reader, stream=stream)
    for result, field in _with_flow(results, reader, flow, needed=numbers.needs_flow):
        masks = scores = None
        if proposals is not None:
            file = Path(proposals) / reader.name / f"{result.name}.npz"
            masks, scores = read_proposals(file, result.prob.shape)
        ids = numbers.step(result.frame, result.prob, masks, scores, field)
        yield dataclasses.replace(result, label=ids)


def read_proposals(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Masks bool `[N,H,W]` and scores `[N]` of one frame of the given size.

    Raises:
      DataError: the file is missing or damaged. ShapeError: the arrays do not fit the frame.
    """
    if not path.is_file():
        raise DataError(f"proposals {path} do not exist: give VIDEO/FRAME.npz for every frame")
    try:
        with np.load(path, allow_pickle=False) as file:
            masks, scores = np.asarray(file["masks"], bool), np.asarray(file["scores"], np.float64)
    except KeyError as error:
        raise DataError(f"proposals {path} lack {error}: expected masks and scores") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"proposals {path} cannot be read: {error}; write them again") from error
    if masks.ndim != 3 or masks.shape[1:] != tuple(size) or scores.shape != masks.shape[:1]:
        raise ShapeError(
            f"proposals {path} have masks {masks.shape} and scores {scores.shape}: expected "
            f"[N,{size[0]},{size[1]}] and [N]"
        )
    return masks, scores


def _with_flow(
    results: Iterator[FrameResult], reader: VideoReader, flow: Any, *, needed: bool
) -> Iterator[tuple[FrameResult, np.ndarray | None]]:
    """Every result with the flow from its frame to the one before, if that is needed."""
    if not needed:
        yield from ((result, None) for result in results)
        return
    from uvos_jax.flow import DEFAULT_PROVIDER, make_provider

    provider = flow if callable(flow) else make_provider(flow or DEFAULT_PROVIDER)
    waiting: collections.deque[FrameResult] = collections.deque()

    def frames() -> Iterator[np.ndarray]:
        for result in results:
            waiting.append(result)
            yield result.frame

    for _, field in flow_of_video(provider, reader, frames(), 1, _BACKWARD):
        yield waiting.popleft(), field
