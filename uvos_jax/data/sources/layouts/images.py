"""Still images with masks: the layouts of the image-saliency sets.

- `<folder>/*.jpg` beside `<folder>/*.png` of the same stem (MSRA10K, or one common folder);
- `{images,image,Imgs,DUTS-TR-Image,...}` and `{masks,gt,DUTS-TR-Mask,...}`, matched by stem.
"""

from __future__ import annotations

from pathlib import Path

from uvos_jax.data.sources.layouts.base import Dataset, SequenceFiles, folders, no_split
from uvos_jax.data.video_io import list_images
from uvos_jax.errors import ConfigError, DataError

IMAGE_FOLDERS = ("images", "image", "Images", "Image", "imgs", "img", "Imgs", "DUTS-TR-Image",
                 "DUTS-TE-Image", "DUT-OMRON-image")  # fmt: skip
MASK_FOLDERS = ("masks", "mask", "Masks", "Mask", "gt", "GT", "ground-truth", "ground_truth_mask",
                "DUTS-TR-Mask", "DUTS-TE-Mask", "pixelwiseGT-new-PNG")  # fmt: skip
DUTS_FOLDERS = {"train": "DUTS-TR", "test": "DUTS-TE"}


def pair_folders(base: Path, images: str = "", masks: str = "") -> tuple[list[Path], list[Path]]:
    """Images and masks below `base`, each in natural order; both may be empty."""
    names = (images,) if images else IMAGE_FOLDERS
    image_folder = next((base / n for n in names if (base / n).is_dir()), base)
    names = (masks,) if masks else MASK_FOLDERS
    mask_folder = next((base / n for n in names if (base / n).is_dir()), image_folder)
    pictures = list_images(image_folder)
    if image_folder != mask_folder:
        return pictures, list_images(mask_folder)
    photos = [p for p in pictures if p.suffix.lower() in (".jpg", ".jpeg")]
    return photos, [p for p in pictures if p.suffix.lower() == ".png"]


def image_saliency(root: Path, split: str | None, _: str, dataset: str) -> Dataset | None:
    """Images and masks in `root` or in the one folder it contains."""
    no_split(split, f"{dataset}, a set of images")
    inner = folders(root)
    for base in (root, *inner[:1]) if len(inner) == 1 else (root,):
        pictures, masks = pair_folders(base)
        if pictures and masks:
            return _stills(pictures, masks, base, root)
    return None


def duts(root: Path, split: str | None, *_: str) -> Dataset | None:
    """`DUTS-TR/{DUTS-TR-Image,DUTS-TR-Mask}` and the same with `TE`."""
    if split not in (None, *DUTS_FOLDERS):
        raise ConfigError(f"DUTS has no split {split!r}: use train (default) or test")
    name = DUTS_FOLDERS[split or "train"]
    for base in (root / name, root):
        if (base / f"{name}-Image").is_dir():
            pictures, masks = pair_folders(base, f"{name}-Image", f"{name}-Mask")
            return _stills(pictures, masks, base, root)
    if any((root / other).is_dir() for other in DUTS_FOLDERS.values()):
        raise DataError(f"DUTS in {root} lacks the folder {name}/{name}-Image; unpack it there")
    return None


def _stills(pictures: list[Path], masks: list[Path], base: Path, root: Path) -> Dataset:
    by_stem = {p.stem: p for p in masks}
    stills = []
    for picture in pictures:
        mask = by_stem.get(picture.stem)
        stills.append(
            SequenceFiles(
                picture.stem,
                (picture.stem,) if mask else (),
                ((mask,),) if mask else (),
                rule="above_128",
                images={picture.stem: picture},
            )
        )
    place = pictures[0].parent.relative_to(root) if pictures else base.relative_to(root)
    return Dataset(tuple(stills), f"image saliency, images in {place}/")
