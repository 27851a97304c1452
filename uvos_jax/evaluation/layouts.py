"""Where the annotations of a data set lie: one list of sequences, whatever the folders look like.

`find_dataset` detects the layout from the folders themselves and says which one it took; a folder
that fits none is a `DataError` that lists what was looked for.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from uvos_jax.errors import ConfigError, DataError
from uvos_jax.evaluation.splits import DAVIS16, DAVIS17_VAL_EXTRA

IMAGES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp"}


@dataclasses.dataclass(frozen=True)
class SequenceFiles:
    """The annotated frames of one video.

    Attributes:
      name: also the results' folder, relative to the results root.
      frames: names (file stems) of the annotated frames, in order; results carry the same names.
      annotations: per frame the file or files (one per object) that make its annotation.
      rule: how annotation values become foreground, see `masks.annotation`.
      images: video frames by stem, where they are at hand (used in the HTML report only).
      group: category of the video, for data sets that average over categories.
    """

    name: str
    frames: tuple[str, ...]
    annotations: tuple[tuple[Path, ...], ...]
    rule: str = "nonzero"
    images: dict[str, Path] = dataclasses.field(default_factory=dict, repr=False)
    group: str | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The sequences of a split, and a sentence that says where they were found.

    `absent` names sequences that the split lists but the folder lacks.
    """

    sequences: tuple[SequenceFiles, ...]
    layout: str
    absent: tuple[str, ...] = ()


def find_dataset(
    dataset: str, root: str | Path, *, split: str | None = None, resolution: str = "480p"
) -> Dataset:
    """Lists the annotated sequences of `dataset` below `root`.

    Args:
      dataset: one of `datasets.DATASETS`.
      split: subset to take where the layout knows subsets (DAVIS: default `val`; FBMS: `test`).
      resolution: subfolder of the DAVIS layout.

    Raises:
      DataError: `root` is missing or fits no layout of this data set.
      ConfigError: unknown data set, or a split that the layout does not have.
    """
    if dataset not in _LAYOUTS:
        raise ConfigError(f"data set {dataset!r} is unknown: use one of {', '.join(_LAYOUTS)}")
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"data set folder {root} does not exist; pass root= (--root) of {dataset}")
    tried = []
    for describe, finder in _LAYOUTS[dataset]:
        found = finder(root, split, resolution, dataset)
        if found is not None:
            if not found.sequences:
                raise DataError(f"{root} has the layout {describe} but holds no annotated sequence")
            return found
        tried.append(describe)
    raise DataError(
        f"{root} is not a {dataset} folder: looked for {'; '.join(tried)}; "
        f"it contains {_listing(root)}"
    )


def _listing(root: Path, limit: int = 5) -> str:
    names = sorted(p.name for p in root.iterdir())
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) + more) or "nothing"


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _pngs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def _image_table(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in IMAGES}


def _sequence(name: str, pngs: Iterable[Path], images: Path, **fields) -> SequenceFiles:
    pngs = list(pngs)
    if not pngs:
        raise DataError(f"sequence {name!r} has no annotation PNG; restore its files")
    return SequenceFiles(
        name,
        tuple(p.stem for p in pngs),
        tuple((p,) for p in pngs),
        images=_image_table(images),
        **fields,
    )


# ----- DAVIS ------------------------------------------------------------------------------------


def _davis(root: Path, split: str | None, resolution: str, dataset: str) -> Dataset | None:
    kind = "Annotations_unsupervised" if dataset == "davis17" else "Annotations"
    base = root / kind
    if not base.is_dir():
        if kind != "Annotations" and (root / "Annotations").is_dir():
            raise DataError(
                f"{root} holds Annotations but no Annotations_unsupervised: the DAVIS-17 "
                "unsupervised task has annotations of its own (with void); unpack them there"
            )
        return None
    folder = base / resolution
    if not folder.is_dir():
        have = ", ".join(p.name for p in _folders(base)) or "nothing"
        raise DataError(f"{folder} does not exist: {base} holds {have}; choose with resolution=")
    split = split or "val"
    names, source = _davis_names(root, split, dataset, resolution)
    present = [n for n in names if (folder / n).is_dir()]
    if not present:
        raise DataError(
            f"{folder} has none of the {len(names)} sequences of split {split!r} "
            f"({', '.join(names[:3])}, ...); it contains {_listing(folder)}"
        )
    frames = root / "JPEGImages" / resolution
    return Dataset(
        tuple(_sequence(n, _pngs(folder / n), frames / n) for n in present),
        f"DAVIS layout, {kind}/{resolution}, split {split} ({source})",
        absent=tuple(n for n in names if n not in present),
    )


def _davis_names(
    root: Path, split: str, dataset: str, resolution: str
) -> tuple[tuple[str, ...], str]:
    sets = root / "ImageSets"
    years = ("2016", resolution) if dataset in ("davis16", "vsod") else ("2017", "2019")
    for year in years:
        path = sets / year / f"{split}.txt"
        if path.is_file():
            lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
            names = (Path(line[-1]).parent.name or line[-1] for line in lines)
            return tuple(dict.fromkeys(names)), f"ImageSets/{year}/{split}.txt"
    if split in DAVIS16 and dataset != "davis17":
        return tuple(DAVIS16[split]), "built-in list of DAVIS-2016"
    if split == "val":
        return tuple(sorted((*DAVIS16["val"], *DAVIS17_VAL_EXTRA))), "built-in list of DAVIS-2017"
    raise ConfigError(
        f"split {split!r} has no list: {sets}/{{{','.join(years)}}}/{split}.txt does not exist; "
        "use train or val, or add the list"
    )


# ----- plain folders ----------------------------------------------------------------------------


def _clip_folders(root: Path, split: str | None, *_: str) -> Dataset | None:
    """`<root>/<sequence>/masks/*.png`, frames beside in `frames/`."""
    clips = [p for p in _folders(root) if (p / "masks").is_dir()]
    if not clips:
        return None
    _no_split(split, "clip folders")
    return Dataset(
        tuple(_sequence(p.name, _pngs(p / "masks"), p / "frames") for p in clips),
        "clip folders, <sequence>/masks/*.png, all sequences of the folder",
    )


def _bare_folders(root: Path, split: str | None, *_: str) -> Dataset | None:
    """`<root>/<sequence>/*.png`, for example the folder `Annotations/480p` itself."""
    folders = [p for p in _folders(root) if _pngs(p)]
    if not folders:
        return None
    _no_split(split, "annotation folders")
    return Dataset(
        tuple(_sequence(p.name, _pngs(p), p / "none") for p in folders),
        "annotation folders, <sequence>/*.png, all sequences of the folder",
    )


def _no_split(split: str | None, layout: str) -> None:
    if split is not None:
        raise ConfigError(
            f"split {split!r} has no meaning for {layout}: there is no list of splits; leave it "
            "out, or name the sequences"
        )


# ----- other data sets ---------------------------------------------------------------------------


def _vsod(root: Path, split: str | None, *_: str) -> Dataset | None:
    """`<root>/<sequence>/{Imgs,ground-truth}`, the unified video-saliency layout."""
    folders = [p for p in _folders(root) if (p / "ground-truth").is_dir()]
    if not folders:
        return None
    _no_split(split, "the unified video-saliency layout")
    return Dataset(
        tuple(
            _sequence(p.name, _pngs(p / "ground-truth"), p / "Imgs", rule="above_128")
            for p in folders
        ),
        "unified video-saliency layout, <sequence>/ground-truth/*.png, all sequences of the folder",
    )


def _youtube_objects(root: Path, split: str | None, *_: str) -> Dataset | None:
    base = root / "Annotations"
    classes = _folders(base) if base.is_dir() else []
    videos = [(c, v) for c in classes for v in _folders(c) if _pngs(v)]
    if not videos:
        return None
    _no_split(split, "YouTube-Objects")
    return Dataset(
        tuple(
            _sequence(
                f"{c.name}/{v.name}",
                _pngs(v),
                root / "JPEGImages" / c.name / v.name,
                group=c.name,
            )
            for c, v in videos
        ),
        f"YouTube-Objects layout, Annotations/<class>/<video>/*.png, {len(classes)} classes",
    )


def _fbms_repack(root: Path, split: str | None, *_: str) -> Dataset | None:
    subset = _fbms_subset(split)
    for base in (root / subset, root):
        folders = base / "Annotations"
        videos = [p for p in _folders(folders) if _pngs(p)] if folders.is_dir() else []
        if videos:
            if base == root:
                _no_split(split, "a re-packed FBMS folder without Testset/Trainingset")
            return Dataset(
                tuple(_sequence(v.name, _pngs(v), base / "JPEGImages" / v.name) for v in videos),
                f"re-packed FBMS layout, {folders.relative_to(root)}/<sequence>/*.png",
            )
    return None


def _fbms_subset(split: str | None) -> str:
    subsets = {None: "Testset", "test": "Testset", "train": "Trainingset"}
    if split not in subsets:
        raise ConfigError(f"FBMS-59 has no split {split!r}: use test (default) or train")
    return subsets[split]


def _fbms(root: Path, split: str | None, *_: str) -> Dataset | None:
    base = root / _fbms_subset(split)
    if not base.is_dir():
        base = root
    videos = [p for p in _folders(base) if (p / "GroundTruth").is_dir()]
    if not videos:
        return None
    if base == root and split is not None:
        raise DataError(f"{root} has no folder {_fbms_subset(split)}; pass the folder above it")
    sequences = []
    for video in videos:
        numbered = _fbms_ground_truth(video / "GroundTruth")
        images = [p for p in sorted(video.iterdir()) if p.suffix.lower() in {".jpg", ".jpeg"}]
        first = min(numbered, default=0)
        beyond = [n for n in numbered if n - first >= len(images)]
        if beyond or not numbered:
            raise DataError(
                f"{video}: {len(images)} frames and annotations numbered {sorted(numbered)} do "
                "not fit together; restore the missing files"
            )
        order = sorted(numbered)
        sequences.append(
            SequenceFiles(
                video.name,
                tuple(images[n - first].stem for n in order),
                tuple((numbered[n],) for n in order),
                rule="fbms",
                images={p.stem: p for p in images},
            )
        )
    return Dataset(tuple(sequences), f"FBMS-59 layout, {base.name}/<sequence>/GroundTruth")


def _fbms_ground_truth(folder: Path) -> dict[int, Path]:
    """Annotation file by frame number; `.pgm` carries it last, `.ppm` in the second field."""
    table = {}
    for path in sorted(folder.glob("*.pgm")) or sorted(folder.glob("*.ppm")):
        if "PROB" in path.name:
            continue
        fields = path.stem.split("_")
        field = fields[-1] if path.suffix == ".pgm" else fields[1] if len(fields) > 1 else ""
        digits = field if field.isdigit() else "".join(re.findall(r"\d+", path.stem)[:1])
        if not digits:
            raise DataError(f"{path}: no frame number in the name of this FBMS annotation")
        table[int(digits)] = path
    return table


def _segtrack(root: Path, split: str | None, *_: str) -> Dataset | None:
    base = root / "GroundTruth"
    videos = _folders(base) if base.is_dir() else []
    if not videos:
        return None
    _no_split(split, "SegTrack v2")
    sequences = []
    for video in videos:
        objects = _folders(video) or [video]
        per_object = [_annotation_table(folder) for folder in objects]
        stems = sorted(set().union(*per_object))
        for folder, table in zip(objects, per_object, strict=True):
            lost = [s for s in stems if s not in table]
            if lost:
                raise DataError(f"{folder}: the annotation of frame {lost[0]} is missing")
        sequences.append(
            SequenceFiles(
                video.name,
                tuple(stems),
                tuple(tuple(table[s] for table in per_object) for s in stems),
                images=_image_table(root / "JPEGImages" / video.name),
            )
        )
    return Dataset(tuple(sequences), "SegTrack v2 layout, GroundTruth/<sequence>[/<object>]")


def _annotation_table(folder: Path) -> dict[str, Path]:
    return {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in {".png", ".bmp"}}


def _flow(root: Path, split: str | None, *_: str) -> Dataset | None:
    folders = [p for p in _folders(root) if any(p.glob("*.flo"))]
    if not folders:
        return None
    _no_split(split, "flow folders")
    sequences = []
    for folder in folders:
        files = sorted(folder.glob("*.flo"))
        stems = tuple(p.stem for p in files)
        sequences.append(SequenceFiles(folder.name, stems, tuple((p,) for p in files)))
    return Dataset(tuple(sequences), "flow folders, <sequence>/*.flo, all sequences of the folder")


Finder = Callable[[Path, "str | None", str, str], "Dataset | None"]
_CLIPS: tuple[str, Finder] = ("<root>/<sequence>/masks/*.png", _clip_folders)
_BARE: tuple[str, Finder] = ("<root>/<sequence>/*.png", _bare_folders)
_LAYOUTS: dict[str, tuple[tuple[str, Finder], ...]] = {
    "davis16": (("<root>/Annotations/480p/<sequence>/*.png", _davis), _CLIPS, _BARE),
    "davis17": (("<root>/Annotations_unsupervised/480p/<sequence>/*.png", _davis), _CLIPS, _BARE),
    "fbms": (
        ("<root>/Testset/<sequence>/GroundTruth/*.pgm", _fbms),
        ("<root>/[Testset/]Annotations/<sequence>/*.png", _fbms_repack),
        _CLIPS,
    ),
    "youtube_objects": (("<root>/Annotations/<class>/<video>/*.png", _youtube_objects),),
    "segtrack": (("<root>/GroundTruth/<sequence>[/<object>]/*.png", _segtrack), _CLIPS),
    "vsod": (
        ("<root>/<sequence>/ground-truth/*.png", _vsod),
        ("<root>/Annotations/480p/<sequence>/*.png", _davis),
        _CLIPS,
        _BARE,
    ),
    "flow": (("<root>/<sequence>/*.flo", _flow),),
}
