"""The tiny PDB-ConvLSTM and AGS learn on the synthetic generator, each with its own recipe."""

import jax
import jax.numpy as jnp
import pytest

import uvos_jax as uvos
from uvos_jax import synthetic
from uvos_jax.train import stages as recipe
from uvos_jax.train.optimizer import make_schedule
from uvos_jax.train.step import init_state, make_train_step

#: name -> (steps, what J on held-out clips has to rise by)
GOALS = {"pdb_convlstm": (360, 0.08), "ags": (180, 0.08)}


@pytest.mark.learns
@pytest.mark.parametrize("name", GOALS)
def test_region_similarity_on_held_out_clips_rises(name):
    steps, margin = GOALS[name]
    config = uvos.load_config(f"{name}:tiny")
    config.train.total_steps = steps
    segments = recipe.plan(config)
    system = segments[0].system
    size = tuple(config.data.size)
    scenes = synthetic.config("test", height=size[0], width=size[1], frames=system.spec.clip_len)

    def clips(key, step, count):
        record = synthetic.batch(key, step, count, scenes)
        frames = jnp.round(255 * record["video"]).astype(jnp.uint8)
        masks = record["mask"]
        return {"frames": frames, "masks": masks, "fixations": synthetic.fixation_maps(masks)}

    held_out = clips(jax.random.key(99), 0, 48)

    @jax.jit
    def region_similarity(variables):
        outputs, _ = system.apply(variables, held_out, train=False)
        predicted = system.probabilities(outputs["logits"], size) > 0.5
        target = held_out["masks"] > 0
        union = jnp.sum(predicted | target, axis=(2, 3))
        overlap = jnp.sum(predicted & target, axis=(2, 3))
        return jnp.mean(jnp.where(union > 0, overlap / jnp.maximum(union, 1), 1.0))

    def step_of(segment, phase, params):
        optimizer = recipe.optimizer_of(segment, phase, params)
        schedule = make_schedule(segment.config.optim, segment.stage.steps)
        run = make_train_step(system, optimizer, schedule, phase=phase, stage_start=segment.start)

        def step(state):
            batch = clips(jax.random.key(1), state.step, config.data.batch_size)
            if phase.data == "static":
                batch = jax.tree.map(lambda x: x[:, :1], batch)
            return run(state, batch)[0]

        return jax.jit(step, donate_argnums=0)

    state, before = None, None
    for segment in segments:
        phases = segment.stage.phases
        if state is None:
            state = init_state(
                system,
                0,
                lambda p: recipe.optimizer_of(segment, phases[0], p),  # noqa: B023
            )
            before = float(region_similarity(state.variables()))
        else:
            optimizer = recipe.optimizer_of(segment, phases[0], state.params)
            state = state.replace(opt_state=optimizer.init(state.params))
        compiled = {p.name: step_of(segment, p, state.params) for p in phases}
        for number in range(segment.start, segment.end):
            state = compiled[segment.phase(number).name](state)
    after = float(region_similarity(state.variables()))
    print(f"{name}: J {before:.3f} -> {after:.3f} in {steps} steps")
    assert after > before + margin
