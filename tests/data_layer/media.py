"""Videos and images that the tests write for themselves."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def ramp(count, size=(24, 32)):
    """Frames whose grey level tells their number: uint8 `[T,H,W,3]`, level 8 t (mod 256)."""
    levels = (8 * np.arange(count)) % 256
    return np.broadcast_to(
        levels[:, None, None, None], (count, *size, 3)
    ).astype(np.uint8)  # fmt: skip


def noise(count, size=(24, 32), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3)).astype(np.uint8)


def write_video(path, frames, *, codec="libx264rgb", pix_fmt="rgb24", fps=25, options=None,
                pts=None, format=None):  # fmt: skip
    """Encodes frames; libx264rgb at qp 0 and ffv1 are lossless. `pts`: uneven time stamps."""
    options = {"qp": "0"} if options is None and codec == "libx264rgb" else options or {}
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.options = pix_fmt, options
        if pts is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for k, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if pts is not None:
                picture.pts, picture.time_base = pts[k], Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return Path(path)


def write_frames(folder, frames, *, suffix=".png", names=None):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for k, frame in enumerate(frames):
        name = names[k] if names else f"{k:05d}"
        Image.fromarray(np.ascontiguousarray(frame)).save(folder / f"{name}{suffix}")
    return folder
