"""Ray-cast scenes as a source, with exact depth, flow and camera motion."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np

from uvos_jax.synthetic.raycast import raycast_batch, raycast_config


class RaycastSource:
    """Endless clips, `length` of them addressable; clip i is the same everywhere.

    Args:
      preset: `default` or `test`, see `uvos_jax.synthetic.raycast`.
      size: (H, W). clip_len: frames.
      scene: further fields of the scene configuration.
    """

    ACCEPTS: ClassVar[frozenset[str]] = frozenset({"clip_len", "size"})

    def __init__(
        self,
        *,
        preset: str = "default",
        size: tuple[int, int] = (128, 384),
        clip_len: int = 2,
        length: int = 100_000,
        seed: int = 0,
        scene: Any = (),
    ):
        self.cfg = raycast_config(
            preset, height=size[0], width=size[1], frames=clip_len, **dict(scene)
        )
        self.length, self.seed = length, seed

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Clip `index`; nothing else is random."""
        return self[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -self.length <= index < self.length:
            raise IndexError(f"ray-cast clip {index} of {self.length}")
        first = np.int32(index % self.length)
        return {k: v[0] for k, v in jax.device_get(self.render(self.seed, first, 1)).items()}

    def render(self, seed: int, first: int, batch_size: int) -> dict[str, jax.Array]:
        """Clips `first`, ... of the set `seed` in one compiled call."""
        return _render(np.uint32(seed), np.int32(first), batch_size, self.cfg)


_render = partial(jax.jit, static_argnums=(2, 3))(raycast_batch)
