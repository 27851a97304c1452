"""A system of two convolutions, its data and configuration, for tests of the training engine."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from PIL import Image

import uvos_jax as uvos
from uvos_jax.modules.layers import Conv, batch_norm
from uvos_jax.systems.base import System
from uvos_jax.types import ModelSpec, Phase, Stage

SIZE = (8, 8)


class ToyNet(nn.Module):
    features: int = 4
    norm: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, train):
        B, T, H, W, C = x.shape
        x = Conv(self.features, 3, use_bias=True, dtype=self.dtype, name="encoder")(
            x.reshape(B * T, H, W, C)
        )
        if self.norm:
            x = batch_norm(train=train, dtype=self.dtype, name="norm")(x)
        x = Conv(1, 1, use_bias=True, dtype=self.dtype, name="head")(nn.relu(x))
        return {"logits": x.reshape(B, T, H, W, 1)}


class Toy(System):
    """Bright pixels are the object; learnt in a few steps.

    Args:
      stages: the recipe; default: one stage of `train.total_steps` steps.
      blow_up_at: step whose loss is infinite.
    """

    def __init__(
        self, *, features=4, norm=False, dtype="float32", freeze_bn=False, stages=None,
        blow_up_at=None,
    ):  # fmt: skip
        super().__init__(SimpleNamespace(compute_dtype=dtype))
        self.spec = ModelSpec(
            name="toy", paper="none", temporal="frame", clip_len=1, input_size=SIZE, stride=1,
            normalization="unit",
        )  # fmt: skip
        self.module = ToyNet(features, norm, dtype)
        self.freeze_bn, self.recipe, self.blow_up_at = freeze_bn, stages, blow_up_at

    def module_kwargs(self, train, phase="default"):
        return {"train": train and not self.freeze_bn}

    def loss_fn(self, outputs, batch, *, step, phase="default"):
        target = (batch["masks"] > 0).astype(jnp.float32)
        logits = outputs["logits"][..., 0].astype(jnp.float32)
        bce = optax.losses.sigmoid_binary_cross_entropy(logits, target).mean()
        loss = bce if self.blow_up_at is None else jnp.where(step == self.blow_up_at, jnp.inf, bce)
        return loss, {"bce": bce, "is_static": jnp.float32(phase == "static")}

    def stages(self, config):
        if self.recipe:
            return self.recipe
        return (Stage("train", int(config.train.total_steps), (Phase(),)),)


class Batches:
    """Endless random batches; batch i is the same everywhere."""

    def __init__(self, batch_size=8, seed=0):
        self.batch_size, self.seed, self.step, self.served = batch_size, seed, 0, 0

    def __iter__(self):
        return self

    def __next__(self):
        batch = make_batch(self.batch_size, self.seed * 1000 + self.step)
        self.step += 1
        self.served += 1
        return batch

    def get_state(self):
        return {"step": self.step}

    def set_state(self, state):
        self.step = state["step"]


def make_batch(batch_size=8, seed=0):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (batch_size, 1, *SIZE, 3), dtype=np.uint8)
    return {
        "frames": frames,
        "masks": (frames.mean(-1) > 128).astype(np.uint8),
        "valid": np.ones((batch_size, 1), bool),
        "has_mask": np.ones((batch_size, 1), bool),
    }


def clip(seed=0, frames=3):
    batch = make_batch(frames, seed)
    return {k: v[:, 0] for k, v in batch.items()}


def config(**changes):
    """The configuration of a run of toys; keys with `__` for dots."""
    made = uvos.load_config("cosnet:tiny")
    uvos.config.override(
        made,
        {
            "model.input_size": SIZE,
            "data.size": SIZE,
            "data.train": ({"name": "synthetic", "group": "default"},),
            "optim.name": "sgd",
            "optim.lr": 0.5,
            "optim.clip_norm": 0.0,
            "optim.frozen": (),
            "optim.schedule.name": "constant",
            "train.total_steps": 4,
            **{key.replace("__", "."): value for key, value in changes.items()},
        },
    )
    return made


def write_clips(root, *, clips=3, frames=6, size=(40, 48)):
    """A brighter rectangle wandering over noise, as `root/<clip>/{frames,masks}/*.png`."""
    rng = np.random.default_rng(0)
    for number in range(clips):
        for kind in ("frames", "masks"):
            (root / f"clip{number}" / kind).mkdir(parents=True)
        for t in range(frames):
            image = rng.integers(0, 80, (*size, 3), dtype=np.uint8)
            mask = np.zeros(size, np.uint8)
            y, x = 5 + 3 * t, 4 + 5 * t
            image[y : y + 12, x : x + 14] += 150
            mask[y : y + 12, x : x + 14] = 1
            Image.fromarray(image).save(root / f"clip{number}" / "frames" / f"{t:05d}.png")
            Image.fromarray(mask).save(root / f"clip{number}" / "masks" / f"{t:05d}.png")


def losses(workdir):
    """The loss of every step of a run, from its log."""
    from uvos_jax.train.logging import read_log

    rows = [row for row in read_log(workdir / "metrics.jsonl") if "losses" in row]
    assert rows[-1]["step"] == sum(len(row["losses"]) for row in rows)
    return [loss for row in rows for loss in row["losses"]]


def same(a, b):
    """Whether two trees hold the same bits."""
    return all(
        np.array_equal(np.asarray(x), np.asarray(y))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def run_steps(system, settings, mesh, steps=3, batch_size=8, ema=False, history=None):
    """Losses, metrics of the last step and the final state of a few steps on a mesh.

    Every state, the initial one included, is appended to `history` as numpy arrays.
    """
    from uvos_jax.train import mesh as meshes
    from uvos_jax.train.optimizer import make_optimizer, make_schedule
    from uvos_jax.train.step import compile_step, init_state, make_train_step

    def build():
        return init_state(system, 0, lambda p: make_optimizer(settings.optim, p), ema=ema)

    shardings = meshes.parameter_shardings(mesh, jax.eval_shape(build))
    state = jax.jit(build, out_shardings=shardings)()
    step = make_train_step(
        system,
        make_optimizer(settings.optim, state.params),
        make_schedule(settings.optim, steps),
        phase=Phase(),
        accumulate=settings.optim.accumulate,
        ema=settings.optim.ema,
    )
    run = compile_step(step, mesh, shardings)
    losses, inputs = [], Batches(batch_size)
    history = [] if history is None else history
    for _ in range(steps):
        history.append(jax.device_get(state.replace(rng=None)))
        state, metrics = run(state, meshes.place_batch(next(inputs), mesh))
        losses.append(float(metrics["loss"]))
    history.append(jax.device_get(state.replace(rng=None)))
    return losses, metrics, state
