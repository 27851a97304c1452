"""The tiny MuG learns on the synthetic generator without a single mask, relabelling once."""

import jax
import jax.numpy as jnp
import pytest

import uvos_jax as uvos
from uvos_jax import synthetic
from uvos_jax.train import stages
from uvos_jax.train.optimizer import make_schedule
from uvos_jax.train.step import init_state, make_train_step

STEPS = 160
CLIPS = 160
#: J on held-out clips starts at 0.15 (everything is foreground) and has to rise by this much.
MARGIN = 0.08
#: One object that stands out: saliency of single images knows nothing of what moves.
SCENES = {
    "camouflage": 0.0,
    "contrast": 1.0,
    "distractors": 0,
    "occluders": 0,
    "area": (0.05, 0.35),
    "object_counts": (1.0,),
}


@pytest.mark.learns
def test_region_similarity_on_held_out_clips_rises_without_masks():
    config = uvos.load_config("mug:tiny")
    config.train.total_steps = STEPS
    config.model.num_videos = CLIPS
    segments = stages.plan(config)
    system = segments[0].system
    size, T = tuple(config.data.size), config.data.clip_len
    scenes = synthetic.config("test", height=size[0], width=size[1], frames=T, **SCENES)

    def clips(key, step, count):
        record = synthetic.batch(key, step, count, scenes)
        frames = jnp.round(255 * record["video"]).astype(jnp.uint8)
        return {"frames": frames, "masks": record["mask"]}

    held_out = jax.jit(lambda: clips(jax.random.key(99), 0, 32))()

    @jax.jit
    def render(step):
        batch = clips(jax.random.key(1), step, config.data.batch_size)
        batch["masks"] = jnp.zeros_like(batch["masks"])  # nothing to see there
        numbers = step * config.data.batch_size + jnp.arange(config.data.batch_size)
        return {**batch, "example_id": numbers}

    pool = [render(step) for step in range(CLIPS // config.data.batch_size)]

    def score(predicted, target):
        union = jnp.sum(predicted | target, axis=(2, 3))
        overlap = jnp.sum(predicted & target, axis=(2, 3))
        return jnp.mean(jnp.where(union > 0, overlap / jnp.maximum(union, 1), 1.0))

    @jax.jit
    def region_similarity(variables, held_out):
        chunk = {"frames": held_out["frames"][:, :3]}
        state = system.prepare(variables, {"frames": held_out["frames"][:, 3:5]})
        _, probs = system.predict(variables, state, chunk)
        return score(probs > 0.5, held_out["masks"][:, :3] > 0)

    def step_of(segment):
        phase = segment.stage.phases[0]
        run = make_train_step(
            system,
            stages.optimizer_of(segment, phase, state.params),
            make_schedule(segment.config.optim, segment.end - segment.start),
            phase=phase,
            stage_start=segment.start,
        )

        return jax.jit(run, donate_argnums=0)

    first = segments[0]
    state = init_state(system, 0, lambda p: stages.optimizer_of(first, first.stage.phases[0], p))
    scores, shares = [float(region_similarity(state.variables(), held_out))], []
    for segment in segments:
        entered = system.enter_stage(segment.stage.name, state.variables())
        state = state.replace(params=entered["params"], batch_stats=entered["batch_stats"])
        step = step_of(segment)
        for number in range(segment.start, segment.end):
            state, metrics = step(state, pool[number % len(pool)])
        scores.append(float(region_similarity(state.variables(), held_out)))
        shares.append({k: round(float(v), 3) for k, v in metrics.items() if v.ndim == 0})
    target = held_out["masks"][:, :3] > 0
    everything = float(score(jnp.ones(target.shape, bool), target))
    print(f"J {' -> '.join(f'{s:.3f}' for s in scores)} in {STEPS} steps; {shares}; "
          f"of the whole frame {everything:.3f}")  # fmt: skip
    assert scores[-1] > max(scores[0], everything) + MARGIN
