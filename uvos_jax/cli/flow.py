"""`uvos flow`: optical flow of videos and folders of frames."""

from __future__ import annotations

import argparse
import time

from uvos_jax.cli.common import progress_bar
from uvos_jax.cli.predict import expand, unique_names

EPILOG = """examples:
  uvos flow clip.mp4
  uvos flow clip.mp4 --provider opencv_dis --out flow --color
  uvos flow DAVIS/JPEGImages/480p --provider tvl1_fast --format npz --out flow

Files are OUT/VIDEO/00000.flo, float32 (u right, v down) in pixels; 00000 leads from frame 0 to
frame 1 (with --direction backward, 00001 from frame 1 to frame 0). A run that was interrupted goes
on where it stopped. For whole data sets on several processes: tools/compute_flow.py.

providers: """


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the subcommand."""
    from uvos_jax.flow import DEFAULT_PROVIDER, PROVIDERS

    listed = "".join(f"\n  {name:<18}{entry.about}" for name, entry in PROVIDERS.items())
    parser = subparsers.add_parser(
        "flow",
        help="optical flow of videos or folders of frames",
        description="Compute dense optical flow.",
        epilog=EPILOG + listed,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "videos", nargs="+", metavar="VIDEO",
        help="video file, folder of frames, or folder of such folders",
    )  # fmt: skip
    parser.add_argument("--out", default="flow", help="output folder (default: flow)")
    add_flow_options(parser, DEFAULT_PROVIDER, "flo")
    parser.add_argument("--no-color", dest="color", action="store_false", help="no colour pictures")
    return parser


def add_flow_options(parser: argparse.ArgumentParser, provider: str, format: str) -> None:
    """Options that `tools/compute_flow.py` shares."""
    parser.add_argument(
        "--provider", default=provider,
        help=f"estimator, with options as NAME:option=value,... (default: {provider})",
    )  # fmt: skip
    parser.add_argument("--direction", default="forward", choices=["forward", "backward"])
    parser.add_argument(
        "--format", default=format, choices=["flo", "npz", "kitti"], help=f"default: {format}"
    )
    parser.add_argument(
        "--max-flow", type=float, help="pixels of full saturation in colour pictures (default: "
        "each frame's maximum)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="compute files anew that exist")


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand."""
    from uvos_jax.data.video_io import open_video
    from uvos_jax.flow import make_provider
    from uvos_jax.flow.io import open_folder, write_video_flow

    videos = expand(args.videos)
    names = unique_names(videos)
    provider = make_provider(args.provider)
    out = open_folder(
        args.out, provider.name, args.direction, args.format, overwrite=args.overwrite
    )
    for video, name in zip(videos, names, strict=True):
        reader = open_video(video)
        began = time.monotonic()
        total = None if reader.num_frames is None else reader.num_frames - 1
        with progress_bar(name, total) as advance:
            written, kept = write_video_flow(
                reader, out, provider, direction=args.direction, format=args.format,
                color=args.color, max_flow=args.max_flow, overwrite=args.overwrite, name=name,
                progress=advance,
            )  # fmt: skip
        speed = written / max(time.monotonic() - began, 1e-9)
        there = f", {kept} were there" if kept else ""
        print(f"{name}: {written} flow fields in {out / name} ({speed:.1f} frames/s){there}",
              flush=True)  # fmt: skip
    return 0
