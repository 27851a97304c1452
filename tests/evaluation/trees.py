"""Small data sets and results in the layouts of the real ones, made in a temporary folder."""

from pathlib import Path

import numpy as np
from PIL import Image

from uvos_jax.data.palette import davis_palette

T, H, W = 6, 30, 44


def clip(seed, frames=T):
    """A disc that drifts and grows, bool `[frames,H,W]`."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:H, :W]
    centre, velocity = rng.uniform((10, 12), (18, 28)), rng.uniform(-1, 1, 2)
    radius = rng.uniform(5, 8)
    return np.stack(
        [
            np.hypot(y - centre[0] - velocity[0] * t, x - centre[1] - velocity[1] * t)
            < radius + 0.3 * t
            for t in range(frames)
        ]
    )


def worse(masks, seed):
    """Shifted masks with a few wrong pixels."""
    rng = np.random.default_rng(seed)
    return np.roll(masks, (1, 2), (1, 2)) ^ (rng.random(masks.shape) < 0.01)


def save(path, values, *, palette=False):
    """Writes `[H,W]` (bool as 0/255) as a grey or indexed image; other shapes as they are."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values)
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    image = Image.fromarray(values)
    if palette:
        image.putpalette(np.asarray(davis_palette(), np.uint8).reshape(-1).tolist())
    image.save(path)


def save_frames(folder, masks, names=None, **options):
    """Writes `[T,H,W]` as `<folder>/00000.png`, ... or under the given stems."""
    for k, mask in enumerate(masks):
        save(Path(folder) / f"{names[k] if names else f'{k:05d}'}.png", mask, **options)


def davis16(root, sequences=("blackswan", "dog"), frames=T):
    """`Annotations/480p`, `ImageSets/2016/val.txt` and a few `JPEGImages`; returns the masks."""
    root = Path(root)
    masks = {name: clip(k, frames) for k, name in enumerate(sequences)}
    lines = []
    for name, clips in masks.items():
        save_frames(root / "Annotations" / "480p" / name, clips)
        for k in range(frames):
            image = f"JPEGImages/480p/{name}/{k:05d}.jpg"
            save(root / image, np.full((H, W, 3), 5 * k, np.uint8))
            lines.append(f"/{image} /Annotations/480p/{name}/{k:05d}.png")
    listing = root / "ImageSets" / "2016" / "val.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("\n".join(lines) + "\n")
    return masks


def results_of(root, masks):
    """Results `<root>/<sequence>/*.png` that are somewhat wrong; returns them as bool."""
    found = {name: worse(clips, 100 + k) for k, (name, clips) in enumerate(masks.items())}
    for name, clips in found.items():
        save_frames(Path(root) / name, clips)
    return found


def save_flo(path, flow):
    """Writes float32 `[H,W,2]` in the Middlebury format."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = np.float32(202021.25).tobytes() + np.array(flow.shape[1::-1], "<i4").tobytes()
    path.write_bytes(header + np.asarray(flow, "<f4").tobytes())
