"""Draws the picture of README: frames of demo clips and what the packaged weights find in them.

python tools/make_readme_picture.py docs/images/demo.png
"""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image

import uvos_jax as uvos
from uvos_jax import synthetic
from uvos_jax.data.video_io import atomic_write
from uvos_jax.viz.overlay import overlay, side_by_side

CLIPS = ("articulated-runner", "camouflage", "two-objects")
FRAMES = (1, 8, 14)


def main(path: str) -> None:
    predictor = uvos.Predictor.default()
    rows = []
    for name in CLIPS:
        clip = synthetic.demo_clip(name)
        labels = predictor.predict(clip["frames"]).labels
        pairs = [(clip["frames"][t], overlay(clip["frames"][t], labels[t])) for t in FRAMES]
        rows.append(side_by_side(*(image for pair in pairs for image in pair)))
    height, width = max(r.shape[0] for r in rows), max(r.shape[1] for r in rows)
    rows = [np.pad(r, [(0, height + 4 - r.shape[0]), (0, width - r.shape[1]), (0, 0)],
                   constant_values=255) for r in rows]  # fmt: skip
    picture = Image.fromarray(np.concatenate(rows))
    picture.thumbnail((1400, 1400))
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
