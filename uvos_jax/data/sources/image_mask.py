"""Still images with masks: saliency sets in the layouts they come in.

- `<root>/*.jpg` beside `<root>/*.png` of the same stem (MSRA10K);
- `<root>/{images,image,img,imgs,Image,...}` and `<root>/{masks,mask,gt,GT,...}` (DUTS, DUT-OMRON,
  ECSSD), matched by stem.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from uvos_jax.data.sources.annotations import above_128
from uvos_jax.data.sources.layouts.images import IMAGE_FOLDERS, MASK_FOLDERS, pair_folders
from uvos_jax.data.sources.video import Sequence, VideoSource, match_by_stem
from uvos_jax.errors import DataError


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
        pictures, labels = pair_folders(base, images, masks)
        if not pictures:
            raise DataError(
                f"no images in {base}: expected .jpg beside .png masks, or folders such as "
                f"{IMAGE_FOLDERS[0]}/ and {MASK_FOLDERS[0]}/"
            )
        found = match_by_stem(pictures, labels, base.name)
        stills = [Sequence(p.stem, (p,), (m,)) for p, m in zip(pictures, found, strict=True)]
        super().__init__(stills, clip_len=clip_len)

    def binarize(self, mask):
        return above_128(mask)
