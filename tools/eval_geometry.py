"""Depth, camera, flow and masks of SfM-Net on held-out ray-cast scenes, beside trivial guesses.

    python tools/eval_geometry.py runs/sfmnet/weights.npz [--scenes 256] [--picture scene.png]

The scenes are those of the configuration's source with a seed that nothing trains on. Trivial
guesses: the mean depth of other scenes everywhere, a camera that stands still, no flow, every pixel
or a centred ellipse of a quarter of the frame as mask. `--picture` writes the first scenes: frame,
true and predicted mask, depth, and flow.
"""

from __future__ import annotations

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from uvos_jax.config import build, from_dict
from uvos_jax.convert.variables import load_variables
from uvos_jax.data.sources import make_source
from uvos_jax.metrics.flow import endpoint_error
from uvos_jax.metrics.geometry import depth_errors, motion_errors
from uvos_jax.ops.flow import flow_to_color
from uvos_jax.predict.extras import depth_picture

HELD_OUT, OTHERS = 1 << 20, 1 << 21
BATCH = 16


def region_similarity(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """J per mask; 1 where both are empty."""
    union = jnp.sum(predicted | target, axis=(1, 2))
    overlap = jnp.sum(predicted & target, axis=(1, 2))
    return jnp.where(union > 0, overlap / jnp.maximum(union, 1), 1.0)


def ellipse(H: int, W: int, share: float = 0.25) -> np.ndarray:
    """A centred ellipse with the frame's proportions that covers `share` of it."""
    y, x = np.mgrid[:H, :W]
    radius = 4 * share / np.pi
    return ((2 * (x + 0.5) / W - 1) ** 2 + (2 * (y + 0.5) / H - 1) ** 2) < radius


def errors(depth: jax.Array, camera: jax.Array, flow: jax.Array, mask: jax.Array, batch: dict):
    """All errors of predictions for the first frames of pairs."""
    # flow of points beside or behind the camera has no bound
    true = jnp.clip(batch["flow"][:, 0], -64, 64)
    return {
        **depth_errors(depth, batch["depth"][:, 0]),
        **motion_errors(camera, batch["camera"][:, 0]),
        "epe": endpoint_error(jnp.clip(flow, -64, 64), true).mean((1, 2)),
        "J": region_similarity(mask, batch["masks"][:, 0] > 0),
    }


def picture(batch: dict, outputs: dict, count: int = 4) -> Image.Image:
    """Rows of frame, masks, depths and flows (true, predicted) of the first pairs."""
    rows = []
    for i in range(min(count, len(batch["frames"]))):
        frame = np.asarray(batch["frames"][i, 0])
        masks = [batch["masks"][i, 0] > 0, outputs["logits"][i, 0, ..., 0] > 0]
        depths = [batch["depth"][i, 0], outputs["depth"][i, 0]]
        fastest = float(jnp.abs(batch["flow"][i, 0]).max())
        flows = [flow_to_color(f[i, 0], fastest) for f in (batch["flow"], outputs["flow"])]
        cells = [frame]
        cells += [np.repeat(255 * np.asarray(m, np.uint8)[..., None], 3, -1) for m in masks]
        cells += [np.repeat(depth_picture(np.asarray(d))[..., None], 3, -1) for d in depths]
        cells += [np.asarray(f).astype(np.uint8) for f in flows]
        rows.append(np.concatenate(cells, axis=1))
    image = Image.fromarray(np.concatenate(rows))
    return image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights")
    parser.add_argument("--scenes", type=int, default=256)
    parser.add_argument("--picture", metavar="PNG")
    args = parser.parse_args(argv)

    variables = load_variables(args.weights)
    config = from_dict(variables.meta["config"])
    system = build(config)
    fields = {k: v for k, v in dict(config.data.train[0]).items() if k in ("preset", "scene")}
    source = make_source("raycast", size=tuple(config.data.size), clip_len=2, **fields)
    H, W = source.cfg.height, source.cfg.width
    others = source.render(OTHERS, 0, 64)["depth"]
    mean_depth = float(jnp.exp(jnp.log(others).mean()))

    def shown(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, (BATCH, *x.shape))

    @jax.jit
    def network(batch: dict):
        outputs, _ = system.apply(variables, batch, train=False)
        first = {k: v[:, 0] for k, v in outputs.items()}
        return outputs, errors(
            first["depth"], first["camera"], first["flow"], first["logits"][..., 0] > 0, batch
        )

    @jax.jit
    def guess(batch: dict, mask: jax.Array):
        return errors(
            jnp.full((BATCH, H, W), mean_depth), shown(jnp.eye(3, 4)),
            jnp.zeros((BATCH, H, W, 2)), shown(mask), batch,
        )  # fmt: skip

    found: dict[str, list] = {"network": [], "trivial": [], "ellipse": []}
    for start in range(0, args.scenes, BATCH):
        batch = source.render(HELD_OUT, start, BATCH)
        outputs, values = network(batch)
        found["network"].append(values)
        found["trivial"].append(guess(batch, jnp.ones((H, W), bool)))
        found["ellipse"].append(guess(batch, jnp.asarray(ellipse(H, W))))
        if args.picture and start == 0:
            picture(batch, outputs).save(args.picture)
    means = {
        name: {k: float(np.nanmean(np.concatenate([v[k] for v in rows]))) for k in rows[0]}
        for name, rows in found.items()
    }
    print(f"{BATCH * len(found['network'])} scenes of {H}x{W}, mean of other scenes' depth "
          f"{mean_depth:.2f}")  # fmt: skip
    print("| error | network | trivial |\n|---|---|---|")
    for name, value in means["network"].items():
        print(f"| {name} | {value:.3f} | {means['trivial'][name]:.3f} |")
    print(f"| J of a centred ellipse | | {means['ellipse']['J']:.3f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
