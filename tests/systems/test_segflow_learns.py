"""The tiny SegFlow learns on the synthetic generator: masks of clips it never saw, by its own
recipe of turns, and flow of clips it sees again. Flow of clips it never saw takes FlowNetS far more
steps than a test has.
"""

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
#: J on held-out clips has to rise by this much.
MARGIN = 0.1
#: Steps on one batch, and the share of its end-point error that may be left (zero flow: 1).
FLOW_STEPS, SHARE = 150, 0.8


SCENES = synthetic.config("test", height=64, width=64, frames=2, label="moving")


def clips(key, step, count):
    record = synthetic.batch(key, step, count, SCENES, ("video", "mask", "flow_fw"))
    frames = jnp.round(255 * record["video"]).astype(jnp.uint8)
    valid = jnp.broadcast_to(jnp.array([True, False]), record["mask"].shape[:2])
    return {
        "frames": frames,
        "masks": record["mask"],
        "flow": record["flow_fw"],
        "flow_valid": valid,
    }


@pytest.mark.learns
def test_region_similarity_on_held_out_clips_rises():
    config = uvos.load_config("segflow:tiny")
    system = uvos.build(config)
    H, W = config.data.size
    held_out = clips(jax.random.key(99), 0, 64)

    @jax.jit
    def scores(variables):
        outputs, _ = system.apply(variables, held_out, train=False)
        predicted = system.probabilities(outputs["logits"], (H, W))[:, 0] > 0.5
        target = held_out["masks"][:, 0] > 0
        union = jnp.sum(predicted | target, axis=(1, 2))
        overlap = jnp.sum(predicted & target, axis=(1, 2))
        return jnp.mean(jnp.where(union > 0, overlap / jnp.maximum(union, 1), 1.0))

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
    print(f"J {before:.3f} -> {after:.3f} in 4 x {STEPS} steps")
    assert after > before + MARGIN


@pytest.mark.learns
def test_flow_of_one_batch_is_learned():
    config = uvos.load_config("segflow:tiny")
    system = uvos.build(config)
    stage = next(s for s in system.stages(config) if s.phases[0].name == "flow")
    config.optim.lr = dict(stage.optim)["lr"]
    batch = jax.jit(lambda: clips(jax.random.key(5), 0, 8))()
    optimizer = partial(make_optimizer, config.optim, phase=stage.phases[0])
    state = init_state(system, 0, optimizer)
    run = make_train_step(
        system,
        optimizer(state.params),
        make_schedule(config.optim, FLOW_STEPS),
        phase=stage.phases[0],
    )
    step = jax.jit(lambda state: run(state, batch), donate_argnums=0)

    @jax.jit
    def error(variables):
        outputs, _ = system.apply(variables, batch, train=False)
        return jnp.mean(jnp.linalg.norm(outputs["flow"][:, 0] - batch["flow"][:, 0], axis=-1))

    zero = float(jnp.mean(jnp.linalg.norm(batch["flow"][:, 0], axis=-1)))
    before = float(error(state.variables()))
    for _ in range(FLOW_STEPS):
        state, _ = step(state)
    after = float(error(state.variables()))
    print(f"EPE {before:.3f} -> {after:.3f} px in {FLOW_STEPS} steps (no motion: {zero:.3f})")
    assert after < SHARE * min(before, zero)
