"""Folders of videos: plain ones, and those of the annotated sets other than DAVIS."""

from __future__ import annotations

import json
import re
from pathlib import Path

from uvos_jax.data.sources.layouts.base import (
    Dataset,
    SequenceFiles,
    folders,
    image_table,
    no_split,
    pngs,
    sequence,
)
from uvos_jax.data.video_io import list_images, natural_key
from uvos_jax.errors import ConfigError, DataError

#: Names of the folder with binary annotations in the video-saliency layout; DAVSOD's is the second.
SALIENCY_FOLDERS = ("ground-truth", "GT_object_level")
#: Folders of the DAVSOD packages.
DAVSOD_FOLDERS = {
    "train": ("DAVSOD-TrainingSet",),
    "val": ("DAVSOD-ValidationSet",),
    "test": ("Easy-35", "Normal-25", "Difficult-20"),
    "easy": ("Easy-35",),
    "normal": ("Normal-25",),
    "difficult": ("Difficult-20",),
}


# ----- plain folders ----------------------------------------------------------------------------


def clip_folders(root: Path, split: str | None, *_: str) -> Dataset | None:
    """`<root>/<sequence>/masks/*.png`, frames beside in `frames/`."""
    clips = [p for p in folders(root) if (p / "masks").is_dir()]
    if not clips:
        return None
    no_split(split, "clip folders")
    return Dataset(
        tuple(sequence(p.name, pngs(p / "masks"), p / "frames") for p in clips),
        "clip folders, <sequence>/masks/*.png, all sequences of the folder",
    )


def bare_folders(root: Path, split: str | None, *_: str) -> Dataset | None:
    """`<root>/<sequence>/*.png`, for example the folder `Annotations/480p` itself."""
    annotated = [p for p in folders(root) if pngs(p)]
    if not annotated:
        return None
    no_split(split, "annotation folders")
    return Dataset(
        tuple(sequence(p.name, pngs(p), p / "none") for p in annotated),
        "annotation folders, <sequence>/*.png, all sequences of the folder",
    )


def flow_folders(root: Path, split: str | None, *_: str) -> Dataset | None:
    """`<root>/<sequence>/*.flo`."""
    found = [p for p in folders(root) if any(p.glob("*.flo"))]
    if not found:
        return None
    no_split(split, "flow folders")
    sequences = []
    for folder in found:
        files = sorted(folder.glob("*.flo"), key=natural_key)
        stems = tuple(p.stem for p in files)
        sequences.append(SequenceFiles(folder.name, stems, tuple((p,) for p in files)))
    return Dataset(tuple(sequences), "flow folders, <sequence>/*.flo, all sequences of the folder")


# ----- video saliency: the unified layout, ViSal, DAVSOD ------------------------------------------


def _saliency_sequences(base: Path) -> tuple[SequenceFiles, ...]:
    found = []
    for folder in folders(base):
        marks = next((folder / n for n in SALIENCY_FOLDERS if (folder / n).is_dir()), None)
        if marks is not None:
            found.append(sequence(folder.name, pngs(marks), folder / "Imgs", rule="above_128"))
    return tuple(found)


def vsod(root: Path, split: str | None, *_: str) -> Dataset | None:
    """`<root>/<sequence>/{Imgs,ground-truth}`, the unified video-saliency layout."""
    sequences = _saliency_sequences(root)
    if not sequences:
        return None
    no_split(split, "the unified video-saliency layout")
    place = f"<sequence>/{sequences[0].annotations[0][0].parent.name}/*.png"
    return Dataset(
        sequences, f"unified video-saliency layout, {place}, all sequences of the folder"
    )


def davsod(root: Path, split: str | None, *_: str) -> Dataset | None:
    """The packages of DAVSOD unpacked beside each other, `Easy-35/<sequence>/{Imgs,...}`."""
    if split is not None and split not in DAVSOD_FOLDERS:
        raise ConfigError(f"DAVSOD has no split {split!r}: use one of {', '.join(DAVSOD_FOLDERS)}")
    packages = {n for names in DAVSOD_FOLDERS.values() for n in names}
    if not any((root / n).is_dir() for n in packages):
        return vsod(root, split) if split is None else None
    names = DAVSOD_FOLDERS[split or "test"]
    sequences: list[SequenceFiles] = []
    for name in names:
        base = root / name
        if not base.is_dir():
            raise DataError(f"DAVSOD split {split or 'test'!r} lacks the folder {base}; unpack it")
        # Some unpackers add a folder of the archive's name.
        inner = base / name if (base / name).is_dir() else base
        sequences += _saliency_sequences(inner)
    return Dataset(tuple(sequences), f"DAVSOD layout, {', '.join(names)}")


# ----- YouTube-Objects, YouTube-VOS ---------------------------------------------------------------


def youtube_objects(root: Path, split: str | None, *_: str) -> Dataset | None:
    """`Annotations/<class>/<video>/*.png` of some frames, `JPEGImages` beside."""
    base = root / "Annotations"
    classes = folders(base)
    videos = [(c, v) for c in classes for v in folders(c) if pngs(v)]
    if not videos:
        return None
    no_split(split, "YouTube-Objects")
    images = root / "JPEGImages"
    return Dataset(
        tuple(
            sequence(f"{c.name}/{v.name}", pngs(v), images / c.name / v.name, group=c.name)
            for c, v in videos
        ),
        f"YouTube-Objects layout, Annotations/<class>/<video>/*.png, {len(classes)} classes",
    )


def youtube_vos(root: Path, split: str | None, *_: str) -> Dataset | None:
    """`<split>/{JPEGImages,Annotations}/<video>` and `meta.json` with the list of videos."""
    base = root / (split or "train")
    if not (base / "Annotations").is_dir():
        if split not in (None, root.name) or not (root / "Annotations").is_dir():
            return None
        base = root
    videos = [p for p in folders(base / "Annotations") if pngs(p)]
    if any(folders(video) for video in folders(base / "Annotations")):
        return None  # a level more: classes, as in YouTube-Objects
    names, source = [p.name for p in videos], "all folders"
    if (base / "meta.json").is_file():
        try:
            names = sorted(json.loads((base / "meta.json").read_text())["videos"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{base / 'meta.json'} is no list of videos ({error})") from error
        source = "meta.json"
    present = {p.name: p for p in videos}
    images = base / "JPEGImages"
    return Dataset(
        tuple(sequence(n, pngs(present[n]), images / n, rule="ids") for n in names if n in present),
        f"YouTube-VOS layout, {base.name}/Annotations/<video>/*.png ({source})",
        absent=tuple(n for n in names if n not in present),
    )


# ----- FBMS-59 ------------------------------------------------------------------------------------


def _fbms_subset(split: str | None) -> str:
    subsets = {None: "Testset", "test": "Testset", "train": "Trainingset"}
    if split not in subsets:
        raise ConfigError(f"FBMS-59 has no split {split!r}: use test (default) or train")
    return subsets[split]


def fbms_repack(root: Path, split: str | None, *_: str) -> Dataset | None:
    """`[Testset/]Annotations/<sequence>/*.png`, 0 and 255."""
    for base in (root / _fbms_subset(split), root):
        videos = [p for p in folders(base / "Annotations") if pngs(p)]
        if videos:
            if base == root:
                no_split(split, "a re-packed FBMS folder without Testset/Trainingset")
            place = (base / "Annotations").relative_to(root)
            return Dataset(
                tuple(sequence(v.name, pngs(v), base / "JPEGImages" / v.name) for v in videos),
                f"re-packed FBMS layout, {place}/<sequence>/*.png",
            )
    return None


def fbms(root: Path, split: str | None, *_: str) -> Dataset | None:
    """`{Trainingset,Testset}/<sequence>/*.jpg` with `GroundTruth/*.pgm` of some frames."""
    base = root / _fbms_subset(split)
    if not base.is_dir():
        if any((root / name).is_dir() for name in ("Testset", "Trainingset")):
            raise DataError(f"FBMS-59 in {root} lacks the folder {base.name}; unpack it there")
        base = root
    videos = [p for p in folders(base) if (p / "GroundTruth").is_dir()]
    if not videos:
        return None
    if base == root and split is not None:
        raise DataError(f"{root} has no folder {_fbms_subset(split)}; pass the folder above it")
    return Dataset(
        tuple(_fbms_sequence(v) for v in videos),
        f"FBMS-59 layout, {base.name}/<sequence>/GroundTruth",
    )


def _fbms_sequence(video: Path) -> SequenceFiles:
    numbered = _fbms_ground_truth(video / "GroundTruth")
    images = [p for p in list_images(video) if p.suffix.lower() in {".jpg", ".jpeg"}]
    # Numbers of annotations count from the smallest one, which is the first frame.
    first = min(numbered, default=0)
    if not numbered or any(n - first >= len(images) for n in numbered):
        raise DataError(
            f"{video}: {len(images)} frames and annotations numbered {sorted(numbered)} do "
            "not fit together; restore the missing files"
        )
    order = sorted(numbered)
    return SequenceFiles(
        video.name,
        tuple(images[n - first].stem for n in order),
        tuple((numbered[n],) for n in order),
        rule="fbms",
        images={p.stem: p for p in images},
        frames_folder=video,
    )


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


# ----- SegTrack v2 --------------------------------------------------------------------------------


def segtrack(root: Path, split: str | None, *_: str) -> Dataset | None:
    """`JPEGImages/<sequence>` and `GroundTruth/<sequence>[/<object>]`, one file per object."""
    videos = folders(root / "GroundTruth")
    if not videos:
        return None
    no_split(split, "SegTrack v2")
    sequences = []
    for video in videos:
        objects = folders(video) or [video]
        tables = [
            {p.stem: p for p in list_images(o) if p.suffix.lower() in {".png", ".bmp"}}
            for o in objects
        ]
        stems = sorted(set().union(*tables))
        for folder, table in zip(objects, tables, strict=True):
            lost = [s for s in stems if s not in table]
            if lost:
                raise DataError(f"{folder}: the annotation of frame {lost[0]} is missing")
        sequences.append(
            SequenceFiles(
                video.name,
                tuple(stems),
                tuple(tuple(table[s] for table in tables) for s in stems),
                images=image_table(root / "JPEGImages" / video.name),
                frames_folder=root / "JPEGImages" / video.name,
            )
        )
    listed = root / "ImageSets" / "all.txt"
    names = listed.read_text().replace("*", " ").split() if listed.is_file() else []
    return Dataset(
        tuple(sequences),
        "SegTrack v2 layout, GroundTruth/<sequence>[/<object>]",
        absent=tuple(n for n in names if not (root / "GroundTruth" / n).is_dir()),
    )
