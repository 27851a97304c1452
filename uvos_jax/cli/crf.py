"""`uvos crf`: a dense CRF on saved probability maps."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from uvos_jax.cli.common import progress_bar

EPILOG = """examples:
  uvos predict clip.mp4 --out masks --save probs
  uvos crf masks/probs --images . --out refined --preset cosnet
  uvos crf results/ --images DAVIS/JPEGImages/480p --out refined --preset pdb_convlstm

PROBS holds SEQUENCE/00000.png (8-bit grey, 255 = certainly foreground) or SEQUENCE.npz ('probs',
[T,H,W] in 0..1, optionally 'names', [T]). The frames are looked for as IMAGES/SEQUENCE/,
IMAGES/SEQUENCE/frames/ or IMAGES/SEQUENCE.mp4; image files are matched to maps by name.
Masks are written as palette PNGs in the DAVIS layout, OUT/SEQUENCE/00000.png."""


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "crf",
        help="refine saved probability maps with a dense CRF",
        description="Refine saved probability maps so that masks follow the edges of the frames.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("probs", metavar="PROBS", help="folder with probability maps")
    parser.add_argument("--images", required=True, help="folder with the frames or videos")
    parser.add_argument("--out", required=True, help="output folder")
    parser.add_argument(
        "--preset", default="cosnet",
        help="published settings by name; an unknown name lists them (default: cosnet)",
    )  # fmt: skip
    parser.add_argument("--iterations", type=int, help="mean-field steps (default: the preset's)")
    parser.add_argument(
        "--save", action="append", default=[], choices=["probs"],
        help="also save the refined 8-bit probability maps under OUT/probs",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    parser.add_argument(
        "--skip-existing", action="store_true", help="leave sequences alone that have results"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand."""
    from uvos_jax.ops.crf import get_preset
    from uvos_jax.predict.crf_postprocess import (
        find_sequences,
        find_video,
        read_probabilities,
        refine_sequence,
    )
    from uvos_jax.predict.sink import PredictionSink

    get_preset(args.preset)
    sequences = [
        (name, path, find_video(args.images, name)) for name, path in find_sequences(args.probs)
    ]
    for name, probs, images in sequences:
        if args.skip_existing and (Path(args.out) / name).exists():
            print(f"{name}: has results, skipped")
            continue
        began, count = time.monotonic(), 0
        sink = PredictionSink(args.out, name, probs="probs" in args.save, overwrite=args.overwrite)
        with sink, progress_bar(name, len(read_probabilities(probs))) as advance:
            for result in refine_sequence(
                probs, images, preset=args.preset, iterations=args.iterations
            ):
                sink.write(result)
                count += 1
                advance()
        speed = count / max(time.monotonic() - began, 1e-9)
        print(f"{name}: {count} masks in {sink.final} ({speed:.1f} frames/s)", flush=True)
    return 0
