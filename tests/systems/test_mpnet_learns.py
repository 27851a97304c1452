"""The tiny MP-Net learns on the synthetic generator, with its own recipe."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

import uvos_jax as uvos
from uvos_jax import synthetic
from uvos_jax.train.optimizer import make_optimizer, make_schedule
from uvos_jax.train.step import init_state, make_train_step

STEPS = 300
#: J on held-out clips has to rise by this much within STEPS steps.
MARGIN = 0.3


@pytest.mark.learns
def test_region_similarity_on_held_out_clips_rises():
    config = uvos.load_config("mpnet:tiny")
    system = uvos.build(config)
    H, W = config.data.size
    scenes = synthetic.config("test", height=H, width=W, frames=1, label="moving")

    def clips(key, step, count):
        record = synthetic.batch(key, step, count, scenes, ("mask", "flow_fw"))
        frames = jnp.zeros((*record["mask"].shape, 3), jnp.uint8)
        return {"frames": frames, "masks": record["mask"], "flow": record["flow_fw"]}

    held_out = clips(jax.random.key(99), 0, 64)

    @jax.jit
    def region_similarity(variables):
        _, probs = system.predict(variables, (), held_out)
        predicted, target = probs > 0.5, held_out["masks"] > 0
        union = jnp.sum(predicted | target, axis=(2, 3))
        overlap = jnp.sum(predicted & target, axis=(2, 3))
        return jnp.mean(jnp.where(union > 0, overlap / jnp.maximum(union, 1), 1.0))

    (phase,) = system.stages(config)[0].phases

    def optimizer(params):
        return make_optimizer(config.optim, params, phase)

    state = init_state(system, 0, optimizer)
    before = float(region_similarity(state.variables()))
    schedule = make_schedule(config.optim, STEPS)
    run = make_train_step(system, optimizer(state.params), schedule, phase=phase)

    # a Python loop: XLA's CPU back end is slow at gradients of convolutions inside its loops
    @partial(jax.jit, donate_argnums=0)
    def step(state):
        return run(state, clips(jax.random.key(1), state.step, 8))[0]

    for _ in range(STEPS):
        state = step(state)
    after = float(region_similarity(state.variables()))
    print(f"J {before:.3f} -> {after:.3f} in {STEPS} steps")
    assert after > before + MARGIN
