"""What all sources of annotated videos share: clips of frames, drawn around every frame."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from uvos_jax.data.cache import DecodedFiles
from uvos_jax.data.flow_files import FlowFolder, read_flow
from uvos_jax.data.sources.annotations import read_annotation
from uvos_jax.data.video_io import list_images, read_image, read_mask
from uvos_jax.errors import ConfigError, DataError, ShapeError

CLIPS = ("frames", "annotated", "flow", "sequences")
#: What a source may supply: flow to the next frame, to the previous one, or to both.
FlowDirection = Literal["forward", "backward", "both"]
#: Frames to which flow of a direction leads, in the order of its channels.
STEPS = {"forward": (1,), "backward": (-1,), "both": (-1, 1)}
SAMPLINGS = ("consecutive", "pair", "reference", "segments")


@dataclasses.dataclass(frozen=True)
class Sequence:
    """One video: frames and, for each, its mask or None.

    Attributes:
      masks: per frame a path, or several (one per object), or None.
      rule: what the values of masks mean (`annotations.read_annotation`); "": ids as stored.
      flow: per frame the files of its flow, or None; empty: there is no flow.
      flow_direction: whether that leads to the next frame or to the previous one; `both`: two
        files, to the previous and to the next.
      edges: per frame an 8-bit edge map; empty: there are none.
    """

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path | tuple[Path, ...] | None, ...]
    rule: str = ""
    flow: tuple[tuple[Path, ...] | None, ...] = ()
    flow_direction: str = "forward"
    edges: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if not self.frames:
            raise DataError(f"sequence {self.name!r} has no frames")


class VideoSource:
    """Clips of annotated sequences; one index per frame that can be a target.

    Args:
      clip_len: frames per clip.
      stride: frames between them, for `sampling="consecutive"`.
      sampling: `consecutive`, frames i, i+stride, ... (shortened at the end by mirroring back);
        `pair`, frame i and partners drawn from the same sequence (COSNet's training);
        `reference`, the sequence's first frame, the one before frame i (i itself if it is the
        first) and frame i (F2Net's training, clips of 3); `segments`, three consecutive frames at
        a random place, then one frame from each of the `clip_len - 3` equal parts of the sequence
        (MuG's training), whatever i is.
      binary: masks become 0/1 (255 stays void).
      clips: `frames`, one index per frame; `annotated`, one per frame that has a mask; `flow`, one
        per frame that has a mask and flow; `sequences`, one index per sequence, whole.
    """

    ACCEPTS: ClassVar[frozenset[str]] = frozenset({"clip_len", "stride", "sampling"})

    def __init__(
        self,
        sequences: list[Sequence],
        *,
        clip_len: int = 1,
        stride: int = 1,
        sampling: Literal["consecutive", "pair", "reference", "segments"] = "consecutive",
        binary: bool = True,
        clips: Literal["frames", "annotated", "flow", "sequences"] = "frames",
    ):
        if sampling not in SAMPLINGS:
            raise ConfigError(f"sampling {sampling!r} is unknown: use one of {SAMPLINGS}")
        if sampling == "reference" and clip_len != 3:
            raise ConfigError(f"sampling 'reference' makes clips of 3 frames, not {clip_len}")
        if sampling == "segments" and clip_len < 4:
            raise ConfigError(
                f"sampling 'segments' needs clips of 4 frames or more, not {clip_len}"
            )
        if clips not in CLIPS:
            raise ConfigError(f"clips {clips!r} is unknown: use one of {CLIPS}")
        self.sequences, self.binary = sequences, binary
        #: Decoded frames and masks; the pipeline puts a larger one here (`data.cache_gb`).
        self.cache = DecodedFiles()
        self.clip_len, self.stride, self.sampling = clip_len, stride, sampling
        if clips == "sequences":
            self.index = [(s, None) for s in range(len(sequences))]
        else:
            self.index = [
                (s, i)
                for s, q in enumerate(sequences)
                for i, mask in enumerate(q.masks)
                if clips == "frames" or mask is not None
                if clips != "flow" or (q.flow and q.flow[i] is not None)
            ]
        if not self.index:
            raise DataError(
                f"none of the {len(sequences)} sequences has an annotated frame"
                f"{' with flow' if clips == 'flow' else ''}: use clips='frames' for frames without"
            )

    def __len__(self) -> int:
        return len(self.index)

    def _frames_of(self, sequence: Sequence, i: int | None, rng: np.random.Generator) -> list[int]:
        count = len(sequence.frames)
        if self.sampling == "segments":
            start = int(rng.integers(max(count - 2, 1)))
            parts = np.linspace(0, count, self.clip_len - 2)
            drawn = rng.uniform(parts[:-1], parts[1:]).astype(int)
            return [reflect(start + k, count) for k in range(3)] + [int(k) for k in drawn]
        if i is None:
            return list(range(count))
        if self.sampling == "reference":
            return [0, max(i - 1, 0), i]
        if self.sampling == "pair":
            partners = []
            for _ in range(self.clip_len - 1):
                j = int(rng.integers(count))
                # One retry, as in the released loader: a frame may still meet itself.
                partners.append(int(rng.integers(count)) if j == i else j)
            return [i, *partners]
        return [reflect(i + k * self.stride, count) for k in range(self.clip_len)]

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Example `index` in the data contract."""
        s, i = self.index[index]
        sequence = self.sequences[s]
        chosen = self._frames_of(sequence, i, rng)
        frames = [self._image(sequence.frames[k]) for k in chosen]
        if len({f.shape for f in frames}) > 1:
            raise ShapeError(f"sequence {sequence.name!r}: its frames differ in size")
        masks = [self.mask_of(sequence, k, f) for k, f in zip(chosen, frames, strict=True)]
        example = {
            "frames": np.stack(frames),
            "masks": np.stack(masks),
            "valid": np.ones(len(chosen), bool),
            "has_mask": np.asarray([sequence.masks[k] is not None for k in chosen]),
            "example_id": np.int32(index),
        }
        if sequence.flow:
            example["flow"], example["flow_valid"] = self.flow_of(sequence, chosen, frames[0])
        if sequence.edges:
            example["edges"] = np.stack([self.edges_of(sequence, k, frames[0]) for k in chosen])
        return example

    def _image(self, path: Path) -> np.ndarray:
        return self.cache.get(path, lambda: read_image(path))

    def mask_of(self, sequence: Sequence, k: int, frame: np.ndarray) -> np.ndarray:
        """The mask of frame k in the frame's size; zeros where there is none."""
        files = sequence.masks[k]
        if files is None:
            return np.zeros(frame.shape[:2], np.uint8)
        paths = (files,) if isinstance(files, Path) else files
        mask = self.cache.get(
            (sequence.rule, paths),
            lambda: read_annotation(paths, sequence.rule) if sequence.rule else read_mask(paths[0]),
        )
        _check_size("mask", paths[0], mask, frame)
        return self.binarize(mask) if self.binary else mask

    def edges_of(self, sequence: Sequence, k: int, frame: np.ndarray) -> np.ndarray:
        """The edge map of frame k, uint8 0..255."""
        path = sequence.edges[k]
        edges = self.cache.get(path, lambda: read_mask(path))
        _check_size("edge map", path, edges, frame)
        return edges

    def flow_of(self, sequence: Sequence, chosen: list[int], frame: np.ndarray):
        """Flow to the next (or previous, or both) frames of the video, valid unless these are
        other frames of the clip."""
        steps = STEPS[sequence.flow_direction]
        flow = np.zeros((len(chosen), *frame.shape[:2], 2 * len(steps)), np.float32)
        valid = np.zeros(len(chosen), bool)
        for t, k in enumerate(chosen):
            inside = [s for s in steps if 0 <= t + s < len(chosen)]
            if sequence.flow[k] is None or any(chosen[t + s] != k + s for s in inside):
                continue
            for way, path in enumerate(sequence.flow[k]):
                field = read_flow(path)
                _check_size("flow", path, field, frame)
                flow[t, ..., 2 * way : 2 * way + 2] = field
            valid[t] = True
        return flow, valid

    def binarize(self, mask: np.ndarray) -> np.ndarray:
        """Any object is foreground; in these annotations 255 is an object, not void."""
        return (mask > 0).astype(np.uint8)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.sample(index, np.random.default_rng(index))

    def names(self, index: int) -> tuple[str, list[str]]:
        """Sequence name and frame stems of an example (whole sequences only)."""
        sequence = self.sequences[self.index[index][0]]
        return sequence.name, [p.stem for p in sequence.frames]


def _check_size(kind: str, path: Path, array: np.ndarray, frame: np.ndarray) -> None:
    if array.shape[:2] != frame.shape[:2]:
        raise ShapeError(
            f"{kind} {path} is {array.shape[1]}x{array.shape[0]}, its frame {frame.shape[1]}x"
            f"{frame.shape[0]}: they must have one size"
        )


def with_flow_folder(
    sequence: Sequence,
    root: str | Path,
    flow: str | tuple[str, str],
    direction: FlowDirection,
) -> Sequence:
    """The sequence with flow from `<root>/<flow>/<sequence>/<frame>.*` (`flow` may be absolute).

    With `both`, `flow` names two folders, of backward and of forward flow; frames at either end of
    the sequence then have none.

    Raises:
      DataError: the folder, or the flow of a frame, is missing.
      ConfigError: an unknown direction, or another number of folders than it needs.
    """
    if direction not in STEPS:
        raise ConfigError(f"flow_direction {direction!r} is unknown: use one of {tuple(STEPS)}")
    ways = ("backward", "forward") if direction == "both" else (direction,)
    folders = (flow,) if isinstance(flow, str) else tuple(flow)
    if len(folders) != len(ways):
        raise ConfigError(
            f"flow_direction {direction!r} reads {' and '.join(ways)} flow from {len(ways)} "
            f"folder(s), but flow names {len(folders)}: {flow!r}"
        )
    names = [p.stem for p in sequence.frames]
    found = [
        FlowFolder(Path(root) / folder, way).files(sequence.name, names)
        for folder, way in zip(folders, ways, strict=True)
    ]
    files = tuple(None if None in paths else paths for paths in zip(*found, strict=True))
    return dataclasses.replace(sequence, flow=files, flow_direction=direction)


def with_edge_folder(sequence: Sequence, root: str | Path, edges: str) -> Sequence:
    """The sequence with maps `<root>/<edges>/<sequence>/<frame>.*` (`edges` may be absolute).

    Raises:
      DataError: the folder, or the map of a frame, is missing.
    """
    folder = Path(root) / edges / sequence.name
    if not folder.is_dir():
        raise DataError(
            f"no edge maps in {folder}: it does not exist; expected one 8-bit image for each frame "
            "of the sequence, under the frame's name (0: no edge, 255: an edge for sure)"
        )
    maps = {p.stem: p for p in list_images(folder)}
    lost = [p.stem for p in sequence.frames if p.stem not in maps]
    if lost:
        raise DataError(
            f"no edge map for frame {lost[0]!r} of sequence {sequence.name!r} in {folder} "
            f"({len(lost)} of {len(sequence.frames)} are missing); add them"
        )
    return dataclasses.replace(sequence, edges=tuple(maps[p.stem] for p in sequence.frames))


def reflect(i: int, count: int) -> int:
    """Index i walked back at the ends: 0 1 2 3 2 1 0 1 ... for count 4."""
    if count == 1:
        return 0
    i %= 2 * (count - 1)
    return i if i < count else 2 * (count - 1) - i


def match_by_stem(
    frames: list[Path], masks: list[Path], name: str, *, sparse: bool = False
) -> tuple[Path | None, ...]:
    """The mask of every frame by file stem.

    Raises:
      DataError: a frame has no mask and `sparse` does not allow it.
    """
    by_stem = {p.stem: p for p in masks}
    found = tuple(by_stem.get(p.stem) for p in frames)
    missing = [p for p, m in zip(frames, found, strict=True) if m is None]
    if missing and (not sparse or len(missing) == len(frames)):
        raise DataError(
            f"sequence {name!r}: {len(missing)} of {len(frames)} frames have no mask, the first "
            f"is {missing[0]}; add the masks or use sparse=True if the annotation is sparse"
        )
    return found
