"""What a prediction consists of."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Masks:
    """Masks of a whole video.

    Attributes:
      probs: foreground probability, float32 `[T,H,W]`.
      labels: uint8 `[T,H,W]`, 0 background, 1 foreground.
      names: of the frames, for writing them in the DAVIS layout.
    """

    probs: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class FrameResult:
    """One frame of a prediction.

    Attributes:
      index: in the video, from 0. name: file stem, its own or the five-digit index.
      frame: RGB uint8 `[H,W,3]`. prob: float32 `[H,W]`. label: uint8 `[H,W]`, 0 or 1.
    """

    index: int
    name: str
    frame: np.ndarray
    prob: np.ndarray
    label: np.ndarray
