"""Pairs of frames made of stills by a simulated motion field (`uvos_jax.synthetic.pairs`)."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np

from uvos_jax import synthetic
from uvos_jax.data.sources.image_mask import ImageMaskSource
from uvos_jax.data.transforms import resize_image, resize_labels
from uvos_jax.errors import ConfigError
from uvos_jax.synthetic.pairs import saliency_pair


@partial(jax.jit, static_argnums=3)
def _pair(seed: jax.Array, image: jax.Array, mask: jax.Array, motion: float):
    return saliency_pair(jax.random.key(seed), image, mask, motion=motion)


class SaliencyPairSource(ImageMaskSource):
    """Two frames from an image-saliency set; a new motion is drawn every time.

    Args:
      root, images, masks: see `ImageMaskSource`.
      size: (H, W) of the frames. motion: factor on all motions.
      flow: also give the exact flow of the first frame.

    Raises:
      ConfigError: clips of other than two frames.
    """

    ACCEPTS: ClassVar[frozenset[str]] = frozenset({"clip_len", "size"})

    def __init__(
        self,
        root: str,
        *,
        size: tuple[int, int] = (224, 224),
        clip_len: int = 2,
        motion: float = 1.0,
        flow: bool = False,
        **folders: Any,
    ):
        if clip_len != 2:
            raise ConfigError(f"source saliency_pairs makes clips of 2 frames, not {clip_len}")
        super().__init__(root, **folders)
        self.size, self.motion, self.flow = tuple(size), float(motion), flow

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Still `index`, moved by `rng`; half of the pairs run backwards if flow is not wanted."""
        still = super().sample(index, rng)
        image = resize_image(still["frames"][0], self.size)
        mask = resize_labels(still["masks"][0], self.size)
        seed = np.uint32(rng.integers(2**32))
        record = jax.device_get(_pair(seed, image, mask, self.motion))
        if not self.flow:
            del record["flow_fw"]
            if rng.random() < 0.5:
                record = {k: v[::-1] for k, v in record.items()}
        return synthetic.to_example(record, index)
