"""Every flow provider on synthetic clips with exact flow and, if given, on real frames.

    python tools/bench_flow.py [NAME ...] [--frames FOLDER ...] [--clips 8] [--size 240x424]

Synthetic: end-point error over all pixels and over those that are not occluded. Real frames (two
consecutive ones of each folder, from the middle): mean absolute difference of grey values after
warping the second frame back, share of pixels whose way there and back does not close, and seconds
per pair (best of three after the first). Providers whose library or weights are missing are left
out.
"""

from __future__ import annotations

import argparse
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax import synthetic
from uvos_jax.data.video_io import open_video
from uvos_jax.errors import UvosError
from uvos_jax.flow import make_provider
from uvos_jax.metrics.flow import endpoint_error
from uvos_jax.ops.tvl1 import to_gray
from uvos_jax.ops.warp import backward_warp, forward_backward_occlusion

NAMES = ["tvl1", "tvl1:warps=5,iterations=20", "tvl1_fast", "lk", "lk:scale=0.5", "pwc_lite",
         "opencv_dis", "opencv_dis:preset=fast", "opencv_dis:preset=ultrafast",
         "opencv_farneback", "skimage_tvl1"]  # fmt: skip


def synthetic_clips(count: int, size: tuple[int, int]):
    """Pairs uint8 `[N,2,H,W,3]`, flow and occlusion from seeds that nothing trains on."""
    cfg = synthetic.config("fast", height=size[0], width=size[1], frames=2)
    render = jax.jit(lambda key: synthetic.clip(key, cfg, ("video", "flow_fw", "occ_fw")))
    records = [render(jax.random.fold_in(jax.random.key(77), i)) for i in range(count)]
    frames = np.stack([np.round(np.asarray(r["video"]) * 255) for r in records]).astype(np.uint8)
    return frames, *(
        np.stack([np.asarray(r[k][0]) for r in records]) for k in ("flow_fw", "occ_fw")
    )


@jax.jit
def judge(first, second, forward, backward):
    """Grey difference after warping, and the share of pixels that do not come back."""
    a, b = (to_gray(x.astype(jnp.float32))[None, ..., None] for x in (first, second))
    difference = jnp.abs(backward_warp(b, forward[None]) - a).mean()
    return difference, forward_backward_occlusion(forward[None], backward[None]).mean()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", default=NAMES)
    parser.add_argument("--frames", nargs="*", default=[], metavar="FOLDER")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--size", default="240x424")
    args = parser.parse_args(argv)
    size = tuple(int(n) for n in args.size.split("x"))
    frames, true, occluded = synthetic_clips(args.clips, size)
    pairs = []
    for folder in args.frames:
        reader = open_video(folder)
        pairs.append(reader.sample([len(reader) // 2, len(reader) // 2 + 1]))
    print(f"{args.clips} synthetic pairs {args.size}, mean motion "
          f"{np.linalg.norm(true, axis=-1).mean():.2f} px; {len(pairs)} real pairs "
          f"{pairs[0].shape[2] if pairs else 0}x{pairs[0].shape[1] if pairs else 0}")  # fmt: skip
    print(
        "| provider | EPE | EPE, visible | warped difference | not closed | s/pair | first call s |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in args.names:
        try:
            provider = make_provider(name)
        except UvosError as error:
            print(f"| {name} | left out: {error} |")
            continue
        guess = np.concatenate([provider(pair) for pair in frames])
        error = np.asarray(endpoint_error(guess, true))
        visible = error[~occluded.astype(bool)]
        judged, seconds, first = [], [], 0.0
        for number, (a, b) in enumerate(pairs):
            times = []
            for _ in range(4 if number == 0 else 2):
                began = time.perf_counter()
                forward = provider.between(a[None], b[None])[0]
                times.append(time.perf_counter() - began)
            first = first or times[0]
            seconds.append(min(times[1:]))
            backward = provider.between(b[None], a[None])[0]
            judged.append([float(x) for x in judge(a, b, forward, backward)])
        difference, open_share = np.mean(judged, 0) if judged else (np.nan, np.nan)
        speed = min(seconds) if seconds else np.nan
        print(f"| {name} | {error.mean():.3f} | {visible.mean():.3f} | {difference:.2f} | "
              f"{open_share:.1%} | {speed:.3f} | {first:.1f} |", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
