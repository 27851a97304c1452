"""Cropping, scaling and flipping that keep image, mask and flow together; numpy only.

Randomness comes from the generator that is passed in, so a resumed pipeline repeats itself.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from uvos_jax.errors import ConfigError

Example = dict[str, Any]


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of uint8 `[H,W,3]` to (h, w) at pixel centres, without antialiasing.

    The same values as OpenCV's INTER_LINEAR up to rounding, which is what the systems were trained
    with.
    """
    if image.shape[:2] == tuple(size):
        return image
    rows, cols = (_taps(n, m) for n, m in zip(image.shape[:2], size, strict=True))
    lines = _interpolated(image.astype(np.float32), rows, 0)
    out = _interpolated(lines, cols, 1)
    return np.rint(out, out=out).astype(image.dtype) if image.dtype == np.uint8 else out


def _interpolated(array: np.ndarray, taps: tuple, axis: int) -> np.ndarray:
    """`low + (high - low) * fraction` along an axis; `mode="clip"` spares a check per element."""
    low, high, fraction = taps
    out = np.take(array, low, axis, mode="clip")
    other = np.take(array, high, axis, mode="clip")
    other -= out
    other *= fraction.reshape([-1 if a == axis else 1 for a in range(array.ndim)])
    out += other
    return out


def _taps(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = np.clip((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0, n_in - 1)
    low = np.floor(x).astype(np.int64)
    return low, np.minimum(low + 1, n_in - 1), (x - low).astype(np.float32)


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest-neighbour resize of ids `[H,W]` to (h, w): pixel `floor(i * in / out)`."""
    if labels.shape == tuple(size):
        return labels
    index = [(np.arange(m) * n) // m for n, m in zip(labels.shape, size, strict=True)]
    return labels[index[0][:, None], index[1][None, :]]


def resize_flow(flow: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of flow `[H,W,2 or 4]` with its vectors scaled to the new pixels."""
    H, W = flow.shape[:2]
    if tuple(size) == (H, W):
        return flow
    out = resize_image(flow.astype(np.float32), size)
    return out * np.asarray([size[1] / W, size[0] / H] * (flow.shape[-1] // 2), np.float32)


def crop_resize(
    example: Example, frame: int, box: tuple[int, int, int, int], size: tuple[int, int]
) -> Example:
    """One frame of an example, cropped to (top, left, height, width) and resized to (h, w).

    Returns arrays without time axis. Flow keeps its meaning: pixels of the new resolution.
    """
    y, x, h, w = box
    window = np.s_[y : y + h, x : x + w]
    out: Example = {"frames": resize_image(example["frames"][frame][window], size)}
    for key in ("masks", "edges", "depth"):
        if key in example:
            out[key] = resize_labels(example[key][frame][window], size)
    if "fixations" in example:
        out["fixations"] = resize_image(example["fixations"][frame][window][..., None], size)[
            ..., 0
        ]
    if "flow" in example:
        out["flow"] = resize_flow(example["flow"][frame][window], size)
    return out


def flip_frame(frame: Example) -> Example:
    """Mirrors one frame (arrays without time axis) left to right; u changes its sign."""
    out = {k: v[:, ::-1] for k, v in frame.items()}
    if "flow" in out:
        out["flow"] = out["flow"] * np.asarray([-1, 1] * (out["flow"].shape[-1] // 2), np.float32)
    return out


def transform_camera(
    example: Example, box: tuple[int, int, int, int], frame_size: tuple[int, int], flip: bool
) -> Example:
    """`intrinsics` and `camera` of an example cropped to (top, left, height, width), then mirrored.

    A mirrored world moves in a mirror: `S R S` and `S t` with `S = diag(-1, 1, 1)`.
    """
    out: Example = {}
    (y, x, h, w), (H, W) = box, frame_size
    if "intrinsics" in example:
        cx, cy, fx, fy = example["intrinsics"]
        cx, cy = (cx * W - x) / w, (cy * H - y) / h
        values = [1 - cx if flip else cx, cy, fx * W / w, fy * H / h]
        out["intrinsics"] = np.asarray(values, np.float32)
    if "camera" in example and flip:
        mirror = np.asarray([-1, 1, 1], np.float32)
        camera = example["camera"] * mirror[:, None]
        out["camera"] = np.concatenate([camera[..., :3] * mirror, camera[..., 3:]], axis=-1)
    return out


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random crop, scale and flip, then a resize to the training size.

    Attributes:
      size: (h, w) of the result.
      flip: probability of mirroring.
      crop: range of the crop's side as a share of the frame's.
      scale: range of an intermediate resize (blurs or sharpens; the result has `size` anyway).
      independent: draw anew for every frame of a clip (pairs of COSNet); flow and the camera are
        then dropped.
    """

    size: tuple[int, int]
    flip: float = 0.0
    crop: tuple[float, float] = (1.0, 1.0)
    scale: tuple[float, float] = (1.0, 1.0)
    independent: bool = False

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ConfigError(
                f"data.size must be two positive numbers (height, width), got {tuple(self.size)}"
            )
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"data.augment.flip must be a probability, got {self.flip}")
        low, high = self.crop
        if not 0 < low <= high <= 1:
            raise ConfigError(
                f"data.augment.crop must be a range within (0, 1], got {tuple(self.crop)}"
            )
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(
                f"data.augment.scale must be a positive range, got {tuple(self.scale)}"
            )

    @classmethod
    def from_config(cls, data: Any) -> Augment:
        """From the `data` section of a configuration."""
        settings = data.augment
        known = ("crop", "flip", "independent", "scale")
        for name in settings:
            if name not in known:
                raise ConfigError(f"data.augment has no {name!r}: it has {', '.join(known)}")
        return cls(
            size=tuple(data.size),
            flip=float(settings.get("flip", 0.0)),
            crop=tuple(settings.get("crop", (1.0, 1.0))),
            scale=tuple(settings.get("scale", (1.0, 1.0))),
            independent=bool(settings.get("independent", False)),
        )

    def _draw(self, rng: np.random.Generator, H: int, W: int):
        share = rng.uniform(*self.crop)
        h, w = max(1, round(H * share)), max(1, round(W * share))
        y, x = int(rng.integers(0, H - h + 1)), int(rng.integers(0, W - w + 1))
        return (y, x, h, w), rng.uniform(*self.scale), rng.random() < self.flip

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Augments an example of the data contract; `valid` and ids are kept."""
        T, H, W = example["frames"].shape[:3]
        first = choice = self._draw(rng, H, W)
        frames = []
        for t in range(T):
            if self.independent and t > 0:
                choice = self._draw(rng, H, W)
            box, scale, flip = choice
            source = example
            if scale != 1.0:
                source = self._rescaled(example, t, box, scale)
                box = (0, 0, *source["frames"].shape[1:3])
            frame = crop_resize(source, t if source is example else 0, box, self.size)
            frames.append(flip_frame(frame) if flip else frame)
        out = {k: v for k, v in example.items() if k not in frames[0]}
        out |= {k: np.ascontiguousarray(np.stack([f[k] for f in frames])) for k in frames[0]}
        if self.independent and "flow" in out:
            del out["flow"]
            out.pop("flow_valid", None)
        if self.independent:
            for key in ("camera", "camera_valid", "intrinsics"):
                out.pop(key, None)
            return out
        return out | transform_camera(example, first[0], (H, W), first[2])

    @staticmethod
    def _rescaled(example: Example, t: int, box: tuple, scale: float) -> Example:
        h, w = max(1, round(box[2] * scale)), max(1, round(box[3] * scale))
        return {k: v[None] for k, v in crop_resize(example, t, box, (h, w)).items()}


def resize_example(example: Example, size: tuple[int, int]) -> Example:
    """The whole example at another size, nothing random."""
    T, H, W = example["frames"].shape[:3]
    if tuple(size) == (H, W):
        return example
    frames = [crop_resize(example, t, (0, 0, H, W), size) for t in range(T)]
    out = {k: v for k, v in example.items() if k not in frames[0]}
    return out | {k: np.stack([f[k] for f in frames]) for k in frames[0]}
