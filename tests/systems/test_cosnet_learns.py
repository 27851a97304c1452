"""The tiny COSNet learns on the synthetic generator, with its own recipe."""

import jax
import jax.numpy as jnp
import pytest

import uvos_jax as uvos
from uvos_jax import synthetic
from uvos_jax.train.optimizer import make_optimizer, make_schedule
from uvos_jax.train.step import init_state, make_train_step

STEPS = 240
#: J on held-out clips starts at 0.08 and has to rise by this much within STEPS steps.
MARGIN = 0.08


@pytest.mark.learns
def test_region_similarity_on_held_out_clips_rises():
    config = uvos.load_config("cosnet:tiny")
    system = uvos.build(config)
    size = tuple(config.data.size)
    scenes = synthetic.config("test", height=size[0], width=size[1], frames=2)
    (stage,) = system.stages(config)

    def clips(key, step, count):
        record = synthetic.batch(key, step, count, scenes)
        frames = jnp.round(255 * record["video"]).astype(jnp.uint8)
        return {"frames": frames, "masks": record["mask"]}

    held_out = clips(jax.random.key(99), 0, 64)

    @jax.jit
    def region_similarity(variables):
        outputs, _ = system.apply(variables, held_out, train=False)
        predicted = system.probabilities(outputs["logits"], size) > 0.5
        target = held_out["masks"] > 0
        union = jnp.sum(predicted | target, axis=(2, 3))
        overlap = jnp.sum(predicted & target, axis=(2, 3))
        return jnp.mean(jnp.where(union > 0, overlap / jnp.maximum(union, 1), 1.0))

    schedule = make_schedule(config.optim, STEPS)

    def optimizer(params, phase=None):
        return make_optimizer(config.optim, params, phase)

    def step_of(phase):
        run = make_train_step(
            system, optimizer(state.params, phase), schedule, phase=phase, ema=config.optim.ema
        )

        def step(state):
            batch = clips(jax.random.key(1), state.step, config.data.batch_size)
            if phase.data == "static":
                batch = jax.tree.map(lambda x: x[:, :1], batch)
            return run(state, batch)[0]

        return jax.jit(step, donate_argnums=0)

    state = init_state(system, 0, lambda params: optimizer(params, stage.phases[0]))
    steps = [step_of(phase) for phase in stage.phases]
    before = float(region_similarity(state.variables()))
    for number in range(STEPS):
        state = steps[number % len(steps)](state)
    after = float(region_similarity(state.variables()))
    print(f"J {before:.3f} -> {after:.3f} in {STEPS} steps")
    assert after > before + MARGIN
