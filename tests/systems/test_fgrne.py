"""FGRNE's own properties and learning, on the tiny network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax import synthetic
from uvos_jax.errors import ConfigError, DataError
from uvos_jax.train.optimizer import make_optimizer, make_schedule
from uvos_jax.train.step import init_state, make_train_step

#: Optimiser steps of the learning test, half of them for the host alone.
STEPS = 240
#: J on held-out clips has to rise by this much within STEPS steps.
MARGIN = 0.08


@pytest.fixture(scope="module")
def built():
    """A system with flow from the batch (no flow network to compile) and its variables."""
    system = uvos.build("fgrne:tiny", flow_source="batch")
    return system, system.init(jax.random.key(0))


@pytest.fixture(scope="module")
def predict(built):
    return jax.jit(built[0].predict)


@pytest.fixture(scope="module")
def clip():
    rng = np.random.default_rng(3)
    return {
        "frames": jnp.asarray(rng.integers(0, 256, (1, 5, 64, 64, 3)), jnp.uint8),
        "flow": jnp.asarray(6 * rng.standard_normal((1, 5, 64, 64, 2)), jnp.float32),
    }


def parameters(**overrides):
    system = uvos.build("fgrne:tiny", **overrides)
    return jax.eval_shape(system.init, jax.random.key(0))["params"]


def test_parts_come_and_go_with_the_ablations():
    host = {"vgg", "regression"}
    whole = host | {"flow", "refine", "encoders_c5"}
    assert set(parameters()) == whole
    assert set(parameters(window_k=0)) == host
    assert set(parameters(use_flow=False)) == host | {"encoders_c5"}
    assert set(parameters(refine_flow=False)) == whole - {"refine"}
    assert set(parameters(flow_source="batch")) == whole - {"flow"}
    assert set(parameters(split="sides")) == whole | {f"encoders_c{i}" for i in (1, 2, 3, 4)}
    assert set(parameters(temporal="mean")["encoders_c5"]) == {"reduce", "expand"}


def test_without_a_window_it_is_the_host(built, clip):
    """k = 0 gives each frame what the host alone says, whatever the other frames show."""
    _, variables = built
    host = uvos.build("fgrne:tiny", window_k=0)
    own = type(variables)({"params": {k: variables["params"][k] for k in ("vgg", "regression")}})
    apply = jax.jit(lambda frames: host.apply(own, {"frames": frames}, train=False)[0]["logits"])
    together = apply(clip["frames"])
    np.testing.assert_allclose(apply(clip["frames"][:, 3:4])[:, 0], together[:, 3], atol=1e-4)
    assert host.spec.temporal == "frame"
    assert [s.name for s in host.stages(uvos.load_config("fgrne:tiny,window_k=0"))] == ["host"]


def test_given_flow_streams_as_it_predicts(built, predict, clip):
    """Chunks of one frame, of two and of five give the same; the flow network is tested elsewhere.

    (The registry's test of causality runs on the flow network.)
    """
    system, variables = built
    start = system.init_state(variables, 1, (64, 64))
    end, together = predict(variables, start, clip)
    state, parts = start, []
    for cut in (slice(0, 2), slice(2, 3), slice(3, 5)):
        chunk = {k: v[:, cut] for k, v in clip.items()}
        state, probs = predict(variables, state, chunk)
        parts.append(probs)
    np.testing.assert_allclose(np.concatenate(parts, 1), together, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), state, end)


def test_a_frame_sees_k_predecessors_and_no_more(built, predict, clip):
    system, variables = built
    start = system.init_state(variables, 1, (64, 64))
    _, before = predict(variables, start, clip)
    changed = {**clip, "frames": clip["frames"].at[:, 1].set(0)}
    _, after = predict(variables, start, changed)
    moved = np.abs(np.asarray(after - before)).max((0, 2, 3))
    assert moved[0] < 1e-5  # the future
    assert moved[2] > 1e-5  # one and two frames later
    assert moved[3] > 1e-5
    assert moved[4] < 1e-5  # k = 2


def test_flow_given_matters_and_flow_missing_is_refused(built, predict, clip):
    system, variables = built
    start = system.init_state(variables, 1, (64, 64))
    _, before = predict(variables, start, clip)
    _, after = predict(variables, start, {**clip, "flow": jnp.zeros_like(clip["flow"])})
    assert np.abs(np.asarray(after - before))[:, 1:].max() > 1e-5
    assert system.spec.requires == {"flow"}
    with pytest.raises(DataError, match=r"needs the batch key 'flow'.*flow_source='network'"):
        system.predict(variables, start, {"frames": clip["frames"]})


def test_gradient_reaches_flow_through_the_warp(built, clip):
    """By autodiff and by finite differences, through refinement, warp and both ConvLSTMs."""
    system, variables = built
    module = system.module
    rng = np.random.default_rng(0)
    h, w = module.grid((64, 64))
    stored = {"c5": jnp.asarray(rng.standard_normal((1, 3, h, w, 16)), jnp.float32)}
    maps = {"c5": jnp.zeros((1, h, w, 24))}
    flow = jnp.asarray(rng.uniform(0.2, 0.8, (1, 1, 2, h, w, 2)), jnp.float32)

    @jax.jit
    def value(flow):
        out = module.apply(dict(variables), maps, stored, flow, method="encoded")
        return jnp.sum(out["c5"] ** 2)

    gradient = np.asarray(jax.grad(value)(flow))
    place = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)
    step = 1e-2
    difference = (value(flow.at[place].add(step)) - value(flow.at[place].add(-step))) / (2 * step)
    np.testing.assert_allclose(difference, gradient[place], rtol=0.05)


def test_training_supervises_the_last_frame_or_all():
    batch = {
        "frames": jax.ShapeDtypeStruct((2, 3, 64, 64, 3), jnp.uint8),
        "masks": jax.ShapeDtypeStruct((2, 3, 64, 64), jnp.uint8),
    }
    for supervise, frames in (("last", 1), ("all", 3)):
        system = uvos.build("fgrne:tiny", supervise=supervise)
        variables = jax.eval_shape(system.init, jax.random.key(0))

        def outputs(variables, batch, system=system):
            return system.apply(variables, batch, train=True, phase="video")[0]

        assert jax.eval_shape(outputs, variables, batch)["logits"].shape[1] == frames


def test_loss_is_the_sum_over_all_maps_of_the_last_frame():
    system = uvos.build("fgrne:tiny")
    rng = np.random.default_rng(0)
    maps = [jnp.asarray(rng.standard_normal((1, 3, 8, 8, 1)), jnp.float32) for _ in range(3)]
    target = rng.integers(0, 2, (1, 3, 8, 8)).astype(np.uint8)
    outputs = {"logits": maps[0], "side_logits": tuple(maps[1:])}
    got, terms = system.loss_fn(outputs, {"masks": jnp.asarray(target)}, step=0, phase="video")
    want = 0.0
    for x in maps:
        s = 1 / (1 + np.exp(-np.asarray(x, np.float64)[:, -1, ..., 0]))
        g = target[:, -1]
        want -= (g * np.log(s) + (1 - g) * np.log(1 - s)).mean()
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert set(terms) == {"fused", "sides", "iou"}


def test_stages_hold_what_the_recipe_says():
    config = uvos.load_config("fgrne:full")
    config.model.host_share = 0.25
    host, video = uvos.build(config).stages(config)
    assert (host.steps, video.steps) == (10_000, 30_000)
    assert any("flow" in rule for rule in host.phases[0].frozen)
    assert [f for _, f in video.phases[0].lr_multipliers] == [0.1, 0.1]
    config.model.finetune_flow = False
    _, video = uvos.build(config).stages(config)
    assert any("flow" in rule for rule in video.phases[0].frozen)


# ----- configuration --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field,value,message",
    [
        ("host", "unet", r"model\.host is 'unet': use one of \('dss', 'plain'\)"),
        ("flow_order", "random", r"model\.flow_order is 'random'"),
        ("window_k", -1, r"window_k must not be negative, got -1"),
        ("sides", (3, 7), r"sides must name different sides among 1 to 6, got \(3, 7\)"),
        ("host_share", 2.0, r"host_share .* got 2\.0"),
    ],
)
def test_impossible_options_are_refused_by_name(field, value, message):
    with pytest.raises(ConfigError, match=message):
        uvos.build("fgrne:tiny", **{field: value})


def test_every_variant_of_the_config_file_builds():
    from uvos_jax.config import list_variants

    for variant in list_variants("fgrne"):
        config = uvos.load_config(f"fgrne:{variant}")
        assert uvos.build(config).stages(config)
    with pytest.raises(ConfigError, match=r"unknown variant 'huge'.*tiny"):
        uvos.load_config("fgrne:huge")


# ----- learning -------------------------------------------------------------------------------


@pytest.mark.learns
def test_region_similarity_on_held_out_clips_rises():
    config = uvos.load_config("fgrne:tiny")
    config.train.total_steps = STEPS
    system = uvos.build(config)
    size = tuple(config.data.size)
    scenes = synthetic.config("test", height=size[0], width=size[1], frames=3)

    @jax.jit
    def clips(key, step):
        record = synthetic.batch(key, step, config.data.batch_size, scenes)
        frames = jnp.round(255 * record["video"]).astype(jnp.uint8)
        return {"frames": frames, "masks": record["mask"]}

    # rendering costs more than a step: a store of clips, used over and over
    store = [clips(jax.random.key(1), step) for step in range(24)]
    held_out = [clips(jax.random.key(99), step) for step in range(4)]

    @jax.jit
    def region_similarity(variables, batch):
        start = system.init_state(variables, batch["frames"].shape[0], size)
        _, probs = system.predict(variables, start, {"frames": batch["frames"]})
        predicted, target = probs > 0.5, batch["masks"] > 0
        union = jnp.sum(predicted | target, axis=(2, 3))
        overlap = jnp.sum(predicted & target, axis=(2, 3))
        return jnp.mean(jnp.where(union > 0, overlap / jnp.maximum(union, 1), 1.0))

    def score(state):
        return float(np.mean([region_similarity(state.variables(), b) for b in held_out]))

    stages = system.stages(config)
    state = init_state(
        system, 0, lambda params: make_optimizer(config.optim, params, stages[0].phases[0])
    )
    before = score(state)
    for stage in stages:
        (phase,) = stage.phases
        optimizer = make_optimizer(config.optim, state.params, phase)
        schedule = make_schedule(config.optim, stage.steps)
        step = jax.jit(make_train_step(system, optimizer, schedule, phase=phase), donate_argnums=0)
        for number in range(stage.steps):
            batch = store[number % len(store)]
            if phase.data == "static":
                batch = {k: x[:, :1] for k, x in batch.items()}
            state, _ = step(state, batch)
    after = score(state)
    print(f"J {before:.3f} -> {after:.3f} in {STEPS} steps")
    assert after > before + MARGIN
