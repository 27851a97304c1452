"""The colours of label maps: the PASCAL VOC map that DAVIS uses."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache
def davis_palette() -> np.ndarray:
    """Colours of the 256 ids, uint8 `[256,3]`: bits of the id spread over the channels."""
    ids = np.arange(256)
    colors = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colors
