"""Random play of an Atari game as a source of clips."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from uvos_jax.data.atari import random_frames
from uvos_jax.errors import ConfigError, DataError


class AtariSource:
    """Clips of consecutive frames of a random policy, without annotation.

    The game is played at once and kept in memory (7 kB a frame of 84x84). Every clip lies within
    one episode, so an episode is chosen as often as it is long.

    Args:
      env: name of a game, such as `ALE/Breakout-v5`.
      frames: how many to play. split: `train` is the first 80 % of the episodes, `val` the rest.
      size: (H, W), equal. clip_len: frames. seed: of the play.

    Raises:
      UnsupportedError: no emulator. ConfigError: no such game or split.
      DataError: frames are not square, or too few for a clip.
    """

    ACCEPTS: ClassVar[frozenset[str]] = frozenset({"clip_len", "size"})

    def __init__(
        self,
        *,
        env: str = "ALE/Breakout-v5",
        frames: int = 100_000,
        split: str = "train",
        size: tuple[int, int] = (84, 84),
        clip_len: int = 2,
        seed: int = 0,
    ):
        if size[0] != size[1]:
            raise DataError(f"games have square frames, data.size is {tuple(size)}: give equal "
                            "sides")  # fmt: skip
        if split not in ("train", "val"):
            raise ConfigError(f"data source 'atari': split is {split!r}: use 'train' or 'val'")
        episodes = random_frames(env, frames, size=size[0], seed=seed)
        border = max(1, round(0.8 * len(episodes)))
        self.episodes = episodes[:border] if split == "train" else episodes[border:]
        self.clip_len = clip_len
        counts = [max(len(e) - clip_len + 1, 0) for e in self.episodes]
        self.ends = np.cumsum(counts)
        if not sum(counts):
            raise DataError(
                f"{frames} frames of {env} have no {split} episode of {clip_len} frames: play more"
            )

    def __len__(self) -> int:
        return int(self.ends[-1])

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Clip `index`; nothing else is random."""
        episode = int(np.searchsorted(self.ends, index, side="right"))
        first = index - (int(self.ends[episode - 1]) if episode else 0)
        grey = self.episodes[episode][first : first + self.clip_len]
        return {
            "frames": np.repeat(grey[..., None], 3, axis=-1),
            "masks": np.zeros(grey.shape, np.uint8),
            "valid": np.ones(len(grey), bool),
            "has_mask": np.zeros(len(grey), bool),
            "example_id": np.asarray(index, np.int32),
        }
