"""A self-contained HTML page of clips with their masks and scores: one file, no network."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from uvos_jax.data.video_io import atomic_write
from uvos_jax.viz.overlay import overlay, side_by_side

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.5em}h2{font-size:1.1em;margin:1.6em 0 .3em}table{border-collapse:collapse}
td,th{padding:.2em .9em;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%;border-radius:4px}
svg{background:#fafafa;border:1px solid #ddd;border-radius:4px}.note{color:#666}
"""


@dataclasses.dataclass(frozen=True)
class ClipReport:
    """One clip of a report: frames uint8 `[T,H,W,3]`, masks and labels `[T,H,W]`, J and F `[T]`."""

    name: str
    frames: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    j: np.ndarray
    f: np.ndarray

    @property
    def mean_j(self) -> float:
        return float(np.mean(self.j))

    @property
    def mean_f(self) -> float:
        return float(np.mean(self.f))


def animation(clip: ClipReport, *, milliseconds: int = 100) -> str:
    """Video, truth and prediction side by side as an animated WebP data URI."""
    pictures = []
    for frame, mask, label in zip(clip.frames, clip.masks, clip.labels, strict=True):
        truth = overlay(frame, (mask > 0).astype(np.uint8) * 2)
        row = side_by_side(frame, truth, overlay(frame, (label > 0).astype(np.uint8)))
        pictures.append(Image.fromarray(row))
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, "WEBP", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0,
        quality=70, method=0,
    )  # fmt: skip
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def curve(values: np.ndarray, *, width: int = 680, height: int = 70, color: str = "#06c") -> str:
    """Values in [0,1] over frames as an SVG line."""
    count = max(len(values) - 1, 1)
    points = " ".join(
        f"{8 + i * (width - 16) / count:.1f},{height - 8 - float(v) * (height - 16):.1f}"
        for i, v in enumerate(values)
    )
    return (
        f'<svg width="{width}" height="{height}" role="img">'
        f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{points}"/></svg>'
    )


def write_report(path: str | Path, clips: Sequence[ClipReport], *, title: str) -> Path:
    """Writes the page; returns its path."""
    rows = "".join(
        f"<tr><td>{html.escape(c.name)}</td><td>{c.mean_j:.3f}</td><td>{c.mean_f:.3f}</td></tr>"
        for c in clips
    )
    mean = [float(np.mean([getattr(c, k) for c in clips])) for k in ("mean_j", "mean_f")]
    sections = "".join(
        f"<h2>{html.escape(c.name)}: J {c.mean_j:.3f}, F {c.mean_f:.3f}</h2>"
        f'<img alt="video, truth, prediction" src="{animation(c)}">'
        f'<p class="note">J per frame</p>{curve(c.j)}'
        for c in clips
    )
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>"
        "<p>Each row: video, true mask (green), prediction (red).</p>"
        f"<table><tr><th>clip</th><th>J</th><th>F</th></tr>{rows}"
        f"<tr><th>mean</th><th>{mean[0]:.3f}</th><th>{mean[1]:.3f}</th></tr></table>{sections}</html>"
    )
    path = Path(path)
    with atomic_write(path) as temporary:
        temporary.write_text(page)
    return path
