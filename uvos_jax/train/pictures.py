"""Learning curves and sample overlays as PNG files, drawn with Pillow alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from uvos_jax.train.logging import read_log

WIDTH, HEIGHT = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 24, 24
GRID, INK, LINE = (225, 225, 225), (40, 40, 40), (0, 90, 200)
#: What is drawn, if the log has it, in this order.
CURVES = ("loss", "J", "F", "lr", "grad_norm", "frames_per_second")


def write_png(path: Path, picture: np.ndarray) -> Path:
    """Writes uint8 `[H,W,3]`, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    Image.fromarray(picture).save(temporary, format="PNG")
    os.replace(temporary, path)
    return path


def curve(title: str, steps: Sequence[int], values: Sequence[float]) -> np.ndarray:
    """One curve over steps with its axes, uint8 `[HEIGHT,WIDTH,3]`; values that are not finite
    are left out."""
    x, y = np.asarray(steps, float), np.asarray(values, float)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((LEFT, 6), title, fill=INK)
    if not len(y):
        return np.asarray(picture)
    low, high = float(y.min()), float(y.max())
    margin = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
    low, high = low - margin, high + margin
    first, last = float(x.min()), max(float(x.max()), float(x.min()) + 1)

    def at(step: float, value: float) -> tuple[float, float]:
        right, bottom = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        across = LEFT + (step - first) / (last - first) * right
        return across, TOP + (high - value) / (high - low) * bottom

    for share in np.linspace(0.0, 1.0, 5):
        value, step = low + share * (high - low), first + share * (last - first)
        draw.line((at(first, value), at(last, value)), fill=GRID)
        draw.text((4, at(first, value)[1] - 6), f"{value:.4g}", fill=INK)
        draw.text((at(step, low)[0] - 12, HEIGHT - BOTTOM + 6), f"{step:.0f}", fill=INK)
    points = [at(a, b) for a, b in zip(x, y, strict=True)]
    if len(points) > 1:
        draw.line(points, fill=LINE, width=2)
    for a, b in points if len(points) <= 60 else ():
        draw.ellipse((a - 2, b - 2, a + 2, b + 2), fill=LINE)
    return np.asarray(picture)


def write_curves(log: Path, path: Path) -> Path:
    """Draws what a run's `metrics.jsonl` holds: every step's loss, and means of the rest."""
    rows = read_log(log)
    drawn = []
    for key in CURVES:
        steps = [row["step"] for row in rows if key in row]
        values = [row[key] for row in rows if key in row]
        if key == "loss":
            with_losses = [row for row in rows if row.get("losses")]
            counts = [len(row["losses"]) for row in with_losses]
            steps = [
                row["step"] - n + i + 1
                for row, n in zip(with_losses, counts, strict=True)
                for i in range(n)
            ]
            values = [loss for row in with_losses for loss in row["losses"]]
        if steps:
            drawn.append(curve(key, steps, values))
    return write_png(path, np.concatenate(drawn)) if drawn else path
