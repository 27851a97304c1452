"""MuG: labels and who makes them, losses of the granularities, rounds, one-shot masks, refusals."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax.errors import ConfigError, DataError, ShapeError
from uvos_jax.systems import mug
from uvos_jax.train import stages

SIZE = (32, 32)


@cache
def built(variant="tiny", **fields):
    return uvos.build(f"mug:{variant}", input_size=SIZE, **fields)


@cache
def variables_of(system):
    """Scaled noise in place of `init`, which takes long to compile."""
    rng = np.random.default_rng(1)

    def values(path, x):
        if path[-1].key in ("scale", "var", "std"):
            return jnp.ones(x.shape)
        if len(x.shape) < 2:
            return jnp.zeros(x.shape)
        drawn = rng.standard_normal(x.shape) * np.sqrt(1 / np.prod(x.shape[:-1]))
        return jnp.asarray(drawn, jnp.float32)

    shapes = jax.eval_shape(system.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(values, dict(shapes))


def clip(T=6, B=2, seed=0):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 60, (B, T, *SIZE, 3))
    masks = np.zeros((B, T, *SIZE), np.uint8)
    for t in range(T):
        masks[:, t, 8:22, 4 + t : 18 + t] = 1
    frames = (frames + 150 * masks[..., None]).astype(np.uint8)
    return {
        "frames": jnp.asarray(frames),
        "masks": jnp.asarray(masks),
        "example_id": jnp.arange(B, dtype=jnp.int32),
    }


@cache
def evaluate(system, phase="round0"):
    return jax.jit(lambda v, b: system.apply(v, b, train=False, phase=phase)[0])


# ----- labels ---------------------------------------------------------------------------------


def test_first_labels_come_from_single_images_and_no_mask_is_read():
    system = built()
    batch = clip()
    labels = evaluate(system)(variables_of(system), batch)["labels"]
    assert set(np.unique(labels)) <= {0.0, 1.0}
    blank = {**batch, "masks": jnp.zeros_like(batch["masks"])}
    np.testing.assert_array_equal(evaluate(system)(variables_of(system), blank)["labels"], labels)
    truth = np.asarray(batch["masks"])[:, :, 4::8, 4::8]
    overlap = np.sum((labels > 0) & (truth > 0)) / np.sum((labels > 0) | (truth > 0))
    assert overlap > 0.5


def test_given_labels_are_the_masks_and_must_be_there():
    system = built(pseudo_labels="given")
    batch = clip()
    labels = evaluate(system)(variables_of(system), batch)["labels"]
    np.testing.assert_array_equal(labels, np.asarray(batch["masks"])[:, :, ::8, ::8])
    del batch["masks"]
    with pytest.raises(DataError, match="batch has no masks"):
        system.apply(variables_of(system), batch, train=False, phase="round0")


def test_between_rounds_the_network_as_it_is_becomes_the_maker_of_labels():
    system = built()
    variables = variables_of(system)
    batch = clip()
    assert system.enter_stage("round0", variables) is variables
    entered = system.enter_stage("round1", variables)
    again = system.enter_stage("round1", entered)
    jax.tree.map(np.testing.assert_array_equal, dict(entered), dict(again))
    assert jax.tree.structure(dict(entered)) == jax.tree.structure(dict(variables))
    teacher = entered["batch_stats"]["teacher"]
    assert set(teacher["params"]) == {"encoder", "projection", "rho"}
    jax.tree.map(np.testing.assert_array_equal, teacher["params"]["rho"], entered["params"]["rho"])
    run = evaluate(system, "round1")
    outputs = run(entered, batch)
    np.testing.assert_array_equal(outputs["labels"], outputs["logits"][..., 0] > 0)
    moved = {**entered, "params": jax.tree.map(lambda x: 1.5 * x + 0.1, entered["params"])}
    later = run(moved, batch)
    np.testing.assert_array_equal(later["labels"], outputs["labels"])  # the student moved alone
    assert np.any(later["logits"] != outputs["logits"])


def test_the_teacher_and_the_label_network_get_no_gradient():
    system = built("tiny_release")
    variables = variables_of(system)

    def loss(params, batch):
        outputs, new = system.apply(
            {**variables, "params": params}, batch, train=True, phase="round0"
        )
        value, terms = system.loss_fn(outputs, batch, step=0, phase="round0")
        return value, (terms, outputs, new)

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (terms, outputs, new)), gradient = grad(variables["params"], clip())
    moved = {k for k, g in gradient.items() if any(np.any(x != 0) for x in jax.tree.leaves(g))}
    still = {"pseudo_labeller", "rgb_encoder", "decoder", "normalize"}
    assert moved == set(variables["params"]) - still
    jax.tree.map(
        np.testing.assert_array_equal,
        new["batch_stats"]["pseudo_labeller"],
        variables["batch_stats"]["pseudo_labeller"],
    )
    # L = BCE(z, 1[sigmoid(g) > 0.2]) + mean |z - g|
    z, g = (
        np.asarray(outputs[k], np.float64).reshape(2, 6, 4, 4) for k in ("logits", "label_logits")
    )
    target = (1 / (1 + np.exp(-g)) > 0.2).astype(float)
    s = 1 / (1 + np.exp(-z))
    bce = -target * np.log(s) - (1 - target) * np.log(1 - s)
    np.testing.assert_allclose(terms["frame"], bce.mean(), rtol=1e-4)
    np.testing.assert_allclose(terms["gap"], np.abs(z - g).mean(), rtol=1e-4)
    np.testing.assert_allclose(value, terms["frame"] + terms["gap"], rtol=1e-6)
    assert set(system.stages(uvos.load_config("mug:tiny_release"))[0].phases[0].frozen) == {
        f"^{name}/" for name in still
    }


# ----- losses ---------------------------------------------------------------------------------


def made_up(system, B=2, T=6):
    rng = np.random.default_rng(3)
    return {
        "logits": jnp.asarray(rng.standard_normal((B, T, 4, 4, 1)), jnp.float32),
        "labels": jnp.asarray(rng.integers(0, 2, (B, T, 4, 4)), jnp.float32),
        "response": jnp.asarray(rng.standard_normal((B, 4, 4)), jnp.float32),
        "response_target": jnp.asarray(rng.random((B, 4, 4)), jnp.float32),
        "inliers": jnp.asarray([0.25, 0.75]),
        "video_logits": jnp.asarray(
            rng.standard_normal((B, system.config.num_videos)), jnp.float32
        ),
    }


def test_the_loss_is_the_weighted_sum_of_four_granularities():
    system = built()
    outputs, batch = made_up(system), clip()
    value, terms = system.loss_fn(outputs, batch, step=0, phase="round0")
    x = {k: np.asarray(v, np.float64) for k, v in outputs.items()}
    s = 1 / (1 + np.exp(-x["logits"][..., 0]))
    frame = -(x["labels"] * np.log(s) + (1 - x["labels"]) * np.log(1 - s)).mean()
    short = ((1 / (1 + np.exp(-x["response"])) - x["response_target"]) ** 2).mean()
    p = np.exp(x["video_logits"]) / np.exp(x["video_logits"]).sum(1, keepdims=True)
    video = -np.mean([np.log(p[0, 0]), np.log(p[1, 1])])
    expected = frame + 0.1 * short + 0.02 * -0.5 + 0.5 * video
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(terms["long"], -0.01, rtol=1e-5)
    np.testing.assert_allclose(terms["label_share"], x["labels"].mean(), rtol=1e-5)


def test_padded_frames_do_not_count():
    system = built()
    outputs, batch = made_up(system), clip()
    valid = np.ones((2, 6), bool)
    valid[1, 4:] = False
    batch["valid"] = jnp.asarray(valid)
    a, _ = system.loss_fn(outputs, batch, step=0)
    labels = outputs["labels"].at[1, 4:].set(0.5)
    video = outputs["video_logits"].at[1].set(7.0)
    changed = {**outputs, "labels": labels, "video_logits": video}
    b, _ = system.loss_fn(changed, batch, step=0)
    assert float(a) == float(b)


def test_a_granularity_of_weight_zero_has_no_parameters():
    system = built(short_weight=0.0, long_weight=0.0, video_weight=0.0)
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    assert set(shapes["params"]) == {"encoder", "projection", "rho"}


def test_the_identity_of_four_plain_videos_is_learnt():
    system = built(num_videos=4)
    variables = variables_of(system)
    colours = jnp.asarray([[200, 30, 30], [30, 200, 30], [30, 30, 200], [200, 200, 30]])
    frames = jnp.broadcast_to(colours[:, None, None, None], (4, 6, *SIZE, 3)).astype(jnp.uint8)
    flat = system.normalize(frames).reshape(24, *SIZE, 3)
    features = system.module.apply(variables, flat, method="encode").mean((1, 2)).reshape(4, 6, -1)
    pooled = features[:, 3:].mean(1)
    classifier = variables["params"]["video_classifier"]

    def loss(params):
        outputs = {
            **made_up(system, B=4),
            "video_logits": pooled @ params["kernel"] + params["bias"],
        }
        batch = {**clip(B=4), "frames": frames}
        outputs["inliers"] = jnp.zeros(4)
        return system.loss_fn(outputs, batch, step=0)[1]["video"]

    step = jax.jit(jax.value_and_grad(loss))
    first, _ = step(classifier)
    for _ in range(200):
        _, gradient = step(classifier)
        classifier = jax.tree.map(lambda p, g: p - 1.0 * g, classifier, gradient)
    assert float(step(classifier)[0]) < 0.5 * float(first)


def test_training_needs_a_key_for_patches_and_pairs():
    system = built()
    with pytest.raises(ConfigError, match="pass rngs="):
        system.apply(variables_of(system), clip(), train=True, phase="round0")


def test_tracked_patches_do_not_enter_the_running_statistics():
    system = built()
    variables = variables_of(system)
    frames = system.normalize(clip(T=2)["frames"])
    features = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 16))
    start = jnp.full((2, 2), 2)

    def track(v):
        return system.module.apply(
            v, frames, features, start, method="track", mutable=["batch_stats"]
        )

    network = {k: variables[k] for k in ("params", "batch_stats")}
    response, after = jax.jit(track)(network)
    assert response.shape == (2, 4, 4)
    jax.tree.map(
        np.testing.assert_array_equal,
        after["batch_stats"]["encoder"],
        variables["batch_stats"]["encoder"],
    )


# ----- video ----------------------------------------------------------------------------------


def test_without_enhancement_frames_stand_alone():
    system = built(enhancement="none")
    assert system.spec.num_references == 0
    variables, batch = variables_of(system), clip()
    state, probs = jax.jit(system.predict)(variables, (), {"frames": batch["frames"]})
    assert state == ()
    logits = evaluate(system)(variables, batch)["logits"]
    np.testing.assert_allclose(probs, system.probabilities(logits, SIZE), atol=1e-5)


def test_a_reference_equal_to_the_frame_changes_little_under_sharp_attention():
    system = built(affinity_scale="none")
    x = 10 * jax.random.normal(jax.random.key(0), (1, 4, 4, 16))
    found = system.module.apply(variables_of(system), x, x[:, None], None, method="enhance")
    np.testing.assert_allclose(found, x, atol=1e-3)


def test_one_shot_masks_follow_a_moving_object(monkeypatch):
    system = built()
    batch = clip(T=4, B=1)

    def colours(variables, frames):  # stands for trained features: cells of 2x2 pixels
        x = frames.astype(jnp.float32).reshape(-1, 16, 2, 16, 2, 3).mean((2, 4)) - 100.0
        return 5 * x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    monkeypatch.setattr(system, "matching_features", colours)
    first = np.asarray(batch["masks"])[0, 0] * 7
    ids = system.propagate_masks(variables_of(system), batch["frames"][0], first)
    assert ids.shape == (4, *SIZE)
    assert set(np.unique(ids)) <= {0, 7}
    np.testing.assert_array_equal(ids[0], first)
    truth = np.asarray(batch["masks"])[0, 1:] > 0
    overlap = ((ids[1:] > 0) & truth).sum() / ((ids[1:] > 0) | truth).sum()
    assert overlap > 0.8
    with pytest.raises(ShapeError, match=r"expected frames uint8 \[T,H,W,3\] and a mask"):
        system.propagate_masks(variables_of(system), batch["frames"][0], first[:8])


def test_objects_get_ids_that_last():
    system = built()
    batch = clip(T=3, B=1)
    probabilities = np.where(np.asarray(batch["masks"])[0] > 0, 0.9, 0.1)
    probabilities[:, 26:30, 2:6] = 0.8
    ids = system.segment_objects(variables_of(system), batch["frames"][0], probabilities,
                                 similarity=-1.0)  # fmt: skip
    assert ids.dtype == np.uint8
    for t in range(3):
        assert len(np.unique(ids[t])) == 3
        assert len(np.unique(ids[t][np.asarray(batch["masks"])[0, t] > 0])) == 1
    wrong = [np.zeros((1, 8, 8), bool)] * 3
    with pytest.raises(ShapeError, match="proposals of frame 0"):
        system.segment_objects(variables_of(system), batch["frames"][0], probabilities, wrong)


# ----- recipe and refusals ----------------------------------------------------------------------


def test_rounds_are_stages_of_equal_length():
    config = uvos.load_config("mug")
    plan = stages.plan(config)
    assert [s.stage.name for s in plan] == ["round0", "round1", "round2"]
    assert {s.end - s.start for s in plan} == {6280}
    assert [p.name for p in plan[1].stage.phases] == ["round1"]


def test_the_released_rate_hardly_falls():
    from uvos_jax.train.optimizer import make_schedule

    config = uvos.load_config("mug:release_cam")
    (segment,) = stages.plan(config)
    rate = make_schedule(segment.config.optim, segment.end)(200 * 314)
    np.testing.assert_allclose(rate, 1e-4 * (1 - 200 / 100 / 400) ** 0.9, rtol=1e-5)


def test_every_variant_of_the_config_file_builds():
    from uvos_jax.config import list_variants

    for variant in list_variants("mug"):
        assert uvos.build(f"mug:{variant}").spec.name == "mug"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("variant", "published", r"model\.variant is 'published'.*release"),
        ("pseudo_labels", "masks", r"model\.pseudo_labels is 'masks'.*saliency"),
        ("enhancement", "crf", r"model\.enhancement is 'crf'.*attention"),
        ("response_scale", "max", r"model\.response_scale is 'max'.*sqrt"),
        ("input_size", (60, 64), r"model\.input_size is \(60, 64\).*multiples of 8"),
        ("rounds", 0, r"model\.rounds and model\.segments must be at least 1 and 2, got 0"),
        ("cycle", 3, r"model\.cycle must be 1 or 2, got 3"),
        ("patch", 20, r"model\.patch is 20: a multiple of 8"),
        ("num_videos", 1, r"model\.num_videos is 1.*video_weight=0"),
        ("num_references", 0, r"model\.num_references must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused_by_name(field, value, message):
    with pytest.raises(ConfigError, match=message):
        uvos.build("mug:tiny", **{field: value})


def test_released_frames_must_fit_the_memorys_stride():
    with pytest.raises(ConfigError, match=r"multiples of 16 for the variant 'release'"):
        uvos.build("mug:release", input_size=(648, 640))


def test_network_and_system_agree_on_what_never_moves():
    groups = mug.MuG.parameter_groups
    assert groups["frozen"] == (mug.FROZEN,)
