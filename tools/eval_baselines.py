"""What needs no system: the trivial answers that a system must beat, on clips with masks.

    python tools/eval_baselines.py FOLDER

FOLDER/SEQUENCE holds `frames` and `masks`. Marked are the whole frame; the centred ellipse of half
the frame's sides; pixels whose value is more than twice their frame's mean: of the length of the
flow, of what the camera's motion leaves of it, and of the saliency of the picture. J is the mean
over frames without the first and last, then over sequences.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.cli.common import print_error
from uvos_jax.data.video_io import list_images, open_video, read_mask
from uvos_jax.errors import DataError, UvosError
from uvos_jax.flow import make_provider
from uvos_jax.metrics.davis import region_similarity
from uvos_jax.ops.flow import planar_motion, resize_flow
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.ops.saliency import manifold_ranking_saliency

#: Size at which everything but the video is looked at.
SIZE = (128, 224)


@jax.jit
def saliency(frame: jax.Array) -> jax.Array:
    return manifold_ranking_saliency(resize_bilinear(frame[None].astype(jnp.float32), SIZE))[0]


@jax.jit
def strengths(flow: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lengths of flow `[H,W,2]` and of what the camera's motion leaves of it, at `SIZE`."""
    small = resize_flow(flow, SIZE)
    return tuple(jnp.linalg.norm(x, axis=-1) for x in (small, small - planar_motion(small)))


def standing_out(values: jax.Array, size: tuple[int, int]) -> np.ndarray:
    full = np.asarray(resize_bilinear(values[None, ..., None], size)[0, ..., 0])
    return full > 2 * full.mean()


def score(folder: Path, provider: str) -> dict[str, float]:
    frames = list(open_video(folder / "frames"))
    masks = [read_mask(p) > 0 for p in list_images(folder / "masks")]
    if len(frames) != len(masks):
        raise DataError(f"{folder} holds {len(frames)} frames and {len(masks)} masks")
    H, W = size = frames[0].shape[:2]
    y, x = np.meshgrid(np.linspace(-2, 2, H), np.linspace(-2, 2, W), indexing="ij")
    estimate, found = make_provider(provider), {}
    for t in range(1, len(frames) - 1):
        field = jnp.asarray(estimate(np.stack([frames[t], frames[t - 1]]))[0])
        length, left = strengths(field)
        answers = {
            "whole frame": np.ones(size, bool),
            "centred ellipse": x**2 + y**2 < 1,
            "flow": standing_out(length, size),
            "residual flow": standing_out(left, size),
            "saliency": standing_out(saliency(jnp.asarray(frames[t])), size),
        }
        for name, mask in answers.items():
            found.setdefault(name, []).append(float(region_similarity(mask, masks[t])))
    return {name: float(np.mean(values)) for name, values in found.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--flow", default="tvl1:longest=448,warps=3,iterations=10")
    args = parser.parse_args(argv)
    try:
        folders = sorted(p.parent for p in args.folder.glob("*/masks"))
        if not folders:
            raise DataError(f"{args.folder} holds no folder SEQUENCE/masks")
        rows = {p.name: score(p, args.flow) for p in folders}
    except UvosError as error:
        return print_error(error)
    names = list(next(iter(rows.values())))
    rows["mean"] = {n: float(np.mean([row[n] for row in rows.values()])) for n in names}
    print(f"| sequence | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for sequence, row in rows.items():
        print(f"| {sequence} | {' | '.join(f'{row[n]:.3f}' for n in names)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
