"""The tiny FusionSeg learns on the synthetic generator, stage by stage, with its own recipe."""

import jax
import jax.numpy as jnp
import pytest

import uvos_jax as uvos
from uvos_jax import synthetic
from uvos_jax.train.optimizer import make_optimizer, make_schedule
from uvos_jax.train.step import init_state, make_train_step

STEPS = {"appearance": 60, "motion": 100, "joint": 60}
#: J on held-out clips has to rise by this much within those steps.
MARGIN = 0.08


@pytest.mark.learns
def test_region_similarity_on_held_out_clips_rises():
    config = uvos.load_config("fusionseg:tiny")
    system = uvos.build(config)
    H, W = config.data.size
    scenes = synthetic.config("test", height=H, width=W, frames=1, label="moving")

    def clips(key, step, count):
        record = synthetic.batch(key, step, count, scenes, ("video", "mask", "flow_fw"))
        frames = jnp.round(255 * record["video"]).astype(jnp.uint8)
        return {"frames": frames, "masks": record["mask"], "flow": record["flow_fw"]}

    def draw(step):
        return clips(jax.random.key(1), step, 8)

    held_out = clips(jax.random.key(99), 0, 64)

    @jax.jit
    def region_similarity(variables):
        outputs, _ = system.apply(variables, held_out, train=False)
        predicted = system.probabilities(outputs["logits"], (H, W)) > 0.5
        target = held_out["masks"] > 0
        union = jnp.sum(predicted | target, axis=(2, 3))
        overlap = jnp.sum(predicted & target, axis=(2, 3))
        return jnp.mean(jnp.where(union > 0, overlap / jnp.maximum(union, 1), 1.0))

    state, before = None, None
    for stage in system.stages(config):
        (phase,) = stage.phases

        def optimizer(params, phase=phase):
            return make_optimizer(config.optim, params, phase)

        if state is None:
            state = init_state(system, 0, optimizer)
            before = float(region_similarity(state.variables()))
        state = state.replace(opt_state=optimizer(state.params).init(state.params))
        run = make_train_step(
            system,
            optimizer(state.params),
            make_schedule(config.optim, STEPS[stage.name]),
            phase=phase,
        )

        # a Python loop: XLA's CPU back end is slow at gradients of convolutions inside its loops
        step = jax.jit(lambda state, run=run: run(state, draw(state.step))[0], donate_argnums=0)
        for _ in range(STEPS[stage.name]):
            state = step(state)
    after = float(region_similarity(state.variables()))
    print(f"J {before:.3f} -> {after:.3f} in {sum(STEPS.values())} steps")
    assert after > before + MARGIN
