"""DAVIS 2016 and 2017 in their official layout.

DAVIS/JPEGImages/480p/<sequence>/00000.jpg
DAVIS/Annotations/480p/<sequence>/00000.png        or Annotations_unsupervised for 2017
DAVIS/ImageSets/2016/{train,val}.txt               or ImageSets/480p/*.txt (2016 archive)
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from uvos_jax.data.sources.layouts import davis_names
from uvos_jax.data.sources.video import (
    FlowDirection,
    Sequence,
    VideoSource,
    match_by_stem,
    with_edge_folder,
    with_flow_folder,
)
from uvos_jax.data.video_io import list_images
from uvos_jax.errors import ConfigError, DataError


class DavisLayout:
    """Where the files of a DAVIS copy are.

    Args:
      root: the `DAVIS` folder. split: `train`, `val`, ... or a sequence name list.
      year: 2016 or 2017. resolution: `480p` or `Full-Resolution`.
      annotations: folder under `root`.

    Raises:
      DataError: a folder, list or sequence is missing; the message names the first.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "val",
        *,
        year: int = 2016,
        resolution: str = "480p",
        annotations: str = "Annotations",
    ):
        self.root, self.split, self.year = Path(root), split, int(year)
        self.images = self.root / "JPEGImages" / resolution
        self.annotations = self.root / annotations / resolution
        for folder in (self.root, self.images, self.annotations):
            if not folder.is_dir():
                raise DataError(
                    f"no DAVIS data in {self.root}: {folder} is missing; expected "
                    f"JPEGImages/{resolution}, {annotations}/{resolution} and ImageSets there"
                )
        try:
            names, _ = davis_names(self.root, split, year=self.year, resolution=resolution)
        except ConfigError as error:
            raise DataError(f"DAVIS-{self.year}: {error}") from error
        self.sequences = list(names)
        for name in self.sequences:
            for folder in (self.images / name, self.annotations / name):
                if not folder.is_dir():
                    raise DataError(
                        f"DAVIS sequence {name!r} of split {split!r} is incomplete: {folder} is "
                        "missing"
                    )

    def frame_paths(self, name: str) -> list[Path]:
        """Frames of a sequence in order."""
        return list_images(self.images / name)

    def mask_paths(self, name: str) -> list[Path]:
        """Annotations of a sequence in order."""
        return list_images(self.annotations / name)


class DavisSource(VideoSource):
    """Clips of a DAVIS split; masks binary for 2016, ids for 2017.

    Args:
      flow: folder of flow files, `<flow>/<sequence>/<frame>.*` (see `data.flow_files`), absolute or
        relative to `root`; made by tools/compute_flow.py.
      flow_direction: `forward`, `backward`, or `both`, for which `flow` names two folders.
      edges: folder of 8-bit edge maps, `<edges>/<sequence>/<frame>.*`, absolute or relative to
        `root`, for systems that look for hard examples near edges (MATNet: HED).
    """

    ACCEPTS: ClassVar[frozenset[str]] = VideoSource.ACCEPTS

    def __init__(
        self,
        root: str,
        split: str = "train",
        *,
        year: int = 2016,
        resolution: str = "480p",
        flow: str | tuple[str, str] = "",
        flow_direction: FlowDirection = "forward",
        edges: str = "",
        **clips,
    ):
        layout = DavisLayout(root, split, year=year, resolution=resolution)
        sequences = []
        for name in layout.sequences:
            frames = layout.frame_paths(name)
            masks = match_by_stem(frames, layout.mask_paths(name), name)
            sequence = Sequence(name, tuple(frames), masks)
            if flow:
                sequence = with_flow_folder(sequence, root, flow, flow_direction)
            if edges:
                sequence = with_edge_folder(sequence, root, edges)
            sequences.append(sequence)
        super().__init__(sequences, **{"binary": int(year) == 2016, **clips})
