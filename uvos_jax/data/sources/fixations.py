"""Frames with maps of human fixations beside them: videos for attention, stills for both tasks.

Videos: `<root>/<sequence>/{frames,fixations}` (and `masks`, if there are any); stills:
`<root>/{images,fixations,masks}`; all matched by file stem. A map is an 8-bit grey image of blurred
fixations; it is divided by 255. A map of zeros means that the frame has no fixations.
"""

from __future__ import annotations

from collections.abc import Sequence as Names
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from uvos_jax.data.sources.annotations import above_128
from uvos_jax.data.sources.video import Sequence, VideoSource, match_by_stem
from uvos_jax.data.video_io import list_images, read_mask
from uvos_jax.errors import DataError, ShapeError


class FixationVideoSource(VideoSource):
    """Clips of videos with a fixation map per frame; masks are optional.

    Raises:
      DataError: no sequences, or frames without a map.
    """

    def __init__(
        self,
        root: str,
        split: str = "",
        *,
        sequences: Names[str] = (),
        frames: str = "frames",
        fixations: str = "fixations",
        masks: str = "masks",
        **clips: Any,
    ):
        base = Path(root) / split if split else Path(root)
        if not base.is_dir():
            raise DataError(f"folder {base} does not exist")
        names = list(sequences) or sorted(p.name for p in base.iterdir() if (p / frames).is_dir())
        if not names:
            raise DataError(
                f"no sequences in {base}: expected <sequence>/{frames} and <sequence>/{fixations}"
            )
        found, self.maps = [], {}
        for name in names:
            for folder in (base / name / frames, base / name / fixations):
                if not folder.is_dir():
                    raise DataError(f"sequence {name!r} is incomplete: {folder} is missing")
            images = list_images(base / name / frames)
            maps = list_images(base / name / fixations)
            self.maps[name] = _maps_of(images, maps, name)
            labels = {p.stem: p for p in list_images(base / name / masks)} if (
                base / name / masks
            ).is_dir() else {}  # fmt: skip
            found.append(Sequence(name, tuple(images), tuple(labels.get(p.stem) for p in images)))
        super().__init__(found, **clips)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Example `index` with `fixations` float32 `[T,H,W]` in [0, 1]."""
        s, i = self.index[index]
        state = rng.bit_generator.state
        example = super().sample(index, rng)
        rng.bit_generator.state = state  # the same frames again
        sequence = self.sequences[s]
        chosen = self._frames_of(sequence, i, rng)
        maps = [read_fixations(self.maps[sequence.name][k]) for k in chosen]
        for k, m in zip(chosen, maps, strict=True):
            if m.shape != example["frames"].shape[1:3]:
                H, W = example["frames"].shape[1:3]
                raise ShapeError(
                    f"fixation map {self.maps[sequence.name][k]} is {m.shape[1]}x{m.shape[0]}, its "
                    f"frame {W}x{H}: they must have one size"
                )
        return {**example, "fixations": np.stack(maps)}


class FixationImageSource(FixationVideoSource):
    """Stills with fixations and masks, as clips of length 1; a mask pixel above 128 counts.

    Raises:
      DataError: no images, or an image without map or mask.
    """

    ACCEPTS: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        root: str,
        *,
        images: str = "images",
        fixations: str = "fixations",
        masks: str = "masks",
        clip_len: int = 1,
    ):
        base = Path(root)
        for folder in (base / images, base / fixations, base / masks):
            if not folder.is_dir():
                raise DataError(f"folder {folder} does not exist: expected images, fixations and "
                                f"masks in {base}")  # fmt: skip
        pictures = list_images(base / images)
        if not pictures:
            raise DataError(f"no images in {base / images}")
        maps = _maps_of(pictures, list_images(base / fixations), base.name)
        labels = match_by_stem(pictures, list_images(base / masks), base.name)
        self.maps = {p.stem: (m,) for p, m in zip(pictures, maps, strict=True)}
        stills = [Sequence(p.stem, (p,), (m,)) for p, m in zip(pictures, labels, strict=True)]
        VideoSource.__init__(self, stills, clip_len=clip_len)

    def binarize(self, mask: np.ndarray) -> np.ndarray:
        return above_128(mask)


def read_fixations(path: Path) -> np.ndarray:
    """An 8-bit fixation map as float32 `[H,W]` in [0, 1]."""
    return read_mask(path).astype(np.float32) / np.float32(255)


def _maps_of(frames: list[Path], maps: list[Path], name: str) -> tuple[Path, ...]:
    by_stem = {p.stem: p for p in maps}
    missing = [p for p in frames if p.stem not in by_stem]
    if missing:
        raise DataError(
            f"sequence {name!r}: {len(missing)} of {len(frames)} frames have no fixation map, the "
            f"first is {missing[0]}; add a map of zeros where nobody looked"
        )
    return tuple(by_stem[p.stem] for p in frames)
