"""The segmenter as a system, and the two-path policy; formulas are in `tests/parity`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax.data.sources import make_source
from uvos_jax.errors import CheckpointError, ConfigError, DataError
from uvos_jax.predict.predictor import Predictor
from uvos_jax.systems.morel import policy as policies


@pytest.fixture(scope="module")
def system():
    return uvos.build("morel:tiny")


@pytest.fixture(scope="module")
def variables(system):
    return system.init(jax.random.key(0))


def clip(count, size=(42, 42)):
    """A bright square moves two pixels to the right over a textured ground."""
    frames = np.random.default_rng(0).integers(0, 90, (1, *size, 3)).astype(np.uint8)
    frames = np.repeat(frames, count, 0)
    for t, frame in enumerate(frames):
        frame[10:20, 5 + 2 * t : 15 + 2 * t] = 220
    return frames


def test_pairs_are_previous_and_newest_and_masks_live_where_they_say(system, variables):
    frames = jnp.asarray(clip(3))[None]
    run = jax.jit(lambda v, f: system.apply(v, {"frames": f}, train=False)[0])
    outputs = run(variables, frames)
    assert outputs["logits"].shape == (1, 3, 42, 42, 1)
    assert outputs["masks"].shape == (1, 2, 42, 42, 4)
    assert outputs["translations"].shape == (1, 2, 4, 2)
    grey = np.round(np.asarray(frames)[0] @ [0.299, 0.587, 0.114]) / 255
    np.testing.assert_allclose(outputs["pairs"][0, 1, ..., 0], grey[1], atol=5e-3)
    np.testing.assert_allclose(outputs["pairs"][0, 1, ..., 1], grey[2], atol=5e-3)
    # frame 0 has the first pair's masks where they were found, later frames carried ones
    probs = jax.nn.sigmoid(outputs["logits"])[0, ..., 0]
    np.testing.assert_allclose(probs[0], system.foreground(outputs)[0, 0], atol=1e-5)
    moved = system.foreground(outputs, "current")[0]
    np.testing.assert_allclose(probs[1:], moved, atol=1e-5)


def test_the_first_frame_of_a_stream_is_paired_with_itself(system, variables):
    frames = jnp.asarray(clip(2))[None]
    run = jax.jit(system.predict)
    state = system.init_state(variables, 1, (42, 42))
    after, probs = run(variables, state, {"frames": frames[:, :1]})
    assert after["seen"].all()
    twice = jnp.stack([frames[:, 0], frames[:, 0]], axis=1)
    again = jax.jit(lambda v, f: system.apply(v, {"frames": f}, train=False)[0])(variables, twice)
    np.testing.assert_allclose(probs[:, 0], jax.nn.sigmoid(again["logits"])[:, 1, ..., 0],
                               atol=1e-5)  # fmt: skip


def test_pairs_with_a_frame_that_is_not_real_do_not_count(system, variables):
    batch = {"frames": jnp.asarray(np.stack([clip(2), 255 - clip(2)]))}

    @jax.jit
    def loss(valid):
        outputs, _ = system.apply(variables, batch, train=True)
        half = system.config.sparsity_ramp // 2
        return system.loss_fn(outputs, {**batch, "valid": valid}, step=half)

    both = loss(jnp.ones((2, 2), bool))
    first = loss(jnp.asarray([[True, True], [True, False]]))
    second = loss(jnp.asarray([[False, True], [True, True]]))
    none = loss(jnp.zeros((2, 2), bool))
    np.testing.assert_allclose(both[0], (first[0] + second[0]) / 2, rtol=1e-5)
    assert first[0] != second[0]
    assert none[0] == 0
    assert both[1]["sparsity_weight"] == 0.5
    assert set(both[1]) == {"reconstruction", "sparsity", "no_transform_loss", "sparsity_weight"}


def test_a_pyramid_sees_shifts_that_one_scale_does_not():
    """The gradient of a camera that lags 8 pixels behind points to it on coarse images only."""
    y, x = np.mgrid[:84, :84]
    world = 0.5 + 0.4 * np.exp(-((y - 40) ** 2 + (x - 38) ** 2) / 30.0)
    newest = np.roll(world, 8, axis=1)
    pair = jnp.asarray(np.stack([world, newest], -1)[None], jnp.float32)

    def loss(u, levels):
        system = uvos.build("morel", pyramid=levels)
        flow = jnp.broadcast_to(jnp.stack([u, 0.0 * u]), (1, 84, 84, 2))
        return system._dissimilarity(pair[..., :1], pair[..., 1:], flow)[0]

    one, three = (jax.jit(jax.grad(loss), static_argnums=1)(0.0, levels) for levels in (1, 3))
    assert three < 0  # a larger u lowers the loss
    assert abs(three) > 2 * abs(one)


def test_any_video_is_segmented_at_its_own_size(system, variables):
    predictor = Predictor(system, variables)
    for count, size in ((1, (61, 87)), (2, (90, 47)), (6, (61, 87))):
        masks = predictor.predict(clip(count, size))
        assert masks.probs.shape == (count, *size)
        streamed = np.stack(list(predictor.stream(clip(count, size), probabilities=True)))
        np.testing.assert_allclose(streamed, masks.probs, atol=2e-5)


@pytest.mark.parametrize(
    "overrides,message",
    [
        ({"foreground": "sped"}, r"model\.foreground is 'sped'.*flow_weighted"),
        ({"masks_in": "next"}, r"model\.masks_in is 'next'"),
        ({"objects": 0}, r"model\.objects must be at least 1, got 0"),
        ({"input_size": (20, 84)}, r"model\.input_size is \(20, 84\).*at least 36"),
        ({"pyramid": 4}, r"at least 88, for .*windows of 11 pixels on 4 scale"),
    ],
)
def test_wrong_settings_are_refused_by_name(overrides, message):
    with pytest.raises(ConfigError, match=message):
        uvos.build("morel", **overrides)


def test_single_frames_do_not_train(system, variables):
    batch = {"frames": jnp.asarray(clip(1))[None]}
    outputs, _ = jax.eval_shape(lambda: system.apply(variables, batch, train=True))
    with pytest.raises(DataError, match=r"pairs of frames, got clips of 1: set data\.clip_len=2"):
        system.loss_fn(outputs, batch, step=0)


# ----- random play as a source ----------------------------------------------------------------


def test_random_play_is_a_source_of_clips():
    source = make_source("environment", env="dodge", size=(42, 42), clip_len=3, length=50)
    batch = jax.device_get(source.render(0, 0, 16))
    assert batch["frames"].shape == (16, 3, 42, 42, 3)
    assert batch["frames"].dtype == np.uint8
    assert batch["valid"][:, 0].all()
    assert (batch["masks"][batch["valid"]] > 0).any(axis=(1, 2)).mean() > 0.9
    one = source[5]
    jax.tree.map(np.testing.assert_array_equal, one, {k: v[5] for k, v in batch.items()})
    np.testing.assert_array_equal(source.render(0, 50, 1)["frames"][0], batch["frames"][0])
    ended = ~batch["valid"]
    for b, t in zip(*np.nonzero(ended), strict=True):
        np.testing.assert_array_equal(batch["frames"][b, t], batch["frames"][b, t - 1])
        assert not batch["masks"][b, t].any()


def test_random_play_refuses_what_it_cannot_show():
    with pytest.raises(DataError, match=r"square frames, data\.size is \(42, 64\)"):
        make_source("environment", size=(42, 64))
    with pytest.raises(ConfigError, match="environment 'pong' is unknown"):
        make_source("environment", env="pong")


# ----- policy ---------------------------------------------------------------------------------


def policy_of(system, **options):
    policy = policies.make_policy(system.config, 3, **options)
    return policy, jax.jit(lambda key: policies.init_policy(policy, key))(jax.random.key(1))


def test_a_policy_takes_over_the_segmenter_and_gives_it_back(system, variables):
    policy, params = policy_of(system)
    moved = policies.transfer(params, variables["params"])
    for part in policies.SHARED:
        jax.tree.map(np.testing.assert_array_equal, moved[part], variables["params"][part])
    for part in ("static_encoder", "extra_path_fc", "pi", "v"):
        jax.tree.map(np.testing.assert_array_equal, moved[part], params[part])
    back = policies.segmenter_of(moved)
    jax.tree.map(np.testing.assert_array_equal, back, dict(variables["params"]))
    pairs = jax.random.uniform(jax.random.key(2), (2, 42, 42, 2))
    logits, value, seen = jax.jit(
        lambda params: policy.apply({"params": params}, pairs, with_segments=True)
    )(moved)
    assert logits.shape == (2, 3)
    assert value.shape == (2,)
    same = jax.jit(system.module.apply)(dict(variables), pairs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), seen, same)
    # gain 0.01: a fresh policy is nearly uniform
    assert np.abs(jax.nn.softmax(logits) - 1 / 3).max() < 0.05


def test_a_plain_policy_has_one_path_and_no_decoder(system):
    policy, params = policy_of(system, extra_path=False, segments=False)
    assert set(params) == {"encoder", "pi", "v"}
    pairs = jnp.zeros((1, 42, 42, 2))
    assert jax.eval_shape(lambda: policy.apply({"params": params}, pairs))[2] == {}
    with pytest.raises(ConfigError, match=r"no mask decoder.*rl\.joint_weight=0"):
        policy.apply({"params": params}, pairs, with_segments=True)
    with pytest.raises(CheckpointError, match="no decoder, motion"):
        policies.segmenter_of(params)


def test_a_segmenter_of_another_size_is_refused(system):
    _, params = policy_of(system)
    narrow = uvos.build("morel:tiny", embedding=32)
    other = jax.eval_shape(narrow.init, jax.random.key(0))
    with pytest.raises(CheckpointError, match="segmenter's encoder does not fit"):
        policies.transfer(params, other["params"])


# ----- configuration --------------------------------------------------------------------------


def test_published_numbers():
    config = uvos.load_config("morel")
    assert config.data.batch_size == 16
    assert config.optim.lr == 1e-4
    assert config.optim.clip_norm == 5.0
    assert config.train.total_steps == 250_000
    assert config.rl.algorithm == ""
    a2c = uvos.load_config("morel:breakout").rl
    assert (a2c.env, a2c.algorithm, a2c.envs, a2c.rollout) == ("breakout", "a2c", 16, 5)
    assert (a2c.optimizer, a2c.lr, a2c.schedule, a2c.clip_norm) == (
        "rmsprop",
        7e-4,
        "constant",
        0.5,
    )
    ppo = uvos.load_config("morel:catch,algorithm=ppo").rl
    assert (ppo.envs, ppo.rollout, ppo.epochs, ppo.minibatches) == (8, 128, 4, 4)
    assert (ppo.optimizer, ppo.lr, ppo.schedule, ppo.gae_lambda) == ("adam", 2.5e-4, "linear", 0.95)
    mixed = uvos.load_config("morel:tiny_dodge,joint_weight=0,pretrain=random,extra_path=false").rl
    assert (mixed.joint_weight, mixed.pretrain, mixed.extra_path) == (0.0, "random", False)
    with pytest.raises(ConfigError, match="no field 'jointt'"):
        uvos.load_config("morel:catch,jointt=1")
