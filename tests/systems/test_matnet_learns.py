"""The tiny MATNet learns on the synthetic generator with exact flow, by its own recipe."""

import jax
import jax.numpy as jnp
import pytest

import uvos_jax as uvos
from uvos_jax import synthetic
from uvos_jax.train.optimizer import make_optimizer, make_schedule
from uvos_jax.train.step import init_state, make_train_step

STEPS = 150
#: J on held-out clips starts near 0.04 and has to rise by this much within STEPS steps.
MARGIN = 0.15


@pytest.mark.learns
def test_region_similarity_on_held_out_clips_rises():
    config = uvos.load_config("matnet:tiny")
    system = uvos.build(config)
    size = tuple(config.data.size)
    scenes = synthetic.config("test", height=size[0], width=size[1], frames=2)
    (stage,) = system.stages(config)

    def clips(key, step, count):
        record = synthetic.batch(key, step, count, scenes, ("video", "mask", "flow_fw"))
        batch = {
            "frames": jnp.round(255 * record["video"]).astype(jnp.uint8),
            "masks": record["mask"],
            "flow": record["flow_fw"],
        }
        return jax.tree.map(lambda x: x[:, :1], batch)  # the first frame has a next one

    held_out = jax.jit(lambda: clips(jax.random.key(99), 0, 64))()

    @jax.jit
    def region_similarity(variables):
        outputs, _ = system.apply(variables, held_out, train=False)
        predicted = system.probabilities(outputs["logits"], size) > 0.5
        target = held_out["masks"] > 0
        union = jnp.sum(predicted | target, axis=(2, 3))
        overlap = jnp.sum(predicted & target, axis=(2, 3))
        return jnp.mean(jnp.where(union > 0, overlap / jnp.maximum(union, 1), 1.0))

    def optimizer(params):
        return make_optimizer(config.optim, params, stage.phases[0])

    state = init_state(system, 0, optimizer)
    run = make_train_step(
        system, optimizer(state.params), make_schedule(config.optim, STEPS), phase=stage.phases[0]
    )
    step = jax.jit(
        lambda s: run(s, clips(jax.random.key(1), s.step, config.data.batch_size))[0],
        donate_argnums=0,
    )
    before = float(region_similarity(state.variables()))
    for _ in range(STEPS):
        state = step(state)
    after = float(region_similarity(state.variables()))
    print(f"J {before:.3f} -> {after:.3f} in {STEPS} steps")
    assert after > before + MARGIN
