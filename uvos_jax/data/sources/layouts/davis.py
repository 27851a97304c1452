"""The layout of DAVIS: `JPEGImages`, `Annotations` and `ImageSets` side by side."""

from __future__ import annotations

from pathlib import Path

from uvos_jax.data.sources.layouts.base import Dataset, folders, listing, pngs, sequence
from uvos_jax.data.splits.davis import DAVIS16, DAVIS17
from uvos_jax.errors import ConfigError, DataError


def davis(root: Path, split: str | None, resolution: str, dataset: str) -> Dataset | None:
    """`Annotations/480p/<sequence>/*.png`; DAVIS-17 has `Annotations_unsupervised`, with void."""
    unsupervised = dataset == "davis17"
    kind = "Annotations_unsupervised" if unsupervised else "Annotations"
    base = root / kind
    if not base.is_dir():
        if unsupervised and (root / "Annotations").is_dir():
            raise DataError(
                f"{root} holds Annotations but no Annotations_unsupervised: the DAVIS-17 "
                "unsupervised task has annotations of its own (with void); unpack them there"
            )
        return None
    folder = base / resolution
    if not folder.is_dir():
        have = ", ".join(p.name for p in folders(base)) or "nothing"
        raise DataError(f"{folder} does not exist: {base} holds {have}; choose with resolution=")
    split = split or "val"
    year = 2017 if unsupervised else 2016
    names, source = davis_names(root, split, year=year, resolution=resolution)
    present = [n for n in names if (folder / n).is_dir()]
    if not present:
        raise DataError(
            f"{folder} has none of the {len(names)} sequences of split {split!r} "
            f"({', '.join(names[:3])}, ...); it contains {listing(folder)}"
        )
    frames = root / "JPEGImages" / resolution
    rule = "ids" if unsupervised else "nonzero"
    return Dataset(
        tuple(sequence(n, pngs(folder / n), frames / n, rule=rule) for n in present),
        f"DAVIS layout, {kind}/{resolution}, split {split} ({source})",
        absent=tuple(n for n in names if n not in present),
    )


def davis_names(
    root: Path, split: str, *, year: int, resolution: str = "480p"
) -> tuple[tuple[str, ...], str]:
    """Sequences of a split, and where the list was found.

    The copy's own list counts: `ImageSets/2016/val.txt`, or `ImageSets/480p/val.txt` of the 2016
    archive with a pair of paths per line; then the built-in one.

    Raises:
      ConfigError: no list of this name.
    """
    sets = root / "ImageSets"
    places = ("2016", resolution, "480p") if year == 2016 else (str(year), "2019")
    for place in dict.fromkeys(places):
        path = sets / place / f"{split}.txt"
        if path.is_file():
            lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
            names = (Path(line[-1]).parent.name or line[-1] for line in lines)
            return tuple(dict.fromkeys(names)), f"ImageSets/{place}/{split}.txt"
    builtin = DAVIS16 if year == 2016 else DAVIS17
    if split in builtin:
        return builtin[split], f"built-in list of DAVIS-{year}"
    raise ConfigError(
        f"split {split!r} has no list: {sets}/{{{','.join(dict.fromkeys(places))}}}/{split}.txt "
        "does not exist; use train or val, or add the list"
    )
