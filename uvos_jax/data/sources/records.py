"""Prepared data sets (array_record, one record per frame) as a source.

What `uvos data prepare` wrote is read back through tensorflow_datasets' `as_data_source`, without
TensorFlow, and gives the same clips as the source it was made from.
"""

from __future__ import annotations

import dataclasses
import io
import json
import threading
from collections.abc import Sequence as Names
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from uvos_jax.data.schema import VOID
from uvos_jax.data.sources.video import VideoSource
from uvos_jax.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class RecordSequence:
    """One video: numbers of its records, and which of them are annotated (True or None)."""

    name: str
    frames: range
    masks: tuple[bool | None, ...]


class RecordSource(VideoSource):
    """Clips of a prepared data set.

    Args:
      root: `<out>/<dataset>` or the folder of its version.
      split: one, or several joined by `+`; may be left out where there is only one.
      sequences: names to use; all by default.
      clips: see `VideoSource`; one example per annotated frame by default.
      binary: merge object ids; by default where the data set has none.
      fields: of `VideoSource`.

    Raises:
      DataError: no prepared data set there.
      ConfigError: a split or sequence that it does not have.
    """

    ACCEPTS: ClassVar[frozenset[str]] = VideoSource.ACCEPTS

    def __init__(
        self,
        root: str,
        split: str = "",
        *,
        sequences: Names[str] = (),
        clips: str = "annotated",
        binary: bool | None = None,
        **fields: Any,
    ):
        self.folder = _version_folder(Path(root))
        index = json.loads((self.folder / "metadata.json").read_text())
        known = index["splits"]
        if not split and len(known) > 1:
            raise ConfigError(f"{self.folder} has the splits {', '.join(known)}: choose with split")
        self.split = split or next(iter(known))
        found, first = [], 0
        for part in self.split.split("+"):
            if part not in known:
                raise ConfigError(f"{self.folder} has no split {part!r}: it has {', '.join(known)}")
            for name, count, annotated in known[part]["sequences"]:
                marked = set(range(count) if annotated is None else annotated)
                masks = tuple(True if k in marked else None for k in range(count))
                found.append(RecordSequence(name, range(first, first + count), masks))
                first += count
        if sequences:
            by_name = {s.name: s for s in found}
            lost = [n for n in sequences if n not in by_name]
            if lost:
                raise ConfigError(f"{self.folder} has no sequence {lost[0]!r} in {self.split!r}")
            found = [by_name[n] for n in sequences]
        self.total = first
        self.stills = all(len(s.frames) == 1 for s in found)
        self.ids = bool(index["ids"])
        self._reader, self._lock = None, threading.Lock()
        binary = not self.ids if binary is None else binary
        if not binary and not self.ids:
            raise ConfigError(f"{index['dataset']} has no object ids: leave binary out")
        if self.stills:
            fields["clip_len"] = 1
        super().__init__(found, binary=binary, clips=clips, **fields)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def reader(self) -> Any:
        """The `as_data_source` of the split, opened when first needed."""
        with self._lock:
            if self._reader is None:
                import tensorflow_datasets as tfds

                # Images are decoded here, by Pillow: tfds takes OpenCV where it is installed.
                skip = tfds.decode.SkipDecoding()
                opened = tfds.builder_from_directory(self.folder).as_data_source(
                    self.split, decoders={"frame": skip, "mask": skip}
                )
                if len(opened) != self.total:
                    raise DataError(
                        f"{self.folder} holds {len(opened)} records of {self.split!r}, its index "
                        f"{self.total}: prepare it again"
                    )
                self._reader = opened
            return self._reader

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Example `index` in the data contract."""
        s, i = self.index[index]
        sequence = self.sequences[s]
        chosen = self._frames_of(sequence, i, rng)
        numbers = [sequence.frames[k] for k in chosen]
        unique = sorted(set(numbers))
        read = dict(zip(unique, self.reader().__getitems__(unique), strict=True))
        records = [read[n] for n in numbers]
        images = {
            (kind, n): self.cache.get(
                (kind, self.folder, n), lambda r=r, kind=kind: _decoded(r[kind])
            )
            for n, r in read.items()
            for kind in ("frame", "mask")
        }
        masks = np.stack([images["mask", n] for n in numbers])
        example = {
            "frames": np.stack([images["frame", n] for n in numbers]),
            "masks": self.binarize(masks) if self.binary else masks,
            "valid": np.ones(len(chosen), bool),
            "has_mask": np.asarray([bool(r["has_mask"]) for r in records]),
            "example_id": np.int32(index),
        }
        if "flow" in records[0]:
            follows = [t + 1 == len(chosen) or chosen[t + 1] == k + 1 for t, k in enumerate(chosen)]
            valid = np.asarray([bool(r["flow_valid"]) for r in records]) & np.asarray(follows)
            flow = np.stack([r["flow"] for r in records])
            example["flow"] = np.where(valid[:, None, None, None], flow, np.float32(0))
            example["flow_valid"] = valid
        return example

    def binarize(self, mask: np.ndarray) -> np.ndarray:
        """Objects become 1, void stays void."""
        foreground = (mask > 0).astype(np.uint8)
        return np.where(mask == VOID, np.uint8(VOID), foreground) if self.ids else foreground

    def names(self, index: int) -> tuple[str, list[str]]:
        """Sequence name and frame stems of an example (whole sequences only)."""
        sequence = self.sequences[self.index[index][0]]
        records = self.reader().__getitems__(list(sequence.frames))
        return sequence.name, [r["name"].decode() for r in records]


def _decoded(image: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(image)) as opened:
        return np.array(opened)


def _version_folder(root: Path) -> Path:
    inner = sorted(p for p in root.glob("[0-9]*") if p.is_dir()) if root.is_dir() else []
    for folder in (root, *reversed(inner)):
        if (folder / "metadata.json").is_file() and (folder / "dataset_info.json").is_file():
            return folder
    raise DataError(
        f"{root} holds no prepared data set: expected the folder that `uvos data prepare` wrote, "
        "with dataset_info.json and metadata.json"
    )
