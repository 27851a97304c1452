"""Where the frames and annotations of a data set lie: one list of sequences, whatever the folders.

`find_dataset` detects the layout from the folders themselves and says which one it took; a folder
that fits none is a `DataError` that lists what was looked for. Sources and the evaluator both read
data sets through it; nothing is decoded here.
"""

from __future__ import annotations

from pathlib import Path

from uvos_jax.data.sources.layouts.base import Dataset, Finder, SequenceFiles, listing
from uvos_jax.data.sources.layouts.davis import davis, davis_names
from uvos_jax.data.sources.layouts.flyingthings import flyingthings3d
from uvos_jax.data.sources.layouts.images import duts, image_saliency
from uvos_jax.data.sources.layouts.video import (
    bare_folders,
    clip_folders,
    davsod,
    fbms,
    fbms_repack,
    flow_folders,
    segtrack,
    vsod,
    youtube_objects,
    youtube_vos,
)
from uvos_jax.errors import ConfigError, DataError

__all__ = ["LAYOUTS", "Dataset", "SequenceFiles", "davis_names", "find_dataset"]

_CLIPS: tuple[str, Finder] = ("<root>/<sequence>/masks/*.png", clip_folders)
_BARE: tuple[str, Finder] = ("<root>/<sequence>/*.png", bare_folders)
_VSOD: tuple[str, Finder] = ("<root>/<sequence>/ground-truth/*.png", vsod)
_STILLS: tuple[str, Finder] = (
    "<root>/*.jpg beside *.png, or <root>/{images,...} and <root>/{masks,gt,...}",
    image_saliency,
)
#: Data set -> the layouts it is found in, with what is looked for.
LAYOUTS: dict[str, tuple[tuple[str, Finder], ...]] = {
    "davis16": (("<root>/Annotations/480p/<sequence>/*.png", davis), _CLIPS, _BARE),
    "davis17": (("<root>/Annotations_unsupervised/480p/<sequence>/*.png", davis), _CLIPS, _BARE),
    "fbms": (
        ("<root>/Testset/<sequence>/GroundTruth/*.pgm", fbms),
        ("<root>/[Testset/]Annotations/<sequence>/*.png", fbms_repack),
        _CLIPS,
    ),
    "youtube_objects": (("<root>/Annotations/<class>/<video>/*.png", youtube_objects),),
    "segtrack": (("<root>/GroundTruth/<sequence>[/<object>]/*.png", segtrack), _CLIPS),
    "visal": (_VSOD,),
    "davsod": (
        ("<root>/{DAVSOD-TrainingSet,...,Easy-35,...}/<sequence>/GT_object_level/*.png", davsod),
    ),
    "vsod": (
        _VSOD,
        ("<root>/Annotations/480p/<sequence>/*.png", davis),
        _CLIPS,
        _BARE,
    ),
    "youtube_vos": (("<root>/{train,valid}/Annotations/<video>/*.png", youtube_vos),),
    "msra10k": (_STILLS,),
    "duts": (("<root>/DUTS-{TR,TE}/DUTS-{TR,TE}-{Image,Mask}", duts),),
    "dut_omron": (_STILLS,),
    "ecssd": (_STILLS,),
    "flyingthings3d": (
        ("<root>/frames_{clean,final}pass/{TRAIN,TEST}/<group>/<scene>/left/*.png", flyingthings3d),
    ),
    "flow": (("<root>/<sequence>/*.flo", flow_folders),),
}


def find_dataset(
    dataset: str,
    root: str | Path,
    *,
    split: str | None = None,
    resolution: str = "480p",
    **options: str,
) -> Dataset:
    """Lists the annotated sequences of `dataset` below `root`.

    Args:
      dataset: one of `LAYOUTS`.
      split: subset to take where the layout knows subsets (DAVIS: default `val`; FBMS: `test`).
      resolution: subfolder of the DAVIS layout.
      options: more that one data set has (FlyingThings3D: `render`, `side`, `labels`).

    Raises:
      DataError: `root` is missing or fits no layout of this data set.
      ConfigError: unknown data set, or a split that the layout does not have.
    """
    if dataset not in LAYOUTS:
        raise ConfigError(f"data set {dataset!r} is unknown: use one of {', '.join(LAYOUTS)}")
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"data set folder {root} does not exist; pass root= (--root) of {dataset}")
    tried = []
    for describe, finder in LAYOUTS[dataset]:
        found = finder(root, split, resolution, dataset, **options)
        if found is not None:
            if not found.sequences:
                raise DataError(f"{root} has the layout {describe} but holds no annotated sequence")
            return found
        tried.append(describe)
    raise DataError(
        f"{root} is not a {dataset} folder: looked for {'; '.join(tried)}; "
        f"it contains {listing(root)}"
    )
