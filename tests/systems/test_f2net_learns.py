"""The tiny F2Net learns on the synthetic generator, with its own recipe and both stages."""

import jax
import jax.numpy as jnp
import pytest

import uvos_jax as uvos
from uvos_jax import synthetic
from uvos_jax.train import stages
from uvos_jax.train.optimizer import make_schedule
from uvos_jax.train.step import init_state, make_train_step

STEPS = 360
#: J on held-out clips starts at 0.02 and has to rise by this much within STEPS steps.
MARGIN = 0.1


@pytest.mark.learns
def test_region_similarity_on_held_out_clips_rises():
    config = uvos.load_config("f2net:tiny")
    config.train.total_steps = STEPS
    segments = stages.plan(config)
    system = segments[0].system
    size = tuple(config.data.size)
    scenes = synthetic.config("test", height=size[0], width=size[1], frames=3)

    def clips(key, step, count):
        record = synthetic.batch(key, step, count, scenes)
        frames = jnp.round(255 * record["video"]).astype(jnp.uint8)
        return {"frames": frames, "masks": record["mask"]}

    held_out = clips(jax.random.key(99), 0, 64)
    render = jax.jit(lambda step: clips(jax.random.key(1), step, config.data.batch_size))
    pool = [render(step) for step in range(120)]

    @jax.jit
    def region_similarity(variables, frames, masks):
        state = system.init_state(variables, len(frames), size)
        _, probs = system.predict(variables, state, {"frames": frames})
        return score(probs > 0.5, masks)

    def score(predicted, masks):
        target = masks > 0
        union = jnp.sum(predicted | target, axis=(2, 3))
        overlap = jnp.sum(predicted & target, axis=(2, 3))
        return jnp.mean(jnp.where(union > 0, overlap / jnp.maximum(union, 1), 1.0))

    def step_of(segment, phase):
        run = make_train_step(
            system,
            stages.optimizer_of(segment, phase, state.params),
            make_schedule(segment.config.optim, segment.end - segment.start),
            phase=phase,
            stage_start=segment.start,
        )

        def step(state, batch):
            if phase.data == "static":
                batch = jax.tree.map(lambda x: x[:, :1], batch)
            return run(state, batch)[0]

        return jax.jit(step, donate_argnums=0)

    first = segments[0]
    state = init_state(system, 0, lambda p: stages.optimizer_of(first, first.stage.phases[0], p))
    before = float(region_similarity(state.variables(), **held_out))
    for segment in segments:
        steps = {p.name: step_of(segment, p) for p in segment.stage.phases}
        for number in range(segment.start, segment.end):
            state = steps[segment.phase(number).name](state, pool[number % len(pool)])
    after = float(region_similarity(state.variables(), **held_out))
    everything = float(score(jnp.ones(held_out["masks"].shape, bool), held_out["masks"]))
    print(f"J {before:.3f} -> {after:.3f} in {STEPS} steps; of the whole frame {everything:.3f}")
    assert after > before + MARGIN
    assert after > everything + 0.03
