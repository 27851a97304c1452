"""Still images with masks: saliency sets in the layouts they come in.

- `<root>/*.jpg` beside `<root>/*.png` of the same stem (MSRA10K);
- `<root>/{images,image,img,imgs,Image,...}` and `<root>/{masks,mask,gt,GT,...}` (DUTS, DUT-OMRON,
  ECSSD), matched by stem.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from uvos_jax.data.sources.video import Sequence, VideoSource, match_by_stem
from uvos_jax.data.video_io import list_images
from uvos_jax.errors import DataError

IMAGE_FOLDERS = ("images", "image", "Images", "Image", "imgs", "img", "Imgs", "DUTS-TR-Image",
                 "DUTS-TE-Image", "DUT-OMRON-image")  # fmt: skip
MASK_FOLDERS = ("masks", "mask", "Masks", "Mask", "gt", "GT", "ground-truth", "DUTS-TR-Mask",
                "DUTS-TE-Mask", "pixelwiseGT-new-PNG")  # fmt: skip


class ImageMaskSource(VideoSource):
    """Stills as clips of length 1; a mask pixel above 128 is foreground.

    Raises:
      DataError: no images found, or an image without mask.
    """

    ACCEPTS: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, root: str, *, images: str = "", masks: str = "", clip_len: int = 1):
        base = Path(root)
        if not base.is_dir():
            raise DataError(f"folder {base} does not exist")
        names = (images,) if images else IMAGE_FOLDERS
        image_folder = next((base / n for n in names if (base / n).is_dir()), base)
        names = (masks,) if masks else MASK_FOLDERS
        mask_folder = next((base / n for n in names if (base / n).is_dir()), base)
        pictures = list_images(image_folder)
        if image_folder == mask_folder:
            pictures, labels = (
                [p for p in pictures if p.suffix.lower() in (".jpg", ".jpeg")],
                [p for p in pictures if p.suffix.lower() == ".png"],
            )
        else:
            labels = list_images(mask_folder)
        if not pictures:
            raise DataError(
                f"no images in {base}: expected .jpg beside .png masks, or folders such as "
                f"{IMAGE_FOLDERS[0]}/ and {MASK_FOLDERS[0]}/"
            )
        found = match_by_stem(pictures, labels, base.name)
        stills = [Sequence(p.stem, (p,), (m,)) for p, m in zip(pictures, found, strict=True)]
        super().__init__(stills, clip_len=clip_len)

    def binarize(self, mask):
        return (mask > 128).astype("uint8") if mask.max() > 1 else mask
