"""The scene generator as a source."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from uvos_jax import synthetic


class SyntheticSource:
    """Endless clips, `length` of them addressable; clip i is the same everywhere.

    Args:
      preset: `default`, `fast` or `test`, see `uvos_jax.synthetic.config`.
      size: (H, W). clip_len: frames. label: what masks mark.
      flow: also give exact flow (frames are then one time unit apart).
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
        length: int = 100_000,
        seed: int = 0,
        scene: Any = (),
    ):
        self.cfg = synthetic.config(
            preset, height=size[0], width=size[1], frames=clip_len, label=label, **dict(scene)
        )
        self.outputs = ("video", "mask", "flow_fw") if flow else ("video", "mask")
        self.seed = seed
        self.clips = synthetic.GrainSource(self.cfg, length, seed=seed, outputs=self.outputs)

    def __len__(self) -> int:
        return len(self.clips)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Clip `index`; nothing else is random."""
        return self.clips[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.clips[index]
