"""Trains a flow network on the synthetic generator, whose flow is exact.

    python tools/train_flow.py --out pwc_lite.npz --minutes 10
    python tools/render_clips.py --out clips --count 3000      # once, instead of in every step
    python tools/train_flow.py --out pwc_lite.npz --minutes 60 --clips clips
    python tools/train_flow.py --network flownets --out flownets.npz --steps 100000 --size 256x384
    uvos flow clip.mp4 --provider pwc_lite:pwc_lite.npz

Adam with decay, cosine schedule with warm-up, multi-scale end-point error, random brightness and
contrast per image. Clips from files are mirrored at random, too, and held in memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from uvos_jax import synthetic
from uvos_jax.convert.flownets import NETWORKS, save_network
from uvos_jax.data.sources import make_source
from uvos_jax.losses.endpoint_error import LEVEL_WEIGHTS, multiscale_endpoint_error
from uvos_jax.metrics.flow import endpoint_error
from uvos_jax.modules.flownets import FLOWNET_MEAN, PWCNet, estimate_flow

#: Clips that training never draws.
TEST_SEED = 1 << 20


def clips(cfg, seed, first, count):
    """Frames 0..255 `[B,2,H,W,3]` and flow `[B,H,W,2]` of clips `first`, `first + 1`, ..."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(
        first + jnp.arange(count)
    )
    record = jax.lax.map(lambda key: synthetic.clip(key, cfg, ("video", "flow_fw")), keys)
    return record["video"] * 255, record["flow_fw"][:, 0]


class StoredClips:
    """What tools/render_clips.py wrote: pairs of frames with exact flow, mirrored at random.

    Args:
      folder: of clips. size: (H, W) of the crops. seed: of the order, the crops and the mirrors.
    """

    def __init__(self, folder: str, size: tuple[int, int], seed: int):
        root = Path(folder)
        made = make_source(
            "folder", root=str(root / "videos"), flow="../flow", flow_direction="backward",
            clips="sequences",
        )  # fmt: skip
        examples = [made[i] for i in range(len(made))]
        self.frames = np.stack([e["frames"] for e in examples])
        self.flow = np.stack([e["flow"] for e in examples]).astype(np.float16)
        H, W = self.frames.shape[2:4]
        if any(have < want for have, want in zip((H, W), size, strict=True)):
            raise SystemExit(
                f"error: clips in {folder} are {H}x{W}, smaller than --size {size[0]}x{size[1]}"
            )
        self.size, self.seed = size, seed

    def batch(self, index: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames uint8 `[B,2,h,w,3]`, the first one the later, and flow float32 `[B,h,w,2]`."""
        rng = np.random.default_rng((self.seed, index))
        (N, T, H, W), (h, w) = self.frames.shape[:4], self.size
        frames, flows = [], []
        for _ in range(count):
            n, t = int(rng.integers(N)), int(rng.integers(1, T))
            y, x = int(rng.integers(H - h + 1)), int(rng.integers(W - w + 1))
            window = np.s_[y : y + h, x : x + w]
            pair = np.stack([self.frames[n, t][window], self.frames[n, t - 1][window]])
            flow = self.flow[n, t][window].astype(np.float32)
            if rng.random() < 0.5:
                pair, flow = pair[:, :, ::-1], flow[:, ::-1] * np.float32([-1, 1])
            if rng.random() < 0.3:
                pair, flow = pair[:, ::-1], flow[::-1] * np.float32([1, -1])
            frames.append(pair)
            flows.append(flow)
        return np.stack(frames), np.stack(flows)


def augmented(key, frames):
    """Brightness and contrast of each clip, a little of it for each image alone."""
    B = frames.shape[0]
    keys = jax.random.split(key, 4)

    def factor(key, shape, spread):
        return 1 + spread * jax.random.uniform(key, shape, minval=-1.0)

    gain = factor(keys[0], (B, 1, 1, 1, 3), 0.3) * factor(keys[1], (B, 2, 1, 1, 1), 0.05)
    shift = 30 * (factor(keys[2], (B, 1, 1, 1, 1), 1.0) - 1)
    noise = 4 * jax.random.normal(keys[3], frames.shape)
    return jnp.clip(frames * gain + shift + noise, 0, 255)


def inputs(module, frames):
    pair = frames / 255 - jnp.asarray(FLOWNET_MEAN)
    if isinstance(module, PWCNet):
        return pair[:, 0], pair[:, 1]
    return (jnp.concatenate([pair[:, 0], pair[:, 1]], axis=-1),)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="pwc_lite", choices=sorted(NETWORKS))
    parser.add_argument("--out", required=True, help="weights, .npz")
    parser.add_argument("--steps", type=int, default=100_000, help="length of the schedule")
    parser.add_argument("--minutes", type=float, help="adapt the schedule to this much time")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", default="128x192")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", help="folder that tools/render_clips.py wrote")
    parser.add_argument("--preset", default="fast", help="scenes for training without --clips")
    args = parser.parse_args(argv)
    H, W = (int(n) for n in args.size.split("x"))
    cfg = synthetic.config(args.preset, height=H, width=W, frames=2, static_camera=0.15)
    tested = synthetic.config("fast", height=H, width=W, frames=2, static_camera=0.15)
    stored = StoredClips(args.clips, (H, W), args.seed) if args.clips else None
    module = NETWORKS[args.network]()
    shapes = inputs(module, jnp.zeros((1, 2, H, W, 3)))
    variables = jax.jit(module.init)(jax.random.key(args.seed), *shapes)
    params = variables["params"]
    pixels = H * W / 16

    def make_step(steps):
        schedule = optax.warmup_cosine_decay_schedule(0, args.lr, min(500, steps // 10), steps)
        decay = optax.add_decayed_weights(4e-4)
        optimizer = optax.chain(
            optax.clip_by_global_norm(1.0), optax.scale_by_adam(), decay,
            optax.scale_by_learning_rate(schedule),
        )  # fmt: skip

        @jax.jit
        def step(params, state, index, pairs=None):
            if pairs is None:
                frames, flow = clips(cfg, args.seed, index * args.batch, args.batch)
            else:
                frames, flow = pairs[0].astype(jnp.float32), pairs[1]
            frames = augmented(jax.random.fold_in(jax.random.key(args.seed + 1), index), frames)

            def loss(params):
                outputs = module.apply({"params": params}, *inputs(module, frames))
                weights = {k: v / LEVEL_WEIGHTS[2] for k, v in LEVEL_WEIGHTS.items()}
                error = multiscale_endpoint_error(outputs, flow, weights=weights)
                return error.mean() / pixels

            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, value

        def on_batch(params, state, index):
            pairs = stored.batch(index, args.batch) if stored else None
            return step(params, state, index, pairs)

        return on_batch, optimizer.init(params)

    step, state = make_step(args.steps)
    steps = args.steps
    if args.minutes:
        params_, state_, value = step(params, state, 0)
        jax.block_until_ready(value)
        began = time.monotonic()
        for i in range(1, 6):
            params_, state_, value = step(params_, state_, i)
        jax.block_until_ready(value)
        steps = max(10, int(args.minutes * 60 * 5 / (time.monotonic() - began)))
        step, state = make_step(steps)
        print(f"{steps} steps fit into {args.minutes:g} minutes", flush=True)

    @jax.jit
    def test_error(params):
        frames, flow = clips(tested, TEST_SEED, 0, 16)
        guess = estimate_flow(module, {"params": params}, frames[:, 0], frames[:, 1])
        still = jnp.sqrt((flow**2).sum(-1)).mean()
        return endpoint_error(guess, flow).mean(), still

    epe, still = (float(x) for x in test_error(params))
    print(f"step 0: test EPE {epe:.3f} px (no motion assumed: {still:.3f})", flush=True)
    began, losses = time.monotonic(), []
    for index in range(steps):
        params, state, value = step(params, state, index)
        losses.append(value)
        if (index + 1) % max(1, steps // 10) == 0:
            mean = float(np.mean([float(x) for x in losses]))
            epe, losses = float(test_error(params)[0]), []
            print(f"step {index + 1}: loss {mean:.4f}, test EPE {epe:.3f} px, "
                  f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
    save_network(
        args.network, {}, {"params": jax.device_get(params)}, Path(args.out),
        storage_dtype="float16",
        extra={"trained": {"steps": steps, "batch": args.batch, "size": [H, W], "epe": epe}},
    )  # fmt: skip
    print(f"{args.out}: {Path(args.out).stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
