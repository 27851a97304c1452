"""Times the dense CRF against pydensecrf: same frames, same parameters, alternating, one run.

    python tools/bench_crf.py --pydensecrf crf/bin/python            # synthetic frames
    python tools/bench_crf.py --pydensecrf crf/bin/python --clips DIR --sequences dog libby
    python tools/bench_crf.py --growth                               # 240p to 1080p, ours only
    python tools/bench_crf.py --batch 32                             # frames per second, batched

`--pydensecrf` is the Python of an environment that has it (see tools/record_crf_references.py);
without it only ours is timed. `--clips` holds SEQUENCE/frames and SEQUENCE/masks; the foreground
map is the blurred mask. Times are medians over `--repeats` alternating runs, wall and CPU (all
threads) apart: pydensecrf uses one thread. Lattices of a size that are kept between frames are
built before the clock starts, as compilation is; both are printed as "first call".
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PRESETS = ("cosnet", "agnn", "matnet", "pdb_convlstm", "ags")


# ----- the other side: runs under the Python that has pydensecrf -------------------------------


def worker() -> None:
    """Answers one npz path per line with timings; the marginals are written beside it."""
    import json

    from record_crf_references import infer

    for line in sys.stdin:
        path = line.strip()
        with np.load(path) as file:
            image, probs, settings = file["image"], file["probs"], json.loads(str(file["settings"]))
        wall, cpu = time.perf_counter(), time.process_time()
        Q = infer(image, probs, 2, **settings)
        took = time.perf_counter() - wall, time.process_time() - cpu
        np.save(path + ".npy", Q[1])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(*took, peak, flush=True)


class Other:
    """A pydensecrf process that waits for work."""

    def __init__(self, python: str):
        self.folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [python, __file__, "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, image, probs, settings) -> tuple[float, float, float, np.ndarray]:
        import json

        path = os.path.join(self.folder.name, "case.npz")
        np.savez(path, image=image, probs=probs * 255.0, settings=np.array(json.dumps(settings)))
        print(path, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().split()
        if len(answer) != 3:
            raise SystemExit("the pydensecrf process ended; its message is above")
        wall, cpu, peak = map(float, answer)
        return wall, cpu, peak, np.load(path + ".npy")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()


# ----- frames -------------------------------------------------------------------------------------


def frames(args: argparse.Namespace, size: tuple[int, int] | None = None):
    """Yields (name, image, foreground map in 8-bit steps) of the clips, or a synthetic scene."""
    from PIL import Image, ImageFilter

    if args.clips is None:
        from record_crf_references import scene

        image, probs = scene(*(size or (480, 854)), seed=0)
        yield "synthetic", image, probs / 255.0
        return
    for sequence in args.sequences or sorted(p.name for p in Path(args.clips).iterdir()):
        folder = Path(args.clips) / sequence
        paths = sorted((folder / "frames").iterdir())
        path = paths[len(paths) // 3]
        image = Image.open(path).convert("RGB")
        mask = Image.open(folder / "masks" / f"{path.stem}.png").convert("L")
        mask = mask.point(lambda v: 255 * (v > 0))
        if size:
            image, mask = (x.resize(size[::-1], Image.Resampling.BILINEAR) for x in (image, mask))
        probs = np.asarray(mask.filter(ImageFilter.GaussianBlur(9)), np.float64)
        probs = (probs - probs.min()) / (probs.max() - probs.min())
        yield sequence, np.asarray(image), np.round(probs * 255) / 255


def settings_of(preset: str, iterations: int) -> dict:
    """A preset in the words of `record_crf_references.infer`."""
    from uvos_jax.ops.crf import Bilateral, get_preset

    chosen = get_preset(preset)
    terms = []
    for term in chosen.terms:
        words = {"kind": "gaussian", "sdims": term.sdims, "compat": term.compat}
        if isinstance(term, Bilateral):
            words |= {"kind": "bilateral", "schan": term.schan}
        terms.append(words)
    return {
        "unary": chosen.unary,
        "iterations": iterations,
        "kl_stop": chosen.kl_stop,
        "terms": terms,
    }


def ours(image, probs, preset: str, iterations: int) -> tuple[float, float, np.ndarray]:
    """(wall, CPU, marginals) of one call."""
    from uvos_jax.ops.crf import dense_crf

    wall, cpu = time.perf_counter(), time.process_time()
    q = dense_crf(image, probs.astype(np.float32), preset=preset, iterations=iterations)
    q.block_until_ready()
    return time.perf_counter() - wall, time.process_time() - cpu, np.asarray(q)


# ----- the tables ---------------------------------------------------------------------------------


def compare(args: argparse.Namespace) -> None:
    other = Other(args.pydensecrf) if args.pydensecrf else None
    if other is None:
        print("pydensecrf is not compared: give --pydensecrf PYTHON of an environment with it")
    print("preset iterations frame | pydensecrf wall cpu | ours wall cpu (first call) | ratio "
          "wall cpu | mean |dQ| p99.9 max agreement")  # fmt: skip
    for preset in args.presets:
        for iterations in args.iterations:
            settings = settings_of(preset, iterations)
            for name, image, probs in frames(args):
                first = ours(image, probs, preset, iterations)[0]
                theirs_t, ours_t, text = [], [], ""
                for _ in range(args.repeats):
                    if other:
                        *times, expected = other.run(image, probs, settings)
                        theirs_t.append(times)
                    *times, q = ours(image, probs, preset, iterations)
                    ours_t.append(times)
                wall, cpu = np.median(ours_t, axis=0)
                line = f"{preset} {iterations} {name} |"
                if other:
                    other_wall, other_cpu, other_peak = np.median(theirs_t, axis=0)
                    d = np.abs(q - expected)
                    agree = np.mean((q > 0.5) == (expected > 0.5))
                    line += f" {other_wall:.3f} {other_cpu:.3f}"
                    text = (
                        f" {other_wall / wall:.1f} {other_cpu / cpu:.1f} | {d.mean():.1e} "
                        f"{np.quantile(d, 0.999):.1e} {d.max():.1e} {100 * agree:.4f} %"
                    )
                print(f"{line} | {wall:.3f} {cpu:.3f} ({first:.1f}) |{text}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory: ours {peak:.0f} MB (whole process, all presets)", end="")
    print(f", pydensecrf {other_peak:.0f} MB" if other else "")
    if other:
        other.close()


def growth(args: argparse.Namespace) -> None:
    print("size pixels | ours wall cpu (first call) | peak memory of the process so far")
    for size in ((240, 427), (360, 640), (480, 854), (720, 1280), (1080, 1920)):
        for name, image, probs in frames(args, size):
            first = ours(image, probs, args.presets[0], 5)[0]
            runs = [ours(image, probs, args.presets[0], 5)[:2] for _ in range(args.repeats)]
            wall, cpu = np.median(runs, axis=0)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{name} {size[0]}x{size[1]} {size[0] * size[1]} | {wall:.3f} {cpu:.3f} "
                  f"({first:.1f}) | {peak:.0f} MB", flush=True)  # fmt: skip


def batch(args: argparse.Namespace) -> None:
    import jax

    _, image, probs = next(frames(args))
    rng = np.random.default_rng(0)
    images = np.stack([np.roll(image, s, axis=1) for s in rng.integers(0, 99, args.batch)])
    maps = np.stack([probs] * args.batch)
    ours(images, maps, args.presets[0], 5)
    walls = [ours(images, maps, args.presets[0], 5)[0] for _ in range(args.repeats)]
    rate = args.batch / np.median(walls)
    print(f"{args.batch} frames of {image.shape[0]}x{image.shape[1]}, preset {args.presets[0]}, 5 "
          f"iterations: {rate:.1f} frames/s on {jax.devices()[0].device_kind}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pydensecrf", metavar="PYTHON")
    parser.add_argument("--clips", metavar="DIR")
    parser.add_argument("--sequences", nargs="*")
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--iterations", nargs="+", type=int, default=(5, 10))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--batch", type=int, metavar="FRAMES")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker()
    elif args.growth:
        growth(args)
    elif args.batch:
        batch(args)
    else:
        compare(args)


if __name__ == "__main__":
    main()
