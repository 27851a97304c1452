"""DLVS's own properties and learning, on the tiny network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax import synthetic
from uvos_jax.errors import ConfigError
from uvos_jax.systems.dlvs import partner_indices, share_weighted_bce, stretched
from uvos_jax.train.optimizer import make_optimizer, make_schedule
from uvos_jax.train.step import init_state, make_train_step

#: Optimiser steps of the learning test, half of them for the static network.
STEPS = 240
#: J on held-out clips has to rise by this much within STEPS steps.
MARGIN = 0.08


@pytest.fixture(scope="module")
def built():
    system = uvos.build("dlvs:tiny")
    return system, system.init(jax.random.key(0))


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(4).integers(0, 256, (2, 3, 64, 64, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def run(built):
    system, variables = built
    function = jax.jit(lambda v, b: system.apply(v, b, train=False)[0])
    return lambda frames, v=variables: jax.device_get(function(v, {"frames": jnp.asarray(frames)}))


def shapes(size, **overrides):
    """Shapes of the side maps for frames of a size."""
    system = uvos.build("dlvs:tiny", input_size=size, **overrides)
    batch = {"frames": jnp.zeros((1, 2, *size, 3), jnp.uint8)}

    def function():
        variables = system.init(jax.random.key(0))
        return system.apply(variables, batch, train=False)[0]

    return [x.shape[2:4] for x in jax.eval_shape(function)["side_logits"]]


def test_maps_lie_at_strides_16_8_and_4():
    assert shapes((32, 32)) == [(2, 2), (4, 4), (8, 8)]
    assert shapes((224, 224)) == [(14, 14), (28, 28), (56, 56)]
    # sizes round up, and doubled coarse maps are cut to fit
    assert shapes((50, 74)) == [(4, 5), (7, 10), (13, 19)]


def test_the_papers_head_returns_to_full_size():
    assert shapes((64, 64), head="deconv") == [(64, 64)]
    assert shapes((50, 74), head="deconv") == [(50, 74)]


def test_every_frame_is_paired_with_the_next_and_the_last_with_its_predecessor():
    assert [partner_indices(n).tolist() for n in (1, 2, 4)] == [[0], [1, 0], [1, 2, 3, 2]]


def test_time_enters_through_the_second_frame(run, frames):
    before = run(frames)
    changed = frames.copy()
    changed[:, 1] = 255 - changed[:, 1]
    after = run(changed)
    # frame 0 sees frame 1 in its dynamic map, not in its static one
    assert np.abs(after["logits"][:, 0] - before["logits"][:, 0]).max() > 1e-3
    np.testing.assert_allclose(
        after["static_logits"][:, 0], before["static_logits"][:, 0], atol=1e-5
    )


def test_a_zero_kernel_switches_the_prior_off(built, run, frames):
    """With no weight on the seventh channel the static network does not matter."""
    _, variables = built
    kernel = variables["params"]["motion"]["vgg"]["conv1_1"]["kernel"]
    assert kernel.shape[2] == 7

    def with_prior(weight, static_scale):
        params = jax.tree.map(lambda x: x, dict(variables["params"]))
        params["motion"] = jax.tree.map(lambda x: x, params["motion"])
        params["motion"]["vgg"]["conv1_1"]["kernel"] = kernel.at[:, :, 6].mul(weight)
        params["static"] = jax.tree.map(lambda x: static_scale * x, params["static"])
        return run(frames, type(variables)({"params": params}))["logits"]

    np.testing.assert_allclose(with_prior(0.0, 1.0), with_prior(0.0, 0.7), atol=1e-6)
    assert np.abs(with_prior(1.0, 1.0) - with_prior(1.0, 0.7)).max() > 1e-4


def test_six_channels_without_the_prior_and_one_network_alone():
    params = jax.eval_shape(uvos.build("dlvs:tiny", use_static_prior=False).init,
                            jax.random.key(0))["params"]  # fmt: skip
    assert params["motion"]["vgg"]["conv1_1"]["kernel"].shape[2] == 6
    static = uvos.build("dlvs:tiny", static_only=True)
    assert set(jax.eval_shape(static.init, jax.random.key(0))["params"]) == {"static"}
    assert static.spec.causal
    assert [s.name for s in static.stages(uvos.load_config("dlvs:tiny,static_only=true"))] == [
        "static"
    ]


def test_last_frame_keeps_its_static_map_on_request(built, run, frames):
    _, variables = built
    system = uvos.build("dlvs:tiny", last_frame="static", stretch=False)
    batch = {"frames": jnp.asarray(frames)}
    outputs, _ = system.apply(variables, batch, train=False)
    _, probs = system.predict(variables, (), batch)
    expected = system.probabilities(outputs["static_logits"], (64, 64))
    np.testing.assert_allclose(probs[:, -1], expected[:, -1], atol=1e-5)
    assert np.abs(probs[:, 0] - expected[:, 0]).max() > 1e-4


def test_means_of_the_release_are_off_by_one_swap():
    frame = jnp.full((1, 1, 2, 2, 3), 130, jnp.uint8)
    got = {p: uvos.build("dlvs:tiny", preprocess=p, input_scale=1.0).normalize(frame)[0, 0, 0, 0]
           for p in ("vgg", "released")}  # fmt: skip
    np.testing.assert_allclose(got["vgg"], 130 - np.array([103.939, 116.779, 123.68]), atol=1e-4)
    np.testing.assert_allclose(got["released"], got["vgg"][::-1], atol=1e-4)


# ----- loss -----------------------------------------------------------------------------------


def test_loss_equals_its_formula(rng):
    x = rng.standard_normal((2, 5, 6)) * 3
    g = (rng.random((2, 5, 6)) < [[[0.2]], [[0.7]]]).astype(float)
    w = (rng.random((2, 5, 6)) < 0.8).astype(float)
    total = 0.0
    for b in range(2):
        a = (g[b] * w[b]).sum() / w[b].sum()
        s = 1 / (1 + np.exp(-x[b]))
        total -= (w[b] * ((1 - a) * g[b] * np.log(s) + a * (1 - g[b]) * np.log(1 - s))).sum()
    got = share_weighted_bce(*(jnp.asarray(v, jnp.float32) for v in (x, g, w)))
    np.testing.assert_allclose(got, 2 * total / w.sum(), rtol=1e-5)


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_loss_of_empty_and_full_masks_is_finite_and_pulls_the_right_way(fill):
    target, weights = jnp.full((1, 4, 4), fill), jnp.ones((1, 4, 4))
    gradient = jax.grad(share_weighted_bce)(jnp.zeros((1, 4, 4)), target, weights)
    assert np.all(np.isfinite(gradient))
    assert np.all(np.sign(gradient) == (1 if fill == 0 else -1))


def test_supervision_of_the_last_map_only(built, frames):
    _, variables = built
    batch = {"frames": jnp.asarray(frames), "masks": jnp.ones((2, 3, 64, 64), jnp.uint8)}
    terms = {}
    for mode in ("deep", "last"):
        system = uvos.build("dlvs:tiny", supervision=mode)
        outputs = jax.eval_shape(lambda s=system: s.apply(variables, batch, train=False)[0])
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), outputs)
        terms[mode] = set(system.loss_fn(zeros, batch, step=0)[1])
    assert terms == {"deep": {"bce_16", "bce_8", "bce_4", "iou"}, "last": {"bce_4", "iou"}}


def test_the_dynamic_stage_leaves_the_static_network_alone(built, frames):
    system, variables = built
    batch = {"frames": jnp.asarray(frames), "masks": jnp.ones((2, 3, 64, 64), jnp.uint8)}

    def loss(params):
        outputs, _ = system.apply({"params": params}, batch, train=True, phase="dynamic")
        return system.loss_fn(outputs, batch, step=0, phase="dynamic")[0]

    grads = jax.jit(jax.grad(loss))(variables["params"])
    assert not any(np.any(g) for g in jax.tree.leaves(grads["static"]))
    assert any(np.any(g) for g in jax.tree.leaves(grads["motion"]))
    stages = system.stages(uvos.load_config("dlvs:tiny"))
    assert [(s.name, s.steps, s.phases[0].data) for s in stages] == [
        ("static", 15, "static"),
        ("dynamic", 15, "video"),
    ]


def test_constant_maps_stay_finite_when_stretched():
    assert np.all(stretched(jnp.full((1, 3, 3, 1), 0.7)) == 0)


# ----- configuration --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field,value,message",
    [
        ("head", "fpn", r"model\.head is 'fpn': use one of \('side', 'deconv'\)"),
        ("preprocess", "rgb", r"model\.preprocess is 'rgb'"),
        ("clip_len", 1, r"clip_len must be at least 2 .*, got 1"),
        ("prior_range", 0.0, r"prior_range must be positive"),
        ("static_share", 1.5, r"static_share .* got 1\.5"),
    ],
)
def test_impossible_options_are_refused_by_name(field, value, message):
    with pytest.raises(ConfigError, match=message):
        uvos.build("dlvs:tiny", **{field: value})


def test_every_variant_of_the_config_file_builds():
    from uvos_jax.config import list_variants

    for variant in list_variants("dlvs"):
        config = uvos.load_config(f"dlvs:{variant}")
        assert uvos.build(config).stages(config)
    with pytest.raises(ConfigError, match=r"unknown variant 'huge'.*tiny"):
        uvos.load_config("dlvs:huge")


# ----- learning -------------------------------------------------------------------------------


@pytest.mark.learns
def test_region_similarity_on_held_out_clips_rises():
    config = uvos.load_config("dlvs:tiny")
    config.train.total_steps = STEPS
    system = uvos.build(config)
    size = tuple(config.data.size)
    scenes = synthetic.config("test", height=size[0], width=size[1], frames=2)

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
        _, probs = system.predict(variables, (), {"frames": batch["frames"]})
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
