"""The tiny IET learns embeddings on stills and then segments clips it was never trained on."""

import jax
import jax.numpy as jnp
import pytest

import uvos_jax as uvos
from uvos_jax import synthetic
from uvos_jax.train.optimizer import make_optimizer, make_schedule
from uvos_jax.train.step import init_state, make_train_step

STEPS = 200
#: J on held-out clips has to rise by this much within STEPS steps.
MARGIN = 0.08


@pytest.mark.learns
def test_region_similarity_on_held_out_clips_rises():
    config = uvos.load_config("iet:tiny")
    system = uvos.build(config)
    size = tuple(config.data.size)
    stills = synthetic.config("test", height=size[0], width=size[1], frames=1, label="instances")
    scenes = synthetic.config("test", height=size[0], width=size[1], frames=4, label="moving")
    ((stage,), batch_size) = system.stages(config), config.data.batch_size
    (phase,) = stage.phases

    def clips(key, step, count, scene, outputs=("video", "mask")):
        record = synthetic.batch(key, step, count, scene, outputs)
        frames = jnp.round(255 * record["video"]).astype(jnp.uint8)
        ones = jnp.ones(frames.shape[:2], bool)
        return {"frames": frames, "masks": record["mask"], "valid": ones, "has_mask": ones}, record

    held_out, record = clips(jax.random.key(99), 0, 24, scenes, ("video", "mask", "flow_fw"))
    held_out["flow"] = record["flow_fw"]

    @jax.jit
    def region_similarity(variables):
        _, probs = system.predict(variables, (), held_out)
        predicted, target = probs > 0.5, held_out["masks"] > 0
        union = jnp.sum(predicted | target, axis=(2, 3))
        overlap = jnp.sum(predicted & target, axis=(2, 3))
        return jnp.mean(jnp.where(union > 0, overlap / jnp.maximum(union, 1), 1.0))

    def optimizer(params):
        return make_optimizer(config.optim, params, phase)

    state = init_state(system, 0, optimizer)
    run = make_train_step(
        system, optimizer(state.params), make_schedule(config.optim, STEPS), phase=phase
    )

    @jax.jit
    def step(state):
        return run(state, clips(jax.random.key(1), state.step, batch_size, stills)[0])[0]

    before = float(region_similarity(state.variables()))
    for _ in range(STEPS):
        state = step(state)
    after = float(region_similarity(state.variables()))
    print(f"J {before:.3f} -> {after:.3f} in {STEPS} steps")
    assert after > before + MARGIN
