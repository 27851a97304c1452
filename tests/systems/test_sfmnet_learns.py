"""The tiny SfM-Net learns on ray-cast scenes; held-out scenes are scored against trivial guesses.

Depth, which one frame shows, is learned within a few hundred steps; camera and moving masks have to
be read from how two frames of random texture differ, which takes ten times as many (ten to twenty
minutes of a core).

Depth: mean absolute error of log depth, against the training set's mean log depth everywhere.
Camera: translation and rotation error, against a camera that stands still. Masks: J of the moving
probability, against marking everything. Flow: end-point error, against none.
"""

import jax
import jax.numpy as jnp
import pytest

import uvos_jax as uvos
from uvos_jax.data.sources import make_source
from uvos_jax.losses.geometry import pose_errors
from uvos_jax.train.optimizer import make_optimizer, make_schedule
from uvos_jax.train.step import init_state, make_train_step

STEPS = 4000
CLIPS = 64
#: What may be left of the trivial predictors' errors, and how far J has to lie above theirs.
SHARES = {"depth": 0.7, "flow": 0.7, "translation": 0.9}
J_MARGIN = 0.2


def scores(system, variables, batch):
    """Depth, translation, rotation and flow error and J of the first frames of held-out pairs."""
    outputs, _ = system.apply(variables, batch, train=False)
    camera, true = outputs["camera"][:, 0], batch["camera"][:, 0]
    shift, angle = pose_errors(camera[..., :3], camera[..., 3], true[..., :3], true[..., 3])
    predicted, target = outputs["logits"][:, 0, ..., 0] > 0, batch["masks"][:, 0] > 0
    return {
        "depth": jnp.abs(jnp.log(outputs["depth"][:, 0]) - jnp.log(batch["depth"][:, 0])).mean(),
        "translation": shift.mean(),
        "rotation": jnp.rad2deg(angle).mean(),
        "flow": jnp.linalg.norm(
            jnp.clip(outputs["flow"][:, 0] - batch["flow"][:, 0], -64, 64), axis=-1
        ).mean(),
        "J": similarity(predicted, target),
    }


def similarity(predicted, target):
    union = jnp.sum(predicted | target, axis=(1, 2))
    return jnp.mean(jnp.sum(predicted & target, axis=(1, 2)) / jnp.maximum(union, 1))


def trivial(batch, mean_log_depth):
    camera, eye = batch["camera"][:, 0], jnp.eye(3)
    still = jnp.broadcast_to(eye, (len(camera), 3, 3)), jnp.zeros((len(camera), 3))
    shift, angle = pose_errors(*still, camera[..., :3], camera[..., 3])
    target = batch["masks"][:, 0] > 0
    return {
        "depth": jnp.abs(mean_log_depth - jnp.log(batch["depth"][:, 0])).mean(),
        "translation": shift.mean(),
        "rotation": jnp.rad2deg(angle).mean(),
        "flow": jnp.linalg.norm(jnp.clip(batch["flow"][:, 0], -64, 64), axis=-1).mean(),
        "J": similarity(jnp.ones_like(target), target),
    }


@pytest.mark.learns
def test_depth_pose_flow_and_masks_beat_trivial_predictors():
    config = uvos.load_config("sfmnet:tiny")
    config.optim.schedule.warmup_steps = 20
    system = uvos.build(config)
    source = make_source("raycast", preset="test", size=tuple(config.data.size), clip_len=2)
    held_out = source.render(1 << 20, 0, CLIPS)
    params = jax.eval_shape(system.init, jax.random.key(0))["params"]
    optimizer = make_optimizer(config.optim, params)
    (stage,) = system.stages(config)
    run = make_train_step(
        system, optimizer, make_schedule(config.optim, STEPS), phase=stage.phases[0]
    )
    step = jax.jit(run, donate_argnums=0)
    state = init_state(system, 0, lambda params: optimizer)
    score = jax.jit(lambda variables: scores(system, variables, held_out))
    before = jax.device_get(score(state.variables()))
    logs = []
    for number in range(STEPS):
        batch = source.render(0, number * config.data.batch_size, config.data.batch_size)
        if number < 20:
            logs.append(float(jnp.log(batch["depth"]).mean()))
        state, _ = step(state, batch)
    after = jax.device_get(score(state.variables()))
    base = jax.device_get(trivial(held_out, sum(logs) / len(logs)))
    for name in after:
        print(f"{name}: {before[name]:.3f} -> {after[name]:.3f}, trivial {base[name]:.3f}")
    for name, share in SHARES.items():
        assert after[name] < share * base[name], name
    assert after["J"] > base["J"] + J_MARGIN
