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
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from uvos_jax.data.palette import davis_palette
from uvos_jax.errors import DataError, ShapeError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".gif")


#: What Pillow raises on damaged files, depending on format and position of the damage.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError,
                   struct.error, zlib.error)  # fmt: skip


# ----- reading images ---------------------------------------------------------------------------


def natural_key(path: Path) -> list:
    """Sort key under which `frame2` comes before `frame10`."""
    parts = re.split(r"([0-9]+)", path.name)
    key = [(0, int(p), "") if k % 2 else (1, 0, p) for k, p in enumerate(parts)]
    return [*key, (2, 0, path.name)]  # 1.png and 01.png: always in the same order


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

    1-bit images become 0/255, colour files that hold nothing but grey give their level, 16-bit
    ones are refused unless their values fit in 8 bits.

    Raises:
      DataError: the file is missing, cannot be decoded, or holds colours, alpha or fractions.
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
        if image.mode == "RGB":
            red, green, blue = np.moveaxis(np.asarray(image), -1, 0)
            if np.array_equal(red, green) and np.array_equal(red, blue):
                return np.ascontiguousarray(red)
        raise DataError(
            f"mask {path} has mode {image.mode} (channels {', '.join(image.getbands())}): expected "
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
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{kind} {path} is too large: {error}; scale it down") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{kind} {path} cannot be decoded: it is no image; replace it") from error
    except _DECODER_ERRORS as error:
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
        wanted = self._inside(indices)
        found: dict[int, np.ndarray] = {}
        for i, frame in enumerate(self):
            if i in wanted:
                found[i] = frame
            if len(found) == len(set(wanted)):
                break
        self._refuse(sorted(set(wanted) - set(found)))
        return self._stacked([found[i] for i in wanted])

    def _inside(self, indices: Iterable[int]) -> list[int]:
        """The indices as integers, none of which can be known to lie outside the video."""
        indices = [int(i) for i in indices]
        last = np.inf if self.num_frames is None else self.num_frames - 1
        self._refuse([i for i in indices if not 0 <= i <= last])
        return indices

    def _refuse(self, missing: list[int]) -> None:
        if missing:
            count = "" if self.num_frames is None else f" of {self.num_frames}"
            raise DataError(
                f"video {self.name} has no frame {missing[0]}{count}: frames count from 0"
            )

    def _stacked(self, frames: list[np.ndarray]) -> np.ndarray:
        return np.stack(frames) if frames else np.zeros((0, *self.size, 3), np.uint8)


class ArrayVideo(VideoReader):
    """Frames that are in memory already."""

    def __init__(self, frames: np.ndarray, name: str = "video", fps: float = 25.0):
        try:
            frames = np.asarray(frames)
        except ValueError as error:
            raise ShapeError(f"the frames of a video must have one size: {error}") from error
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ShapeError(
                f"a video array must be uint8 [T,H,W,3] RGB, got {frames.dtype} {frames.shape}: "
                "convert it (values 0..255, colour last, no alpha)"
            )
        if 0 in frames.shape:
            raise DataError(f"the video array is empty: shape {frames.shape}")
        self.frames, self.name, self.fps = frames, name, fps
        self.num_frames, self.size = len(frames), frames.shape[1:3]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.frames)

    def sample(self, indices: Sequence[int]) -> np.ndarray:
        return self.frames[np.asarray(self._inside(indices), int)]


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
        seen: dict[str, Path] = {}
        for path in self.paths:
            other = seen.setdefault(path.stem, path)
            if other is not path:
                raise DataError(
                    f"folder {folder} holds two images of one name, {other.name} and {path.name}: "
                    "keep frames and masks in folders of their own"
                )
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
        return self._stacked([self._read(self.paths[i]) for i in self._inside(indices)])


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
            raise DataError(f"video {path} holds no frames that can be decoded; replace it")
        self.size = first[0].shape[:2]

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

    def _decode(self, container: Any, stream: Any) -> Iterator[tuple[np.ndarray, float | None]]:
        """Yields every frame, turned upright, and the second at which it ends."""
        import av

        count = 0
        try:
            for frame in container.decode(stream):
                array = frame.to_ndarray(format="rgb24")
                turns = round(getattr(frame, "rotation", 0) / 90) % 4
                shown = float((frame.duration or 0) * (frame.time_base or 0)) or 1 / self.fps
                end = None if frame.time is None else frame.time + shown
                yield np.ascontiguousarray(np.rot90(array, turns)) if turns else array, end
                count += 1
        except av.error.FFmpegError as error:
            raise DataError(
                f"video {self.path} is damaged after frame {count} ({_reason(error)}): "
                "re-encode or replace it"
            ) from error

    def __iter__(self) -> Iterator[np.ndarray]:
        with self._container() as (container, stream):
            count, end = 0, None
            for frame, end in self._decode(container, stream):  # noqa: B007
                if frame.shape[:2] != self.size:
                    raise DataError(
                        f"video {self.path}: frame {count} is {frame.shape[1]}x"
                        f"{frame.shape[0]}, the first {self.size[1]}x{self.size[0]}: all frames "
                        "must have one size"
                    )
                yield frame
                count += 1
            lost = _lost(container, stream, count, end)
            if lost:
                raise DataError(f"video {self.path} is truncated: {lost}; replace it")
        self.num_frames = count


def _lost(container: Any, stream: Any, count: int, end: float | None) -> str:
    """What a header announces beyond the `count` frames that were decoded, in words, or "".

    Containers may announce a frame or two that decode to nothing. Where clips can be trimmed
    without re-encoding (mp4, mov), headers also count frames that are never shown, so the time at
    which the last frame ends decides there.
    """
    announced = None
    tag = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
    if tag:  # Matroska, WebM
        announced = sum(
            float(part) * unit for part, unit in zip(tag.groups(), (3600, 60, 1), strict=True)
        )
    elif "mp4" in container.format.name and stream.duration:
        announced = float(stream.duration * stream.time_base)
    elif stream.frames and count < min(0.95 * stream.frames, stream.frames - 2):
        return f"its header announces {stream.frames} frames, {count} could be decoded"
    if announced and end is not None:
        end -= float((stream.start_time or 0) * stream.time_base)
        rate = float(stream.average_rate or 25)
        if announced - end > max(0.05 * announced, 2.5 / rate):
            return (
                f"its header announces {announced:.2f} seconds, but after {count} frames "
                f"({end:.2f} seconds) nothing more can be decoded"
            )
    return ""


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
    image = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
    image.putpalette(davis_palette().tobytes())
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")


def write_probability_png(path: str | os.PathLike, probs: np.ndarray) -> None:
    """Writes probabilities `[H,W]` in [0,1] as an 8-bit grey PNG (rounded to 1/255)."""
    probs = np.asarray(probs)
    if probs.ndim != 2 or probs.dtype.kind != "f":
        raise ShapeError(f"probabilities must be float [H,W], got {probs.dtype} {probs.shape}")
    if not np.isfinite(probs).all():
        raise DataError(f"cannot write {path}: the probabilities hold NaN or infinite values")
    grey = np.round(np.clip(probs, 0.0, 1.0) * 255).astype(np.uint8)
    with atomic_write(path) as temporary:
        Image.fromarray(grey).save(temporary, format="PNG")


class VideoWriter:
    """Writes RGB uint8 frames to an H.264 mp4; the file appears when the writer closes well.

    Odd sizes are padded by one row or column (4:2:0 chroma needs even ones). Use as a context
    manager.

    Raises:
      ShapeError: a frame is no uint8 `[H,W,3]`, or has another size than the first.
      DataError: the disk is full, the folder cannot be written, or no frame was given.
    """

    def __init__(self, path: str | os.PathLike, fps: float = 25.0):
        if not 0 < fps < 1e4:
            raise DataError(f"cannot write {path}: frames per second must be positive, got {fps}")
        self.path, self.fps = Path(path), fps
        self._container: Any = None
        self._size: tuple[int, int] | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> VideoWriter:
        self._temporary = self._stack.enter_context(atomic_write(self.path))
        self._stack.push(self._close)  # before the rename, whose errors then become sentences
        return self

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame uint8 `[H,W,3]`; all must have the size of the first."""
        import av

        frame = np.asarray(frame)
        if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8:
            raise ShapeError(
                f"a frame of {self.path.name} must be uint8 [H,W,3], got {frame.dtype} "
                f"{frame.shape}"
            )
        H, W = frame.shape[:2]
        if self._size is None:
            self._container = av.open(str(self._temporary), mode="w", format="mp4")
            rate = Fraction(self.fps).limit_denominator(1001)
            self._stream = self._container.add_stream("libx264", rate=rate)
            self._stream.width, self._stream.height = W + W % 2, H + H % 2
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"crf": "20", "preset": "veryfast"}
            self._size = (H, W)
        if self._size != (H, W):
            raise ShapeError(
                f"a frame of {self.path.name} is {W}x{H}, the first was {self._size[1]}x"
                f"{self._size[0]}: all frames of a video must have one size"
            )
        padded = np.pad(frame, ((0, H % 2), (0, W % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
        for packet in self._stream.encode(picture):
            self._container.mux(packet)

    def _close(self, kind: Any, value: Any, trace: Any) -> None:
        """Flushes and closes the container; a file that is given up is closed without a word."""
        if self._container is None:
            if kind is None:
                raise DataError(f"cannot write {self.path}: no frame was given")
            return
        try:
            if kind is None:
                for packet in self._stream.encode():
                    self._container.mux(packet)
        finally:
            with contextlib.suppress(*((OSError,) if kind is not None else ())):
                self._container.close()

    def __exit__(self, kind: Any, value: Any, trace: Any) -> bool | None:
        return self._stack.__exit__(kind, value, trace)
