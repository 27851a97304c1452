"""The tiny SegFlow learns masks and flow in turns on the synthetic generator, by its own recipe."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

import uvos_jax as uvos
from uvos_jax import synthetic
from uvos_jax.train.optimizer import make_optimizer, make_schedule
from uvos_jax.train.step import init_state, make_train_step

#: Of each of the four stages: masks, flow, masks, flow.
STEPS = 60
#: J on held-out clips has to rise by this much, and end-point errors to fall by this share.
MARGIN, SHARE = 0.1, 0.05


@pytest.mark.learns
def test_masks_and_flow_of_held_out_clips_improve():
    config = uvos.load_config("segflow:tiny")
    system = uvos.build(config)
    H, W = config.data.size
    scenes = synthetic.config("test", height=H, width=W, frames=2, label="moving")

    def clips(key, step, count):
        record = synthetic.batch(key, step, count, scenes, ("video", "mask", "flow_fw"))
        frames = jnp.round(255 * record["video"]).astype(jnp.uint8)
        valid = jnp.broadcast_to(jnp.array([True, False]), record["mask"].shape[:2])
        return {
            "frames": frames,
            "masks": record["mask"],
            "flow": record["flow_fw"],
            "flow_valid": valid,
        }

    held_out = clips(jax.random.key(99), 0, 64)

    @jax.jit
    def scores(variables):
        outputs, _ = system.apply(variables, held_out, train=False)
        predicted = system.probabilities(outputs["logits"], (H, W))[:, 0] > 0.5
        target = held_out["masks"][:, 0] > 0
        union = jnp.sum(predicted | target, axis=(1, 2))
        overlap = jnp.sum(predicted & target, axis=(1, 2))
        error = jnp.linalg.norm(outputs["flow"][:, 0] - held_out["flow"][:, 0], axis=-1)
        J = jnp.mean(jnp.where(union > 0, overlap / jnp.maximum(union, 1), 1.0))
        return J, jnp.mean(error)

    state = before = None
    stages = {}
    for stage in system.stages(config):
        (phase,) = stage.phases
        overridden = uvos.load_config("segflow:tiny").optim
        overridden.lr = dict(stage.optim)["lr"]
        optimizer = partial(make_optimizer, overridden, phase=phase)
        if state is None:
            state = init_state(system, 0, optimizer)
            before = scores(state.variables())
        state = state.replace(opt_state=optimizer(state.params).init(state.params))
        if phase.name not in stages:
            run = make_train_step(
                system, optimizer(state.params), make_schedule(overridden, STEPS), phase=phase
            )
            # a Python loop: gradients of convolutions inside XLA's loops are slow on CPUs
            stages[phase.name] = jax.jit(
                lambda state, run=run: run(state, clips(jax.random.key(1), state.step, 8))[0],
                donate_argnums=0,
            )
        for _ in range(STEPS):
            state = stages[phase.name](state)
    after = scores(state.variables())
    print(f"J {before[0]:.3f} -> {after[0]:.3f}, EPE {before[1]:.2f} -> {after[1]:.2f} px "
          f"in 4 x {STEPS} steps")  # fmt: skip
    assert after[0] > before[0] + MARGIN
    assert after[1] < before[1] * (1 - SHARE)
