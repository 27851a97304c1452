"""AGS's own properties, on the tiny network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax import config as configs
from uvos_jax.data import sources
from uvos_jax.errors import ConfigError, DataError
from uvos_jax.losses import fixation
from uvos_jax.train.stages import optimizer_of, plan

SIZE = (33, 33)


def random_variables(system):
    """Variables of the right shapes, drawn on the host (compiling `init` takes longer)."""
    rng = np.random.default_rng(2)

    def draw(path, leaf):
        if path[-1].key in ("kernel", "recurrent_kernel"):
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            if leaf.shape[2] == 3:  # pixels reach from -120 to 150
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
            config = uvos.load_config("ags:tiny")
            config.model.input_size = SIZE
            system = uvos.build(config, **overrides)
            known[key] = system, random_variables(system)
        return known[key]

    return build


def clip(T, B=1, seed=0):
    rng = np.random.default_rng(seed)
    masks = rng.random((B, T, *SIZE)) < 0.2
    return {
        "frames": jnp.asarray(rng.integers(0, 256, (B, T, *SIZE, 3)), jnp.uint8),
        "masks": jnp.asarray(masks, jnp.uint8),
        "fixations": jnp.asarray(rng.random((B, T, *SIZE)), jnp.float32),
    }


@partial(jax.jit, static_argnums=0)
def run(system, variables, batch):
    return system.apply(variables, batch, train=False)[0]


@partial(jax.jit, static_argnums=0)
def predict(system, variables, state, chunk):
    return system.predict(variables, state, chunk)


@partial(jax.jit, static_argnums=(0, 3))
def value_and_gradient(system, variables, batch, phase):
    def loss(params):
        outputs, _ = system.apply({**variables, "params": params}, batch, train=True, phase=phase)
        return system.loss_fn(outputs, batch, step=0, phase=phase)

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])


def moved(gradient):
    return {k for k, part in gradient.items() if any(np.any(g != 0) for g in jax.tree.leaves(part))}


# ----- the network ----------------------------------------------------------------------------


def test_full_network_has_the_sizes_of_the_release():
    system = uvos.build("ags")
    batch = system.example_batch(1)
    variables = jax.eval_shape(system.init, jax.random.key(0))
    outputs = jax.eval_shape(lambda v, b: system.apply(v, b, train=False)[0], variables, batch)
    assert outputs["logits"].shape == (1, 3, 60, 60, 1)
    assert outputs["attention_logits"].shape == (1, 3, 30, 30, 1)
    assert outputs["features"].shape == (1, 3, 60, 60, 32)
    assert variables["params"]["head"]["kernel"].shape == (1, 1, 32, 2)
    # all blobs of the file, less the four placeholders
    assert sum(x.size for x in jax.tree.leaves(variables)) == 68_915_507 - 4


def test_a_map_of_zeros_leaves_the_features_and_one_of_ones_doubles_them(variants):
    system, variables = variants()
    frames = system.normalize(clip(1)["frames"])
    apply = jax.jit(lambda m: system.module.apply(variables, frames, m)["features"])
    plain = apply(jnp.zeros((1, 1, 5, 5, 1)))
    np.testing.assert_allclose(apply(jnp.ones((1, 1, 5, 5, 1))), 2 * plain, rtol=1e-6)
    product, _ = variants(attention="multiplicative")
    ones = product.module.apply(variables, frames, jnp.ones((1, 1, 5, 5, 1)))["features"]
    np.testing.assert_allclose(ones, plain, rtol=1e-5, atol=1e-5)


def test_the_map_is_the_sigmoid_of_enlarged_logits(variants):
    system, variables = variants()
    outputs = run(system, variables, clip(2))
    logits = np.asarray(outputs["attention_logits"])[0, :, ::1, ::1, 0]
    assert logits.shape[1:] == (3, 3)
    middle = (logits[:, :-1] + logits[:, 1:]) / 2  # 3 to 5 cells: every second one lies between
    expected = 1 / (1 + np.exp(-middle))
    np.testing.assert_allclose(outputs["attention"][0, :, 1::2, ::2, 0], expected, rtol=1e-5)


def test_a_given_map_replaces_the_predicted_one(variants):
    system, variables = variants(attention_source="given")
    assert system.spec.requires == {"fixations"}
    batch = clip(2)
    outputs = run(system, variables, batch)
    np.testing.assert_allclose(
        outputs["attention"][0, 0, ::4, ::4, 0], batch["fixations"][0, 0, ::32, ::32], atol=1e-5
    )
    with pytest.raises(DataError, match=r"needs fixations beside the frames.*'predicted'"):
        system.apply(variables, {"frames": batch["frames"]}, train=False)


@pytest.mark.parametrize(
    "overrides",
    [
        {"attention": "none"},
        {"temporal_module": "none"},
        {"aspp_blocks": 1},
        {"peephole": "none"},
        {"head_channels": 1},
    ],
)
def test_ablations_leave_their_part_out(variants, overrides):
    system, variables = variants(**overrides)
    params = variables["params"]
    (name,) = overrides
    assert {
        "attention": lambda: not {"fixation_0", "fixation_head", "recurrence"} & set(params),
        "temporal_module": lambda: "recurrence" not in params and "fixation_0" in params,
        "aspp_blocks": lambda: "pyramid_0" in params and "pyramid_1" not in params,
        "peephole": lambda: "peephole_i" not in params["recurrence"],
        "head_channels": lambda: params["head"]["kernel"].shape[-1] == 1,
    }[name]()
    batch = clip(2)
    state = system.init_state(variables, 1, SIZE)
    _, probs = predict(system, variables, state, {"frames": batch["frames"]})
    assert probs.shape == (1, 2, *SIZE)


# ----- training -------------------------------------------------------------------------------


@pytest.mark.slow
def test_videos_teach_attention_and_stills_both(variants):
    system, variables = variants()
    _, gradient = value_and_gradient(system, variables, clip(3), "attention")
    attention = {"fixation_0", "fixation_1", "fixation_2", "fixation_head", "recurrence"}
    assert moved(gradient) == attention | {"backbone"}
    (value, terms), gradient = value_and_gradient(system, variables, clip(1), "static")
    np.testing.assert_allclose(
        value, terms["mask"] + terms["attention"] + terms["soft_iou"], rtol=1e-6
    )
    assert moved(gradient) == set(variables["params"])


@pytest.mark.slow
def test_without_fixations_attention_learns_from_the_mask_alone(variants):
    system, variables = variants()
    unseen = {**clip(1), "fixations": jnp.zeros((1, 1, *SIZE))}
    (_, terms), gradient = value_and_gradient(system, variables, unseen, "static")
    assert float(terms["attention"]) == 0.0
    assert "fixation_head" in moved(gradient)
    implicit, _ = variants(attention_supervision="implicit")
    (_, terms), again = value_and_gradient(implicit, variables, clip(1), "static")
    assert "attention" not in terms
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), gradient, again)


def test_the_mask_need_not_move_the_attention(variants):
    system, variables = variants(stop_attention_gradient=True)
    unseen = {**clip(1), "fixations": jnp.zeros((1, 1, *SIZE))}
    _, gradient = value_and_gradient(system, variables, unseen, "static")
    assert not {"fixation_head", "recurrence", "fixation_0"} & moved(gradient)
    assert "backbone" in moved(gradient)


def test_losses_are_caffes_sums_per_frame(variants):
    system, _ = variants(reduction="sum_per_frame", iou_weight=0.0)
    batch = clip(2, B=2)
    keys = jax.random.split(jax.random.key(0))
    outputs = {
        "logits": jax.random.normal(keys[0], (2, 2, 5, 5, 1)),
        "attention_logits": jax.random.normal(keys[1], (2, 2, 3, 3, 1)),
    }
    value, _ = system.loss_fn(outputs, batch, step=0, phase="static")
    expected = 0.0
    for logits, target in (("logits", "masks"), ("attention_logits", "fixations")):
        s = np.asarray(system.probabilities(outputs[logits], SIZE), np.float64)
        q = np.asarray(batch[target], np.float64)
        expected += -(q * np.log(s) + (1 - q) * np.log(1 - s)).sum() / 4
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_divergence_is_zero_for_the_same_map_and_positive_otherwise():
    logits = jax.random.normal(jax.random.key(0), (1, 2, 5, 7))
    same = fixation.kl_divergence(logits, jax.nn.sigmoid(logits))
    np.testing.assert_allclose(same, 0.0, atol=1e-5)
    p = np.asarray(jax.nn.sigmoid(logits), np.float64)
    q = np.asarray(jax.random.uniform(jax.random.key(1), logits.shape), np.float64)
    p, q = (x / x.sum((2, 3), keepdims=True) for x in (p, q))
    expected = (q * np.log(q / p)).sum((2, 3))
    got = fixation.kl_divergence(logits, jnp.asarray(q, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert np.all(expected > 0)


def test_the_recipe_alternates_or_comes_one_after_the_other(variants):
    config = uvos.load_config("ags")
    (stage,) = uvos.build(config).stages(config)
    assert [(p.name, p.data) for p in stage.phases] == [("attention", "video"), ("static",) * 2]
    config = uvos.load_config("ags:modular")
    first, second = uvos.build(config).stages(config)
    assert (first.name, second.name) == ("attention", "segmentation")
    assert first.steps + second.steps == config.train.total_steps
    system, _ = variants()
    assert second.phases[0].frozen == system.parameter_groups["attention"]
    config = uvos.load_config("ags:implicit")
    (stage,) = uvos.build(config).stages(config)
    assert [p.name for p in stage.phases] == ["static"]


def test_attention_without_fixations_is_refused(variants):
    system, _ = variants()
    batch = clip(3)
    del batch["fixations"]
    with pytest.raises(DataError, match=r"learns attention from fixations.*'implicit'"):
        system.loss_fn({}, batch, step=0, phase="attention")


# ----- video ----------------------------------------------------------------------------------


def test_every_clip_starts_from_zero_states(variants):
    system, variables = variants()
    frames = clip(6)["frames"]
    state = system.init_state(variables, 1, SIZE)
    _, together = predict(system, variables, state, {"frames": frames})
    _, alone = predict(system, variables, state, {"frames": frames[:, 3:]})
    np.testing.assert_allclose(together[:, 3:], alone, atol=2e-5)
    outputs = run(system, variables, {"frames": frames[:, :3]})
    probs = np.asarray(system.probabilities(outputs["logits"], SIZE))
    low, high = (f(probs, axis=(2, 3), keepdims=True) for f in (np.min, np.max))
    np.testing.assert_allclose(together[:, :3], (probs - low) / (high - low), atol=1e-4)


def test_stretched_maps_fill_the_range(variants):
    system, variables = variants()
    state = system.init_state(variables, 1, SIZE)
    _, probs = predict(system, variables, state, {"frames": clip(3)["frames"]})
    np.testing.assert_allclose(np.min(probs, (2, 3)), 0.0)
    np.testing.assert_allclose(np.max(probs, (2, 3)), 1.0)


# ----- configuration --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides,message",
    [
        ({"attention": "some"}, r"model\.attention is 'some'.*'residual'"),
        ({"aspp_blocks": 4}, r"aspp_blocks must lie in \[1, 3\].*got 4"),
        ({"clip_len": 0}, r"clip_len must be at least 1, got 0"),
        ({"attention": "none", "attention_source": "given"}, r"nothing to give"),
        ({"input_size": ()}, r"peephole is 'spatial'.*peephole='none'"),
        ({"pyramid_pools": (4,)}, r"one entry per block, got 3, 3 and 1"),
    ],
)
def test_impossible_settings_are_refused(overrides, message):
    config = uvos.load_config("ags:tiny")
    for key, value in overrides.items():
        config.model[key] = value
    with pytest.raises(ConfigError, match=message):
        uvos.build(config)


@pytest.mark.parametrize("variant", configs.list_variants("ags"))
def test_every_variant_builds(variant):
    config = uvos.load_config(f"ags:{variant}")
    system = uvos.build(config)
    assert system.stages(config)


@pytest.mark.parametrize("variant", ["full", "no_attention", "no_recurrence", "modular"])
def test_rates_and_frozen_parts_name_parameters_that_are_there(variant):
    segments = plan(uvos.load_config(f"ags:{variant}"))
    shapes = jax.eval_shape(segments[0].system.init, jax.random.key(0))["params"]
    for segment in segments:
        for phase in segment.stage.phases:
            jax.eval_shape(optimizer_of(segment, phase, shapes).init, shapes)


# ----- data -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_synthetic_fixations_lie_on_the_object():
    source = sources.make_source("synthetic", preset="test", size=SIZE, clip_len=2, fixations=True)
    example = source.sample(3, None)
    assert example["fixations"].shape == (2, *SIZE)
    assert example["fixations"].dtype == np.float32
    for mask, heat in zip(example["masks"], example["fixations"], strict=True):
        if mask.any():
            y, x = np.nonzero(mask)
            peak = np.unravel_index(heat.argmax(), heat.shape)
            assert abs(peak[0] - y.mean()) <= 1
            assert abs(peak[1] - x.mean()) <= 1
        else:
            assert not heat.any()


def _write(path, array):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_fixation_folders_are_read(tmp_path):
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 256, (3, 6, 8), np.uint8)
    for i in range(3):
        _write(tmp_path / f"v/dog/frames/{i}.png", rng.integers(0, 256, (6, 8, 3), np.uint8))
        _write(tmp_path / f"v/dog/fixations/{i}.png", maps[i])
        _write(tmp_path / f"s/images/{i}.png", rng.integers(0, 256, (6, 8, 3), np.uint8))
        _write(tmp_path / f"s/fixations/{i}.png", maps[i])
        _write(tmp_path / f"s/masks/{i}.png", np.full((6, 8), 255 * (i % 2), np.uint8))
    video = sources.make_source("fixation_video", root=str(tmp_path / "v"), clip_len=2)
    example = video.sample(1, np.random.default_rng(0))
    np.testing.assert_allclose(example["fixations"], maps[1:] / 255.0, rtol=1e-6)
    assert not example["has_mask"].any()
    still = sources.make_source("fixation_image", root=str(tmp_path / "s"))[1]
    np.testing.assert_allclose(still["fixations"], maps[1:2] / 255.0, rtol=1e-6)
    assert still["masks"].all()
    (tmp_path / "v/dog/fixations/1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 frames have no fixation map.*map of zeros"):
        sources.make_source("fixation_video", root=str(tmp_path / "v"))
