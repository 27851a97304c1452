"""Flow of whole videos into files: resumable, a file per frame, colour pictures on request."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from uvos_jax.data.flow_files import (
    DIRECTIONS,
    FORMATS,
    WRITERS,
    Direction,
    read_flow,
    read_meta,
    write_meta,
)
from uvos_jax.data.video_io import VideoReader, atomic_write, open_video
from uvos_jax.errors import ConfigError, DataError
from uvos_jax.flow.providers import FlowProvider, make_provider
from uvos_jax.ops.flow import flow_to_color

__all__ = [
    "compute_sequence",
    "flow_picture",
    "open_folder",
    "read_flow",
    "write_color",
    "write_video_flow",
]


def flow_picture(flow: np.ndarray, max_flow: float | None = None) -> np.ndarray:
    """Middlebury colours of `[H,W,2]`, uint8 `[H,W,3]` RGB."""
    return np.asarray(flow_to_color(jnp.asarray(flow), max_flow)).astype(np.uint8)


def write_color(path: str | Path, flow: np.ndarray, max_flow: float | None = None) -> None:
    """Writes the colour picture of a field as PNG; its vectors cannot be read back exactly."""
    with atomic_write(path) as temporary:
        Image.fromarray(flow_picture(flow, max_flow)).save(temporary)


def open_folder(
    out: str | Path, provider: str, direction: Direction, format: str, *, overwrite: bool = False
) -> Path:
    """Prepares a folder of flow; what it holds already must have been made the same way.

    Raises:
      ConfigError: unknown direction or format, or flow of another estimator or direction there.
    """
    if direction not in DIRECTIONS:
        raise ConfigError(f"flow direction {direction!r} is unknown: use one of {DIRECTIONS}")
    if format not in WRITERS:
        raise ConfigError(f"flow format {format!r} is unknown: use one of {', '.join(WRITERS)}")
    out = Path(out)
    meta = {"provider": provider, "direction": direction, "format": format}
    stored = read_meta(out)
    differing = [k for k, v in meta.items() if stored and stored.get(k) != v]
    if differing and not overwrite:
        key = differing[0]
        raise ConfigError(
            f"{out} holds flow with {key} {stored.get(key)!r}, not {meta[key]!r}: choose another "
            "folder, or overwrite it"
        )
    if stored != meta:
        write_meta(out, meta)
    return out


def write_video_flow(
    reader: VideoReader,
    out: str | Path,
    provider: FlowProvider,
    *,
    direction: Direction = "forward",
    format: str = "flo",
    color: bool = False,
    max_flow: float | None = None,
    overwrite: bool = False,
    name: str | None = None,
    progress: Callable[[], Any] = lambda: None,
) -> tuple[int, int]:
    """Writes `<out>/<name>/<frame>.<suffix>` for every frame that has a neighbour.

    Files that exist stay (each was complete when it got its name), so a run that was interrupted
    goes on where it stopped. With `color` also `<out>/color/<name>/<frame>.png`.

    Returns:
      files written, and files that were there.

    Raises:
      DataError: the video has one frame, or cannot be read.
    """
    folder, written, kept = Path(out) / (name or reader.name), 0, 0
    for frame_name, first, second in _pairs(reader, direction):
        path = folder / f"{frame_name}{FORMATS[format]}"
        picture = Path(out) / "color" / folder.name / f"{frame_name}.png"
        if path.is_file() and not overwrite and (not color or picture.is_file()):
            kept += 1
        else:
            flow = provider.between(first[None], second[None])[0]
            if color:
                write_color(picture, flow, max_flow)
            WRITERS[format](path, flow)
            written += 1
        progress()
    if not written + kept:
        raise DataError(f"video {reader.name} has one frame only: optical flow needs at least two")
    return written, kept


@functools.lru_cache(maxsize=4)
def _made(spec: str) -> FlowProvider:
    return make_provider(spec)


def compute_sequence(
    video: str | Path, name: str, out: str | Path, provider: str, options: dict[str, Any]
) -> tuple[str, int, int]:
    """`write_video_flow` as a job for a process of its own, which makes its provider once.

    Returns:
      the name, files written, and files that were there.
    """
    written, kept = write_video_flow(open_video(video), out, _made(provider), name=name, **options)
    return name, written, kept


def _pairs(
    reader: VideoReader, direction: Direction
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name of the frame the flow starts from, that frame, the one it leads to)."""
    before = None
    for index, frame in enumerate(reader):
        if before is not None:
            if direction == "forward":
                yield reader.frame_name(index - 1), before, frame
            else:
                yield reader.frame_name(index), frame, before
        before = frame
