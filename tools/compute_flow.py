"""Optical flow of a data set, on several processes; an interrupted run resumes.

    python tools/compute_flow.py DAVIS/JPEGImages/480p --out DAVIS/flow
    python tools/compute_flow.py FRAMES --out FLOW --provider opencv_dis --processes 8

FRAMES is a tree whose folders of images (or `<sequence>/frames`) are sequences, or holds video
files. Files are OUT/SEQUENCE/FRAME.npz; `{"name": "davis", "root": "DAVIS", "flow": "flow"}` in
`data.train` reads them. Each process takes the next sequence that nobody has begun; on several
machines give each `--shard I/N`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import sys
import time
from pathlib import Path

from uvos_jax.cli.common import parse_shard, print_error, process_pool
from uvos_jax.cli.flow import add_flow_options
from uvos_jax.cli.predict import expand, unique_names
from uvos_jax.errors import ConfigError, UvosError
from uvos_jax.flow.io import compute_sequence, open_folder


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("frames", nargs="+", metavar="FRAMES")
    parser.add_argument("--out", required=True)
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="take every N-th sequence")
    parser.add_argument("--color", action="store_true", help="also write colour pictures")
    add_flow_options(parser, "tvl1", "npz")
    args = parser.parse_args(argv)
    try:
        return run(args)
    except UvosError as error:
        return print_error(error)


def run(args: argparse.Namespace) -> int:
    index, count = parse_shard(args.shard)
    if args.processes < 1:
        raise ConfigError(f"--processes must be at least 1, got {args.processes}")
    videos = expand(args.frames)
    names = unique_names(videos)
    out = open_folder(
        args.out, args.provider, args.direction, args.format, overwrite=args.overwrite
    )
    options = {
        "direction": args.direction, "format": args.format, "color": args.color,
        "max_flow": args.max_flow, "overwrite": args.overwrite,
    }  # fmt: skip
    jobs = [(Path(v), n, out, args.provider, options) for v, n in zip(videos, names, strict=True)][
        index::count
    ]
    began, total = time.monotonic(), 0

    def report(result: tuple[str, int, int], done: int) -> int:
        name, written, kept = result
        there = f", {kept} were there" if kept else ""
        print(f"[{done}/{len(jobs)}] {name}: {written} written{there}", flush=True)
        return written

    if args.processes == 1 or len(jobs) == 1:
        for done, job in enumerate(jobs, start=1):
            total += report(compute_sequence(*job), done)
    else:
        with process_pool(args.processes) as pool:
            futures = [pool.submit(compute_sequence, *job) for job in jobs]
            try:
                for done, future in enumerate(concurrent.futures.as_completed(futures), start=1):
                    total += report(future.result(), done)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    print(f"{total} flow fields in {out} ({total / (time.monotonic() - began):.1f} frames/s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
