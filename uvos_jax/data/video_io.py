"""Frames in, masks and videos out. Reading is lazy: memory does not grow with the video.

A video is a file PyAV can decode, a folder of images in natural order, or a uint8 array.
Images of every mode become RGB uint8: grey is repeated, 16 bit is scaled down, palettes are looked
up, alpha is dropped. Writing is all or nothing: a file appears under its name when it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from uvos_jax.data.palette import davis_palette
from uvos_jax.errors import DataError, ShapeError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".gif")


# ----- reading images ---------------------------------------------------------------------------


def natural_key(path: Path) -> list:
    """Sort key under which `frame2` comes before `frame10`."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", path.name)]


def list_images(folder: str | os.PathLike) -> list[Path]:
    """Image files of a folder in natural order, hidden files left out."""
    return sorted(
        (
            p
            for p in Path(folder).iterdir()
            if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
        ),
        key=natural_key,
    )


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads an image of any mode as RGB uint8 `[H,W,3]`.

    Raises:
      DataError: the file is missing or cannot be decoded.
    """
    with _opened(path, "frame") as image:
        if image.mode in ("I;16", "I;16B", "I;16L", "I"):
            deep = np.asarray(image).astype(np.int64)
            grey = np.clip(np.round(deep / 257), 0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=-1)
        if image.mode == "F":
            raise DataError(
                f"frame {path} holds floating-point values: expected 8- or 16-bit; convert it"
            )
        return np.asarray(image.convert("RGB"))


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """Reads a label or probability map as stored, uint8 `[H,W]`: palette indices, grey, or bits.

    1-bit images become 0/255, 16-bit ones are refused unless their values fit in 8 bits.

    Raises:
      DataError: the file is missing, cannot be decoded, or has colour channels.
    """
    with _opened(path, "mask") as image:
        if image.mode == "1":
            return np.asarray(image).astype(np.uint8) * 255
        if image.mode in ("P", "L"):
            return np.asarray(image)
        if image.mode.startswith("I"):
            deep = np.asarray(image)
            if deep.min() < 0 or deep.max() > 255:
                raise DataError(
                    f"mask {path} is 16-bit with values up to {deep.max()}: expected 8-bit ids"
                )
            return deep.astype(np.uint8)
        raise DataError(
            f"mask {path} has mode {image.mode} with {len(image.getbands())} channels: expected "
            "one channel (palette, 8-bit grey or 1-bit); save ids, not colours"
        )


@contextlib.contextmanager
def _opened(path: str | os.PathLike, kind: str) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            image.load()
            yield image
    except FileNotFoundError:
        raise DataError(f"{kind} {path} does not exist") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{kind} {path} cannot be decoded: {error}; replace the file") from error


# ----- reading videos ---------------------------------------------------------------------------


class VideoReader:
    """A video as a re-iterable sequence of RGB uint8 frames `[H,W,3]`.

    Attributes:
      name: for output folders. size: (H, W). fps: frames per second (25 if unknown).
      num_frames: count, or None if only decoding can tell.
      frame_names: file stems of a folder's frames, else None.
    """

    name: str
    size: tuple[int, int]
    fps: float = 25.0
    num_frames: int | None = None
    frame_names: list[str] | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        raise NotImplementedError

    def __len__(self) -> int:
        if self.num_frames is None:
            self.num_frames = sum(1 for _ in self)
        return self.num_frames

    def frame_name(self, index: int) -> str:
        """File stem of a frame: its own, or its five-digit number."""
        return self.frame_names[index] if self.frame_names else f"{index:05d}"

    def sample(self, indices: Sequence[int]) -> np.ndarray:
        """Frames at the given indices, uint8 `[N,H,W,3]`, in the order asked for."""
        wanted = {int(i) for i in indices}
        found: dict[int, np.ndarray] = {}
        for i, frame in enumerate(self):
            if i in wanted:
                found[i] = frame
                if len(found) == len(wanted):
                    break
        missing = sorted(wanted - set(found))
        if missing:
            raise DataError(f"video {self.name} has no frame {missing[0]}")
        return np.stack([found[int(i)] for i in indices])


class ArrayVideo(VideoReader):
    """Frames that are in memory already."""

    def __init__(self, frames: np.ndarray, name: str = "video", fps: float = 25.0):
        frames = np.asarray(frames)
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ShapeError(
                f"a video array must be uint8 [T,H,W,3] RGB, got {frames.dtype} {frames.shape}"
            )
        if 0 in frames.shape:
            raise DataError(f"the video array is empty: shape {frames.shape}")
        self.frames, self.name, self.fps = frames, name, fps
        self.num_frames, self.size = len(frames), frames.shape[1:3]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.frames)

    def sample(self, indices: Sequence[int]) -> np.ndarray:
        return self.frames[np.asarray(indices, int)]


class FolderVideo(VideoReader):
    """A folder of images, one per frame."""

    def __init__(self, folder: Path):
        self.paths = list_images(folder)
        if not self.paths:
            raise DataError(
                f"folder {folder} holds no frames: expected images ({', '.join(IMAGE_SUFFIXES)})"
            )
        self.name = folder.name if folder.name not in ("frames", "Imgs") else folder.parent.name
        self.num_frames = len(self.paths)
        self.frame_names = [p.stem for p in self.paths]
        self.size = read_image(self.paths[0]).shape[:2]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self._read(path) for path in self.paths)

    def _read(self, path: Path) -> np.ndarray:
        frame = read_image(path)
        if frame.shape[:2] != self.size:
            raise DataError(
                f"frame {path} is {frame.shape[1]}x{frame.shape[0]}, but {self.paths[0].name} is "
                f"{self.size[1]}x{self.size[0]}: all frames of a video must have one size"
            )
        return frame

    def sample(self, indices: Sequence[int]) -> np.ndarray:
        for i in indices:
            if not 0 <= i < len(self.paths):
                raise DataError(f"video {self.name} has no frame {i}")
        return np.stack([self._read(self.paths[i]) for i in indices])


class FileVideo(VideoReader):
    """A video file, decoded by PyAV (FFmpeg), one frame in memory at a time."""

    def __init__(self, path: Path):
        self.path, self.name = path, path.stem
        with self._container() as (container, stream):
            if stream.average_rate:
                self.fps = float(stream.average_rate)
            self.num_frames = stream.frames or None
            first = next(self._decode(container, stream), None)
        if first is None:
            raise DataError(f"video {path} holds no frames")
        self.size = first.shape[:2]

    @contextlib.contextmanager
    def _container(self) -> Iterator[tuple[Any, Any]]:
        import av

        try:
            container = av.open(str(self.path))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            size = self.path.stat().st_size
            what = "is empty (0 bytes)" if size == 0 else f"cannot be opened ({_reason(error)})"
            raise DataError(
                f"video {self.path} {what}: expected a complete file that FFmpeg can decode"
            ) from error
        try:
            if not container.streams.video:
                raise DataError(f"{self.path} has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
        finally:
            container.close()

    def _decode(self, container: Any, stream: Any) -> Iterator[np.ndarray]:
        import av

        count = 0
        try:
            for frame in container.decode(stream):
                array = frame.to_ndarray(format="rgb24")
                turns = round(getattr(frame, "rotation", 0) / 90) % 4
                yield np.ascontiguousarray(np.rot90(array, turns)) if turns else array
                count += 1
        except av.error.FFmpegError as error:
            raise DataError(
                f"video {self.path} is damaged after frame {count} ({_reason(error)}): "
                "re-encode or replace it"
            ) from error

    def __iter__(self) -> Iterator[np.ndarray]:
        with self._container() as (container, stream):
            expected, count = stream.frames, 0
            for count, frame in enumerate(self._decode(container, stream), start=1):
                if frame.shape[:2] != self.size:
                    raise DataError(
                        f"video {self.path}: frame {count - 1} is {frame.shape[1]}x"
                        f"{frame.shape[0]}, the first {self.size[1]}x{self.size[0]}: all frames "
                        "must have one size"
                    )
                yield frame
            # Containers may count a frame or two that decode to nothing; more is a cut file.
            if expected and count < 0.95 * expected - 2:
                raise DataError(
                    f"video {self.path} is truncated: its header announces {expected} frames, "
                    f"{count} could be decoded; replace it"
                )
        self.num_frames = count


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).splitlines()[0]


def open_video(source: str | os.PathLike | np.ndarray | VideoReader) -> VideoReader:
    """Opens a video file, a folder of frames, or wraps a uint8 array `[T,H,W,3]`.

    Raises:
      DataError: missing, empty, not a video, or damaged at its start.
      ShapeError: an array of another shape or dtype.
    """
    if isinstance(source, VideoReader):
        return source
    if not isinstance(source, (str, os.PathLike)):
        return ArrayVideo(source)
    path = Path(source)
    if not path.exists():
        raise DataError(f"video {path} does not exist: give a video file or a folder of frames")
    if path.is_dir():
        return FolderVideo(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ArrayVideo(read_image(path)[None], name=path.stem)
    return FileVideo(path)


# ----- writing ----------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it on success, removes it on failure.

    Raises:
      DataError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, DataError):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else (error.strerror or str(error))
        hint = "free some space" if full else "check the folder's permissions"
        raise DataError(f"cannot write {path}: {reason}; {hint}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_label_png(path: str | os.PathLike, labels: np.ndarray) -> None:
    """Writes ids uint8 `[H,W]` as a palette PNG with the DAVIS colours."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ShapeError(f"labels must be uint8 [H,W], got {labels.dtype} {labels.shape}")
    image = Image.fromarray(labels, mode=None).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(davis_palette().tobytes())
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")


def write_probability_png(path: str | os.PathLike, probs: np.ndarray) -> None:
    """Writes probabilities `[H,W]` in [0,1] as an 8-bit grey PNG (rounded to 1/255)."""
    grey = np.round(np.clip(probs, 0.0, 1.0) * 255).astype(np.uint8)
    with atomic_write(path) as temporary:
        Image.fromarray(grey).save(temporary, format="PNG")


class VideoWriter:
    """Writes RGB uint8 frames to an H.264 mp4; the file appears when the writer closes well.

    Odd sizes are padded by one row or column (4:2:0 chroma needs even ones). Use as a context
    manager.
    """

    def __init__(self, path: str | os.PathLike, fps: float = 25.0):
        self.path, self.fps = Path(path), fps
        self._container: Any = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> VideoWriter:
        self._temporary = self._stack.enter_context(atomic_write(self.path))
        return self

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame uint8 `[H,W,3]`; all must have the size of the first."""
        import av

        H, W = frame.shape[:2]
        if self._container is None:
            self._container = av.open(str(self._temporary), mode="w", format="mp4")
            rate = Fraction(self.fps).limit_denominator(1001)
            self._stream = self._container.add_stream("libx264", rate=rate)
            self._stream.width, self._stream.height = W + W % 2, H + H % 2
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"crf": "20", "preset": "veryfast"}
        padded = np.pad(frame, ((0, H % 2), (0, W % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
        for packet in self._stream.encode(picture):
            self._container.mux(packet)

    def __exit__(self, kind: Any, value: Any, trace: Any) -> bool | None:
        if self._container is not None:
            try:
                if kind is None:
                    for packet in self._stream.encode():
                        self._container.mux(packet)
            finally:
                self._container.close()
        elif kind is None:
            kind = DataError
            self._stack.__exit__(DataError, DataError("no frames"), None)
            raise DataError(f"cannot write {self.path}: no frame was given")
        return self._stack.__exit__(kind, value, trace)
