"""The tiny AGNN learns on the synthetic generator, with its own recipe and all stages."""

import jax
import jax.numpy as jnp
import pytest

import uvos_jax as uvos
from uvos_jax import synthetic
from uvos_jax.train import stages
from uvos_jax.train.optimizer import make_schedule
from uvos_jax.train.step import init_state, make_train_step

STEPS = 150
#: J on held-out clips has to rise by this much within STEPS steps.
MARGIN = 0.05


@pytest.mark.learns
def test_region_similarity_on_held_out_clips_rises():
    config = uvos.load_config("agnn:tiny")
    config.train.total_steps = STEPS
    segments = stages.plan(config)
    system = segments[0].system
    size = tuple(config.data.size)
    scenes = synthetic.config("test", height=size[0], width=size[1], frames=system.spec.clip_len)

    def clips(key, step, count):
        record = synthetic.batch(key, step, count, scenes)
        frames = jnp.round(255 * record["video"]).astype(jnp.uint8)
        return {"frames": frames, "masks": record["mask"]}

    held_out = clips(jax.random.key(99), 0, 64)
    render = jax.jit(lambda step: clips(jax.random.key(1), step, config.data.batch_size))
    pool = [render(step) for step in range(40)]

    @jax.jit
    def region_similarity(variables):
        outputs, _ = system.apply(variables, held_out, train=False)
        predicted = system.probabilities(outputs["logits"], size) > 0.5
        target = held_out["masks"] > 0
        union = jnp.sum(predicted | target, axis=(2, 3))
        overlap = jnp.sum(predicted & target, axis=(2, 3))
        return jnp.mean(jnp.where(union > 0, overlap / jnp.maximum(union, 1), 1.0))

    schedule = make_schedule(config.optim, STEPS)
    first = segments[0].stage.phases[0]
    state = jax.jit(
        lambda: init_state(system, 0, lambda p: stages.optimizer_of(segments[0], first, p))
    )()
    before, known = float(region_similarity(state.variables())), {}
    for segment in segments:
        for number in range(segment.start, segment.end):
            phase = segment.phase(number)
            if phase.name not in known:
                optimizer = stages.optimizer_of(segment, phase, state.params)
                step = make_train_step(system, optimizer, schedule, phase=phase)
                known[phase.name] = jax.jit(step, donate_argnums=0)
            batch = pool[number % len(pool)]
            if phase.data == "static":
                batch = jax.tree.map(lambda x: x[:, :1], batch)
            state, _ = known[phase.name](state, batch)
    after = float(region_similarity(state.variables()))
    print(f"J {before:.3f} -> {after:.3f} in {STEPS} steps")
    assert after > before + MARGIN
