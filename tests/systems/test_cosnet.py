"""COSNet's own properties, on the tiny network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax.errors import ConfigError
from uvos_jax.modules import memory
from uvos_jax.systems import cosnet

SIZE = (33, 49)


def random_variables(system):
    """Variables of the right shapes, drawn on the host (compiling `init` takes longer)."""
    rng = np.random.default_rng(2)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            if leaf.shape[:3] == (7, 7, 3):  # pixels reach from -120 to 150
                scale /= 64
            return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)
        if path[-1].key in ("scale", "var"):
            return jnp.asarray(0.5 + rng.random(leaf.shape), jnp.float32)
        return jnp.asarray(0.1 * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(system.init, jax.random.key(0)))


@pytest.fixture(scope="module")
def variants():
    """Systems and variables by their `model` overrides, all from one small configuration."""
    known = {}

    def build(**overrides):
        key = tuple(sorted(overrides.items()))
        if key not in known:
            config = uvos.load_config("cosnet:tiny")
            config.model.input_size = SIZE
            config.model.block_size = 8
            config.model.loss = "code"
            config.model.iou_weight = 0.0
            known[key] = uvos.build(config, **overrides)
        # what is not in this list does not change the parameters
        structural = {"attention", "gate_bias", "head_convs"}
        shape = tuple((k, v) for k, v in key if k in structural and v != "symmetric")
        if ("variables", shape) not in known:
            known["variables", shape] = random_variables(known[key])
        return known[key], known["variables", shape]

    return build


@pytest.fixture(scope="module")
def maps():
    """Made-up embeddings: a query `[2,h,w,C]` and three references `[2,3,h,w,C]`."""
    rng = np.random.default_rng(5)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return draw(2, 4, 5, 16), draw(2, 3, 4, 5, 16)


def clip(T, B=1, seed=0):
    rng = np.random.default_rng(seed)
    frames = jnp.asarray(rng.integers(0, 256, (B, T, *SIZE, 3)), jnp.uint8)
    masks = jnp.asarray(rng.random((B, T, *SIZE)) < 0.2, jnp.uint8)
    return {"frames": frames, "masks": masks}


@partial(jax.jit, static_argnums=0, static_argnames=("train", "phase"))
def run(system, variables, batch, train=False, phase="default"):
    return system.apply(variables, batch, train=train, phase=phase)


@partial(jax.jit, static_argnums=0)
def predict(system, variables, state, chunk):
    return system.predict(variables, state, chunk)


@partial(jax.jit, static_argnums=0)
def prepare(system, variables, frames):
    return system.prepare(variables, {"frames": frames})


@partial(jax.jit, static_argnums=0)
def segment(system, variables, query, references, valid=None):
    return system.module.apply(variables, query, references, valid, method="segment")


@partial(jax.jit, static_argnums=(0, 3))
def value_and_gradient(system, variables, batch, phase):
    def loss(params):
        outputs, _ = system.apply({**variables, "params": params}, batch, train=True, phase=phase)
        return system.loss_fn(outputs, batch, step=0, phase=phase)

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])


# ----- the network ----------------------------------------------------------------------------


def test_full_network_has_as_many_parameters_as_the_release():
    shapes = jax.eval_shape(uvos.build("cosnet").init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == 81_242_436


@pytest.mark.parametrize("fusion", cosnet.FUSIONS)
@pytest.mark.parametrize("attention", ["vanilla", "channel"])
def test_identical_references_equal_a_single_one(variants, maps, fusion, attention):
    system, variables = variants(fusion=fusion, attention=attention)
    query, references = maps
    one = references[:, :1]
    same = jnp.repeat(one, 3, axis=1)
    logits, weights = segment(system, variables, query, same)
    single, _ = segment(system, variables, query, one)
    assert logits.shape[1] == (3 if fusion == "prediction" else 1)
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(logits, jnp.broadcast_to(single, logits.shape), atol=1e-5)


@pytest.mark.parametrize("variant", cosnet.VARIANTS)
@pytest.mark.parametrize("fusion", cosnet.FUSIONS)
def test_references_that_do_not_count_have_no_influence(variants, maps, fusion, variant):
    system, variables = variants(fusion=fusion, variant=variant)
    query, references = maps
    valid = jnp.array([[True, True, False]] * 2)
    logits, weights = segment(system, variables, query, references.at[:, 2].set(7.0), valid)
    expected, _ = segment(system, variables, query, references[:, :2])
    if logits.shape[1] == 3:
        np.testing.assert_allclose(weights, [[0.5, 0.5, 0.0]] * 2)
        logits = logits[:, :2]
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("variant", cosnet.VARIANTS)
def test_a_constant_reference_gives_a_constant_summary(variants, maps, variant):
    system, variables = variants(variant=variant)
    query, references = maps
    constant = jnp.broadcast_to(references[:, :1, :1, :1], references.shape)
    summaries = system.module.apply(variables, query, constant, method="summaries")
    np.testing.assert_allclose(summaries - summaries[:, :1, :1, :1], 0.0, atol=1e-6)


@pytest.mark.parametrize("variant", cosnet.VARIANTS)
def test_blockwise_attention_gives_the_same_masks(variants, variant):
    dense, variables = variants(attention_impl="dense", variant=variant)
    blockwise, _ = variants(attention_impl="blockwise", variant=variant)
    batch = clip(3)
    a, _ = run(dense, variables, batch)
    b, _ = run(blockwise, variables, batch)
    np.testing.assert_allclose(a["logits"], b["logits"], atol=2e-5)


def test_swapping_the_frames_swaps_the_masks_if_heads_are_tied_and_the_matrix_symmetric(variants):
    system, variables = variants()
    params = dict(variables["params"])
    stats = dict(variables["batch_stats"])
    kernel = params["affinity"]["kernel"]
    params["affinity"] = {"kernel": kernel + kernel.T}
    params["reference_head"] = params["query_head"]
    stats["reference_head"] = stats["query_head"]
    tied = {"params": params, "batch_stats": stats}
    batch = clip(2)
    swapped = {**batch, "frames": batch["frames"][:, ::-1]}
    a = run(system, tied, batch)[0]["logits"]
    b = run(system, tied, swapped)[0]["logits"]
    np.testing.assert_allclose(a, b[:, ::-1], rtol=2e-5, atol=2e-5)  # logits reach 20
    untied = run(system, variables, swapped)[0]["logits"]
    original = run(system, variables, batch)[0]["logits"]
    assert float(jnp.max(jnp.abs(original - untied[:, ::-1]))) > 1e-3


def test_prediction_fusion_of_apply_is_the_mean_of_probabilities(variants):
    system, variables = variants(fusion="prediction")
    outputs, _ = run(system, variables, clip(4))
    mean = jax.nn.sigmoid(outputs["query_logits"]).mean(1)
    assert outputs["query_logits"].shape[1] == 3
    np.testing.assert_allclose(jax.nn.sigmoid(outputs["logits"][:, 0]), mean, atol=1e-6)


def test_without_attention_frames_do_not_see_each_other(variants):
    system, variables = variants(attention="none")
    assert "affinity" not in variables["params"]
    assert system.spec.num_references == 0
    batch = clip(2)
    changed = {**batch, "frames": batch["frames"].at[:, 1].set(0)}
    a = run(system, variables, batch)[0]["logits"]
    b = run(system, variables, changed)[0]["logits"]
    np.testing.assert_allclose(a[:, 0], b[:, 0], atol=1e-6)
    state = system.init_state(variables, 1, SIZE)
    assert state == prepare(system, variables, batch["frames"]) == ()
    _, probs = predict(system, variables, state, batch)
    np.testing.assert_allclose(probs, system.probabilities(a, SIZE), atol=1e-6)


def test_paper_options_change_the_parameters(variants):
    _, variables = variants(gate_bias=True, head_convs=2)
    assert variables["params"]["gate"]["conv"]["bias"].shape == (1,)
    assert {"conv1", "conv2", "norm1", "norm2", "classifier"} == set(
        variables["params"]["query_head"]
    )


# ----- training -------------------------------------------------------------------------------


def test_a_static_step_reaches_the_encoder_only(variants):
    system, variables = variants()
    (value, terms), gradient = value_and_gradient(system, variables, clip(1, B=2), "static")
    for name, part in gradient.items():
        moved = any(np.any(g != 0) for g in jax.tree.leaves(part))
        assert moved == (name == "encoder"), name
    np.testing.assert_allclose(value, terms["bce"] + terms["l1"], rtol=1e-6)


def test_a_static_step_leaves_the_statistics_of_the_heads(variants):
    system, variables = variants()
    _, new = run(system, variables, clip(1, B=2), train=True, phase="static")
    jax.tree.map(
        np.testing.assert_array_equal,
        new["batch_stats"]["query_head"],
        variables["batch_stats"]["query_head"],
    )
    old = variables["batch_stats"]["encoder"]
    assert any(
        np.any(a != b)
        for a, b in zip(
            jax.tree.leaves(new["batch_stats"]["encoder"]), jax.tree.leaves(old), strict=True
        )
    )


def test_frozen_batch_norm_keeps_its_statistics(variants):
    config = uvos.load_config("cosnet:tiny")
    config.model.input_size = SIZE
    config.optim.freeze_bn = True
    system = uvos.build(config)
    _, variables = variants()
    _, new = run(system, variables, clip(2), train=True, phase="video")
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], variables["batch_stats"])


def test_video_loss_is_the_sum_over_the_pair_of_bce_over_ratio_plus_l1(variants):
    system, _ = variants()
    batch = clip(2, B=2)
    outputs = {"logits": jax.random.normal(jax.random.key(0), (2, 2, 5, 7, 1))}
    value, _ = system.loss_fn(outputs, batch, step=0, phase="video")
    s = np.asarray(system.probabilities(outputs["logits"], SIZE), np.float64)
    o = np.asarray(batch["masks"], np.float64)
    expected = 0.0
    for t in range(2):
        bce = -o[:, t] * np.log(s[:, t]) - (1 - o[:, t]) * np.log(1 - s[:, t])
        expected += bce.mean() / o[:, t].mean() + 0.8 * np.abs(s[:, t] - o[:, t]).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_static_loss_is_a_tenth_of_the_saliency_loss(variants):
    system, variables = variants()
    batch = clip(1, B=2)
    outputs, _ = run(system, variables, batch, train=False, phase="static")
    static, _ = system.loss_fn(outputs, batch, step=0, phase="static")
    full, _ = system.loss_fn(outputs, batch, step=0, phase="video")
    np.testing.assert_allclose(static, 0.1 * full, rtol=1e-6)


def test_group_training_supervises_the_target_only(variants):
    system, variables = variants(variant="group")
    batch = clip(3, B=2)
    outputs, _ = run(system, variables, batch)
    a, _ = system.loss_fn(outputs, batch, step=0, phase="video")
    changed = {**batch, "masks": batch["masks"].at[:, 1:].set(0)}
    b, _ = system.loss_fn(outputs, changed, step=0, phase="video")
    assert float(a) == float(b)


def test_paper_loss_and_symmetric_penalty_appear_as_terms(variants):
    system, variables = variants(attention="symmetric", loss="paper")
    (_, terms), gradient = value_and_gradient(system, variables, clip(2), "video")
    assert set(terms) == {"bce", "orthogonality", "iou"}
    kernel = np.asarray(variables["params"]["affinity"]["kernel"], np.float64)
    penalty = np.sum((kernel @ kernel.T - np.eye(16)) ** 2)
    np.testing.assert_allclose(terms["orthogonality"], 1e-4 * penalty, rtol=1e-5)
    assert np.any(gradient["affinity"]["kernel"] != 0)


def test_overlap_loss_is_a_term_of_its_own(variants):
    system, _ = variants(iou_weight=0.5)
    outputs = {"logits": jax.random.normal(jax.random.key(0), (2, 2, 5, 7, 1))}
    value, terms = system.loss_fn(outputs, clip(2, B=2), step=0, phase="video")
    np.testing.assert_allclose(value, terms["bce"] + terms["l1"] + terms["soft_iou"], rtol=1e-6)
    assert 0 < float(terms["soft_iou"]) < 1  # two frames, each below 1


def test_recipe_alternates_one_static_and_two_video_steps():
    config = uvos.load_config("cosnet")
    (stage,) = uvos.build(config).stages(config)
    assert [p.name for p in stage.phases] == ["static", "video", "video"]
    assert stage.steps == config.train.total_steps == 7800
    static, video, _ = stage.phases
    groups = cosnet.COSNet.parameter_groups
    assert dict(static.lr_multipliers) == {
        groups["encoder"][0]: 1.0,
        groups["co_attention"][0]: 0.0,
    }
    assert dict(video.lr_multipliers) == {
        groups["encoder"][0]: 0.01,
        groups["co_attention"][0]: 10.0,
    }


# ----- video ----------------------------------------------------------------------------------


def test_the_first_frame_of_a_stream_attends_to_itself(variants):
    system, variables = variants()
    batch = clip(1)
    state = system.init_state(variables, 1, SIZE)
    _, streamed = predict(system, variables, state, batch)
    _, whole = predict(system, variables, prepare(system, variables, batch["frames"]), batch)
    np.testing.assert_allclose(streamed, whole, atol=1e-5)


def test_a_prepared_state_never_changes_and_order_does_not_matter(variants):
    system, variables = variants()
    batch = clip(3)
    state = prepare(system, variables, batch["frames"][:, :2])
    after, forward = predict(system, variables, state, batch)
    jax.tree.map(np.testing.assert_array_equal, state, after)
    _, backward = predict(system, variables, state, {"frames": batch["frames"][:, ::-1]})
    np.testing.assert_allclose(forward, backward[:, ::-1], atol=1e-5)


@pytest.mark.parametrize("fusion", cosnet.FUSIONS)
def test_predict_with_references_equals_the_whole_network(variants, fusion):
    system, variables = variants(fusion=fusion)
    batch = clip(3)
    outputs, _ = run(system, variables, batch)
    state = prepare(system, variables, batch["frames"][:, 1:])
    _, probs = predict(system, variables, state, {"frames": batch["frames"][:, :1]})
    masks = system.probabilities(outputs["query_logits"], SIZE)
    np.testing.assert_allclose(probs[:, 0], masks.mean(1), atol=1e-5)


def test_memory_of_a_stream_keeps_first_and_newest_and_stays_spread():
    R, T = 5, 200
    state = {
        "embedding": jnp.zeros((1, R, 1, 1, 1)),
        "time": jnp.full((1, R), -1, jnp.int32),
        "count": jnp.zeros((1,), jnp.int32),
    }

    def step(state, t):
        state = memory.remember(state, jnp.full((1, 1, 1, 1), t, jnp.float32))
        return state, (state["time"][0], state["embedding"][0, :, 0, 0, 0])

    _, (times, stored) = jax.lax.scan(step, state, jnp.arange(T))
    for t in range(T):
        kept = np.asarray(times[t])[np.asarray(times[t]) >= 0]
        assert len(kept) == min(t + 1, R)
        assert kept[0] == 0
        assert kept[-1] == t
        assert np.all(np.diff(kept) > 0)
        np.testing.assert_array_equal(stored[t][: len(kept)], kept)
        if t >= 20:  # no gap is more than three quarters of the past
            assert np.max(np.diff(kept)) <= 0.75 * t
            assert np.sum(kept < t / 2) >= 2


def test_memory_of_one_frame_is_the_previous_frame():
    state = {
        "embedding": jnp.zeros((1, 1, 1, 1, 1)),
        "time": jnp.full((1, 1), -1, jnp.int32),
        "count": jnp.zeros((1,), jnp.int32),
    }
    for t in range(3):
        state = memory.remember(state, jnp.full((1, 1, 1, 1), t, jnp.float32))
        assert int(state["time"][0, 0]) == t
        assert float(state["embedding"].squeeze()) == t


# ----- configuration --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field,value,message",
    [
        ("attention", "chanel", r"model\.attention is 'chanel'.*channel"),
        ("variant", "triple", r"model\.variant is 'triple'.*group"),
        ("fusion", "max", r"model\.fusion is 'max'.*summary"),
        ("loss", "dice", r"model\.loss is 'dice'.*paper"),
        ("attention_impl", "flash", r"model\.attention_impl is 'flash'.*blockwise"),
        ("num_references", 0, r"model\.num_references must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused_by_name(field, value, message):
    with pytest.raises(ConfigError, match=message):
        uvos.build("cosnet:tiny", **{field: value})


def test_every_variant_of_the_config_file_builds():
    from uvos_jax.config import _import_config_file, config_folder

    variants = _import_config_file(config_folder() / "cosnet.py").VARIANTS
    for variant in variants:
        system = uvos.build(f"cosnet:{variant}")
        assert system.spec.input_size is not None


def test_unknown_config_variant_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown variant 'huge'.*tiny"):
        uvos.load_config("cosnet:huge")


def test_config_argument_sets_model_fields():
    config = uvos.load_config("cosnet:tiny,fusion=prediction,num_references=4")
    assert config.model.fusion == "prediction"
    assert config.model.num_references == 4
    with pytest.raises(ConfigError, match=r"no field 'backbone'"):
        uvos.load_config("cosnet:tiny,backbone=resnet18")
