"""The tiny LVO learns on the synthetic generator: its streams, then its memory on frozen ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax import synthetic
from uvos_jax.train import stages
from uvos_jax.train.optimizer import make_schedule
from uvos_jax.train.step import init_state, make_train_step

STEPS = 400
#: J on held-out clips starts near 0.1 and has to rise by this much within STEPS steps.
MARGIN = 0.1


@pytest.mark.learns
def test_region_similarity_on_held_out_clips_rises():
    config = uvos.load_config("lvo:tiny")
    config.train.total_steps = STEPS
    segments = stages.plan(config)
    system = segments[0].system
    size = tuple(config.data.size)
    scenes = synthetic.config(
        "test", height=size[0], width=size[1], frames=config.data.clip_len
    )  # fmt: skip

    def clips(key, step, count):
        record = synthetic.batch(key, step, count, scenes, ("video", "mask", "flow_fw"))
        T = scenes.frames
        return {
            "frames": jnp.round(255 * record["video"]).astype(jnp.uint8),
            "masks": record["mask"],
            "flow": record["flow_fw"],
            "flow_valid": jnp.ones((count, T), bool).at[:, -1].set(False),
        }

    # rendering costs more than a step: a store of clips, used over and over
    render = jax.jit(lambda key, step: clips(key, step, config.data.batch_size))
    store = [render(jax.random.key(1), step) for step in range(24)]
    held_out = [render(jax.random.key(99), step) for step in range(4)]

    @jax.jit
    def region_similarity(variables, batch):
        outputs, _ = system.apply(variables, batch, train=False)
        predicted = system.probabilities(outputs["logits"], size) > 0.5
        target = batch["masks"] > 0
        union = jnp.sum(predicted | target, axis=(2, 3))
        overlap = jnp.sum(predicted & target, axis=(2, 3))
        return jnp.mean(jnp.where(union > 0, overlap / jnp.maximum(union, 1), 1.0))

    def score(state):
        return float(np.mean([region_similarity(state.variables(), b) for b in held_out]))

    def optimizer(segment, params):
        return stages.optimizer_of(segment, segment.stage.phases[0], params)

    state = init_state(system, 0, lambda params: optimizer(segments[0], params))
    before = score(state)
    for segment in segments:
        state = state.replace(opt_state=optimizer(segment, state.params).init(state.params))
        run = make_train_step(
            system,
            optimizer(segment, state.params),
            make_schedule(config.optim, segment.end - segment.start),
            phase=segment.stage.phases[0],
            stage_start=segment.start,
        )
        step = jax.jit(run, donate_argnums=0)
        for number in range(segment.start, segment.end):
            state, _ = step(state, store[number % len(store)])
    after = score(state)
    print(f"J {before:.3f} -> {after:.3f} in {STEPS} steps")
    assert after > before + MARGIN
