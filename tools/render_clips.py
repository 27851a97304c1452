"""Synthetic clips as files: rendered once, read by every training that wants them.

    python tools/render_clips.py --out clips --count 3000 --processes 2
    python tools/compute_flow.py clips/videos --out clips/tvl1 --direction backward --provider tvl1

OUT/videos has a folder for every clip (`frames/00000.png`, `masks/00000.png`, what the source
`folder` reads), OUT/flow the exact flow from each frame to the one before it. Clips that are there
stay, so a call that was cut short goes on; `--start` continues a set.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

from uvos_jax import synthetic
from uvos_jax.cli.common import print_error, process_pool
from uvos_jax.errors import ConfigError, UvosError


def write_clip(out: Path, name: str, frames, masks, flow) -> None:
    """One clip; its folder of frames gets its name last."""
    import numpy as np
    from PIL import Image

    from uvos_jax.data.flow_files import WRITERS

    folder, partial = out / "videos" / name, out / "videos" / f".{name}"
    shutil.rmtree(partial, ignore_errors=True)
    for kind in ("frames", "masks"):
        (partial / kind).mkdir(parents=True)
    for t, (frame, mask) in enumerate(zip(frames, masks, strict=True)):
        Image.fromarray(frame).save(partial / "frames" / f"{t:05d}.png", compress_level=1)
        Image.fromarray(mask * np.uint8(255)).save(partial / "masks" / f"{t:05d}.png")
        if t:
            WRITERS["npz"](out / "flow" / name / f"{t:05d}.npz", flow[t])
    partial.rename(folder)


def render(out: str, indices: list[int], cfg: synthetic.SceneConfig, seed: int) -> int:
    """Renders the clips of these indices that are not there yet; returns how many."""
    import jax

    missing = [i for i in indices if not (Path(out) / "videos" / f"{i:06d}").is_dir()]
    wanted = ("video", "mask", "flow_bw")
    rendered = jax.jit(lambda i: synthetic.clip(synthetic.clip_key(seed, i), cfg, wanted))
    for index in missing:
        record = jax.device_get(rendered(index))
        example = synthetic.to_example(record)
        write_clip(
            Path(out), f"{index:06d}", example["frames"], example["masks"], record["flow_bw"]
        )
    return len(missing)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True)
    parser.add_argument("--preset", default="outdoor", help="of uvos_jax.synthetic (outdoor)")
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--start", type=int, default=0, help="number of the first clip")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", default="128x224", metavar="HxW")
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--label", default="moving", choices=("moving", "salient"))
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    args = parser.parse_args(argv)
    try:
        return run(args)
    except UvosError as error:
        return print_error(error)


def run(args: argparse.Namespace) -> int:
    try:
        H, W = (int(n) for n in args.size.split("x"))
    except ValueError:
        raise ConfigError(
            f"--size {args.size}: expected HEIGHTxWIDTH, for example 128x224"
        ) from None
    if args.frames < 2 or args.count < 1 or args.processes < 1:
        raise ConfigError(
            f"--frames {args.frames} --count {args.count} --processes {args.processes}: expected "
            "at least two frames, one clip and one process"
        )
    cfg = synthetic.config(args.preset, height=H, width=W, frames=args.frames, label=args.label)
    out = Path(args.out)
    about = {"preset": args.preset, "seed": args.seed, "size": [H, W], "frames": args.frames,
             "label": args.label}  # fmt: skip
    made = out / "clips.json"
    if made.is_file() and json.loads(made.read_text()) != about:
        raise ConfigError(
            f"{out} holds other clips ({made.read_text().strip()}): choose another folder"
        )
    from uvos_jax.data.flow_files import write_meta

    (out / "videos").mkdir(parents=True, exist_ok=True)
    made.write_text(json.dumps(about) + "\n")
    write_meta(out / "flow", {"provider": "exact", "direction": "backward", "format": "npz"})
    indices, N = list(range(args.start, args.start + args.count)), args.processes
    began = time.monotonic()
    if N == 1:
        total = render(str(out), indices, cfg, args.seed)
    else:
        with process_pool(N) as pool:
            jobs = [pool.submit(render, str(out), indices[i::N], cfg, args.seed) for i in range(N)]
            total = sum(job.result() for job in jobs)
    print(f"{out}: {total} clips rendered, {len(indices) - total} were there, "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
