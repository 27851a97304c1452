"""SegFlow's own properties, on the tiny network."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax.errors import ConfigError, DataError, ShapeError
from uvos_jax.modules.layers import ConvTranspose
from uvos_jax.systems.segflow import ChannelMean, bilinear_diagonal, crop
from uvos_jax.train.optimizer import multiplier_tree
from uvos_jax.train.stages import plan


@pytest.fixture(scope="module")
def tiny():
    system = uvos.build("segflow:tiny")
    rng = np.random.default_rng(2)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            scale = np.sqrt(1 / np.prod(leaf.shape[:-1]))
            if leaf.shape[:3] == (7, 7, 3):  # pixels reach from -120 to 150
                scale /= 64
            return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)
        if path[-1].key in ("scale", "var"):
            return jnp.asarray(0.5 + rng.random(leaf.shape), jnp.float32)
        if path[-1].key == "count":
            return jnp.zeros(leaf.shape, jnp.float32)
        return jnp.asarray(0.1 * rng.standard_normal(leaf.shape), jnp.float32)

    shapes = jax.eval_shape(system.init, jax.random.key(0))
    return system, jax.tree_util.tree_map_with_path(draw, shapes)


@partial(jax.jit, static_argnums=0, static_argnames=("train", "phase"))
def run(system, variables, batch, train=False, phase="default"):
    return system.apply(variables, batch, train=train, phase=phase)


def clip(H=64, W=64, T=2, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "frames": jnp.asarray(rng.integers(0, 256, (1, T, H, W, 3)), jnp.uint8),
        "masks": jnp.asarray(rng.random((1, T, H, W)) < 0.2, jnp.uint8),
        "flow": jnp.asarray(rng.standard_normal((1, T, H, W, 2)), jnp.float32),
        "flow_valid": jnp.array([[True] * (T - 1) + [False]]),
    }


# ----- the network ----------------------------------------------------------------------------


def test_maps_of_the_full_network_have_the_sizes_of_the_release():
    system = uvos.build("segflow")
    variables = jax.eval_shape(system.init, jax.random.key(0))
    frames = jax.ShapeDtypeStruct((1, 480, 854, 3), jnp.float32)
    pair = jax.eval_shape(
        partial(system.module.apply, method="flow_input"), variables, frames, frames
    )
    assert pair.shape == (1, 512, 896, 6)
    maps = jax.eval_shape(partial(system.module.apply, method="decode"), variables, frames, pair)
    expected = {
        "res3": (60, 107, 512),
        "res4": (30, 54, 1024),
        "res5": (15, 27, 2048),
        "concat4": (32, 56, 770),
        "concat3": (64, 112, 386),
        "concat2": (128, 224, 194),
        "flow2": (128, 224, 2),
        "score": (480, 854, 2),
        "score_flow": (480, 854, 2),
        "predict_flow_final": (480, 854, 2),
    }
    assert {k: maps[k].shape[1:] for k in expected} == expected
    params = variables["params"]
    assert sum(x.size for x in jax.tree.leaves(params["flow_net"])) == 38_676_514
    kernels = [params["segmentation"][f"score{n}"]["kernel"].shape for n in (5, 4, 3)]
    assert kernels == [(1, 1, 2818, 2), (1, 1, 1410, 2), (1, 1, 706, 2)]


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (71, 66), (50, 130), (128, 72)])
def test_frames_of_any_size_come_out_at_their_size(tiny, size):
    system, variables = tiny
    outputs, _ = jax.eval_shape(
        lambda: system.apply(variables, clip(*size), train=False),
    )
    for key in ("logits", "flow", "pyramid_flow"):
        assert outputs[key].shape == (1, 2, *size, 2)


def test_crops_take_the_offset_as_far_as_there_is_room():
    x = jnp.arange(5 * 6, dtype=jnp.float32).reshape(1, 5, 6, 1)
    np.testing.assert_array_equal(crop(x, (3, 2), 2)[0, ..., 0], x[0, 2:5, 2:4, 0])
    np.testing.assert_array_equal(crop(x, (4, 6), 2)[0, ..., 0], x[0, 1:5, :, 0])
    with pytest.raises(ShapeError, match=r"cannot cut \(6, 6\) out of \(5, 6\)"):
        crop(x, (6, 6), 0)


@pytest.mark.parametrize("factor", [2, 8])
def test_enlarging_starts_bilinear_and_keeps_channels_apart(factor):
    layer = ConvTranspose(2, 2 * factor, factor, 0, kernel_init=bilinear_diagonal)
    x = jnp.stack([jnp.full((5, 6), 3.0), jnp.zeros((5, 6))], -1)[None]
    y, _ = layer.init_with_output(jax.random.key(0), x)
    inside = y[0, factor : -factor or None, factor : -factor or None]
    np.testing.assert_allclose(inside, jnp.broadcast_to(jnp.array([3.0, 0.0]), inside.shape))
    ramp = jnp.broadcast_to(jnp.arange(6.0)[:, None], (5, 6, 2))[None]
    z, _ = layer.init_with_output(jax.random.key(0), ramp)
    steps = np.diff(z[0, 2 * factor, factor : -2 * factor, 0])
    np.testing.assert_allclose(steps, 1 / factor, atol=1e-5)


def test_decoders_start_at_zero_so_masks_start_undecided():
    system = uvos.build("segflow:tiny")
    variables = system.init(jax.random.key(0))
    outputs, _ = run(system, variables, clip())
    np.testing.assert_allclose(system.probabilities(outputs["logits"], (64, 64)), 0.5)
    assert not np.any(outputs["flow"])
    assert np.any(outputs["pyramid_flow"])


def test_a_frame_looks_at_its_successor_and_the_last_at_itself(tiny):
    system, variables = tiny
    batch = clip(T=3)
    whole, _ = run(system, variables, batch)
    first, _ = run(system, variables, {"frames": batch["frames"][:, :2]})
    last, _ = run(system, variables, {"frames": batch["frames"][:, 2:]})
    np.testing.assert_allclose(whole["logits"][:, 0], first["logits"][:, 0], atol=1e-4)
    np.testing.assert_allclose(whole["logits"][:, 2], last["logits"][:, 0], atol=1e-4)
    assert not np.allclose(whole["logits"][:, 1], first["logits"][:, 1], atol=1e-3)


@pytest.mark.parametrize("frames,chunk", [(1, None), (2, None), (6, None), (7, 3)])
def test_a_video_in_windows_equals_one_call(tiny, frames, chunk):
    system, variables = tiny
    video = np.asarray(clip(T=frames)["frames"][0])
    probs = uvos.Predictor(system, variables, chunk=chunk).predict(video).probs
    outputs, _ = run(system, variables, {"frames": jnp.asarray(video)[None]})
    expected = system.probabilities(outputs["logits"], (64, 64))[0]
    np.testing.assert_allclose(probs, expected, atol=2e-5)


def test_the_mean_colour_is_the_average_of_the_first_batches():
    module = ChannelMean(steps=2)
    batches = np.random.default_rng(0).random((3, 2, 4, 5, 3)).astype(np.float32)
    variables = module.init(jax.random.key(0), jnp.asarray(batches[0]))
    for x in batches:
        y, variables = module.apply(variables, jnp.asarray(x), True, mutable=["batch_stats"])
    expected = batches[:2].mean((0, 1, 2, 3))
    np.testing.assert_allclose(variables["batch_stats"]["mean"], expected, rtol=1e-5)
    np.testing.assert_allclose(y, batches[2] - expected, atol=1e-6)
    assert variables["batch_stats"]["count"] == 2


# ----- training -------------------------------------------------------------------------------


def test_training_alternates_between_branches():
    config = uvos.load_config("segflow:tiny")
    system = uvos.build(config)
    params = jax.eval_shape(system.init, jax.random.key(0))["params"]
    segments = plan(config)
    names = ["segmentation_1", "flow_1", "segmentation_2", "flow_2"]
    assert [(s.stage.name, s.stage.steps) for s in segments] == [(n, 8) for n in names]
    for segment in segments:
        (phase,) = segment.stage.phases
        factors = multiplier_tree(params, phase.lr_multipliers, phase.frozen)
        flat = {
            jax.tree_util.keystr(k, simple=True, separator="/"): v
            for k, v in jax.tree_util.tree_leaves_with_path(factors)
        }
        moving = {k.split("/")[0] for k, v in flat.items() if v}
        if phase.name == "flow":
            assert moving == {"flow_net", "flow_scale", "refinement"}
        else:
            assert moving == {"trunk", "segmentation"}
            assert flat["segmentation/score4/bias"] == 2.0
            assert flat["segmentation/score5/bias"] == 1.0
        assert not any(v for k, v in flat.items() if re.search(r"/up\d/|^gain\d$", k))


def test_the_release_learns_masks_only():
    config = uvos.load_config("segflow:release")
    (segment,) = plan(config)
    assert segment.stage.name == "segmentation_1"
    assert segment.stage.steps == 200_000
    assert segment.config.optim.lr == 1e-9


def test_the_segmentation_branch_rests_while_flow_is_learned(tiny):
    system, variables = tiny
    _, updates = run(system, variables, clip(), train=True, phase="flow")
    before, after = variables["batch_stats"]["trunk"], updates["batch_stats"]["trunk"]
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert updates["batch_stats"]["first_mean"]["count"] == 1
    assert jnp.isclose(updates["batch_stats"]["second_mean"]["count"], 1)


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum_per_frame"])
def test_mask_loss_equals_a_slow_sum(balanced, reduction):
    system = uvos.build("segflow:tiny", balanced=balanced, reduction=reduction)
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((1, 2, 5, 6, 2))
    labels = (rng.random((1, 2, 5, 6)) < 0.3).astype(np.uint8)
    labels[0, 0, 0] = 255
    loss, _ = system.loss_fn(
        {"logits": jnp.asarray(logits)}, {"masks": jnp.asarray(labels)}, step=0
    )
    total, count = 0.0, 0
    for t in range(2):
        seen = labels[0, t] != 255
        share = (labels[0, t][seen] == 1).mean()
        for y, x in zip(*np.nonzero(seen), strict=True):
            z, label = logits[0, t, y, x], labels[0, t, y, x]
            weight = (1 - share if label else share) if balanced else 1.0
            total += weight * (np.log(np.exp(z).sum()) - z[label])
            count += 1
    np.testing.assert_allclose(loss, total / (count if reduction == "mean" else 2), rtol=1e-5)


def test_flow_loss_equals_a_slow_sum():
    system = uvos.build("segflow:tiny", pyramid_weight=0.5)
    rng = np.random.default_rng(1)
    batch = clip()
    outputs = {k: rng.standard_normal((1, 2, 64, 64, 2)) for k in ("flow", "pyramid_flow")}
    outputs["pyramid"] = {n: rng.standard_normal((1, 2, 64 >> n, 64 >> n, 2)) for n in range(2, 7)}
    loss, terms = system.loss_fn(jax.tree.map(jnp.asarray, outputs), batch, step=0, phase="flow")
    flow = np.asarray(batch["flow"])[0, 0]  # the second frame has none
    error = np.linalg.norm(outputs["flow"][0, 0] - flow, axis=-1).mean()
    pyramid = 0.0
    for level, weight in zip(range(2, 7), (0.005, 0.01, 0.02, 0.08, 0.32), strict=True):
        n = 2**level
        for y, x in np.ndindex(64 // n, 64 // n):
            mean = flow[y * n : (y + 1) * n, x * n : (x + 1) * n].mean((0, 1)) / 20
            pyramid += weight * np.linalg.norm(outputs["pyramid"][level][0, 0, y, x] - mean)
    np.testing.assert_allclose(terms["epe"], error, rtol=1e-4)
    np.testing.assert_allclose(terms["pyramid"], 0.5 * pyramid, rtol=1e-4)
    np.testing.assert_allclose(loss, error + 0.5 * pyramid, rtol=1e-4)


def test_missing_flow_is_named(tiny):
    system, _ = tiny
    with pytest.raises(DataError, match=r"'flow' to train its flow branch.*segflow:release"):
        system.loss_fn({}, {"masks": 0}, step=0, phase="flow")


@pytest.mark.parametrize(
    "field,value,message",
    [
        ("reduction", "sum", r"model\.reduction is 'sum'.*sum_per_frame"),
        ("rounds", 0, r"model\.rounds and model\.segmentation_share.*got 0"),
        ("gains", (1.0,), r"model\.flow_widths and model\.gains must hold 6 and 2 numbers"),
    ],
)
def test_wrong_options_are_refused_by_name(field, value, message):
    with pytest.raises(ConfigError, match=message):
        uvos.build("segflow:tiny", **{field: value})


def test_every_variant_of_the_config_file_builds():
    from uvos_jax.config import list_variants

    for variant in list_variants("segflow"):
        assert uvos.build(f"segflow:{variant}").spec.name == "segflow"
