"""Seeded masks for the tests of metrics."""

import numpy as np
from scipy import ndimage


def blobs(rng, shape, sigma=3.0, level=0.5):
    """Smooth random regions, bool, of some components with holes; last two axes are the image."""
    sigmas = (0,) * (len(shape) - 2) + (sigma, sigma)
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigmas)
    return noise > level * noise.std()


def special(height, width):
    """Masks that tend to go wrong: name -> bool `[H,W]`."""
    empty = np.zeros((height, width), bool)
    out = {"empty": empty, "full": ~empty}
    for name, index in {
        "first pixel": (0, 0),
        "last pixel": (-1, -1),
        "inner pixel": (height // 2, width // 2),
        "top row": (0, slice(None)),
        "bottom row": (-1, slice(None)),
        "left column": (slice(None), 0),
        "right column": (slice(None), -1),
        "left half": (slice(None), slice(0, width // 2)),
        "inner column": (slice(None), width // 3),
    }.items():
        mask = empty.copy()
        mask[index] = True
        out[name] = mask
    out["chequers"] = np.indices((height, width)).sum(0) % 2 == 0
    out["frame"] = ~np.pad(np.ones((height - 2, width - 2), bool), 1)
    return out
