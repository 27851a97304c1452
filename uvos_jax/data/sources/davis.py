"""DAVIS 2016 and 2017 in their official layout.

DAVIS/JPEGImages/480p/<sequence>/00000.jpg
DAVIS/Annotations/480p/<sequence>/00000.png        or Annotations_unsupervised for 2017
DAVIS/ImageSets/2016/{train,val}.txt               or ImageSets/480p/*.txt (2016 archive)
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from uvos_jax.data.sources.video import Sequence, VideoSource, match_by_stem
from uvos_jax.data.video_io import list_images
from uvos_jax.errors import DataError

#: DAVIS-2016 splits: sequence name -> number of frames (fperazzi/davis-2017, data/db_info.yaml).
DAVIS16_VAL = {
    "blackswan": 50, "bmx-trees": 80, "breakdance": 84, "camel": 90, "car-roundabout": 75,
    "car-shadow": 40, "cows": 104, "dance-twirl": 90, "dog": 60, "drift-chicane": 52,
    "drift-straight": 50, "goat": 90, "horsejump-high": 50, "kite-surf": 50, "libby": 49,
    "motocross-jump": 40, "paragliding-launch": 80, "parkour": 100, "scooter-black": 43,
    "soapbox": 99,
}  # fmt: skip
DAVIS16_TRAIN = {
    "bear": 82, "bmx-bumps": 90, "boat": 75, "breakdance-flare": 71, "bus": 80, "car-turn": 80,
    "dance-jump": 60, "dog-agility": 25, "drift-turn": 64, "elephant": 80, "flamingo": 80,
    "hike": 80, "hockey": 75, "horsejump-low": 60, "kite-walk": 80, "lucia": 70,
    "mallard-fly": 70, "mallard-water": 80, "motocross-bumps": 60, "motorbike": 43,
    "paragliding": 70, "rhino": 90, "rollerblade": 35, "scooter-gray": 75, "soccerball": 48,
    "stroller": 91, "surf": 55, "swing": 60, "tennis": 70, "train": 80,
}  # fmt: skip


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
        self.sequences = self._list()
        for name in self.sequences:
            for folder in (self.images / name, self.annotations / name):
                if not folder.is_dir():
                    raise DataError(
                        f"DAVIS sequence {name!r} of split {split!r} is incomplete: {folder} is "
                        "missing"
                    )

    def _list(self) -> list[str]:
        sets = self.root / "ImageSets"
        listed = sets / str(self.year) / f"{self.split}.txt"
        if listed.is_file():
            return listed.read_text().split()
        archive = sets / "480p" / f"{self.split}.txt"
        if self.year == 2016 and archive.is_file():
            paths = [line.split()[0] for line in archive.read_text().splitlines() if line.strip()]
            return list(dict.fromkeys(Path(p).parent.name for p in paths))
        builtin = {"train": DAVIS16_TRAIN, "val": DAVIS16_VAL}
        if self.year == 2016 and self.split in builtin:
            return list(builtin[self.split])
        raise DataError(f"DAVIS-{self.year} split {self.split!r} has no list: {listed} is missing")

    def frame_paths(self, name: str) -> list[Path]:
        """Frames of a sequence in order."""
        return list_images(self.images / name)

    def mask_paths(self, name: str) -> list[Path]:
        """Annotations of a sequence in order."""
        return list_images(self.annotations / name)


class DavisSource(VideoSource):
    """Clips of a DAVIS split; masks binary for 2016, ids for 2017."""

    ACCEPTS: ClassVar[frozenset[str]] = VideoSource.ACCEPTS

    def __init__(
        self,
        root: str,
        split: str = "train",
        *,
        year: int = 2016,
        resolution: str = "480p",
        **clips,
    ):
        layout = DavisLayout(root, split, year=year, resolution=resolution)
        sequences = []
        for name in layout.sequences:
            frames = layout.frame_paths(name)
            masks = match_by_stem(frames, layout.mask_paths(name), name)
            sequences.append(Sequence(name, tuple(frames), masks))
        super().__init__(sequences, **{"binary": int(year) == 2016, **clips})
