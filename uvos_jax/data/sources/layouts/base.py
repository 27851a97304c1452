"""What every layout finder returns, and the small things finders share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

from uvos_jax.data.video_io import list_images, natural_key
from uvos_jax.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class SequenceFiles:
    """The annotated frames of one video, or one still image.

    Attributes:
      name: also the results' folder, relative to the results root.
      frames: names (file stems) of the annotated frames, in order; results carry the same names.
      annotations: per frame the file or files (one per object) that make its annotation.
      rule: how annotation values become objects, see `data.sources.annotations`.
      images: all video frames by stem, in order, where they are at hand.
      group: category of the video, for data sets that average over categories.
      flow: flow to the next frame by stem of the frame.
      frames_folder: where `images` were looked for.
    """

    name: str
    frames: tuple[str, ...]
    annotations: tuple[tuple[Path, ...], ...]
    rule: str = "nonzero"
    images: dict[str, Path] = dataclasses.field(default_factory=dict, repr=False)
    group: str | None = None
    flow: dict[str, Path] = dataclasses.field(default_factory=dict, repr=False)
    frames_folder: Path | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The sequences of a split, and a sentence that says where they were found.

    `absent` names sequences that the split lists but the folder lacks.
    """

    sequences: tuple[SequenceFiles, ...]
    layout: str
    absent: tuple[str, ...] = ()


#: A finder takes (root, split, resolution, data set) and gives None where the layout is another.
Finder = Callable[[Path, "str | None", str, str], "Dataset | None"]


def listing(root: Path, limit: int = 5) -> str:
    """The first few names in a folder, for messages."""
    names = sorted(p.name for p in root.iterdir())
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) + more) or "nothing"


def folders(root: Path) -> list[Path]:
    """Folders in a folder, hidden ones left out; none if there is no such folder."""
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def pngs(folder: Path) -> list[Path]:
    """PNG files of a folder in natural order."""
    found = (p for p in folder.glob("*.png") if not p.name.startswith("."))
    return sorted(found, key=natural_key)


def image_table(folder: Path) -> dict[str, Path]:
    """Images of a folder by stem, in natural order; empty if there is no such folder."""
    return {p.stem: p for p in list_images(folder)} if folder.is_dir() else {}


def sequence(name: str, annotations: Iterable[Path], images: Path, **fields) -> SequenceFiles:
    """A sequence with one annotation file per annotated frame, matched to frames by stem."""
    annotations = list(annotations)
    if not annotations:
        raise DataError(f"sequence {name!r} has no annotation PNG; restore its files")
    return SequenceFiles(
        name,
        tuple(p.stem for p in annotations),
        tuple((p,) for p in annotations),
        images=image_table(images),
        frames_folder=images,
        **fields,
    )


def no_split(split: str | None, layout: str) -> None:
    """Raises `ConfigError` if a split is asked for where there are none."""
    if split is not None:
        raise ConfigError(
            f"split {split!r} has no meaning for {layout}: there is no list of splits; leave it "
            "out, or name the sequences"
        )
