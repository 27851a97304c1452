"""Clips made of stills: image and mask moved apart (`uvos_jax.synthetic.pseudo_video`)."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np

from uvos_jax import synthetic
from uvos_jax.data.sources.image_mask import ImageMaskSource
from uvos_jax.data.transforms import resize_image, resize_labels


@partial(jax.jit, static_argnums=3)
def _animate(seed: jax.Array, image: jax.Array, mask: jax.Array, frames: int):
    return synthetic.pseudo_video(jax.random.key(seed), image, mask, frames)


class PseudoVideoSource(ImageMaskSource):
    """Short clips from an image-saliency set; a new motion is drawn every time."""

    ACCEPTS: ClassVar[frozenset[str]] = frozenset({"clip_len", "size"})

    def __init__(
        self, root: str, *, size: tuple[int, int] = (240, 424), clip_len: int = 2, **folders
    ):
        super().__init__(root, **folders)
        self.size, self.frames = tuple(size), clip_len

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Still `index`, animated by `rng`."""
        still = super().sample(index, rng)
        image = resize_image(still["frames"][0], self.size)
        mask = resize_labels(still["masks"][0], self.size)
        seed = np.uint32(rng.integers(2**32))
        record = jax.device_get(_animate(seed, image, mask, self.frames))
        return synthetic.to_example(record, index)
