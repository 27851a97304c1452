"""Names of the release, and slow NumPy oracles of every formula (no weights are published)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from tests.parity.numpy_layers import conv
from uvos_jax.convert import convert
from uvos_jax.convert import morel as names
from uvos_jax.convert.official import to_official
from uvos_jax.convert.variables import flatten
from uvos_jax.errors import CheckpointError, ShapeError
from uvos_jax.losses.ssim import ssim, structural_dissimilarity
from uvos_jax.ops.resize import resize_bilinear_legacy
from uvos_jax.ops.warp import backward_warp
from uvos_jax.systems.morel import policy as policies
from uvos_jax.systems.morel.segment import carried, flow_of

DATA = Path(__file__).resolve().parents[1] / "data"
NAMES = json.loads((DATA / "morel_names.json").read_text())
ACTIONS = 6


@pytest.fixture(scope="module")
def tiny():
    return uvos.build("morel:tiny")


def policy_shapes(config, **options):
    policy = policies.make_policy(config, ACTIONS, **options)
    shapes = jax.eval_shape(lambda k: policies.init_policy(policy, k), jax.random.key(0))
    return dict(flatten({"params": shapes}))


def official(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {k: 0.1 * rng.standard_normal(v).astype(np.float32) for k, v in shapes.items()}


# ----- names ----------------------------------------------------------------------------------


def test_tables_list_every_official_name_and_shape():
    system = uvos.build("morel")
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    shapes = names.table(system.config).official_shapes(targets)
    assert {k: list(v) for k, v in shapes.items()} == NAMES["segmenter"]
    assert sum(np.prod(x.shape) for x in targets.values()) == 7_142_086
    encoder = [x for k, x in targets.items() if k.startswith("params/encoder/")]
    assert sum(np.prod(x.shape) for x in encoder) == 1_680_032

    table = names.policy_table(system.config, segments=False)
    found = table.official_shapes(policy_shapes(system.config, segments=False))
    wanted = {
        k: tuple(ACTIONS if n == "num_actions" else n for n in v)
        for k, v in NAMES["policy"].items()
    }
    assert found == wanted


def test_a_segmenter_passes_there_and_back(tiny):
    targets = dict(flatten(jax.eval_shape(tiny.init, jax.random.key(0))))
    arrays = official(names.table(tiny.config).official_shapes(targets))
    clutter = {
        "model/fc1/w/Adam": np.zeros(3), "model/fc1/w/Adam_1": np.zeros(3),
        "beta1_power": np.zeros(()), "global_step": np.zeros(()),
    }  # fmt: skip
    variables = convert("morel", arrays | clutter, "morel:tiny")
    back = to_official("morel", variables)
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
    kernel = variables["params"]["encoder"]["c1"]["kernel"]
    np.testing.assert_array_equal(kernel, arrays["model/c1_2_frame_input/w"])


def test_an_agent_passes_there_and_back_and_gives_its_encoder(tiny):
    shapes = names.policy_table(tiny.config).official_shapes(policy_shapes(tiny.config))
    assert "teacher/object_translation/obj_t/w" in shapes
    arrays = official(shapes)
    unused = {"teacher/c1_2_frame_input/w": np.zeros(3), "model/pi/w/RMSProp": np.zeros(3)}
    params = names.convert_policy(arrays | unused, tiny.config, ACTIONS)
    back = names.policy_to_official(params, tiny.config)
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
    encoder = convert("morel", arrays, "morel:tiny", part="encoder")["params"]
    assert set(encoder) == {"encoder"}
    jax.tree.map(np.testing.assert_array_equal, encoder["encoder"], params["encoder"])


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda a: a.pop("model/masks/b"), r"1 missing \(such as model/masks/b\)"),
        (lambda a: a.update({"model/fc9/w": np.zeros(2)}), r"1 unknown \(such as model/fc9/w\)"),
        (lambda a: a.update({"model/fc1/b": np.zeros(5)}), r"encoder/fc1/bias \(5,\), expected"),
    ],
)
def test_files_that_do_not_fit_are_refused(tiny, change, message):
    targets = dict(flatten(jax.eval_shape(tiny.init, jax.random.key(0))))
    arrays = official(names.table(tiny.config).official_shapes(targets))
    change(arrays)
    with pytest.raises(CheckpointError, match=message):
        convert("morel", arrays, "morel:tiny")


def test_an_agent_of_another_game_is_refused(tiny):
    shapes = names.policy_table(tiny.config).official_shapes(policy_shapes(tiny.config))
    with pytest.raises(CheckpointError, match=r"pi/kernel .*expected .*number of actions"):
        names.convert_policy(official(shapes), tiny.config, 4)


# ----- formulas -------------------------------------------------------------------------------


def slow_resize(x, size):
    """TF1: output i lies at i * in / out; neighbours are clamped."""
    h, w, C = x.shape
    out = np.zeros((*size, C))
    for i in range(size[0]):
        for j in range(size[1]):
            y, z = i * h / size[0], j * w / size[1]
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, h - 1), min(z0 + 1, w - 1)
            a, b = y - y0, z - z0
            top = x[y0, z0] * (1 - b) + x[y0, z1] * b
            out[i, j] = (1 - a) * top + a * (x[y1, z0] * (1 - b) + x[y1, z1] * b)
    return out


@pytest.mark.parametrize("start,end", [(21, 42), (42, 84), (10, 21)])
def test_resize_is_the_legacy_rule(rng, start, end):
    x = rng.standard_normal((start, start, 3)).astype(np.float32)
    got = resize_bilinear_legacy(jnp.asarray(x)[None], (end, end))[0]
    np.testing.assert_allclose(got, slow_resize(x, (end, end)), atol=1e-5)


def test_the_network_equals_numpy(tiny):
    """Every layer of the tiny network, from official names to masks and motion."""
    targets = dict(flatten(jax.eval_shape(tiny.init, jax.random.key(0))))
    arrays = official(names.table(tiny.config).official_shapes(targets))
    variables = convert("morel", arrays, "morel:tiny")
    pair = np.random.default_rng(1).random((42, 42, 2))
    with jax.default_matmul_precision("highest"):
        got = jax.jit(tiny.module.apply)(dict(variables), jnp.asarray(pair, jnp.float32)[None])

    def layer(name):
        return arrays[f"model/{name}/w"].astype(float), arrays[f"model/{name}/b"]

    x = pair
    for name, stride in (("c1_2_frame_input", 2), ("c2", 2), ("c3", 1)):
        x = np.maximum(conv(x[None], *layer(name), stride=stride)[0], 0)
    assert x.shape == (7, 7, 16)

    def dense(x, name):
        w, b = layer(name)
        return x @ w + b

    e = np.maximum(dense(x.reshape(-1), "fc1"), 0)
    x = dense(e, "fc2").reshape(10, 10, 8)
    for name, side in (("conv5", 21), ("conv6", 42)):
        x = slow_resize(x, (side, side))
        x = np.maximum(x + conv(x[None], *layer(name), pad=1)[0], 0)
    masks = 1 / (1 + np.exp(-conv(x[None], *layer("masks"))[0]))
    t = dense(e, "object_translation/obj_t").reshape(4, 2)
    c = dense(e, "flow/camera_translation")
    np.testing.assert_allclose(got["masks"][0], masks, atol=1e-5)
    np.testing.assert_allclose(got["translations"][0], t, atol=1e-5)
    np.testing.assert_allclose(got["camera"][0], c, atol=1e-5)
    flow = np.zeros((42, 42, 2))
    rebuilt = np.zeros((42, 42))
    for y, x in np.ndindex(42, 42):
        dy, dx = 0.01 * 42 * (sum(masks[y, x, k] * t[k] for k in range(4)) + c)
        flow[y, x] = dx, dy
        a, b = np.clip(y + dy, 0, 41), np.clip(x + dx, 0, 41)
        a0, b0 = int(a), int(b)
        a1, b1 = min(a0 + 1, 41), min(b0 + 1, 41)
        newest, u, v = pair[..., 1], a - a0, b - b0
        rebuilt[y, x] = (1 - u) * ((1 - v) * newest[a0, b0] + v * newest[a0, b1]) + u * (
            (1 - v) * newest[a1, b0] + v * newest[a1, b1]
        )
    np.testing.assert_allclose(got["flow"][0], flow, atol=1e-5)
    np.testing.assert_allclose(got["reconstruction"][0, ..., 0], rebuilt, atol=1e-5)


def test_a_unit_of_motion_is_084_pixels_in_row_column_order():
    masks = jnp.ones((1, 84, 84, 1))
    t, c = jnp.asarray([[[1.0, 0.0]]]), jnp.asarray([[0.0, 2.0]])
    flow = flow_of(masks, t, c)
    np.testing.assert_allclose(flow[0, 3, 5], [1.68, 0.84], rtol=1e-6)  # (u, v)


def shifted(image, dy, dx):
    """What a camera sees after the world moved by (dy, dx), edges repeated."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return image[np.clip(y - dy, 0, None), np.clip(x - dx, 0, None)]


@pytest.mark.parametrize("by", ["object", "camera"])
def test_warp_fetches_the_previous_frame_from_the_newest(rng, by):
    """The world moves by +2 pixels; motion 2 / 0.84 rebuilds the frame before."""
    previous = rng.random((84, 84)).astype(np.float32)
    newest = shifted(previous, 2, 2)
    t = jnp.full((1, 1, 2), 2 / 0.84) * (by == "object")
    c = jnp.full((1, 2), 2 / 0.84) * (by == "camera")
    flow = flow_of(jnp.ones((1, 84, 84, 1)), t, c)
    rebuilt = backward_warp(jnp.asarray(newest)[None, ..., None], flow)[0, ..., 0]
    np.testing.assert_allclose(rebuilt[:-2, :-2], previous[:-2, :-2], atol=1e-5)
    assert np.abs(newest - previous).mean() > 0.2


def slow_ssim(a, b):
    """Windows of 11x11 weighed by a Gaussian of 1.5 pixels, one at a time, in float64."""
    offsets = np.arange(11) - 5
    g = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights = np.outer(g, g) / np.outer(g, g).sum()
    H, W = a.shape
    out = np.zeros((H - 10, W - 10))
    for y, x in np.ndindex(*out.shape):
        p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
        mp, mq = (weights * p).sum(), (weights * q).sum()
        vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
        cov = (weights * (p - mp) * (q - mq)).sum()
        c1, c2 = 0.01**2, 0.03**2
        out[y, x] = (2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
    return out


def test_ssim_equals_a_loop_over_windows(rng):
    a = rng.random((1, 20, 26, 1)).astype(np.float32)
    b = np.clip(a + 0.1 * rng.standard_normal(a.shape), 0, 1).astype(np.float32)
    expected = slow_ssim(a[0, ..., 0].astype(float), b[0, ..., 0].astype(float))
    got = ssim(jnp.asarray(a), jnp.asarray(b))
    assert got.shape == (1, 10, 16, 1)
    np.testing.assert_allclose(got[0, ..., 0], expected, atol=1e-4)
    loss = structural_dissimilarity(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(loss, (1 - expected.mean()) / 2, atol=1e-5)
    np.testing.assert_allclose(structural_dissimilarity(jnp.asarray(a), jnp.asarray(a)), 0.0,
                               atol=1e-6)  # fmt: skip
    with pytest.raises(ShapeError, match="smaller than the window of 11x11"):
        ssim(jnp.zeros((1, 8, 20, 1)), jnp.zeros((1, 8, 20, 1)))


def test_losses_of_a_pair_equal_loops(tiny, rng):
    masks = rng.random((2, 42, 42, 4)).astype(np.float32)
    t = rng.standard_normal((2, 4, 2)).astype(np.float32)
    pairs = rng.random((2, 42, 42, 2)).astype(np.float32)
    zero = jnp.zeros((2, 42, 42, 2))
    outputs = {"masks": masks, "translations": t, "pairs": pairs, "flow": zero}
    got = jax.jit(tiny.pair_losses)(outputs)
    for b in range(2):
        total = 0.0
        for k in range(4):
            for d in range(2):
                total += np.abs(masks[b, ..., k] * t[b, k, d]).sum()
        np.testing.assert_allclose(got["sparsity"][b], total / (4 * 2 * 42 * 42), rtol=1e-5)
    # without flow the reconstruction is the newest frame
    np.testing.assert_allclose(got["reconstruction"], got["no_transform"], rtol=1e-6)
    expected = (1 - slow_ssim(pairs[0, ..., 0].astype(float), pairs[0, ..., 1]).mean()) / 2
    np.testing.assert_allclose(got["no_transform"][0], expected, atol=1e-5)


@pytest.mark.parametrize("step,weight", [(0, 0.0), (25_000, 0.25), (100_000, 1.0), (240_000, 1.0)])
def test_sparsity_grows_linearly_over_100_000_steps(step, weight):
    assert float(uvos.build("morel").sparsity_weight(step)) == pytest.approx(weight)
    assert float(uvos.build("morel:no_ramp").sparsity_weight(step)) == 1.0
    assert float(uvos.build("morel:no_sparsity").sparsity_weight(step)) == 0.0


def test_foreground_equals_loops(rng):
    masks = rng.random((1, 1, 42, 42, 4)).astype(np.float32)
    masks[..., 3] = 0
    masks[..., 3, 3, 3] = 1  # one pixel
    t = np.asarray([[[[0.2, 0.1], [-3.0, 4.0], [0.0, 0.0], [5.0, 5.0]]]], np.float32)
    outputs = {"masks": jnp.asarray(masks), "translations": jnp.asarray(t)}
    speed = np.hypot(*t[0, 0].T) * 0.42
    expected = 1 - np.prod(
        [1 - masks[0, 0, ..., k] * min(1, speed[k] / 0.5) for k in range(4)], axis=0
    )
    got = uvos.build("morel:tiny").foreground(outputs)
    np.testing.assert_allclose(got[0, 0], expected, atol=1e-5)
    shares = speed * [1, 1, 1, 0] / speed[:3].sum()
    got = uvos.build("morel:tiny", foreground="flow_weighted").foreground(outputs)
    np.testing.assert_allclose(got[0, 0], masks[0, 0] @ shares, atol=1e-5)
    moving = uvos.build("morel:tiny").moving_objects(outputs)
    np.testing.assert_array_equal(moving[0, 0], [False, True, False, False])


def test_masks_are_carried_with_their_objects():
    masks = np.zeros((1, 42, 42, 2), np.float32)
    masks[0, 10:15, 20:26, 0] = 1
    masks[0, 30:33, 2:9, 1] = 1
    t = jnp.asarray([[[1.0, -2.0], [0.0, 3.0]]]) / 0.42
    camera = jnp.asarray([[0.0, 1.0]]) / 0.42
    got = np.asarray(carried(jnp.asarray(masks), t, camera))
    expected = np.zeros_like(masks)
    expected[0, 11:16, 19:25, 0] = 1
    expected[0, 30:33, 6:13, 1] = 1
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_layers_start_orthogonal_with_the_gains_of_the_release(tiny):
    params = tiny.init(jax.random.key(0))["params"]
    gains = {
        ("encoder", "c1"): 2, ("encoder", "fc1"): 2, ("decoder", "fc2"): 2, ("decoder", "conv5"): 2,
        ("decoder", "masks"): 1, ("motion", "obj_t"): 1, ("motion", "camera_translation"): 0,
    }  # fmt: skip
    for (part, name), square in gains.items():
        kernel = np.asarray(params[part][name]["kernel"])
        matrix = kernel.reshape(-1, kernel.shape[-1])
        matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
        np.testing.assert_allclose(
            matrix.T @ matrix, square * np.eye(matrix.shape[1]), atol=1e-5, err_msg=name
        )
        assert not np.any(params[part][name]["bias"])
