"""The scene generator as a source."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from uvos_jax import synthetic


class SyntheticSource:
    """Endless clips, `length` of them addressable; clip i is the same everywhere.

    Args:
      preset: `default`, `fast` or `test`, see `uvos_jax.synthetic.config`.
      size: (H, W). clip_len: frames. label: what masks mark.
      flow: also give exact flow (frames are then one time unit apart).
      fixations: also give made-up maps of fixations, see `synthetic.fixation_maps`.
      scene: further fields of the scene configuration.
    """

    ACCEPTS: ClassVar[frozenset[str]] = frozenset({"clip_len", "size"})

    def __init__(
        self,
        *,
        preset: str = "fast",
        size: tuple[int, int] = (128, 224),
        clip_len: int = 2,
        label: str = "salient",
        flow: bool = False,
        fixations: bool = False,
        length: int = 100_000,
        seed: int = 0,
        scene: Any = (),
    ):
        self.cfg = synthetic.config(
            preset, height=size[0], width=size[1], frames=clip_len, label=label, **dict(scene)
        )
        self.outputs = ("video", "mask", "flow_fw") if flow else ("video", "mask")
        self.seed, self.fixations = seed, fixations
        self.clips = synthetic.GrainSource(self.cfg, length, seed=seed, outputs=self.outputs)

    def __len__(self) -> int:
        return len(self.clips)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Clip `index`; nothing else is random."""
        return self[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.clips[index]
        if self.fixations:
            maps = synthetic.fixation_maps(jnp.asarray(example["masks"]))
            example = {**example, "fixations": np.asarray(maps)}
        return example
