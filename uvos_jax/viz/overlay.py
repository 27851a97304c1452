"""Drawing masks over frames; numpy and Pillow only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from uvos_jax.data.palette import davis_palette
from uvos_jax.errors import ShapeError


def contour(labels: np.ndarray) -> np.ndarray:
    """Pixels of ids `[H,W]` that touch another id (4-neighbourhood), bool `[H,W]`."""
    edge = np.zeros(labels.shape, bool)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge


def overlay(frame: np.ndarray, labels: np.ndarray, *, opacity: float = 0.5) -> np.ndarray:
    """Frame with every object tinted in its DAVIS colour and outlined in white.

    Args:
      frame: uint8 `[H,W,3]`. labels: uint8 `[H,W]`, 0 is background.
      opacity: of the tint.

    Raises:
      ShapeError: the sizes differ.
    """
    if frame.shape[:2] != labels.shape:
        raise ShapeError(f"overlay: frame is {frame.shape[:2]}, labels are {labels.shape}")
    out = frame.copy()
    inside = labels > 0
    color = davis_palette()[labels[inside]].astype(np.float32)
    out[inside] = np.round((1 - opacity) * frame[inside] + opacity * color).astype(np.uint8)
    out[contour(labels) & inside] = 255
    return out


def side_by_side(*images: np.ndarray, gap: int = 4) -> np.ndarray:
    """Images of one height in a row, white gaps between."""
    strips = []
    for i, image in enumerate(images):
        if i:
            strips.append(np.full((image.shape[0], gap, 3), 255, np.uint8))
        strips.append(image)
    return np.concatenate(strips, axis=1)


def contact_sheet(
    images: Sequence[np.ndarray], columns: int = 4, captions: Sequence[str] = (), gap: int = 4
) -> np.ndarray:
    """Images of one size in a grid, with captions drawn into their corners."""
    H, W = images[0].shape[:2]
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (H + gap) - gap, columns * (W + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (H + gap), (i % columns) * (W + gap)
        if i < len(captions):
            image = annotate(image, captions[i])
        sheet[y : y + H, x : x + W] = image
    return sheet


def annotate(image: np.ndarray, text: str) -> np.ndarray:
    """Image with a line of text in its top left corner."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    box = draw.textbbox((3, 2), text)
    draw.rectangle((box[0] - 2, box[1] - 1, box[2] + 2, box[3] + 1), fill=(0, 0, 0))
    draw.text((3, 2), text, fill=(255, 255, 255))
    return np.asarray(picture)
