"""One record per frame: what goes into a prepared data set, in which shards, and its statistics.

Frames keep their JPEG or PNG bytes where readers of every kind understand them (8-bit RGB) and
become PNGs otherwise. Masks are grey PNGs of object ids, never palettes: decoders disagree on
those. Every file is decoded once while it is packed, so that a prepared set holds no damaged one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uvos_jax.data.schema import VOID
from uvos_jax.data.sources.annotated import DatasetSource
from uvos_jax.data.video_io import read_image

#: Part of every fingerprint: raise it when records change.
FORMAT = 1
SHARD_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class Shard:
    """Some consecutive frames of a split.

    Attributes:
      items: (sequence, frame) numbers.
      fingerprint: changes when any of the files behind them does.
    """

    items: tuple[tuple[int, int], ...]
    fingerprint: str


def plan(source: DatasetSource, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """Divides the frames of a source into shards of about equal size, in order."""
    groups: list[list[tuple[int, int]]] = [[]]
    digests = [_new_digest(source)]
    filled = 0
    for s, sequence in enumerate(source.sequences):
        for k in range(len(sequence.frames)):
            files = _files(sequence, k)
            stats = [os.stat(f) for f in files]
            size = sum(f.st_size for f in stats)
            if groups[-1] and filled + size > shard_bytes:
                groups.append([])
                digests.append(_new_digest(source))
                filled = 0
            filled += size
            groups[-1].append((s, k))
            for path, stat in zip(files, stats, strict=True):
                entry = (path.parent.name, path.name, stat.st_size, stat.st_mtime_ns)
                digests[-1].update(json.dumps(entry).encode())
    return [Shard(tuple(g), d.hexdigest()) for g, d in zip(groups, digests, strict=True)]


def _new_digest(source: DatasetSource) -> Any:
    return hashlib.sha256(json.dumps([FORMAT, source.DATASET]).encode())


def _files(sequence: Any, k: int) -> list[Path]:
    masks = sequence.masks[k]
    paths = [] if masks is None else [masks] if isinstance(masks, Path) else list(masks)
    flow = sequence.flow[k] if sequence.flow else None
    return [sequence.frames[k], *paths, *(flow or ())]


def record(source: DatasetSource, s: int, k: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Frame k of sequence s as the features of a record, and as decoded arrays.

    Raises:
      DataError: a file is missing or damaged; it is named.
      ShapeError: mask or flow do not fit the frame.
    """
    sequence = source.sequences[s]
    path = sequence.frames[k]
    frame = read_image(path)
    mask = source.mask_of(sequence, k, frame)
    arrays = {"frame": frame, "mask": mask, "has_mask": sequence.masks[k] is not None}
    features = {
        "sequence": sequence.name,
        "name": path.stem,
        "index": k,
        "frame": io.BytesIO(_frame_bytes(path, frame)),
        "mask": io.BytesIO(_png(mask)),
        "has_mask": arrays["has_mask"],
    }
    if sequence.flow:
        flow, valid = source.flow_of(sequence, [k], frame)
        arrays |= {"flow": flow[0], "flow_valid": bool(valid[0])}
        features |= {"flow": flow[0], "flow_valid": bool(valid[0])}
    return features, arrays


def _frame_bytes(path: Path, frame: np.ndarray) -> bytes:
    with Image.open(path) as image:
        plain = image.format in ("JPEG", "PNG") and image.mode == "RGB"
    return path.read_bytes() if plain else _png(frame)


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


# ----- statistics ---------------------------------------------------------------------------------


class Statistics:
    """Sums over frames that can be merged and stored as JSON."""

    def __init__(self, sums: dict[str, Any] | None = None):
        start = {"frames": 0, "annotated": 0, "empty": 0, "flows": 0, "rgb": [0.0] * 3,
                 "rgb_square": [0.0] * 3, "foreground": 0.0, "void": 0.0, "flow": 0.0,
                 "flow_max": 0.0, "max_objects": 0, "sizes": {}}  # fmt: skip
        self.sums: dict[str, Any] = start if sums is None else sums

    def add(self, arrays: dict[str, Any]) -> None:
        """Counts one frame (second result of `record`)."""
        sums = self.sums
        frame, mask = arrays["frame"], arrays["mask"]
        sums["frames"] += 1
        size = f"{frame.shape[0]}x{frame.shape[1]}"
        sums["sizes"][size] = sums["sizes"].get(size, 0) + 1
        unit = frame.reshape(-1, 3).astype(np.float32) / 255
        for c in range(3):
            sums["rgb"][c] += float(unit[:, c].mean(dtype=np.float64))
            sums["rgb_square"][c] += float(np.square(unit[:, c]).mean(dtype=np.float64))
        if arrays["has_mask"]:
            objects = np.unique(mask[(mask > 0) & (mask < VOID)])
            sums["annotated"] += 1
            sums["empty"] += int(objects.size == 0)
            sums["max_objects"] = max(sums["max_objects"], int(objects.size))
            sums["foreground"] += float(((mask > 0) & (mask < VOID)).mean())
            sums["void"] += float((mask == VOID).mean())
        if arrays.get("flow_valid"):
            speed = np.hypot(arrays["flow"][..., 0], arrays["flow"][..., 1])
            sums["flows"] += 1
            sums["flow"] += float(speed.mean(dtype=np.float64))
            sums["flow_max"] = max(sums["flow_max"], float(speed.max()))

    def merge(self, other: Statistics) -> None:
        """Adds the sums of other frames."""
        for key, value in other.sums.items():
            if key == "sizes":
                self.sums[key] = dict(Counter(self.sums[key]) + Counter(value))
            elif key in ("max_objects", "flow_max"):
                self.sums[key] = max(self.sums[key], value)
            elif isinstance(value, list):
                self.sums[key] = [a + b for a, b in zip(self.sums[key], value, strict=True)]
            else:
                self.sums[key] += value

    def summary(self) -> dict[str, Any]:
        """Means over frames, JSON-able: colours in 0..1, areas as fractions, flow in pixels."""
        sums, frames = self.sums, max(self.sums["frames"], 1)
        mean = [v / frames for v in sums["rgb"]]
        spread = [max(v / frames - m * m, 0.0) ** 0.5
                  for v, m in zip(sums["rgb_square"], mean, strict=True)]  # fmt: skip
        annotated = max(sums["annotated"], 1)
        found = {
            "frames": sums["frames"],
            "annotated": sums["annotated"],
            "annotated_without_object": sums["empty"],
            "sizes_height_x_width": dict(sorted(sums["sizes"].items(), key=lambda i: -i[1])),
            "rgb_mean": [round(v, 5) for v in mean],
            "rgb_std": [round(v, 5) for v in spread],
            "foreground_fraction": round(sums["foreground"] / annotated, 5),
            "void_fraction": round(sums["void"] / annotated, 5),
            "max_objects_in_a_frame": sums["max_objects"],
        }
        if sums["flows"]:
            found["flow_mean_px"] = round(sums["flow"] / sums["flows"], 4)
            found["flow_max_px"] = round(sums["flow_max"], 4)
        return found
