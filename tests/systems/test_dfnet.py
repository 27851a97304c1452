"""DFNet's formulas against NumPy and its properties, on the tiny network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax.errors import ConfigError
from uvos_jax.systems import dfnet

SIZE = (33, 41)


@pytest.fixture(scope="module")
def variants():
    """Systems and variables by their `model` overrides, all from one small configuration."""
    known = {}

    def build(**overrides):
        key = tuple(sorted(overrides.items()))
        if key not in known:
            config = uvos.load_config("dfnet:tiny")
            config.model.input_size = SIZE
            known[key] = uvos.build(config, **overrides)
        structural = {"w_update", "attention", "crf_compat", "crf_iterations", "gates"}
        kind = ("variables", *(item for item in key if item[0] in structural))
        if kind not in known:
            rng = np.random.default_rng(2)

            def draw(path, leaf):
                if path[-1].key in ("kernel", "W"):
                    scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
                    scale /= 64 if leaf.shape[:3] == (7, 7, 3) else 1  # pixels reach 150
                    return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)
                if path[-1].key in ("scale", "var"):
                    return jnp.asarray(0.5 + rng.random(leaf.shape), jnp.float32)
                return jnp.asarray(0.1 * rng.standard_normal(leaf.shape), jnp.float32)

            shapes = jax.eval_shape(known[key].init, jax.random.key(0))
            known[kind] = jax.tree_util.tree_map_with_path(draw, shapes)
        return known[key], known[kind]

    return build


def clip(T, B=1, seed=0):
    rng = np.random.default_rng(seed)
    frames = jnp.asarray(rng.integers(0, 256, (B, T, *SIZE, 3)), jnp.uint8)
    masks = jnp.asarray(rng.random((B, T, *SIZE)) < 0.2, jnp.uint8)
    return {"frames": frames, "masks": masks}


@partial(jax.jit, static_argnums=0, static_argnames=("train",))
def run(system, variables, batch, train=False):
    return system.apply(variables, batch, train=train, phase="video")


@partial(jax.jit, static_argnums=0)
def predict(system, variables, state, chunk):
    return system.predict(variables, state, chunk)


@partial(jax.jit, static_argnums=0)
def prepare(system, variables, batch):
    return system.prepare(variables, batch)


# ----- discriminative features ----------------------------------------------------------------


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    F = rng.standard_normal((2, 24, 5)).astype(np.float32)
    W = rng.standard_normal((5, 3)).astype(np.float32)
    return jnp.asarray(F), jnp.asarray(W)


def test_d_features_are_score_weighted_means_over_all_positions(rows):
    F, W = rows
    got = dfnet.d_features(dfnet.score_statistics(F, W, None))
    for b in range(2):
        S = softmax(np.asarray(F[b] @ W, np.float64), 0)
        np.testing.assert_allclose(got[b], S.T @ np.asarray(F[b], np.float64), atol=1e-5)


def test_statistics_merged_frame_by_frame_equal_those_of_all_frames(rows):
    F, W = rows
    F = F * 30  # scores beyond the range of exp
    total = dfnet.no_statistics(2, 3, 5)
    for part in jnp.split(F, 4, axis=1):
        total = dfnet.merge(total, dfnet.score_statistics(part, W, None))
    whole = dfnet.d_features(dfnet.score_statistics(F, W, None))
    np.testing.assert_allclose(dfnet.d_features(total), whole, atol=1e-5)


def test_frames_that_do_not_count_have_no_share(rows):
    F, W = rows
    valid = jnp.arange(24)[None] < jnp.array([[24], [10]])
    got = dfnet.d_features(dfnet.score_statistics(F.at[1, 10:].set(1e3), W, valid))
    alone = dfnet.d_features(dfnet.score_statistics(F[1:, :10], W, None))
    np.testing.assert_allclose(got[1:], alone, atol=1e-5)


def test_sharp_scores_pick_single_positions():
    F = jnp.asarray(np.eye(4, dtype=np.float32))[None]
    W = 1e3 * jnp.asarray(np.eye(4, dtype=np.float32)[:, [2, 0]])
    got = dfnet.d_features(dfnet.score_statistics(F, W, None))[0]
    np.testing.assert_allclose(got, np.eye(4)[[2, 0]], atol=1e-6)


def test_attention_and_read_out_equal_numpy(variants):
    system, variables = variants(crf_iterations=(0, 0))
    rng = np.random.default_rng(1)
    F = rng.standard_normal((1, 1, 3, 4, 16)).astype(np.float32)
    D = rng.standard_normal((1, 8, 16)).astype(np.float32)
    colours = jnp.zeros((1, 1, 8, 8, 3))
    with jax.default_matmul_precision("highest"):
        Q = system.module.apply(variables, F, jnp.asarray(D), colours, method="attend")
    # P = F W_att F'^T with W_att the transpose of what is stored
    W = np.asarray(variables["params"]["atm"]["kernel"], np.float64).T
    P = F[0, 0].reshape(12, 16) @ W @ D[0].T
    np.testing.assert_allclose(Q[0, 0].reshape(12, 8), softmax(P, 1), atol=1e-5)


# ----- the moving average ---------------------------------------------------------------------


def test_training_moves_w_by_the_formula_and_evaluation_never_does(variants):
    system, variables = variants()
    outputs, new = run(system, variables, clip(2, B=2), train=True)
    before = np.asarray(variables["batch_stats"]["dfm"]["W"], np.float64)
    mean = np.asarray(outputs["features"], np.float64).mean(0)
    centred = mean - mean.mean(0)
    direction = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    expected = 0.9 * before + 0.1 * direction.T
    np.testing.assert_allclose(new["batch_stats"]["dfm"]["W"], expected, atol=1e-5)
    assert run(system, variables, clip(2))[1] == {}


def test_w_is_a_parameter_only_when_it_learns_by_gradient(variants):
    _, variables = variants()
    assert "dfm" not in variables["params"]
    _, variables = variants(w_update="gradient")
    assert variables["params"]["dfm"]["W"].shape == (16, 8)
    assert "dfm" not in variables["batch_stats"]


def test_groups_keep_apart_when_centred_and_collapse_when_not():
    """Positions around one large mean, as after a ReLU: the plain reading loses the groups."""
    rng = np.random.default_rng(5)
    F = jnp.asarray(3.0 + rng.standard_normal((1, 200, 16)), jnp.float32)

    def similarity(how):
        W = dfnet.initial_weights(jax.random.key(0), 16, 8, "orthogonal", 0.5)
        for _ in range(60):
            found = dfnet.d_features(dfnet.score_statistics(F, W, None))[0]
            W = 0.9 * W + 0.1 * dfnet.normalized_groups(found, how).T
        unit = W / jnp.linalg.norm(W, axis=0)
        return float(jnp.max(unit.T @ unit - jnp.eye(8)))

    assert similarity("l2") > 0.99
    assert similarity("centered") < 0.9


# ----- network --------------------------------------------------------------------------------


def test_permuting_the_frames_permutes_the_masks_and_leaves_the_d_features(variants):
    system, variables = variants()
    batch, order = clip(3), np.array([2, 0, 1])
    a = run(system, variables, batch)[0]
    b = run(system, variables, {**batch, "frames": batch["frames"][:, order]})[0]
    np.testing.assert_allclose(a["features"], b["features"], atol=1e-5)
    np.testing.assert_allclose(a["logits"][:, order], b["logits"], atol=1e-4)


def test_the_crf_changes_the_masks_and_its_weights_learn(variants):
    system, variables = variants()
    without, _ = variants(crf_iterations=(0, 0))
    batch = clip(2)
    a = run(system, variables, batch)[0]["logits"]
    rest = {name: part for name, part in variables["params"].items() if name != "crf"}
    b = run(without, {**variables, "params": rest}, batch)[0]["logits"]
    assert float(jnp.max(jnp.abs(a - b))) > 1e-4

    @jax.jit
    def gradient(params):
        def loss(params):
            outputs, _ = system.apply({**variables, "params": params}, batch, train=True)
            return system.loss_fn(outputs, batch, step=0)[0]

        return jax.grad(loss)(params)

    found = gradient(variables["params"])
    assert all(float(jnp.abs(found["crf"][w])) > 0 for w in ("w1", "w2"))
    matrix, variables = variants(crf_compat="matrix")
    assert variables["params"]["crf"]["compat_w1"].shape == (8, 8)
    assert np.all(np.isfinite(run(matrix, variables, batch)[0]["logits"]))


def test_without_attention_frames_do_not_see_each_other(variants):
    system, variables = variants(attention="none")
    batch = clip(2)
    changed = {**batch, "frames": batch["frames"].at[:, 1].set(0)}
    a, b = (run(system, variables, x)[0]["logits"] for x in (batch, changed))
    np.testing.assert_allclose(a[:, 0], b[:, 0], atol=1e-5)
    assert system.spec.num_references == 0
    state = system.init_state(variables, 1, SIZE)
    assert state == prepare(system, variables, batch) == ()
    _, probs = predict(system, variables, state, {"frames": batch["frames"]})
    np.testing.assert_allclose(probs, system.probabilities(a, SIZE), atol=1e-5)


# ----- video ----------------------------------------------------------------------------------


def test_predict_equals_the_network_on_target_and_references(variants):
    system, variables = variants()
    batch = clip(3)
    outputs, _ = run(system, variables, batch)
    state = prepare(system, variables, {"frames": batch["frames"][:, 1:]})
    after, probs = predict(system, variables, state, {"frames": batch["frames"][:, :1]})
    expected = system.probabilities(outputs["logits"], SIZE)[:, 0]
    np.testing.assert_allclose(probs[:, 0], expected, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, state, after)


def test_a_stream_sees_all_of_its_past(variants):
    system, variables = variants()
    batch = clip(4)
    start = system.init_state(variables, 1, SIZE)
    state, probs = predict(system, variables, start, {"frames": batch["frames"]})
    outputs, _ = run(system, variables, batch)
    np.testing.assert_allclose(
        probs[:, 3], system.probabilities(outputs["logits"], SIZE)[:, 3], atol=1e-5
    )
    assert int(state["count"][0]) == 4


def test_loss_averages_over_frames_and_adds_the_classifier_of_the_features(variants):
    system, _ = variants(loss="bce", iou_weight=0.0)
    batch = clip(2, B=2)
    keys = jax.random.split(jax.random.key(0))
    outputs = {
        name: jax.random.normal(key, (2, 2, 5, 6, 1))
        for name, key in zip(("logits", "aux_logits"), keys, strict=True)
    }
    value, terms = system.loss_fn(outputs, batch, step=0)
    o = np.asarray(batch["masks"], np.float64)

    def bce(logits):
        s = np.asarray(system.probabilities(logits, SIZE), np.float64)
        return np.mean(-o * np.log(s) - (1 - o) * np.log(1 - s))

    expected = bce(outputs["logits"]) + 0.5 * bce(outputs["aux_logits"])
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    assert set(terms) == {"bce", "aux", "iou"}


def test_recipe_starts_on_stills_and_then_takes_turns():
    config = uvos.load_config("dfnet")
    stills, video = uvos.build(config).stages(config)
    assert [p.name for p in stills.phases] == ["static"]
    assert [p.name for p in video.phases] == ["video", "static"]
    assert stills.steps + video.steps == config.train.total_steps
    assert [m for _, m in video.phases[0].lr_multipliers] == [0.1, 1.0]


# ----- configuration --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field,value,message",
    [
        ("w_update", "ema", r"model\.w_update is 'ema'.*moving_average"),
        ("w_normalization", "l1", r"model\.w_normalization is 'l1'.*centered"),
        ("crf_compat", "full", r"model\.crf_compat is 'full'.*potts"),
        ("loss", "dice", r"model\.loss is 'dice'.*bce"),
        ("groups", 0, r"model\.groups must be at least 1, got 0"),
        ("momentum", 1.5, r"model\.momentum must lie in \[0, 1\], got 1\.5"),
        ("crf_iterations", (-1, 2), r"must not be negative, got \(-1, 2\)"),
        ("crf_schan", 0.0, r"must be positive"),
        ("test_scales", (0.0,), r"model\.test_scales is \(0\.0,\)"),
    ],
)
def test_wrong_options_are_refused_by_name(field, value, message):
    with pytest.raises(ConfigError, match=message):
        uvos.build("dfnet:tiny", **{field: value})


def test_every_variant_of_the_config_file_builds():
    from uvos_jax.config import _import_config_file, config_folder

    for variant in _import_config_file(config_folder() / "dfnet.py").VARIANTS:
        assert uvos.build(f"dfnet:{variant}").spec.name == "dfnet"
    with pytest.raises(ConfigError, match=r"unknown variant 'huge'.*tiny"):
        uvos.load_config("dfnet:huge")
