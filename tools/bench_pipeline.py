"""Times `uvos predict` from decoding to masks, and each of its parts alone.

    python tools/bench_pipeline.py                          # packaged weights, a generated clip
    python tools/bench_pipeline.py clip.mp4 --stream        # a video of yours, frame by frame
    python tools/bench_pipeline.py frames/dog --weights w.npz --crf davis

End to end the parts overlap (decoding and flow run ahead of the network), alone each has all cores
to itself. `ms` is by the clock, `cpu ms` counts all cores, `share` is of the parts' sum of the
latter. The fastest of `--repeats` runs counts, after one in which everything is compiled.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uvos_jax import synthetic
from uvos_jax.cli.common import print_error
from uvos_jax.data.video_io import VideoWriter, open_video
from uvos_jax.errors import UvosError
from uvos_jax.predict.appearance import Appearance
from uvos_jax.predict.flow import flow_of_video
from uvos_jax.predict.predictor import Predictor
from uvos_jax.predict.sink import PredictionSink
from uvos_jax.predict.smooth import smooth
from uvos_jax.predict.spool import Spool
from uvos_jax.predict.windows import Window, windows


def generated(path: Path, frames: int) -> Path:
    """A clip of 854x480 with moving objects."""
    cfg = synthetic.config("outdoor", height=240, width=424, frames=frames)
    clip = jax.jit(lambda: synthetic.clip(synthetic.clip_key(0, 3), cfg, ("video",)))()
    video = np.asarray(jax.image.resize(clip["video"], (frames, 480, 854, 3), "linear"))
    with VideoWriter(path, 25.0) as writer:
        for frame in np.clip(np.round(video * 255), 0, 255).astype(np.uint8):
            writer.write(frame)
    return path


def timed(run: Callable[[], Any], repeats: int) -> tuple[float, float, Any]:
    """Seconds by the clock and of all cores of the fastest run, and what the last one returned."""
    best = (float("inf"), 0.0)
    for attempt in range(repeats + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(run())
        took = time.perf_counter() - wall, time.process_time() - cpu
        if attempt:
            best = min(best, took)
    return (*best, result)


def whole(predictor: Predictor, video: Path, out: Path, stream: bool) -> int:
    """What `uvos predict` does; returns the number of frames."""
    reader, count = open_video(video), 0
    with PredictionSink(out, "all", overwrite=True) as sink:
        for result in predictor.iter_predict(reader, stream=stream):
            sink.write(result)
            count += 1
    return count


def parts(predictor: Predictor, video: Path, out: Path, stream: bool) -> dict[str, Callable]:
    """The steps of `Predictor` one after the other, each with what the ones before it left."""
    spec, chunk = predictor.system.spec, 1 if stream else predictor.chunk
    two_passes = not stream and bool(predictor.appearance or predictor.smooth)
    left: dict[str, Any] = {}

    def decode() -> None:
        left["frames"] = list(open_video(video))

    def flow() -> None:
        left["pairs"] = list(flow_of_video(
            predictor.flow, None, left["frames"], chunk, spec, spec.input_size
        ))  # fmt: skip

    def network() -> list:
        reader = open_video(video)
        size = predictor.input_size(reader.size)
        states = predictor._empty_states(size) if stream else predictor._first_states(reader)
        seen = left.get("pairs", left["frames"])
        cut = list(windows(seen, chunk, 0 if stream else predictor.overlap))
        left["windows"], left["probs"], left["images"] = cut, [], []
        for window in cut:
            states, images, probs = predictor._look(states, window.frames, window.flow)
            left["images"].append(np.asarray(images))
            left["probs"].append(np.asarray(probs))
        return left["probs"]

    def pairs() -> list[tuple[Window, np.ndarray, np.ndarray]]:
        return list(zip(left["windows"], left["images"], left["probs"], strict=True))

    def smoothing() -> None:
        spool, flows = Spool(), Spool()
        for window, images, probs in pairs():
            size = tuple(max(n // 2, 1) for n in images.shape[1:3])
            for field, prob in zip(window.flow[: window.count, ..., -2:], probs, strict=False):
                flows.append(np.asarray(jax.image.resize(field, (*size, 2), "linear")))
                spool.append(prob)
        smooth(spool, flows, predictor.smooth, chunk)
        spool.close()
        flows.close()

    def appearance() -> None:
        looks = Appearance()
        for window, images, probs in pairs():
            looks.see(images[: window.count], probs[: window.count])
        looks.fit()
        left["mixed"] = [
            np.asarray(looks.mix(images, probs, predictor.appearance))
            for _, images, probs in pairs()
        ]

    def enlarge() -> None:
        """With the CRF at the network's resolution, if there is one."""
        probs = left.get("mixed", left["probs"])
        left["full"] = [
            np.asarray(predictor._enlarged(images, p, window.frames))
            for (window, images, _), p in zip(pairs(), probs, strict=True)
        ]

    def finish() -> None:
        """Threshold, and the CRF at full resolution, if there is one."""
        left["results"] = [
            predictor._finish(i, f"{i:05d}", window.frames[t], full[t])
            for window, full in zip(left["windows"], left["full"], strict=True)
            for t, i in enumerate(range(window.start, window.start + window.count))
        ]

    def write() -> None:
        with PredictionSink(out, "parts", overwrite=True) as sink:
            for result in left["results"]:
                sink.write(result)

    found: dict[str, Callable] = {"decode": decode}
    if "flow" in spec.requires:
        found["flow"] = flow
    found["network"] = network
    if two_passes:
        found["decode again"] = decode
        if predictor.smooth:
            found["smoothing"] = smoothing
        if predictor.appearance:
            found["appearance"] = appearance
    found[f"CRF {predictor.refine} and enlarging" if predictor.refine else "enlarging"] = enlarge
    found[f"CRF {predictor.crf} and threshold" if predictor.crf else "threshold"] = finish
    found["write"] = write
    return found


def run(args: argparse.Namespace) -> int:
    options = {
        name: value
        for name in ("crf", "refine", "flow", "chunk")
        if (value := getattr(args, name)) is not None
    }
    if args.weights:
        predictor = Predictor.load(args.weights, **options)
    else:
        predictor = Predictor.default(**options)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        video = args.video or generated(out / "clip.mp4", args.frames)
        size = open_video(video).size
        wall, cpu, count = timed(
            lambda: whole(predictor, video, out, args.stream), repeats=args.repeats
        )
        rows = []
        for name, part in parts(predictor, video, out, args.stream).items():
            took = timed(part, args.repeats)
            rows.append((name, took[0], took[1]))
    total = sum(row[2] for row in rows)
    print(f"{predictor.system.spec.name}, {count} frames of {size[1]}x{size[0]}\n")
    print("| | ms / frame | cpu ms / frame | share |\n|---|---|---|---|")
    for name, seconds, cores in rows:
        print(f"| {name} | {1e3 * seconds / count:.1f} | {1e3 * cores / count:.1f} "
              f"| {cores / total:.0%} |")  # fmt: skip
    print(f"| end to end | {1e3 * wall / count:.1f} | {1e3 * cpu / count:.1f} | |")
    print(f"\n{count / wall:.2f} frames/s end to end")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", nargs="?", type=Path, help="file or folder of frames")
    parser.add_argument("--frames", type=int, default=40, help="of the generated clip")
    parser.add_argument("--stream", action="store_true", help="frame by frame, past frames only")
    parser.add_argument("--weights", type=Path, help="default: the packaged ones")
    parser.add_argument("--flow", help="provider")
    parser.add_argument("--crf", help="preset at full resolution")
    parser.add_argument("--refine", help="preset at the network's resolution")
    parser.add_argument("--chunk", type=int, help="frames per call of the network")
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args(argv)
    try:
        return run(args)
    except UvosError as error:
        return print_error(error)


if __name__ == "__main__":
    sys.exit(main())
