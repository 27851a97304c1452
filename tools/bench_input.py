"""Frames per second of the input pipeline, against a PyTorch DataLoader of the same transforms.

    python tools/bench_input.py                              # fabricated 854x480 JPEGs and PNGs
    python tools/bench_input.py --root DAVIS --split train   # a copy of DAVIS
    python tools/bench_input.py --workers 2 --cache-gb 2

Both sides read pairs of frames with masks, crop, scale and flip them and resize to 473x473, in this
process and on the same cores; frames/s are given per second of wall clock and per second of CPU
time (one core's work), each the best of `--repeats` alternating rounds. The DataLoader decodes and
resizes with Pillow, as the published training scripts do (with OpenCV where it is installed).
Beside them stands what a train step of COSNet would consume at best on one accelerator, by FLOPs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIZE = (473, 473)
#: COSNet, a pair: about 540 GFLOP forward per frame, three times that with the backward pass.
TRAIN_FLOP_PER_FRAME = 3 * 540e9
#: Accelerator -> dense bfloat16 peak; 40 % of it is what such networks reach.
ACCELERATORS = {"TPU v5e": 197e12, "A100": 312e12, "H100": 989e12}


def fabricate(root: Path, *, sequences: int = 4, frames: int = 12) -> None:
    """DAVIS layout with smooth noise, whose JPEGs are as large as those of photographs."""
    from PIL import Image

    rng = np.random.default_rng(0)
    names = [f"clip{i}" for i in range(sequences)]
    for name in names:
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / "480p" / name).mkdir(parents=True)
        coarse = rng.integers(0, 255, (60, 107, 3), np.uint8)
        base = np.asarray(Image.fromarray(coarse).resize((854, 480), Image.BICUBIC), np.int16)
        for t in range(frames):
            noisy = np.roll(base, 3 * t, 1) + rng.integers(-12, 12, base.shape)
            image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
            image.save(root / f"JPEGImages/480p/{name}/{t:05d}.jpg", quality=92)
            mask = np.zeros((480, 854), np.uint8)
            mask[100:300, 100 + 5 * t : 400 + 5 * t] = 255
            Image.fromarray(mask).save(root / f"Annotations/480p/{name}/{t:05d}.png")
    listing = root / "ImageSets/2016/train.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("\n".join(names) + "\n")


class Ours:
    name = "uvos_jax"

    def __init__(self, args: argparse.Namespace, root: Path):
        from uvos_jax import config as configs
        from uvos_jax.data.pipeline import make_train_iter

        config = configs.load_config("cosnet:full")
        entry = {"name": "davis16", "root": str(root), "split": args.split, "sampling": "pair"}
        config.data.train = (entry,)
        config.data.size, config.data.clip_len = SIZE, 2
        config.data.augment.scale, config.data.augment.crop = (0.7, 1.3), (0.8, 1.0)
        config.data.workers, config.data.cache_gb = args.workers, args.cache_gb
        self.iterator = make_train_iter(config.data, "default", batch_size=args.batch)

    def batch(self) -> int:
        frames = next(self.iterator)["frames"]
        return frames.shape[0] * frames.shape[1]

    def close(self) -> None:
        getattr(self.iterator, "close", lambda: None)()


class Pairs:
    """The same examples as a torch data set: decode, crop, scale, flip, resize."""

    def __init__(self, root: Path, split: str):
        names = (root / f"ImageSets/2016/{split}.txt").read_text().split()
        self.frames = {
            n: sorted((root / "JPEGImages/480p" / n).glob("*.jpg")) for n in names
        }  # fmt: skip
        self.index = [(n, i) for n, paths in self.frames.items() for i in range(len(paths))]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int):
        import torch

        name, i = self.index[index]
        paths = self.frames[name]
        rng = np.random.default_rng()
        j = int(rng.integers(len(paths)))
        share, scale, flip = rng.uniform(0.8, 1.0), rng.uniform(0.7, 1.3), rng.random() < 0.5
        where = rng.random(2)
        parts = [self.one(paths[k], share, scale, flip, where) for k in (i, j)]
        images, masks = zip(*parts, strict=True)
        return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks))

    def one(self, path: Path, share: float, scale: float, flip: bool, where: np.ndarray):
        label = Path(str(path).replace("JPEGImages", "Annotations")).with_suffix(".png")
        image, mask = self.read(path), self.read(label)
        H, W = image.shape[:2]
        h, w = round(H * share), round(W * share)
        y, x = int(where[0] * (H - h)), int(where[1] * (W - w))
        window = np.s_[y : y + h, x : x + w]
        middle = (round(h * scale), round(w * scale))
        image = self.resize(self.resize(image[window], middle, True), SIZE, True)
        mask = self.resize(self.resize(mask[window], middle, False), SIZE, False)
        if flip:
            image, mask = image[:, ::-1], mask[:, ::-1]
        return np.ascontiguousarray(image), np.ascontiguousarray(mask > 0)

    def read(self, path: Path) -> np.ndarray:
        from PIL import Image

        return np.asarray(Image.open(path))

    def resize(self, array: np.ndarray, size: tuple[int, int], smooth: bool) -> np.ndarray:
        try:
            import cv2

            cv2.setNumThreads(0)
            how = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
            return cv2.resize(array, size[::-1], interpolation=how)
        except ImportError:
            from PIL import Image

            how = Image.BILINEAR if smooth else Image.NEAREST
            return np.asarray(Image.fromarray(array).resize(size[::-1], how))


class Torch:
    name = "DataLoader"

    def __init__(self, args: argparse.Namespace, root: Path):
        from torch.utils.data import DataLoader

        self.loader = DataLoader(
            Pairs(root, args.split), batch_size=args.batch, shuffle=True,
            num_workers=args.workers, drop_last=True, persistent_workers=args.workers > 0,
        )  # fmt: skip
        self.iterator = iter(self.loader)

    def batch(self) -> int:
        try:
            frames, _ = next(self.iterator)
        except StopIteration:
            self.iterator = iter(self.loader)
            frames, _ = next(self.iterator)
        return frames.shape[0] * frames.shape[1]

    def close(self) -> None:
        del self.iterator


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(side, batches: int) -> tuple[float, float]:
    """Frames per second of wall clock and of CPU time."""
    wall, cpu, frames = time.perf_counter(), cpu_seconds(), 0
    for _ in range(batches):
        frames += side.batch()
    return frames / (time.perf_counter() - wall), frames / max(cpu_seconds() - cpu, 1e-9)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="a copy of DAVIS; default: fabricated files")
    parser.add_argument("--split", default="train")
    parser.add_argument("--batch", type=int, default=4, help="pairs per batch")
    parser.add_argument("--batches", type=int, default=8, help="batches per round")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--cache-gb", type=float, default=0.0)
    args = parser.parse_args(argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        root = args.root or Path(folder)
        if args.root is None:
            fabricate(root)
        sides = [Ours(args, root)]
        try:
            import torch

            torch.set_num_threads(1)
            sides.append(Torch(args, root))
        except ImportError:
            print("no PyTorch here, so no DataLoader to compare with: pip install torch")
        best = {side.name: (0.0, 0.0) for side in sides}
        for side in sides:
            measure(side, 2)
        for _ in range(args.repeats):
            for side in sides:
                rates = measure(side, args.batches)
                best[side.name] = tuple(map(max, best[side.name], rates))
        for side in sides:
            side.close()
    print(f"pairs of frames with masks at {SIZE[1]}x{SIZE[0]}, {args.workers} workers, "
          f"cache {args.cache_gb:g} GB")  # fmt: skip
    for name, (wall, core) in best.items():
        print(f"  {name:12s} {wall:7.1f} frames/s   {core:7.1f} frames per second of one core")
    if len(best) == 2:
        (ours, core), (theirs, their_core) = best.values()
        print(f"  ratio        {ours / theirs:7.2f}            {core / their_core:7.2f}")
    print("one accelerator training COSNet at 40 % of its peak would consume")
    for name, peak in ACCELERATORS.items():
        print(f"  {name:12s} {0.4 * peak / TRAIN_FLOP_PER_FRAME:7.1f} frames/s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
