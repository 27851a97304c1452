"""F2Net's official names (liudaizong/F2Net, commit d86da8b), and its formulas against NumPy loops.

No weights were published and no reference outputs exist here; what stands in for them are slow,
obvious versions of every formula.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax.convert import convert
from uvos_jax.convert.f2net import table
from uvos_jax.convert.official import to_official
from uvos_jax.convert.variables import flatten
from uvos_jax.errors import CheckpointError, ConfigError
from uvos_jax.losses.heatmap import penalty_reduced_focal
from uvos_jax.ops import centres
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.systems import f2net

#: Full size: minutes in all.
pytestmark = pytest.mark.slow

DATA = Path(__file__).resolve().parents[1] / "data"
NAMES = {k: tuple(v) for k, v in json.loads((DATA / "f2net_names.json").read_text()).items()}


def shapes(name):
    system = uvos.build(name)
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    return targets, table(system.config).official_shapes(targets)


def official(name="f2net:tiny"):
    """Official names of a small network with values that tell places apart."""
    rng = np.random.default_rng(0)
    return {k: rng.random(s).astype(np.float32) for k, s in shapes(name)[1].items()}


# ----- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["full", "release"])
def test_table_lists_every_official_name_and_shape(variant):
    targets, named = shapes(f"f2net:{variant}")
    counters = {k for k in NAMES if k.endswith("num_batches_tracked")}
    assert len(NAMES) == 742
    assert set(named) | counters == set(NAMES)
    assert all(tuple(named[k]) == NAMES[k] for k in named)
    params = sum(np.prod(v.shape) for k, v in targets.items() if k.startswith("params/"))
    assert params == 80_247_400


def test_conversion_goes_both_ways():
    arrays = official()
    variables = convert("f2net", {f"module.{k}": v for k, v in arrays.items()}, "f2net:tiny")
    back = to_official("f2net", variables)
    assert set(back) == set(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_a_training_checkpoint_file_converts(tmp_path):
    torch = pytest.importorskip("torch")
    arrays = official()
    state = {f"module.{k}": torch.from_numpy(v) for k, v in arrays.items()}
    state["module.cls.1.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    torch.save({"epoch": 3, "model": state}, tmp_path / "co_attention_davis_3.pth")
    variables = convert("f2net", tmp_path / "co_attention_davis_3.pth", "f2net:tiny")
    kernel = variables["params"]["motion_conv_w"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 0, :, 0], arrays["motion_conv_w.weight"][0, :, 0, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("fc.2.bias"), r"1 missing \(such as fc\.2\.bias\)"),
        (lambda a: a.update({"fc.4.bias": np.zeros(1)}), r"1 unknown \(such as fc\.4\.bias\)"),
        (
            lambda a: a.update({"cls.3.weight": np.zeros((2, 16, 1, 1), np.float32)}),
            r"cls_3/kernel \(1, 1, 16, 2\), expected \(1, 1, 16, 1\)",
        ),
    ],
)
def test_a_partial_fit_is_refused(change, message):
    arrays = official()
    change(arrays)
    with pytest.raises(CheckpointError, match=message):
        convert("f2net", arrays, "f2net:tiny")


def test_the_pretrained_encoder_converts_on_its_own():
    arrays = {
        k.removeprefix("encoder."): v for k, v in official().items() if k.startswith("encoder.")
    }
    assert set(convert("f2net", arrays, "f2net:tiny", part="encoder")["params"]) == {"encoder"}
    with pytest.raises(ConfigError, match=r"no part 'decoder'.*encoder"):
        convert("f2net", arrays, "f2net:tiny", part="decoder")


# ----- centres and Gaussians ------------------------------------------------------------------


def radius_by_hand(h, w, m=0.7):
    roots = []
    for a, b, c in (
        (1, h + w, w * h * (1 - m) / (1 + m)),
        (4, 2 * (h + w), (1 - m) * w * h),
        (4 * m, -2 * m * (h + w), (m - 1) * w * h),
    ):
        roots.append((b + np.sqrt(b * b - 4 * a * c)) / 2)
    return max(0, int(min(roots)))


def map_by_hand(mask, size):
    H, W = mask.shape
    rows, cols = (np.arange(size[0]) * H) // size[0], (np.arange(size[1]) * W) // size[1]
    small = mask[rows][:, cols]
    out = np.zeros(size)
    if not small.any():
        out[0, 0] = 1
        return out
    y, x = np.nonzero(small)
    cx, cy = (x.min() + x.max()) // 2, (y.min() + y.max()) // 2
    r = radius_by_hand(y.max() - y.min(), x.max() - x.min())
    sigma = (2 * r + 1) / 6
    for i in range(max(cy - r, 0), min(cy + r + 1, size[0])):
        for j in range(max(cx - r, 0), min(cx + r + 1, size[1])):
            out[i, j] = np.exp(-((i - cy) ** 2 + (j - cx) ** 2) / (2 * sigma**2))
    return out


def some_masks(count=6, size=(33, 41)):
    rng = np.random.default_rng(1)
    masks = np.zeros((count, *size), bool)
    for mask in masks[1:]:
        y, x = rng.integers(0, size[0] - 4), rng.integers(0, size[1] - 4)
        mask[y : y + rng.integers(1, 24), x : x + rng.integers(1, 30)] = rng.random() < 2
        mask &= rng.random(size) < 0.7
    return masks  # the first is empty


def test_target_maps_equal_the_loops():
    masks = some_masks()
    found = centres.centre_maps(jnp.asarray(masks), (17, 21), mark_empty=True)
    expected = np.stack([map_by_hand(m, (17, 21)) for m in masks])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.all(np.max(found, axis=(1, 2)) == 1)  # the peak is exactly 1
    unmarked = centres.centre_maps(jnp.asarray(masks), (17, 21), mark_empty=False)
    assert not np.any(unmarked[0])
    np.testing.assert_array_equal(unmarked[1:], found[1:])


def test_radii_equal_the_three_quadratics():
    rng = np.random.default_rng(2)
    h, w = rng.integers(0, 119, (2, 50)).astype(np.float32)
    found = np.floor(centres.corner_radius(jnp.asarray(h), jnp.asarray(w)))
    expected = [radius_by_hand(float(a), float(b)) for a, b in zip(h, w, strict=True)]
    np.testing.assert_array_equal(np.maximum(found, 0), expected)


def test_the_prior_is_a_gaussian_in_pixels_resized_to_the_grid():
    c = np.asarray([[10.0, 30.0], [63.0, 2.0]], np.float32)
    y, x = np.indices((49, 65))
    full = np.exp(-((x - c[:, 0, None, None]) ** 2 + (y - c[:, 1, None, None]) ** 2) / (2 * 9.0))
    expected = resize_bilinear(jnp.asarray(full[..., None], jnp.float32), (7, 9))[..., 0]
    found = centres.gaussian_prior(jnp.asarray(c), (49, 65), (7, 9), sigma=3.0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_peaks_are_local_maxima_best_first():
    heat = np.zeros((1, 6, 7), np.float32)
    heat[0, 1, 2], heat[0, 1, 3], heat[0, 4, 5] = 0.9, 0.8, 0.7  # the second is no maximum
    values, peaks = centres.top_peaks(jnp.asarray(heat), 3)
    np.testing.assert_allclose(values, [[0.9, 0.7, 0.0]], atol=1e-6)
    np.testing.assert_array_equal(peaks[0, :2], [[2, 1], [5, 4]])


def test_the_focal_loss_equals_the_loop_and_is_least_at_its_target():
    rng = np.random.default_rng(3)
    target = np.stack([map_by_hand(m, (9, 11)) for m in some_masks()]).astype(np.float32)
    logits = 2 * rng.standard_normal(target.shape).astype(np.float32)
    weights = np.asarray([1, 1, 0, 1, 1, 1], np.float32)
    total, peaks = 0.0, 0
    for b, i, j in np.ndindex(target.shape):
        p = np.clip(1 / (1 + np.exp(-np.float64(logits[b, i, j]))), 1e-4, 1 - 1e-4)
        y = float(target[b, i, j])
        if y == 1:
            total += weights[b] * (1 - p) ** 2 * np.log(p)
            peaks += weights[b]
        else:
            total += weights[b] * (1 - y) ** 4 * p**2 * np.log(1 - p)
    args = jnp.asarray(target), jnp.asarray(weights)
    np.testing.assert_allclose(
        penalty_reduced_focal(jnp.asarray(logits), *args), -total / peaks, rtol=1e-5
    )
    at_target = jnp.where(args[0] == 1, 20.0, -20.0)
    best = penalty_reduced_focal(at_target, *args)
    assert float(best) < 1e-4
    nothing = jnp.zeros_like(args[0])  # no peak: the negative term alone, undivided
    q = np.clip(1 / (1 + np.exp(-np.float64(logits))), 1e-4, 1 - 1e-4)
    expected = -np.sum(weights[:, None, None] * q**2 * np.log(1 - q))
    np.testing.assert_allclose(
        penalty_reduced_focal(jnp.asarray(logits), nothing, args[1]), expected, rtol=1e-5
    )


# ----- centre branch, matching, fusion -----------------------------------------------------------


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@pytest.fixture(scope="module")
def network():
    """Variables of a small network, none of them trivial (variances positive)."""
    system = uvos.build("f2net:tiny")
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    rng = np.random.default_rng(5)

    def values(path, x):
        scale = np.sqrt(1 / max(np.prod(x.shape[:-1]), 1)) if len(x.shape) > 1 else 0.3
        drawn = scale * rng.standard_normal(x.shape)
        return jnp.asarray(np.abs(drawn) + 0.5 if path[-1].key in ("var", "scale") else drawn,
                           jnp.float32)  # fmt: skip

    return dict(jax.tree_util.tree_map_with_path(values, dict(shapes)))


def module(**fields):
    return uvos.build("f2net:tiny", **fields).module


def features(seed=0, B=2, h=4, w=5, C=16):
    rng = np.random.default_rng(seed)
    made = rng.standard_normal((3, B, h, w, C)).astype(np.float32)
    prior = rng.random((B, h, w)).astype(np.float32)
    return tuple(map(jnp.asarray, (made[0], made[1], prior)))


@pytest.mark.parametrize("prior_on", f2net.PRIORS)
def test_matching_of_the_paper_equals_the_formula(prior_on):
    v0, vt, g = features()
    found = module(prior_on=prior_on).apply({}, v0, vt, g, method="match")
    for b in range(2):
        x, r = np.asarray(vt[b]).reshape(20, 16), np.asarray(v0[b]).reshape(20, 16)
        p = np.asarray(g[b]).reshape(20, 1)
        intra = softmax(x @ x.T / 4, 1)
        inter = softmax(x @ r.T / 4, 1) @ r
        if prior_on in ("key", "both"):
            intra = intra * p.T
        intra = intra @ x
        if prior_on in ("query", "both"):
            intra = p * intra
        if prior_on != "none":
            inter = p * inter
        expected = np.stack([inter, intra, x]).reshape(3, 4, 5, 16)
        np.testing.assert_allclose(found[b], expected, atol=2e-5)


def test_matching_of_the_release_equals_the_released_order():
    v0, vt, g = features()
    found = module(variant="release").apply({}, v0, vt, g, method="match")
    for b in range(2):
        V0, Vt = (np.asarray(v[b]).reshape(20, 16).T for v in (v0, vt))  # C x hw
        inter = softmax(V0.T @ Vt / 4, -1) @ Vt.T  # rows: positions of the reference
        intra = softmax(Vt.T @ Vt / 4, -1) @ Vt.T
        np.testing.assert_allclose(found[b, 0].reshape(20, 16), inter, atol=2e-5)
        np.testing.assert_allclose(found[b, 1].reshape(20, 16), intra, atol=2e-5)


def batch_norm(x, params, stats):
    scale = params["scale"] / np.sqrt(stats["var"] + 1e-5)
    return (x - stats["mean"]) * scale + params["bias"]


def test_fusion_equals_the_formula_and_weights_sum_to_one(network):
    rng = np.random.default_rng(4)
    f = rng.standard_normal((2, 3, 4, 5, 16)).astype(np.float32)
    given = jnp.asarray(f)
    p, s = jax.tree.map(np.asarray, (network["params"], network["batch_stats"]))
    pooled = f.sum(1).mean((1, 2))
    z = pooled @ p["channel_attention_conv1"]["kernel"][0, 0]
    bn = "channel_attention_bn"
    z = np.maximum(batch_norm(z, p[bn]["bn"], s[bn]["bn"]), 0)
    a = softmax((z @ p["channel_attention_conv2"]["kernel"][0, 0]).reshape(2, 3, 16), 1)
    channel = a[:, :, None, None] * f
    b = softmax(channel.sum(1) @ p["spatial_attention_conv"]["kernel"][0, 0], -1)
    both = np.einsum("bhwk,bkhwc->bhwc", b, channel)
    for fusion, expected in (("channel", channel.sum(1)), ("channel_spatial", both)):
        net = module(fusion=fusion)
        found = net.apply(network, given, method="fuse")
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    weights = net.apply(network, given, method="fusion_weights")
    for w in weights:
        np.testing.assert_allclose(np.sum(w, axis=1), 1.0, atol=1e-6)
    a, b = module(sources=("intra", "original")).apply(network, given, method="fusion_weights")
    assert not np.any(a[:, 0])
    assert not np.any(b[:, 0])
    np.testing.assert_allclose(np.sum(a, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(
        module(fusion="sum").apply(network, given, method="fuse"), f.sum(1), atol=1e-5
    )


def test_the_centre_branch_equals_the_formula(network):
    rng = np.random.default_rng(6)
    sizes, widths = ((9, 7), (5, 4), (5, 4), (5, 4)), (32, 64, 128, 256)
    stages = tuple(
        rng.standard_normal((1, *s, c)).astype(np.float32)
        for s, c in zip(sizes, widths, strict=True)
    )
    previous = rng.random((1, 9, 7)).astype(np.float32)
    net = module()
    U, semantic = net.apply(network, tuple(map(jnp.asarray, stages)), method="centre_features_of")
    heat = net.apply(network, U, semantic, jnp.asarray(previous), method="heat")

    p, s = jax.tree.map(np.asarray, (network["params"], network["batch_stats"]))
    x = None
    for k, stage in enumerate(stages[::-1], start=1):
        u, t = p["upsample"][f"up{k}"], s["upsample"][f"up{k}"]
        y = batch_norm(stage @ u["u_skip"]["kernel"][0, 0], u["bn1"], t["bn1"])
        if x is not None:
            x = np.asarray(resize_bilinear(jnp.asarray(x), stage.shape[1:3]))
            y = y + batch_norm(x @ u["up_conv"]["kernel"][0, 0], u["bn2"], t["bn2"])
        x = np.maximum(y, 0)
    x = np.maximum(batch_norm(x @ u["cross_conv"]["kernel"][0, 0], u["bn5"], t["bn5"]), 0)
    np.testing.assert_allclose(U, x, atol=1e-3, rtol=1e-4)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    hidden = p["fc_0"]["bias"] + sum(
        padded[:, i : i + 9, j : j + 7] @ p["fc_0"]["kernel"][i, j]
        for i in range(3)
        for j in range(3)
    )
    F = np.maximum(hidden, 0) @ p["fc_2"]["kernel"][0, 0] + p["fc_2"]["bias"]
    joined = np.concatenate([x, previous[..., None]], -1)
    w, b = (
        1 / (1 + np.exp(-(joined @ p[n]["kernel"][0, 0] + p[n]["bias"])))
        for n in ("motion_conv_w", "motion_conv_b")
    )
    expected = (w * previous[..., None] + b + F)[..., 0]
    np.testing.assert_allclose(heat, expected, atol=1e-3, rtol=1e-4)
    alone = module(motion_clue=False).apply(
        network, U, semantic, jnp.asarray(previous), method="heat"
    )
    np.testing.assert_allclose(alone, F[..., 0], atol=1e-3, rtol=1e-4)
