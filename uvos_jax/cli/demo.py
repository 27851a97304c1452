"""`uvos demo`: synthetic clips, packaged weights, scores, a report. Needs no data."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "demo",
        help="segment synthetic clips with the packaged weights, make a report",
        description="Render eight synthetic clips, segment them with the packaged weights, print "
        "J and F, write masks, overlay videos and a self-contained HTML report.",
    )
    parser.add_argument("--out", default="uvos_demo", help="output folder (default: uvos_demo)")
    parser.add_argument("--clips", nargs="+", metavar="NAME", help="only these clips")
    parser.add_argument("--weights", help="weights to show instead of the packaged ones")
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the demo."""
    from rich.table import Table

    from uvos_jax import synthetic
    from uvos_jax.cli.common import progress_bar, table_console
    from uvos_jax.metrics.davis import j_and_f
    from uvos_jax.predict.predictor import Predictor
    from uvos_jax.predict.sink import PredictionSink
    from uvos_jax.viz.report import ClipReport, write_report

    began = time.monotonic()
    names = args.clips or synthetic.demo_clips()
    for name in names:
        synthetic.demo.demo_config(name)  # complain about a wrong name before any work
    predictor = Predictor.load(args.weights) if args.weights else Predictor.default()
    out = Path(args.out)
    print(f"segmenting {len(names)} synthetic clips with {predictor.system.spec.name}", flush=True)
    reports, speeds = [], []
    frames_per_clip = synthetic.demo.FRAMES
    pool = ThreadPoolExecutor(1)  # clips are rendered while those before are segmented
    stack = contextlib.ExitStack()
    stack.callback(pool.shutdown, wait=False, cancel_futures=True)
    with stack, progress_bar("demo", len(names) * frames_per_clip) as advance:
        clips = [pool.submit(synthetic.demo_clip, name) for name in names]
        _compile(predictor, (synthetic.demo.HEIGHT, synthetic.demo.WIDTH))
        for name, rendered in zip(names, clips, strict=True):
            clip = rendered.result()
            start, results = time.monotonic(), []
            with PredictionSink(out / "masks", name, video=True, overwrite=True) as sink:
                for result in predictor.iter_predict(clip["frames"]):
                    sink.write(result)
                    results.append(result)
                    advance()
            speeds.append(len(results) / (time.monotonic() - start))
            labels = [r.label for r in results]
            j, f = j_and_f(_stack(labels) > 0, clip["masks"] > 0)
            reports.append(ClipReport(name, clip["frames"], clip["masks"], _stack(labels), j, f))
            if not sys.stderr.isatty():
                print(f"  {name}: J {float(j.mean()):.3f}  F {float(f.mean()):.3f}", flush=True)
    table = Table(title="demo clips, packaged weights")
    for heading in ("clip", "J", "F"):
        table.add_column(heading, justify="left" if heading == "clip" else "right")
    for report in reports:
        table.add_row(report.name, f"{report.mean_j:.3f}", f"{report.mean_f:.3f}")
    mean_j = sum(r.mean_j for r in reports) / len(reports)
    mean_f = sum(r.mean_f for r in reports) / len(reports)
    table.add_section()
    table.add_row("mean", f"{mean_j:.3f}", f"{mean_f:.3f}")
    table_console().print(table)
    page = write_report(out / "report.html", reports, title="uvos demo")
    print(
        f"report: {page}\nmasks and overlay videos: {out / 'masks'}\n"
        f"network with decoding and writing: {max(speeds):.1f} frames/s; "
        f"all in {time.monotonic() - began:.0f} s\n"
        "next: uvos predict YOUR_VIDEO --out masks --overlay"
    )
    return 0


def _compile(predictor: Any, size: tuple[int, int]) -> None:
    """Has the predictor compile its programs for frames of this size, on a square that moves.

    Colours change smoothly: on noise the CRF would need tables that no clip needs.
    """
    import numpy as np
    from PIL import Image

    def colors(seed: int) -> np.ndarray:
        cells = np.random.default_rng(seed).integers(0, 256, (8, 14, 3), np.uint8)
        return np.asarray(Image.fromarray(cells).resize(size[::-1], Image.Resampling.BICUBIC))

    background, square = colors(0), colors(1)
    frames = np.stack([background] * predictor.chunk)
    for t, frame in enumerate(frames):
        frame[40:90, 60 + 3 * t : 120 + 3 * t] = square[40:90, 60:120]
    log = logging.getLogger("uvos_jax")
    level = log.level
    log.setLevel(logging.ERROR)  # whether it finds the square is nobody's concern
    try:
        predictor.predict(frames)
    finally:
        log.setLevel(level)


def _stack(labels):
    import numpy as np

    return np.stack(labels)
