"""F2Net: what the centre does to the mask, how it is chosen, training on triplets, the recipe."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax.errors import ConfigError, DataError
from uvos_jax.systems import f2net
from uvos_jax.train import stages
from uvos_jax.train.optimizer import make_schedule

SIZE = (33, 41)


@cache
def built(**fields):
    return uvos.build("f2net:tiny", input_size=SIZE, **fields)


@pytest.fixture(scope="module")
def variables():
    """Scaled noise in place of `init`, which takes long to compile."""
    shapes = jax.eval_shape(built().init, jax.random.key(0))
    rng = np.random.default_rng(1)

    def values(path, x):
        if path[-1].key in ("scale", "var"):
            return jnp.ones(x.shape)
        if len(x.shape) < 4:
            return jnp.zeros(x.shape)
        fan_in = np.prod(x.shape[:-1])
        return jnp.asarray(rng.standard_normal(x.shape) * np.sqrt(1 / fan_in), jnp.float32)

    return jax.tree_util.tree_map_with_path(values, dict(shapes))


def clip(T=3, B=2, seed=0):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 120, (B, T, *SIZE, 3))
    masks = np.zeros((B, T, *SIZE), np.uint8)
    for t in range(T):
        masks[:, t, 8:24, 4 + 4 * t : 16 + 4 * t] = 1
    frames = (frames + 100 * masks[..., None]).astype(np.uint8)
    return {"frames": jnp.asarray(frames), "masks": jnp.asarray(masks)}


@cache
def segmenter(**fields):
    """Jitted (variables, reference, current, previous, centre) -> outputs."""
    module = built(**fields).module
    return jax.jit(lambda v, *a: module.apply(v, *a))


def pair(seed=0):
    frames = jax.random.normal(jax.random.key(seed), (2, 2, *SIZE, 3))
    return 50 * frames[:, 0], 50 * frames[:, 1]


# ----- the centre and the mask ------------------------------------------------------------------


@pytest.mark.parametrize("variant", f2net.VARIANTS)
def test_only_the_papers_mask_depends_on_the_centre(variables, variant):
    run = segmenter(variant=variant)
    gaussian = jnp.zeros((2, *f2net.heat_size(SIZE)))
    a, b = (run(variables, *pair(), gaussian, jnp.full((2, 2), c))["logits"] for c in (5.0, 30.0))
    if variant == "release":
        np.testing.assert_array_equal(a, b)
    else:
        assert np.max(np.abs(a - b)) > 1e-4


def test_the_previous_gaussian_moves_the_heat_map_where_it_is(variables):
    run = segmenter(variant="paper")
    hh, hw = f2net.heat_size(SIZE)
    centre = jnp.full((2, 2), 10.0)
    none = run(variables, *pair(), jnp.zeros((2, hh, hw)), centre)["heat_logits"][:, 0, ..., 0]
    spot = jnp.zeros((2, hh, hw)).at[:, 4, 6].set(1.0)
    seen = run(variables, *pair(), spot, centre)["heat_logits"][:, 0, ..., 0]
    rise = np.array(seen - none)
    assert np.all(rise[:, 4, 6] > 0)
    rise[:, 4, 6] = 0
    np.testing.assert_allclose(rise, 0, atol=1e-6)


def test_the_heat_maps_size_follows_the_encoder():
    assert f2net.heat_size((473, 473)) == (119, 119)
    assert f2net.heat_size((480, 378)) == (121, 95)
    assert f2net.heat_size((65, 65)) == (17, 17)


# ----- choosing a centre --------------------------------------------------------------------------


def choose(peaks, scores, history, count, *, missed=0, **options):
    peaks = jnp.asarray([peaks])
    state = {
        "history": jnp.asarray([history], jnp.float32),
        "count": jnp.asarray([count]),
        "missed": jnp.asarray([missed]),
    }
    options = {"choice": "history", "decay": 0.9, "min_score": 0.0, **options}
    centre, lost = f2net.choose_centre(jnp.asarray([scores]), peaks, state, **options)
    return tuple(np.asarray(centre[0]).tolist()), bool(lost[0])


def test_the_choice_follows_a_constant_velocity():
    history = [[0, 0], [8, 8], [12, 10], [16, 12]]  # two steps of (4, 2) are real
    peaks, scores = [[9, 9], [6, 4], [5, 4]], [0.9, 0.8, 0.7]
    # expected (20, 14); the peaks are at (32, 32), (20, 12), (16, 12)
    assert choose(peaks, scores, history, 3) == ((20, 12), False)
    assert choose(peaks, scores, history, 3, choice="top1") == ((32, 32), False)


def test_the_second_frame_looks_for_the_previous_centre_and_the_first_for_the_best_peak():
    peaks, scores = [[9, 9], [6, 4]], [0.9, 0.8]
    assert choose(peaks, scores, [[0, 0], [18, 11]], 1)[0] == (20, 12)
    assert choose(peaks, scores, [[0, 0], [18, 11]], 0)[0] == (32, 32)


def test_a_best_peak_on_the_border_gives_way_to_the_second():
    assert choose([[0, 9], [6, 4]], [0.9, 0.8], [[0, 0]], 0)[0] == (20, 12)
    assert choose([[0, 9], [6, 4]], [0.9, 0.8], [[0, 0]], 0, choice="top1")[0] == (20, 12)


def test_peaks_on_the_border_and_empty_slots_come_last():
    history = [[16, 4], [16, 0]]
    assert choose([[5, 0], [9, 9]], [0.9, 0.8], history, 2)[0] == (32, 32)
    assert choose([[9, 9], [5, 2]], [0.9, 0.0], history, 2)[0] == (32, 32)


def test_a_missed_frame_keeps_the_expected_centre_with_a_fading_velocity():
    history = [[0, 0], [10, 0]]
    centre, lost = choose([[9, 9], [6, 4]], [0.1, 0.05], history, 2, missed=2, min_score=0.3)
    assert lost
    np.testing.assert_allclose(centre, [10 + 10 * 0.9**2, 0], rtol=1e-6)


# ----- video --------------------------------------------------------------------------------------


def test_a_video_remembers_its_first_frame_and_its_centres(variables):
    system = built()
    batch = clip(T=4, B=1)
    state = system.init_state(variables, 1, SIZE)
    assert not np.any(state["gaussian"])  # the first frame has no previous one
    after, probs = jax.jit(system.predict)(variables, state, {"frames": batch["frames"]})
    outputs, _ = jax.jit(lambda v, b: system.apply(v, b, train=False))(variables, batch)
    np.testing.assert_allclose(probs, system.probabilities(outputs["logits"], SIZE), atol=1e-5)
    assert int(after["count"][0]) == 4
    np.testing.assert_allclose(after["history"][0], outputs["centre"][0], atol=1e-4)
    first = system.module.apply(
        variables, system.normalize(batch["frames"])[:, 0], method="encode"
    )["embedding"]
    np.testing.assert_allclose(after["reference"], first, atol=1e-3, rtol=1e-4)


def test_prediction_never_looks_at_masks(variables):
    system = built()
    run = jax.jit(lambda v, b: system.apply(v, b, train=False)[0]["logits"])
    batch = clip()
    np.testing.assert_array_equal(
        run(variables, batch), run(variables, {**batch, "masks": 1 - batch["masks"]})
    )


# ----- training -----------------------------------------------------------------------------------


@cache
def gradients(phase, **fields):
    system = built(**fields)

    def loss(params, variables, batch):
        outputs, new = system.apply({**variables, "params": params}, batch, train=True, phase=phase)
        value, terms = system.loss_fn(outputs, batch, step=0, phase=phase)
        return value, (terms, outputs, new)

    grad = jax.value_and_grad(loss, has_aux=True)
    return jax.jit(lambda v, b: grad(v["params"], v, b))


def moved(gradient):
    return {k for k, g in gradient.items() if any(np.any(x != 0) for x in jax.tree.leaves(g))}


def test_a_static_step_reaches_encoder_and_centre_branch_only(variables):
    (value, (terms, _, new)), gradient = gradients("static")(variables, clip(T=1))
    centre = {"upsample", "fc_0", "fc_2", "motion_conv_w", "motion_conv_b"}
    assert moved(gradient) == {"encoder"} | centre
    assert set(terms) == {"bce", "soft_iou", "heat", "iou"}
    np.testing.assert_allclose(value, sum(terms[k] for k in terms if k != "iou"), rtol=1e-6)
    jax.tree.map(
        np.testing.assert_array_equal,
        new["batch_stats"]["cls_1"],
        variables["batch_stats"]["cls_1"],
    )


def test_true_centres_are_fed_in_the_first_stage_and_predicted_ones_after(variables):
    system, batch, centre = built(), clip(), {}
    for phase in ("separate", "joint"):
        run = jax.jit(lambda v, b, p=phase: system.apply(v, b, train=True, phase=p)[0])
        outputs = run(variables, batch)
        centre[phase] = np.asarray(outputs["centre"])
        assert outputs["logits"].shape[:2] == (2, 1)  # the current frame
    box = (12 + 23) // 2, (8 + 23) // 2  # of the last frame
    np.testing.assert_array_equal(centre["separate"], [box, box])
    assert np.any(centre["joint"] != centre["separate"])


def test_losses_of_the_release_are_written_out(variables):
    system = built(loss="code", iou_weight=0.0, heat_weight=1.0)
    batch = clip()
    rng = np.random.default_rng(0)
    outputs = {
        "logits": jnp.asarray(rng.standard_normal((2, 1, 5, 6, 1)), jnp.float32),
        "saliency_logits": jnp.asarray(rng.standard_normal((2, 1, 5, 6, 1)), jnp.float32),
        "heat_logits": jnp.full((2, 1, *f2net.heat_size(SIZE), 1), -30.0),
    }
    o = np.asarray(batch["masks"][:, -1], np.float64)
    expected = {}
    for key in ("logits", "saliency_logits"):
        s = np.asarray(system.probabilities(outputs[key], SIZE)[:, 0], np.float64)
        bce = -o * np.log(s) - (1 - o) * np.log(1 - s)
        expected[key] = bce.mean() / o.mean() + 0.8 * np.abs(s - o).mean()
    heat = -((1 - 1e-4) ** 2) * np.log(1e-4)  # nothing is found at any of the two peaks
    value, terms = system.loss_fn(outputs, batch, step=0, phase="separate")
    np.testing.assert_allclose(value, expected["logits"] + heat, rtol=1e-4)
    value, _ = system.loss_fn(outputs, batch, step=0, phase="static")
    np.testing.assert_allclose(value, 0.1 * expected["saliency_logits"] + heat, rtol=1e-4)
    assert set(terms) == {"bce", "l1", "heat", "iou"}


def test_training_without_masks_is_refused(variables):
    with pytest.raises(DataError, match="f2net trains on masks"):
        built().apply(variables, {"frames": clip()["frames"]}, train=True)


# ----- recipe -------------------------------------------------------------------------------------


def test_the_published_recipe_splits_after_twenty_epochs_and_its_rate_runs_on():
    config = uvos.load_config("f2net")
    first, second = stages.plan(config)
    assert (first.start, first.end, second.end) == (0, 20 * 130, 60 * 130)
    assert [p.name for p in first.stage.phases] == ["static", "separate", "separate"]
    assert [p.name for p in second.stage.phases] == ["static", "joint", "joint"]
    for segment, t in ((first, 0), (first, 1000), (second, 0), (second, 3000)):
        rate = make_schedule(segment.config.optim, segment.end - segment.start)(t)
        step = segment.start + t
        expected = 2.5e-4 * (1 - step / 7800) ** 0.9 * (0.5 if step >= 780 else 1.0)
        np.testing.assert_allclose(rate, expected, rtol=1e-5)
    rates = [dict(p.lr_multipliers) for p in first.stage.phases[:2]]
    assert list(rates[0].values()) == [1.0, 10.0]
    assert list(rates[1].values()) == [0.01, 10.0, 10.0]


def test_the_released_recipe_feeds_true_centres_throughout():
    config = uvos.load_config("f2net:release")
    (segment,) = stages.plan(config)
    assert [p.name for p in segment.stage.phases] == ["static", "separate", "separate"]
    module = segment.system.module
    assert (module.variant, module.prior_on, module.fusion) == ("release", "none", "channel")


def test_the_heat_map_starts_with_few_cells_on():
    module = f2net.HeatLogit()
    params = module.init(jax.random.key(0), jnp.zeros((1, 2, 2, 8)))
    np.testing.assert_allclose(params["params"]["bias"], -2.19)


def test_every_variant_of_the_config_file_builds():
    from uvos_jax.config import list_variants

    for variant in list_variants("f2net"):
        assert uvos.build(f"f2net:{variant}").spec.name == "f2net"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("variant", "released", r"model\.variant is 'released'.*release"),
        ("prior_on", "keys", r"model\.prior_on is 'keys'.*query"),
        ("fusion", "max", r"model\.fusion is 'max'.*channel_spatial"),
        ("sources", ("self",), r"model\.sources is \('self',\).*inter"),
        ("centre_choice", "first", r"model\.centre_choice is 'first'.*history"),
        ("candidates", 1, r"model\.candidates must be at least 2, got 1"),
        ("prior_sigma", 0.0, r"model\.prior_sigma must be positive, got 0"),
    ],
)
def test_wrong_options_are_refused_by_name(field, value, message):
    with pytest.raises(ConfigError, match=message):
        uvos.build("f2net:tiny", **{field: value})
