"""PDB-ConvLSTM's own properties, on the tiny network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax import config as configs
from uvos_jax.errors import ConfigError, UnsupportedError
from uvos_jax.ops.crf import get_preset
from uvos_jax.systems import pdb_convlstm

SIZE = (33, 33)


def random_variables(system):
    """Variables of the right shapes, drawn on the host (compiling `init` takes longer)."""
    rng = np.random.default_rng(2)

    def draw(path, leaf):
        if path[-1].key in ("kernel", "recurrent_kernel"):
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            if leaf.shape[2:3] == (3,):  # pixels reach from -120 to 150
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
            config = uvos.load_config("pdb_convlstm:tiny")
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
    }


@partial(jax.jit, static_argnums=0, static_argnames=("phase", "train"))
def run(system, variables, batch, phase="default", train=False):
    return system.apply(variables, batch, train=train, phase=phase)


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


def test_full_network_has_as_many_numbers_as_the_release():
    system = uvos.build("pdb_convlstm")
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    ours = sum(x.size for x in jax.tree.leaves(shapes))
    # all blobs of the file, less 16 placeholders, plus the spatial head of the first stage
    assert ours == 61_912_210 - 16 + 33


@pytest.mark.parametrize("module", pdb_convlstm.TEMPORAL_MODULES)
def test_recurrent_ablations_see_the_frames_they_should(variants, module):
    system, variables = variants(temporal_module=module)
    batch = clip(3)
    changed = {**batch, "frames": batch["frames"].at[:, 1].set(0)}
    a, b = (np.asarray(run(system, variables, x)[0]["logits"])[0] for x in (batch, changed))
    differs = [bool(np.abs(a[t] - b[t]).max() > 1e-5) for t in range(3)]
    past_only = module in ("fc_lstm", "convlstm")
    expected = [False, True, False] if module == "none" else [not past_only, True, True]
    assert differs == expected
    assert system.spec.causal == (module in pdb_convlstm.CAUSAL_MODULES)
    kernel = variables["params"].get("recurrence", {})
    if module == "fc_lstm":
        assert kernel["recurrent_kernel"].shape[:2] == (1, 1)
    if module == "pdb_convlstm":
        assert set(kernel) == {"dilation1", "dilation2"}
        assert set(kernel["dilation1"]) == {"forward", "backward"}


def test_the_backward_layer_reads_the_forward_one_unless_they_are_parallel(variants):
    for module, reaches in (("db_convlstm", True), ("b_convlstm", False)):
        system, variables = variants(temporal_module=module)
        x = jax.random.normal(jax.random.key(0), (1, 3, 5, 5, 8))

        def backward_part(kernel, variables=variables, system=system, x=x):
            params = jax.tree.map(lambda p: p, variables["params"])
            params["recurrence"]["forward"]["recurrent_kernel"] = kernel
            merged = system.module.apply(
                {**variables, "params": params},
                x,
                method="decode",
                capture_intermediates=lambda m, _: m.name == "backward",
                mutable=["intermediates"],
            )[1]["intermediates"]["recurrence"]["backward"]["__call__"][0][1]
            return jnp.sum(merged**2)

        kernel = variables["params"]["recurrence"]["forward"]["recurrent_kernel"]
        gradient = jax.jit(jax.grad(backward_part))(kernel)
        assert bool(np.any(gradient != 0)) == reaches


def test_spatial_modules_join_their_branches_as_named(variants):
    _, pdc_variables = variants()
    _, aspp_variables = variants(spatial_module="aspp")
    depth = 4 * 16
    squeeze = {
        k: v["params"]["pdc"]["squeeze"]["conv"]["kernel"].shape[2]
        for k, v in (("pdc", pdc_variables), ("aspp", aspp_variables))
    }
    assert squeeze == {"pdc": depth + 2 * 8, "aspp": 8}
    one, variables = variants(temporal_module="none", pdc_dilations=(4,))
    assert set(variables["params"]["pdc"]) == {"d4", "squeeze"}
    logits = run(one, variables, clip(2))[0]["logits"]
    assert logits.shape == (1, 2, 5, 5, 1)


def test_paper_options_change_the_parameters(variants):
    _, variables = variants(peephole="none", fusion="conv_tanh", head_channels=1)
    branch = variables["params"]["recurrence"]["dilation1"]
    assert "peephole_i" not in branch["forward"]
    assert {"merge_forward", "merge_backward"} <= set(branch)
    assert variables["params"]["head"]["kernel"].shape[-1] == 1
    _, full = variants(peephole="full")
    peephole = full["params"]["recurrence"]["dilation2"]["backward"]["peephole_o"]
    assert peephole.shape == (5, 5, 8)


def test_markers_separate_clips_within_a_row(variants):
    system, variables = variants()
    frames = system.normalize(clip(6)["frames"])
    apply = jax.jit(lambda x, m: system.module.apply(variables, x, markers=m)["logits"])
    joint = apply(frames, jnp.asarray([[0.0, 1, 1, 0, 1, 1]]))
    alone = apply(frames[:, 3:], jnp.asarray([[0.0, 1, 1]]))
    np.testing.assert_allclose(joint[:, 3:], alone, atol=2e-5)


# ----- training -------------------------------------------------------------------------------


def test_every_stage_moves_its_part(variants):
    system, variables = variants()
    _, gradient = value_and_gradient(system, variables, clip(1), "spatial")
    assert moved(gradient) == {"backbone", "pdc", "spatial_head"}
    _, gradient = value_and_gradient(system, variables, clip(3), "video")
    assert moved(gradient) == {"backbone", "pdc", "recurrence", "head"}


def test_a_still_is_a_clip_of_equal_frames(variants):
    system, variables = variants()
    still = clip(1)
    outputs, _ = run(system, variables, still, phase="static")
    frames = jnp.repeat(still["frames"], 3, axis=1)
    expected, _ = run(system, variables, {"frames": frames})
    np.testing.assert_allclose(outputs["logits"], expected["logits"], atol=2e-5)
    value, _ = system.loss_fn(outputs, still, step=0, phase="static")
    again, _ = system.loss_fn(
        expected, {"frames": frames, "masks": jnp.repeat(still["masks"], 3, axis=1)}, step=0
    )
    np.testing.assert_allclose(value, again, rtol=1e-5)


@pytest.mark.parametrize("loss", pdb_convlstm.LOSSES)
@pytest.mark.parametrize("reduction", pdb_convlstm.REDUCTIONS)
def test_losses_equal_their_formulas(variants, loss, reduction):
    system, _ = variants(loss=loss, reduction=reduction, iou_weight=0.0)
    batch = clip(2, B=2)
    logits = jax.random.normal(jax.random.key(0), (2, 2, 5, 5, 1))
    value, _ = system.loss_fn({"logits": logits}, batch, step=0)
    s = np.asarray(system.probabilities(logits, SIZE), np.float64)
    o = np.asarray(batch["masks"], np.float64)
    pixels = -(o * np.log(s) + (1 - o) * np.log(1 - s))
    pixels += np.abs(s - o) if loss == "paper" else (s - o) ** 2 / 2
    expected = pixels.mean() if reduction == "mean" else pixels.sum() / 4
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_the_published_rates_belong_to_sums_over_pixels(variants):
    mean, _ = variants(reduction="mean", iou_weight=0.0)
    total, _ = variants(reduction="sum_per_frame", iou_weight=0.0)
    logits = jax.random.normal(jax.random.key(0), (1, 2, 5, 5, 1))
    a, b = (s.loss_fn({"logits": logits}, clip(2), step=0)[0] for s in (mean, total))
    np.testing.assert_allclose(b, a * SIZE[0] * SIZE[1], rtol=1e-5)


def test_the_recipe_has_three_stages():
    config = uvos.load_config("pdb_convlstm")
    system = uvos.build(config)
    spatial, joint, temporal = system.stages(config)
    assert sum(s.steps for s in (spatial, joint, temporal)) == config.train.total_steps
    assert [p.data for p in joint.phases] == ["static", "video"]
    groups = system.parameter_groups
    assert dict(joint.phases[1].lr_multipliers) == {groups["temporal"][0]: 100.0}
    assert groups["spatial"][0] in temporal.phases[0].frozen
    assert dict(temporal.optim) == {"lr": pytest.approx(1e-6)}
    config = uvos.load_config("pdb_convlstm:no_static")
    assert [p.data for p in uvos.build(config).stages(config)[1].phases] == ["video"]


def test_the_last_stage_keeps_the_statistics_of_the_spatial_part(variants):
    system, variables = variants()
    _, new = run(system, variables, clip(3), phase="temporal", train=True)
    assert set(new) <= {"batch_stats"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(new):
        old = variables
        for key in path:
            old = old[key.key]
        np.testing.assert_array_equal(leaf, old)


# ----- video ----------------------------------------------------------------------------------


def video(T, seed=3):
    return np.random.default_rng(seed).integers(0, 256, (T, 40, 50, 3), np.uint8)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_tail_walks_backwards_as_released(variants, count):
    """Clips do not overlap; the last one is completed by ..., n-1, n, n-1, n-2."""
    system, variables = variants()
    frames = video(count)
    predictor = uvos.Predictor(system, variables)
    assert (predictor.chunk, predictor.overlap) == (3, 0)
    got = predictor.predict(frames).probs
    listed = list(range(count))
    while len(listed) % 3:
        back = len(listed) - count + 1
        listed.append(max(count - 1 - back, 0))
    padded = predictor.predict(frames[listed]).probs
    np.testing.assert_allclose(got, padded[:count], atol=1e-6)


def test_every_map_is_stretched_to_the_full_range(variants):
    system, variables = variants()
    _, probs = predict(system, variables, (), {"frames": clip(3)["frames"]})
    np.testing.assert_allclose(np.min(probs, (2, 3)), 0.0)
    np.testing.assert_allclose(np.max(probs, (2, 3)), 1.0)
    plain, variables = variants(stretch=False)
    _, raw = predict(plain, variables, (), {"frames": clip(3)["frames"]})
    low, high = (f(raw, axis=(2, 3), keepdims=True) for f in (np.min, np.max))
    np.testing.assert_allclose(probs, (raw - low) / (high - low), atol=1e-5)


def test_a_stream_is_refused_unless_the_recurrence_is_causal(variants):
    system, variables = variants()
    with pytest.raises(UnsupportedError, match="looks at future frames and cannot stream"):
        uvos.Predictor(system, variables).stream(video(2))


def test_crf_and_threshold_are_the_published_ones():
    config = uvos.load_config("pdb_convlstm")
    assert (config.predict.crf, config.predict.threshold) == ("pdb_convlstm", 0.42)
    preset = get_preset("pdb_convlstm")
    smooth, appearance = preset.terms
    assert (smooth.sdims, smooth.compat) == (3, 3)
    assert (appearance.sdims, appearance.schan, appearance.compat) == (60, 5, 5)
    assert (preset.iterations, preset.stretch, preset.unary) == (5, True, "softmax")


# ----- configuration --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides,message",
    [
        ({"temporal_module": "gru"}, r"model\.temporal_module is 'gru'.*'db_convlstm'"),
        ({"spatial_module": "psp"}, r"model\.spatial_module is 'psp'"),
        ({"fusion": "max"}, r"model\.fusion is 'max'"),
        ({"head_channels": 3}, r"model\.head_channels is 3"),
        ({"clip_len": 0}, r"clip_len must be at least 1, got 0"),
        ({"input_size": ()}, r"peephole is 'spatial'.*peephole='none'"),
        ({"stage_shares": (1.0, 1.0)}, r"stage_shares must be three numbers"),
    ],
)
def test_impossible_settings_are_refused(overrides, message):
    config = uvos.load_config("pdb_convlstm:tiny")
    for key, value in overrides.items():
        config.model[key] = value
    with pytest.raises(ConfigError, match=message):
        uvos.build(config)


@pytest.mark.parametrize("variant", configs.list_variants("pdb_convlstm"))
def test_every_variant_builds(variant):
    config = uvos.load_config(f"pdb_convlstm:{variant}")
    assert uvos.build(config).stages(config)


def test_loaded_weights_take_the_published_threshold_without_a_crf_and_half_with_one(
    variants, tmp_path
):
    from uvos_jax.convert.variables import save_variables

    _, variables = variants()
    config = uvos.load_config("pdb_convlstm:tiny")
    config.model.input_size = SIZE
    save_variables(variables, tmp_path / "w.npz", config=config)
    plain = uvos.Predictor.load(tmp_path / "w.npz")
    assert (plain.threshold, plain.overlap) == (0.42, 0)
    assert uvos.Predictor.load(tmp_path / "w.npz", crf="pdb_convlstm").threshold == 0.5
    chosen = uvos.Predictor.load(tmp_path / "w.npz", crf="pdb_convlstm", threshold=0.3)
    assert chosen.threshold == 0.3
