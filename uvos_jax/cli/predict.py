"""`uvos predict`: masks for videos and folders of frames."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import copy
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from uvos_jax.cli.common import make_predictor, parse_shard, process_pool, progress_bar
from uvos_jax.errors import ConfigError, DataError
from uvos_jax.train import distributed

EPILOG = """examples:
  uvos predict clip.mp4
  uvos predict clip.mp4 frames_folder/ --out masks --overlay
  uvos predict DAVIS/JPEGImages/480p --out masks --crf cosnet
  uvos predict clip.mp4 --system cosnet --weights cosnet.npz --save probs
  uvos predict clip.mp4 --system matnet --weights matnet.npz --flow opencv_dis
  uvos predict clip.mp4 --system mug --weights mug.npz --first-mask first.png
  uvos predict DAVIS/JPEGImages/480p --system agnn --weights agnn.npz --instances
  uvos predict corpus/ --out masks --skip-existing --processes 4
  uvos predict corpus/ --out masks --skip-existing --shard 3/16    # the fourth of 16 machines
  uvos predict corpus/ --out masks --skip-existing --batch 16 --shard auto       # on every host
  uvos predict kitchen.mp4 --system teacher_student --weights ts.npz --teach shown_by_hand.mp4

Masks are palette PNGs in the DAVIS layout, OUT/VIDEO/00000.png: 0 background, 1 foreground, or with
--first-mask and --instances the numbers of objects."""


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "predict",
        help="masks for videos or folders of frames",
        description="Find and cut out the primary object of videos.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "videos", nargs="+", metavar="VIDEO",
        help="video file, folder of frames, or folder of such folders",
    )  # fmt: skip
    parser.add_argument("--out", default="masks", help="output folder (default: masks)")
    parser.add_argument("--system", help="system id; default: the packaged weights' system")
    parser.add_argument("--weights", help="npz, safetensors or checkpoint folder")
    parser.add_argument("--crf", metavar="PRESET", help="refine with a dense CRF, e.g. cosnet")
    parser.add_argument(
        "--refine", metavar="PRESET|none",
        help="refine at the network's resolution, which is fast; default: as the weights say",
    )  # fmt: skip
    parser.add_argument(
        "--appearance", type=float, metavar="SHARE",
        help="share, 0 to 1, of what the video's own object looks like, learned from where the "
        "network is sure; default: as the weights say",
    )  # fmt: skip
    parser.add_argument(
        "--smooth", type=float, metavar="SHARE",
        help="share, 0 to 1, that the next frame has in the odds of each one, along flow to it; "
        "default: as the weights say",
    )  # fmt: skip
    parser.add_argument(
        "--guided", action=argparse.BooleanOptionalAction,
        help="enlarge masks along the edges of the picture; default: as the weights say",
    )  # fmt: skip
    parser.add_argument("--overlay", action="store_true", help="also write OUT/VIDEO_overlay.mp4")
    parser.add_argument(
        "--save", action="append", default=[], choices=["probs", "geometry"],
        help="also save 8-bit probability maps under OUT/probs; what sfmnet sees of depth, flow "
        "and the camera's path under OUT/geometry",
    )  # fmt: skip
    parser.add_argument("--threshold", type=float, help="foreground above this (default 0.5)")
    parser.add_argument("--references", type=int, help="reference frames (global systems)")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored frame")
    parser.add_argument(
        "--stream", action="store_true", help="look at past frames only, as on live video"
    )
    parser.add_argument(
        "--flow", metavar="PROVIDER|DIR",
        help="for systems that read optical flow: an estimator (default tvl1; `uvos flow --help` "
        "lists them) or a folder of flow files",
    )  # fmt: skip
    parser.add_argument(
        "--first-mask", metavar="PNG|DIR",
        help="one-shot (mug): carry the object ids of this mask of the first frame through the "
        "video; a folder holds VIDEO/FRAME.png",
    )  # fmt: skip
    parser.add_argument(
        "--instances", action="store_true",
        help="number the objects, as for DAVIS-2017 (agnn, iet, mug); agnn joins them along --flow",
    )  # fmt: skip
    parser.add_argument(
        "--proposals", metavar="DIR",
        help="with --instances: masks of an instance segmenter, DIR/VIDEO/FRAME.npz with `masks` "
        "and `scores`; default: connected parts of the foreground",
    )  # fmt: skip
    parser.add_argument(
        "--no-adapt", action="store_true", help="do not adapt to the video (teacher_student)"
    )
    parser.add_argument(
        "--teach", metavar="VIDEO",
        help="learn from the start of this video, not from that of each VIDEO (teacher_student)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    parser.add_argument(
        "--skip-existing", action="store_true", help="leave videos alone that have results"
    )
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="share the videos between N processes"
    )
    parser.add_argument(
        "--batch", type=int, default=1, metavar="N",
        help="N videos at a time: their windows go through the network in one call, spread over "
        "the accelerators of this machine",
    )  # fmt: skip
    parser.add_argument(
        "--shard", default="0/1", metavar="I/N|auto",
        help="take every N-th video, beginning with number I (from 0): one machine of several; "
        "auto: the process of this number of a pod, SLURM or MPI job, or of --coordinator's",
    )  # fmt: skip
    distributed.add_arguments(parser)
    return parser


def expand(paths: list[str]) -> list[Path]:
    """Folders of frame folders and of videos become their contents, VIDEO means VIDEO/frames.

    Raises:
      DataError: a path does not exist, or a folder holds neither frames nor videos.
    """
    from uvos_jax.data.video_io import VIDEO_SUFFIXES, list_images

    def frames_of(path: Path) -> list[Path]:
        """The folder that holds the frames of one video: itself or, beside its masks, `frames`."""
        folders = (path, path / "frames")
        return [folder for folder in folders if folder.is_dir() and list_images(folder)][:1]

    videos: list[Path] = []
    for text in paths:
        path = Path(text)
        if not path.exists():
            raise DataError(f"video {path} does not exist: give a video file or folder of frames")
        inside = [path] if path.is_file() else frames_of(path)
        for p in [] if inside else sorted(path.iterdir()):
            inside += [p] if p.suffix.lower() in VIDEO_SUFFIXES else frames_of(p)
        if not inside:
            raise DataError(f"folder {path} holds no frames, videos or folders of frames")
        videos.extend(inside)
    return videos


def unique_names(videos: list[Path]) -> list[str]:
    """Output folder names; raises `DataError` when two videos would share one."""
    from uvos_jax.data.video_io import open_video

    names: dict[str, Path] = {}
    for video in videos:
        name = open_video(video).name if video.is_dir() else video.stem
        if name in names:
            raise DataError(
                f"{names[name]} and {video} would both be written to {name}/: predict them into "
                "different --out folders"
            )
        names[name] = video
    return list(names)


def check_object_options(args: argparse.Namespace) -> None:
    """Raises `ConfigError` for options that contradict `--first-mask` or `--instances`."""
    if args.proposals is not None and not args.instances:
        raise ConfigError("--proposals are split into objects by --instances: give it, too")
    if args.first_mask is None:
        return
    given = {
        "--instances": args.instances,
        "--crf": args.crf,
        "--flip": args.flip,
        "--threshold": args.threshold is not None,
        "--references": args.references is not None,
        "--flow": args.flow is not None,
    }
    for option, value in given.items():
        if value:
            raise ConfigError(
                f"--first-mask carries the ids of a mask along and looks at nothing else: leave "
                f"{option} out"
            )


def run_processes(args: argparse.Namespace, videos: list[Path]) -> int:
    """Every process takes every N-th of the videos.

    Raises:
      UvosError: what the first process to fail raised; the others finish their videos.
      DataError: a process was killed.
    """
    jobs = []
    for i in range(min(args.processes, len(videos))):
        job = copy.copy(args)
        part = videos[i :: args.processes]
        job.videos, job.processes, job.shard = [str(v) for v in part], 1, "0/1"
        job.coordinator = None
        jobs.append(job)
    with process_pool(len(jobs)) as pool:
        try:
            codes = [future.result() for future in [pool.submit(run, job) for job in jobs]]
        except concurrent.futures.process.BrokenProcessPool:
            raise DataError(
                f"one of {len(jobs)} processes was killed, perhaps for lack of memory: finished "
                "videos are complete, so give the same command with --skip-existing again, with "
                "fewer --processes if memory ran out"
            ) from None
    return max(codes)


def results_of(args: argparse.Namespace, predictor: Any, reader: Any, flow: str | None) -> Any:
    """The frames of one prediction, in the mode that the options ask for."""
    from uvos_jax.predict import objects

    if args.first_mask is not None:
        mask = objects.first_mask_of(args.first_mask, reader)
        return objects.iter_first_mask(predictor, reader, mask)
    if args.instances:
        return objects.iter_instances(
            predictor, reader, proposals=args.proposals, flow=flow, stream=args.stream
        )
    return predictor.iter_predict(reader, stream=args.stream)


def predict_video(
    args: argparse.Namespace,
    predictor: Any,
    video: Path,
    name: str,
    flow: str | None,
    bar: Callable[..., Any] = progress_bar,
) -> None:
    """Writes what the options ask for of one video, unless it is there and may stay.

    Args:
      bar: context manager `bar(name, frames)` of a function to call for each frame.
    """
    from uvos_jax.data.video_io import open_video
    from uvos_jax.predict.extras import write_extras
    from uvos_jax.predict.sink import PredictionSink

    if args.skip_existing and (Path(args.out) / name).exists():
        print(f"{name}: has results, skipped")
        return
    reader = open_video(video)
    sink = PredictionSink(
        args.out, name, fps=reader.fps, probs="probs" in args.save, video=args.overlay,
        overwrite=args.overwrite,
    )  # fmt: skip
    began, count = time.monotonic(), 0
    with sink, bar(name, reader.num_frames) as advance:
        for result in results_of(args, predictor, reader, flow):
            sink.write(result)
            count += 1
            advance()
    speed = count / max(time.monotonic() - began, 1e-9)
    extra = f", {sink.overlay_path}" if args.overlay else ""
    lines = [f"{name}: {count} masks in {sink.final}{extra} ({speed:.1f} frames/s)"]
    if "geometry" in args.save:
        folder = Path(args.out) / "geometry" / name
        lines.append(f"{name}: {write_extras(predictor, video, folder, overwrite=args.overwrite)}")
    print("\n".join(lines), flush=True)


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand."""
    from uvos_jax.predict.batched import Together
    from uvos_jax.predict.objects import check_mode

    check_object_options(args)
    if args.teach is not None and args.no_adapt:
        raise ConfigError("--teach adapts and --no-adapt forbids it: give one of the two")
    index, count = shard_of(args)
    for option in ("processes", "batch"):
        if getattr(args, option) < 1:
            raise ConfigError(f"--{option} must be at least 1, got {getattr(args, option)}")
    if args.batch > 1 and (args.instances or args.first_mask is not None):
        raise ConfigError(
            f"--batch {args.batch} shares calls of the network for masks alone: leave it or "
            "--instances and --first-mask out"
        )
    videos = expand(args.videos)
    names = unique_names(videos)  # of all shards: two of them would write to one folder
    videos, names = videos[index::count], names[index::count]
    if min(args.processes, len(videos)) > 1:
        return run_processes(args, videos)
    if args.first_mask is not None and len(videos) > 1 and not Path(args.first_mask).is_dir():
        raise ConfigError(
            f"--first-mask {args.first_mask} is one mask for {len(videos)} videos: give a folder "
            "with VIDEO/FRAME.png, or one video at a time"
        )
    flow = args.flow
    if args.instances:
        args.flow = None  # it joins the objects, most networks do not read it
    predictor = make_predictor(args)
    if args.first_mask is not None:
        check_mode(predictor.system, "first_mask")
    if args.instances:
        check_mode(predictor.system, "instances")
        if "flow" in predictor.system.spec.requires:
            predictor.read_flow(flow)
            flow = None
    if "geometry" in args.save:
        from uvos_jax.predict.extras import check_extras

        for name in names:
            if not (args.skip_existing and (Path(args.out) / name).exists()):
                folder = Path(args.out) / "geometry" / name
                check_extras(predictor.system, folder, overwrite=args.overwrite)
    if args.teach is not None:
        predictor = predictor.taught(args.teach)
    jobs = list(zip(videos, names, strict=True))
    if args.batch == 1:
        for video, name in jobs:
            predict_video(args, predictor, video, name, flow)
        return 0
    together = Together(predictor, args.batch)
    title = f"{len(jobs)} videos"
    with progress_bar(title, None) as advance, ThreadPoolExecutor(args.batch) as pool:

        def work(video: Path, name: str) -> None:
            with together.joined() as shared:
                predict_video(
                    args, shared, video, name, flow, lambda *_: contextlib.nullcontext(advance)
                )

        for future in [pool.submit(work, video, name) for video, name in jobs]:
            future.result()
    return 0


def shard_of(args: argparse.Namespace) -> tuple[int, int]:
    """Number of this process and of all that share the videos.

    Raises:
      ConfigError: `--shard` that is neither I/N nor auto, or a coordinator without auto.
    """
    if args.shard != "auto":
        if args.coordinator:
            raise ConfigError(
                f"--coordinator numbers the processes itself: give --shard auto, not {args.shard}"
            )
        return parse_shard(args.shard)
    import jax

    distributed.initialize(args.coordinator, args.num_processes, args.process_id)
    return jax.process_index(), jax.process_count()
