"""Times the metrics on one core against plain implementations, checking that values agree.

    python tools/bench_metrics.py [--masks DIR] [--frames 12] [--repeat 7] [--size 480x854]

Without --masks, moving blobs of the given size are used; DIR is a folder of mask PNGs, compared
with perturbed copies of themselves. The plain implementations are written here: scipy's dilation
with a disk (the way of the 2016 Python code), OpenCV's dilation if `cv2` is installed (the way of
the 2017 code), and a Python loop for the warping behind T. Best of several alternating runs, in
milliseconds of wall and CPU time per frame or pair.
"""

import os

# One core, set before jax starts its thread pool.
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import argparse
import itertools
import sys
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from scipy import ndimage

from uvos_jax.metrics import bitmask, davis, temporal


def disk(radius: int) -> np.ndarray:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return x * x + y * y <= radius * radius


def boundary(mask: np.ndarray) -> np.ndarray:
    east, south, south_east = (np.zeros_like(mask) for _ in range(3))
    east[:, :-1] = mask[:, 1:]
    south[:-1] = mask[1:]
    south_east[:-1, :-1] = mask[1:, 1:]
    edge = (mask ^ east) | (mask ^ south) | (mask ^ south_east)
    edge[-1] = mask[-1] ^ east[-1]
    edge[:, -1] = mask[:, -1] ^ south[:, -1]
    edge[-1, -1] = False
    return edge


def plain_j_and_f(pred: np.ndarray, gt: np.ndarray, dilate) -> tuple[float, float]:
    union = np.sum(pred | gt)
    j = np.sum(pred & gt) / union if union else 1.0
    radius = int(np.ceil(0.008 * np.linalg.norm(pred.shape)))
    edge_p, edge_g = boundary(pred), boundary(gt)
    near_p, near_g = dilate(edge_p, radius), dilate(edge_g, radius)
    n_p, n_g = np.sum(edge_p), np.sum(edge_g)
    precision = np.sum(edge_p & near_g) / n_p if n_p else 1.0
    recall = np.sum(edge_g & near_p) / n_g if n_g else 1.0
    total = precision + recall
    return j, 2 * precision * recall / total if total else 0.0


def scipy_dilate(edge: np.ndarray, radius: int) -> np.ndarray:
    return ndimage.binary_dilation(edge, disk(radius))


def opencv_dilate():
    try:
        import cv2
    except ImportError:
        return None
    cv2.setNumThreads(1)
    return lambda edge, radius: cv2.dilate(
        edge.astype(np.uint8), disk(radius).astype(np.uint8)
    ).astype(bool)


def plain_warp(cost: np.ndarray) -> tuple[float, list[tuple[int, int]]]:
    """Sum and cells of the cheapest path, cell by cell."""
    rows = cost.tolist()
    infinite = float("inf")
    sums, moves = [[infinite] * len(rows[0])], []
    for i, row in enumerate(rows):
        before, now, into = sums[-1], [], []
        for j, price in enumerate(row):
            if i == j == 0:
                now.append(0.0)
                into.append((0, 0))
                continue
            best, move = before[j], (1, 0)
            if j:
                if now[j - 1] < best:
                    best, move = now[j - 1], (0, 1)
                if before[j - 1] <= best:
                    best, move = before[j - 1], (1, 1)
            now.append(best + price)
            into.append(move)
        sums.append(now)
        moves.append(into)
    i, j = len(rows) - 1, len(rows[0]) - 1
    path = [(i, j)]
    while i or j:
        di, dj = moves[i][j]
        i, j = i - di, j - dj
        path.append((i, j))
    return sums[-1][-1], path


def load(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Annotations and perturbed predictions, bool `[T,H,W]`."""
    rng = np.random.default_rng(0)
    if args.masks:
        paths = sorted(Path(args.masks).glob("*.png"))[: args.frames]
        if not paths:
            sys.exit(f"error: no PNG in {args.masks}")
        gt = np.stack([np.asarray(Image.open(p)) > 0 for p in paths])
    else:
        height, width = map(int, args.size.split("x"))
        y, x = np.mgrid[:height, :width]
        gt = []
        for t in range(args.frames):
            angle = np.arctan2(y - height / 2, x - width / 2 - 4 * t)
            radius = 0.28 * height * (1 + 0.25 * np.sin(5 * angle + 0.2 * t))
            gt.append(np.hypot(y - height / 2, x - width / 2 - 4 * t) < radius)
        gt = np.stack(gt)
    pred = []
    for mask in gt:
        noise = ndimage.gaussian_filter(rng.standard_normal(mask.shape), 6)
        moved = ndimage.shift(mask.astype(np.uint8), rng.integers(-4, 5, 2), order=0) > 0
        pred.append(moved ^ (noise > 2.6 * noise.std()))
    return gt, np.stack(pred)


def best_ms(calls: dict, count: int, repeat: int) -> dict[str, tuple[float, float]]:
    """Best (wall, CPU) time of each call, runs alternating, in milliseconds per item."""
    best = dict.fromkeys(calls, (float("inf"), float("inf")))
    for call in calls.values():
        call()
    for _ in range(repeat):
        for name, call in calls.items():
            start = time.perf_counter(), time.process_time()
            call()
            took = time.perf_counter() - start[0], time.process_time() - start[1]
            best[name] = tuple(min(a, b) for a, b in zip(best[name], took, strict=True))
    return {name: tuple(1e3 * s / count for s in seconds) for name, seconds in best.items()}


def show(title: str, times: dict[str, tuple[float, float]], base: str) -> None:
    print(f"{title:50s}      wall        CPU   CPU ratio")
    for name, (wall, cpu) in times.items():
        print(f"  {name:46s} {wall:8.3f}ms {cpu:8.3f}ms {cpu / times[base][1]:8.1f} x")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--masks", metavar="DIR")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--size", default="480x854", metavar="HxW")
    args = parser.parse_args()
    gt, pred = load(args)
    T, height, width = gt.shape
    radius = davis.boundary_radius(height, width)
    print(f"{T} frames of {width}x{height}, radius {radius}; jax {jax.__version__}, one core")

    def counted() -> np.ndarray:
        words = bitmask.pack_host(pred), bitmask.pack_host(gt)
        return np.asarray(davis.pair_counts(*words, width=width, radius=radius))

    calls = {
        "J and F as the evaluator does (packed on the host)": counted,
        "J and F inside jit (packed on the device)": lambda: jax.block_until_ready(
            davis.j_and_f(pred, gt)
        ),
    }
    plain = [plain_j_and_f(p, g, scipy_dilate) for p, g in zip(pred, gt, strict=True)]
    ours = np.stack(davis.ratios(counted()), -1)
    print(f"largest difference to the plain code: {np.abs(ours - plain).max():.1e} (host ratios)")
    in_jit = np.stack([np.asarray(v) for v in davis.j_and_f(pred, gt)], -1)
    print(f"                                      {np.abs(in_jit - plain).max():.1e} (float32)")
    dilate = opencv_dilate()
    if dilate is not None:
        calls["plain, OpenCV dilation (2017 code)"] = lambda: [
            plain_j_and_f(p, g, dilate) for p, g in zip(pred, gt, strict=True)
        ]
    times = best_ms(calls, T, args.repeat)
    first = {"scipy": lambda: [plain_j_and_f(pred[0], gt[0], scipy_dilate)]}
    times["plain, scipy dilation (2016 code)"] = best_ms(first, 1, 2)["scipy"]
    show("J and F, per frame", times, next(iter(times)))

    outlines = [temporal.outline(mask) for mask in gt[: min(T, 6)]]
    costs = [
        temporal.matching_cost(a, b)
        for a, b in itertools.pairwise(outlines)
        if a is not None and b is not None
    ]
    if not costs:
        return
    paths = [temporal.warp(c) for c in costs]
    gap = max(
        abs(plain_warp(c)[0] - c[p[:-1, 0], p[:-1, 1]].sum())
        for c, p in zip(costs, paths, strict=True)
    )
    sizes = ", ".join(f"{c.shape[0]}x{c.shape[1]}" for c in costs)
    print(f"T: cost matrices {sizes}; largest difference of path sums {gap:.1e}")
    times = best_ms(
        {
            "warping": lambda: [temporal.warp(c) for c in costs],
            "plain Python warping": lambda: [plain_warp(c) for c in costs],
        },
        len(costs),
        max(2, args.repeat // 2),
    )
    show("dynamic programme of T, per solve", times, "warping")
    whole = best_ms({"T": lambda: temporal.temporal_stability(gt[: len(outlines)])}, len(costs), 2)
    wall, cpu = whole["T"]
    print(f"  T, everything from masks to value, per pair    {wall:8.3f}ms {cpu:8.3f}ms")


if __name__ == "__main__":
    main()
