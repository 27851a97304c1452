"""The tiny teacher and student learn on the synthetic generator, and adaptation helps the student.

After training, every held-out clip is a lesson of its own: the teacher sees its first two frames,
the student takes the configured steps, and segments the clip's last frame.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax import synthetic
from uvos_jax.predict.adapt import Adapter
from uvos_jax.train import stages
from uvos_jax.train.optimizer import make_schedule
from uvos_jax.train.step import init_state, make_train_step

STEPS = 400
CLIPS = 24
#: J of the teacher on held-out clips has to rise by this much within STEPS steps.
TEACHER_MARGIN = 0.15
#: J of the student on the last frame has to rise by this much through adaptation.
ADAPTATION_MARGIN = 0.02


def region_similarity(probs, masks):
    predicted, target = probs > 0.5, masks > 0
    union = jnp.sum(predicted | target, axis=(-2, -1))
    overlap = jnp.sum(predicted & target, axis=(-2, -1))
    return jnp.where(union > 0, overlap / jnp.maximum(union, 1), 1.0)


@pytest.mark.learns
def test_the_teacher_learns_and_the_student_learns_from_it():
    config = uvos.load_config("teacher_student:tiny")
    config.model.student_steps = config.model.teacher_steps = STEPS
    system = uvos.build(config)
    size = tuple(config.data.size)
    scenes = synthetic.config("test", height=size[0], width=size[1], frames=2, label="moving")

    def clips(key, step, count, cfg=scenes):
        record = synthetic.batch(key, step, count, cfg, ("video", "mask", "flow_fw"))
        frames = jnp.round(255 * record["video"]).astype(jnp.uint8)
        return {"frames": frames, "masks": record["mask"], "flow": record["flow_fw"]}

    held_out = jax.jit(lambda: clips(jax.random.key(99), 0, CLIPS, scenes.replace(frames=4)))()

    @jax.jit
    def teacher_j(variables):
        first = jax.tree.map(lambda x: x[:, :1], held_out)
        probs = system.teacher_probability(variables, first)
        return region_similarity(probs, first["masks"]).mean()

    @jax.jit
    def student_j(variables, frame, mask):
        _, probs = system.predict(variables, (), {"frames": frame})
        return region_similarity(probs, mask).mean()

    def optimizer_in(segment):
        return lambda params: stages.optimizer_of(segment, segment.stage.phases[0], params)

    # each stage with its own optimiser, rate and frozen network, as `uvos train` runs them
    segments = stages.plan(config)
    state = before = None
    for segment in segments:
        (phase,) = segment.stage.phases
        if state is None:
            state = init_state(system, 0, optimizer_in(segment))
            before = float(teacher_j(state.variables()))
        optimizer = optimizer_in(segment)(state.params)
        state = state.replace(opt_state=optimizer.init(state.params))
        schedule = make_schedule(segment.config.optim, segment.end - segment.start)
        run = make_train_step(system, optimizer, schedule, phase=phase, stage_start=segment.start)

        @jax.jit
        def step(state, run=run):
            batch = clips(jax.random.key(1), state.step, config.data.batch_size)
            return run(state, jax.tree.map(lambda x: x[:, :1], batch))[0]

        untouched = state.params["teacher" if phase.name == "student" else "student"]
        for _ in range(segment.start, segment.end):
            state = step(state)
        rested = state.params["teacher" if phase.name == "student" else "student"]
        jax.tree.map(np.testing.assert_array_equal, untouched, rested)
    variables = state.variables()
    after = float(teacher_j(variables))

    adapter = Adapter(system)
    plain, adapted = [], []
    for i in range(CLIPS):
        last = (held_out["frames"][i : i + 1, -1:], held_out["masks"][i : i + 1, -1:])
        session = adapter.start(variables)
        batch = {k: held_out[k][i : i + 1, :1] for k in ("frames", "flow")}
        session.learn(0, batch)
        plain.append(float(student_j(variables, *last)))
        adapted.append(float(student_j(session.variables, *last)))
    unadapted, with_adaptation = np.mean(plain), np.mean(adapted)
    print(
        f"teacher J {before:.3f} -> {after:.3f} in {STEPS} steps; student on the last frame "
        f"{unadapted:.3f} as trained, {with_adaptation:.3f} adapted"
    )
    assert after > before + TEACHER_MARGIN
    assert with_adaptation > unadapted + ADAPTATION_MARGIN
