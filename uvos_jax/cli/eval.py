"""`uvos eval`: scores masks on disk, made by any program."""

from __future__ import annotations

import argparse
import sys
from typing import Any

EPILOG = """examples:
  uvos eval --results results/ --dataset davis16 --root DAVIS/
  uvos eval --results results/ --dataset davis16 --root clips/ --sequences present --html r.html
  uvos eval --results results/ --dataset fbms --root FBMS/ --json fbms.json --csv fbms.csv
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the subcommand and its options."""
    from uvos_jax.evaluation.datasets import DATASETS

    parser = subparsers.add_parser(
        "eval",
        help="score masks by a data set's official protocol",
        description="Scores result maps <results>/<sequence>/<frame>.png against annotations.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", required=True, metavar="DIR", help="folder of result maps")
    parser.add_argument("--dataset", default="davis16", choices=DATASETS, help="protocol")
    parser.add_argument("--root", required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--split", help="subset, e.g. train (DAVIS: val by default)")
    parser.add_argument(
        "--sequences",
        metavar="present|A,B,...",
        help="score only the sequences that are there, or these; default: the whole split",
    )
    parser.add_argument("--measures", metavar="J,F,T", help="measures to compute")
    parser.add_argument("--resolution", default="480p", help="subfolder of the DAVIS layout")
    parser.add_argument(
        "--merge-objects", action="store_true", help="count every object id as foreground"
    )
    parser.add_argument("--workers", type=int, default=2, help="sequences scored at a time")
    parser.add_argument("--json", metavar="FILE", help="write all numbers, per frame too")
    parser.add_argument("--csv", metavar="FILE", help="write the table")
    parser.add_argument("--html", metavar="FILE", help="write a page with curves and worst frames")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Evaluates, prints the table, writes the files that were asked for."""
    from rich.console import Console

    from uvos_jax.evaluation.evaluator import evaluate
    from uvos_jax.evaluation.report import check_writable

    for path in (args.json, args.csv, args.html):
        if path:
            check_writable(path)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a file or a pipe has no width; 80 columns fold the numbers

    def scored(sequence: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r\x1b[K{done}/{total} {sequence}", end=end, file=sys.stderr, flush=True)

    report = evaluate(
        args.results,
        dataset=args.dataset,
        root=args.root,
        split=args.split,
        sequences=args.sequences,
        measures=[m.strip() for m in args.measures.split(",")] if args.measures else None,
        workers=args.workers,
        resolution=args.resolution,
        merge_objects=args.merge_objects,
        progress=scored,
    )
    report.print(console)
    for kind in ("json", "csv", "html"):
        path = getattr(args, kind)
        if path:
            getattr(report, f"to_{kind}")(path)
            print(f"wrote {path}")
    return 0
