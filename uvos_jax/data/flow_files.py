"""Optical flow on disk: Middlebury `.flo`, npz, KITTI's 16-bit PNG, PFM; and folders of them.

Flow is float32 `[H,W,2]`, (u right, v down) in pixels. A vector with a component beyond 1e9 is
unknown (Middlebury's rule); files that mark unknown vectors otherwise are read as `UNKNOWN_FLOW`.

A folder of flow has `<root>/<sequence>/<frame>.<suffix>`, one file per frame, under the name of the
frame the flow starts from. `<root>/flow.json` says how it was made and in which direction it leads.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from uvos_jax.data.sources.pfm import read_pfm
from uvos_jax.data.video_io import atomic_write
from uvos_jax.errors import DataError, ShapeError

Direction = Literal["forward", "backward"]
DIRECTIONS = ("forward", "backward")
#: Format name -> file suffix, in the order in which files are looked for.
FORMATS = {"flo": ".flo", "npz": ".npz", "kitti": ".png", "pfm": ".pfm"}
#: What unknown vectors are read as.
UNKNOWN_FLOW = 1e10
META = "flow.json"
_FLO_TAG = 202021.25


def _check(flow: Any, path: str | os.PathLike) -> np.ndarray:
    flow = np.asarray(flow)
    if flow.ndim != 3 or flow.shape[-1] != 2 or flow.dtype.kind != "f" or 0 in flow.shape:
        raise ShapeError(
            f"flow for {path}: expected floating-point [H,W,2], got {flow.dtype} {flow.shape}"
        )
    return flow


def read_flo(path: str | os.PathLike) -> np.ndarray:
    """Flow float32 `[H,W,2]` of a Middlebury `.flo` file.

    Raises:
      DataError: the file is missing, of another format, or cut off.
    """
    raw = _read(path)
    if len(raw) < 12 or np.frombuffer(raw, "<f4", 1)[0] != np.float32(_FLO_TAG):
        raise DataError(f"{path}: not a .flo file (it must begin with the float {_FLO_TAG})")
    width, height = np.frombuffer(raw, "<i4", 2, 4).tolist()
    if width < 1 or height < 1 or len(raw) != 12 + 8 * width * height:
        raise DataError(
            f"{path}: {len(raw)} bytes do not hold the {width}x{height} vectors its header "
            "announces; the file is cut off or damaged"
        )
    return np.frombuffer(raw, "<f4", offset=12).reshape(height, width, 2).astype(np.float32)


def write_flo(path: str | os.PathLike, flow: np.ndarray) -> None:
    """Writes a Middlebury `.flo` file."""
    flow = _check(flow, path)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<fii", _FLO_TAG, flow.shape[1], flow.shape[0]))
        file.write(np.ascontiguousarray(flow, "<f4").tobytes())


def read_npz_flow(path: str | os.PathLike) -> np.ndarray:
    """Flow of the array `flow` of an npz file, float16 or float32 there.

    Raises:
      DataError: the file is missing, damaged, or has no such array.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if "flow" not in file:
                raise DataError(f"{path} has no array 'flow': it has {sorted(file)}")
            flow = file["flow"]
    except FileNotFoundError:
        raise DataError(f"flow {path} does not exist") from None
    except (OSError, ValueError, EOFError, zlib.error, KeyError) as error:
        raise DataError(f"flow {path} cannot be read ({error}); compute it again") from error
    except Exception as error:  # zipfile's own errors
        if isinstance(error, DataError):
            raise
        raise DataError(f"flow {path} is damaged ({error}); compute it again") from error
    return _check(flow, path).astype(np.float32)


def write_npz_flow(path: str | os.PathLike, flow: np.ndarray) -> None:
    """Writes float16 where that is exact to 1/64 px (vectors up to 32 px), float32 elsewhere."""
    flow = _check(flow, path)
    small = np.abs(flow).max() < 32
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, flow=flow.astype(np.float16 if small else np.float32))


def read_kitti_flow(path: str | os.PathLike) -> np.ndarray:
    """Flow of a 16-bit RGB PNG: `(R - 2^15) / 64`, `(G - 2^15) / 64`, known where B is not 0.

    Raises:
      DataError: the file is missing, damaged, or no 16-bit RGB image (such as a colour coding,
        from which no exact flow can be read).
    """
    raw = _read(path)
    if raw[:8] != b"\x89PNG\r\n\x1a\n" or raw[24:26] != b"\x10\x02":
        raise DataError(
            f"{path} is no flow of KITTI's format: expected a PNG with 16-bit RGB; the vectors of "
            "colour pictures of flow are lost, give the .flo, npz or 16-bit files"
        )
    import av

    try:
        with av.open(str(path)) as container:
            image = next(container.decode(video=0)).to_ndarray(format="rgb48le")
    except (av.error.FFmpegError, StopIteration, ValueError) as error:
        raise DataError(f"flow {path} cannot be decoded ({error}); replace it") from error
    flow = (image[..., :2].astype(np.float32) - 2**15) / 64
    return np.where(image[..., 2:] > 0, flow, np.float32(UNKNOWN_FLOW))


def write_kitti_flow(path: str | os.PathLike, flow: np.ndarray) -> None:
    """Writes KITTI's 16-bit PNG: steps of 1/64 px, up to 512 px.

    Raises:
      DataError: a known vector is longer than the format can hold.
    """
    flow = _check(flow, path)
    known = (np.abs(flow) < 1e9).all(-1, keepdims=True)
    vectors = np.round(np.where(known, flow, 0) * 64)
    if vectors.min() < -(2**15) or vectors.max() >= 2**15:
        raise DataError(
            f"{path}: vectors up to {np.abs(vectors).max() / 64:.0f} px do not fit KITTI's format "
            "(512 px): use .flo or npz"
        )
    image = np.concatenate([vectors + 2**15, known], axis=-1).astype(">u2")
    H, W = image.shape[:2]
    rows = image.reshape(H, W * 3).view(np.uint8)
    # filter 2: differences to the row above, which are small in smooth fields
    rows = rows - np.concatenate([np.zeros_like(rows[:1]), rows[:-1]])
    data = np.concatenate([np.full((H, 1), 2, np.uint8), rows], axis=1).tobytes()

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", W, H, 16, 2, 0, 0, 0)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header))
        file.write(chunk(b"IDAT", zlib.compress(data, 6)) + chunk(b"IEND", b""))


def _read(path: str | os.PathLike) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"flow {path} does not exist") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def read_flow(path: str | os.PathLike) -> np.ndarray:
    """Flow float32 `[H,W,2]` of a file of any format here, by its suffix.

    Raises:
      DataError: another suffix; a missing or damaged file.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".flo":
        return read_flo(path)
    if suffix == ".npz":
        return read_npz_flow(path)
    if suffix == ".png":
        return read_kitti_flow(path)
    if suffix == ".pfm":
        return np.ascontiguousarray(read_pfm(path)[..., :2])
    raise DataError(f"flow {path}: suffix {suffix!r} is unknown: use {', '.join(FORMATS.values())}")


WRITERS = {"flo": write_flo, "npz": write_npz_flow, "kitti": write_kitti_flow}


# ----- folders ------------------------------------------------------------------------------------


def read_meta(root: str | os.PathLike) -> dict[str, Any]:
    """What `flow.json` of a folder of flow says; {} if there is none.

    Raises:
      DataError: the file is damaged.
    """
    path = Path(root) / META
    if not path.is_file():
        return {}
    try:
        meta = json.loads(path.read_text())
        meta.get("direction")
    except (ValueError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged ({error}): delete it or compute the flow again"
        ) from error
    return meta


def write_meta(root: str | os.PathLike, meta: dict[str, Any]) -> None:
    """Writes `flow.json`."""
    with atomic_write(Path(root) / META) as temporary:
        temporary.write_text(json.dumps(meta, indent=1) + "\n")


class FlowFolder:
    """Flow files of videos, found by the names of sequence and frame.

    Args:
      root: `<root>/<sequence>/<frame>.<suffix>`.
      direction: expected; None takes what the folder says (forward if it says nothing).

    Raises:
      DataError: no such folder, or flow of the other direction.
    """

    def __init__(self, root: str | os.PathLike, direction: Direction | None = None):
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"no optical flow in {self.root}: it does not exist; {how(self.root)}")
        stored = read_meta(self.root).get("direction", "forward")
        if direction is not None and stored != direction:
            raise DataError(
                f"{self.root} holds {stored} flow, but {direction} flow is needed: compute it into "
                f"another folder, tools/compute_flow.py --direction {direction}"
            )
        self.direction: Direction = stored

    def find(self, sequence: str, frame: str) -> Path | None:
        """The file of a frame, or None."""
        for suffix in FORMATS.values():
            path = self.root / sequence / f"{frame}{suffix}"
            if path.is_file():
                return path
        return None

    def files(self, sequence: str, frames: Sequence[str]) -> tuple[Path | None, ...]:
        """The file of every frame; None where there is no neighbour to lead to.

        Raises:
          DataError: the flow of a frame is missing.
        """
        end = len(frames) - 1 if self.direction == "forward" else 0
        found = tuple(self.find(sequence, f) if i != end else None for i, f in enumerate(frames))
        lost = [f for i, f in enumerate(frames) if i != end and found[i] is None]
        if lost:
            raise DataError(
                f"no optical flow for frame {lost[0]!r} of sequence {sequence!r} in {self.root} "
                f"({len(lost)} of {len(frames) - 1} are missing); {how(self.root)}"
            )
        return found


def how(root: Path) -> str:
    """The sentence that says how missing flow is made."""
    return f"compute it with: python tools/compute_flow.py FRAMES --out {root}"
