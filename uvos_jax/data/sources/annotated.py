"""The annotated sets of the field as sources: same clips, same contract, layout by `find_dataset`.

Every set is a subclass that says where it deviates. Files are listed when the source is made and
decoded when an example is asked for. Frames without annotation have zero masks and a false
`has_mask`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence as Names
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from uvos_jax.data.schema import VOID
from uvos_jax.data.sources.layouts import SequenceFiles, find_dataset
from uvos_jax.data.sources.video import (
    FlowDirection,
    Sequence,
    VideoSource,
    with_edge_folder,
    with_flow_folder,
)
from uvos_jax.errors import ConfigError, DataError


class DatasetSource(VideoSource):
    """Clips of one split of a data set.

    Args:
      root: folder of the data set.
      split: subset; each set has its default.
      sequences: names to use; all of the split by default.
      annotated_only: leave frames without annotation out of the sequences.
      every: keep every n-th frame of a sequence.
      clips: see `VideoSource`; here one example per annotated frame is the default.
      flow: folder of flow files, `<flow>/<sequence>/<frame>.*` (see `data.flow_files`), absolute or
        relative to `root`; made by tools/compute_flow.py. FlyingThings3D has its own.
      flow_direction: `forward`, `backward`, or `both`, for which `flow` names two folders.
      edges: folder of 8-bit edge maps, `<edges>/<sequence>/<frame>.*`, absolute or relative to
        `root`, for systems that look for hard examples near edges (MATNet: HED).
      fields: options of the set (`OPTIONS`) and of `VideoSource`.

    Raises:
      DataError: the layout is another, or files are missing; the first is named.
      ConfigError: a split, sequence or option that does not exist.
    """

    ACCEPTS: ClassVar[frozenset[str]] = VideoSource.ACCEPTS
    #: Name in `layouts.LAYOUTS`.
    DATASET: ClassVar[str]
    #: Default split (None: the set has none) and all splits.
    SPLITS: ClassVar[tuple[str, ...]] = ()
    #: Whether every frame must be annotated.
    DENSE: ClassVar[bool] = True
    #: Whether annotation values are ids of objects that hold through a sequence.
    IDS: ClassVar[bool] = False
    #: Fields that go to the layout finder.
    OPTIONS: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        root: str,
        split: str | None = None,
        *,
        sequences: Names[str] = (),
        annotated_only: bool = False,
        every: int = 1,
        clips: str = "annotated",
        binary: bool | None = None,
        flow: str | tuple[str, str] = "",
        flow_direction: FlowDirection = "forward",
        edges: str = "",
        **fields: Any,
    ):
        if flow and (every > 1 or annotated_only):
            raise ConfigError(
                f"{self.DATASET}: flow joins consecutive frames, so none can be left out: remove "
                "every and annotated_only (clips='annotated' draws clips at annotated frames)"
            )
        if every < 1:
            raise ConfigError(f"every is {every}: keep every n-th frame with n at least 1")
        if binary is False and not self.IDS:
            raise ConfigError(
                f"{self.DATASET} has no object ids that hold through a sequence: leave binary out"
            )
        options = {k: fields.pop(k) for k in self.OPTIONS if k in fields}
        split = split or (self.SPLITS[0] if self.SPLITS else None)
        found = find_dataset(self.DATASET, root, split=split, **options)
        absent = [n for n in found.absent if n in sequences or not sequences]
        if absent:
            raise DataError(
                f"{self.DATASET} in {root} lacks the sequence {absent[0]!r} ({len(absent)} of "
                f"{len(absent) + len(found.sequences)} of the split are missing): `uvos data check "
                f"--dataset {self.DATASET} --root {root}` lists them"
            )
        self.layout = found.layout
        files = _choose(found.sequences, sequences)
        built = [self._sequence(f, annotated_only=annotated_only, every=every) for f in files]
        if flow:
            built = [with_flow_folder(s, root, flow, flow_direction) for s in built]
        if edges:
            built = [with_edge_folder(s, root, edges) for s in built]
        super().__init__(
            built, binary=not self.IDS if binary is None else binary, clips=clips, **fields
        )

    def _sequence(self, files: SequenceFiles, *, annotated_only: bool, every: int) -> Sequence:
        problems = missing_files(files, dense=self.DENSE and not annotated_only)
        if problems:
            raise DataError(f"{self.DATASET}: {problems[0]}; restore it")
        masks = dict(zip(files.frames, files.annotations, strict=True))
        stems = [s for s in files.images if s in masks or not annotated_only][::every]
        flow = tuple((files.flow[s],) if s in files.flow else None for s in stems)
        if files.flow and len(stems) < len(files.images):
            raise ConfigError(
                f"{self.DATASET}: flow joins consecutive frames, so none can be left out: remove "
                "every and annotated_only"
            )
        return Sequence(
            files.name,
            tuple(files.images[s] for s in stems),
            tuple(masks.get(s) for s in stems),
            rule=files.rule,
            flow=flow if files.flow else (),
        )

    def binarize(self, mask: np.ndarray) -> np.ndarray:
        """Objects become 1; void stays void where values are ids."""
        foreground = (mask > 0).astype(np.uint8)
        return np.where(mask == VOID, np.uint8(VOID), foreground) if self.IDS else foreground


def missing_files(files: SequenceFiles, *, dense: bool) -> list[str]:
    """What one sequence lacks, a phrase for each thing; empty if it is complete."""
    if not files.images:
        where = f" in {files.frames_folder}" if files.frames_folder else ""
        return [f"sequence {files.name!r} has no frames{where}"]
    problems = []
    for stem, paths in zip(files.frames, files.annotations, strict=True):
        if stem not in files.images:
            problems.append(f"annotation {_short(paths[0])} has no frame")
    if dense:
        annotated = set(files.frames)
        problems += [
            f"frame {_short(path)} has no annotation"
            for stem, path in files.images.items()
            if stem not in annotated
        ]
    stems = list(files.images)[:-1] if files.flow else []
    problems += [
        f"frame {_short(files.images[s])} has no flow" for s in stems if s not in files.flow
    ]
    return problems


def _short(path: Path, parts: int = 4) -> str:
    return "/".join(path.parts[-parts:])


def _choose(found: Names[SequenceFiles], names: Names[str]) -> list[SequenceFiles]:
    by_name = {f.name: f for f in found}
    for name in names:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=2)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "no near match;"
            raise ConfigError(f"no sequence {name!r} in this split: {hint} it has {len(by_name)}")
    return [by_name[n] for n in names] or list(found)


class Davis16Source(DatasetSource):
    """DAVIS-2016: one foreground, every frame annotated (Perazzi et al., CVPR 2016)."""

    DATASET, SPLITS, OPTIONS = "davis16", ("train", "val"), ("resolution",)


class Davis17Source(DatasetSource):
    """DAVIS-2017, unsupervised task: ids and void (Caelles et al., 2019).

    The annotations of the semi-supervised task are read by the source `davis` with `year=2017`.
    """

    DATASET, SPLITS, OPTIONS, IDS = "davis17", ("train", "val"), ("resolution",), True


class YouTubeObjectsSource(DatasetSource):
    """YouTube-Objects, ten categories; about every tenth frame has a mask (Jain and Grauman)."""

    DATASET, DENSE = "youtube_objects", False


class FbmsSource(DatasetSource):
    """FBMS-59: about every twentieth frame has a mask (Ochs et al., TPAMI 2014)."""

    DATASET, SPLITS, DENSE = "fbms", ("train", "test"), False


class SegTrackSource(DatasetSource):
    """SegTrack v2: 14 videos, a file per object (Li et al., ICCV 2013)."""

    DATASET, IDS = "segtrack", True


class ViSalSource(DatasetSource):
    """ViSal: 17 videos, every fifth frame annotated (Wang et al., TIP 2015)."""

    DATASET, DENSE = "visal", False


class DavsodSource(DatasetSource):
    """DAVSOD: saliency that shifts between objects (Fan et al., CVPR 2019)."""

    DATASET, DENSE = "davsod", False
    SPLITS = ("train", "val", "test", "easy", "normal", "difficult")


class VideoSaliencySource(DatasetSource):
    """Any set re-packed as `<sequence>/{Imgs,ground-truth}`."""

    DATASET, DENSE = "vsod", False


class YouTubeVosSource(DatasetSource):
    """YouTube-VOS: ids; MATNet trains on `binary=True, every=10` (Xu et al., ECCV 2018)."""

    DATASET, SPLITS, DENSE, IDS = "youtube_vos", ("train", "valid"), False, True


class FlyingThings3DSource(DatasetSource):
    """FlyingThings3D: frames, flow and motion labels (Mayer et al., CVPR 2016)."""

    DATASET, SPLITS, DENSE = "flyingthings3d", ("train", "test"), False
    OPTIONS = ("render", "side", "labels")

    def __init__(self, root: str, split: str | None = None, **fields: Any):
        if fields.get("labels") == "none":
            fields.setdefault("clips", "frames")
        super().__init__(root, split, **fields)


class _StillsSource(DatasetSource):
    ACCEPTS: ClassVar[frozenset[str]] = frozenset()


class Msra10kSource(_StillsSource):
    """MSRA10K: 10 000 images with masks (Cheng et al., TPAMI 2015)."""

    DATASET = "msra10k"


class DutsSource(_StillsSource):
    """DUTS: 10 553 training and 5 019 test images (Wang et al., CVPR 2017)."""

    DATASET, SPLITS = "duts", ("train", "test")


class DutOmronSource(_StillsSource):
    """DUT-OMRON: 5 168 images (Yang et al., CVPR 2013)."""

    DATASET = "dut_omron"


class EcssdSource(_StillsSource):
    """ECSSD: 1 000 images (Yan et al., CVPR 2013)."""

    DATASET = "ecssd"
