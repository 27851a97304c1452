"""MuG's official names (carrierlxk/MuG, commit c923518), and whole networks against NumPy.

The released network and its label network are written out once more, layer by layer, in plain
NumPy; sizes are small, the order of operations is that of the release.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from tests.parity import numpy_layers as npl
from uvos_jax.convert import convert, convert_with_report
from uvos_jax.convert.mug import cam_table, network_table, table
from uvos_jax.convert.official import to_official
from uvos_jax.convert.variables import flatten
from uvos_jax.errors import CheckpointError, ConfigError, UnsupportedError
from uvos_jax.ops.color import rgb_to_lab, rgb_to_lab_bytes
from uvos_jax.ops.saliency import _graph, manifold_ranking_saliency, rank_nodes, superpixels
from uvos_jax.systems.mug import granularity as gran
from uvos_jax.systems.mug import propagation

#: Full size: minutes in all.
pytestmark = pytest.mark.slow

DATA = Path(__file__).resolve().parents[1] / "data"
relu = npl.relu


def stored(name):
    return {k: tuple(v) for k, v in json.loads((DATA / f"{name}.json").read_text()).items()}


def targets_of(name):
    system = uvos.build(name)
    return system.config, dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))


def official(name="mug:tiny_release"):
    config, targets = targets_of(name)
    rng = np.random.default_rng(0)
    shapes = table(config).official_shapes(targets)
    return {k: rng.random(s).astype(np.float32) for k, s in shapes.items()}


# ----- names ----------------------------------------------------------------------------------


def test_tables_list_every_official_name_and_shape():
    network, cam = stored("mug_names"), stored("mug_cam_names")
    assert (len(network), len(cam)) == (246 - 34, 1034 - 171)  # without counters of batches
    config, targets = targets_of("mug:release_cam")
    assert table(config).official_shapes(targets) == network | cam
    assert network_table(config).official_shapes(targets) == network
    assert cam_table(config).official_shapes(targets) == cam
    sizes = {"gray_encoder": 11_176_512, "rgb_encoder": 621_132, "decoder": 620_867}
    for part, size in sizes.items():
        counted = [v for k, v in targets.items() if k.startswith(f"params/{part}/")]
        assert sum(np.prod(v.shape) for v in counted) == size


def test_official_weights_belong_to_the_released_configuration_unless_told_otherwise():
    variables, report = convert_with_report("mug", {})
    assert set(report.missing) == set(stored("mug_names"))
    assert variables.meta["config"]["model"]["variant"] == "release"
    with pytest.raises(UnsupportedError, match=r"variant='paper'.*mug:release"):
        convert("mug", {}, "mug:full")


def test_conversion_goes_both_ways_and_the_later_of_two_names_counts():
    arrays = official()
    variables = convert("mug", {f"module.{k}": v for k, v in arrays.items()}, "mug:tiny_release")
    back = to_official("mug", variables)
    assert set(back) == set(arrays)
    features = "CAM.feature.features."
    twins = {"conv0": "block0.0", "norm0": "block0.1", "denseblock4.1": "norm5"}
    for name, value in arrays.items():
        first = name.removeprefix(features).rpartition(".")[0]
        if name.startswith(features) and first in twins:
            name = name.replace(first, twins[first])
            value = arrays[name]
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    kernel = variables["params"]["pseudo_labeller"]["upscale"]["kernel"]
    np.testing.assert_array_equal(kernel[..., 0, 0], arrays["CAM.upscale.weight"][0, 0])


def test_the_label_network_converts_on_its_own():
    arrays = {k: v for k, v in official().items() if k.startswith("CAM.")}
    variables = convert("mug", arrays, "mug:tiny_release", part="cam")
    assert set(variables["params"]) == {"pseudo_labeller"}
    with pytest.raises(ConfigError, match=r"no part 'vgg'.*cam"):
        convert("mug", arrays, "mug:tiny_release", part="vgg")


def test_a_partial_fit_is_refused():
    arrays = official()
    del arrays["linear_e.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing \(such as linear_e\.weight\)"):
        convert("mug", arrays, "mug:tiny_release")


# ----- the released networks --------------------------------------------------------------------


@pytest.fixture(scope="module")
def released():
    """System and variables of a small network, none of them trivial."""
    system = uvos.build("mug:tiny_release", input_size=(32, 48))
    rng = np.random.default_rng(5)

    def values(path, x):
        if path[-1].key in ("scale", "var", "std"):
            return jnp.asarray(0.7 + 0.6 * rng.random(x.shape), jnp.float32)
        fan_in = np.prod(x.shape[:-1]) if len(x.shape) > 1 else 10
        return jnp.asarray(rng.standard_normal(x.shape) * np.sqrt(1.5 / fan_in), jnp.float32)

    shapes = jax.eval_shape(system.init, jax.random.key(0))
    return system, dict(jax.tree_util.tree_map_with_path(values, dict(shapes)))


class Written:
    """The release once more, from parameters by their paths."""

    def __init__(self, variables):
        self.p = jax.tree.map(np.asarray, variables["params"])
        self.s = jax.tree.map(np.asarray, variables["batch_stats"])

    def at(self, path):
        p, s = self.p, self.s
        for key in path.split("/"):
            p, s = p[key], s.get(key, {}) if s else {}
        return p, s

    def conv(self, x, path, **options):
        p, _ = self.at(path)
        return npl.conv(x, p["kernel"], p.get("bias", 0.0), **options)

    def norm(self, x, path):
        return npl.batch_norm(x, *self.at(path))

    def block(self, x, path, stride=1):
        y = relu(self.norm(self.conv(x, f"{path}/conv1", stride=stride, pad=1), f"{path}/bn1"))
        y = self.norm(self.conv(y, f"{path}/conv2", pad=1), f"{path}/bn2")
        if stride > 1 or x.shape[-1] != y.shape[-1]:
            x = self.conv(x, f"{path}/downsample_0", stride=stride)
            x = self.norm(x, f"{path}/downsample_1")
        return relu(x + y)

    def features(self, lab):
        gray = (np.repeat(lab[..., :1], 3, -1) + 1) / 2
        x = (gray - self.p["normalize"]["mean"]) / self.p["normalize"]["std"]
        g = "gray_encoder"
        x = relu(self.norm(self.conv(x, f"{g}/conv1", stride=2, pad=3), f"{g}/bn1"))
        x = npl.max_pool(x, 3, 2, 1)
        x = self.block(x, f"{g}/layer1_0")
        low = self.block(x, f"{g}/layer2_0", stride=2)
        middle = self.block(low, f"{g}/layer3_0")
        return low, middle, self.block(middle, f"{g}/layer4_0")

    def saliency(self, target, memory, key=4):
        """Logits of one frame `[1,H,W,3]` with a memory `[N,H,W,3]`."""

        def keys_and_values(lab):
            x = self.conv(npl.max_pool(self.features(lab)[2], 2, 2), "memory_encoder_1", pad=1)
            x = relu(self.norm(x, "memory_encoder_2/bn"))
            x = x.reshape(-1, x.shape[-1])
            return x[:, :key], x[:, key:]

        k, v = keys_and_values(target)
        k_mem, v_mem = keys_and_values(memory)
        e = (k @ self.p["linear_e"]["kernel"]) @ k_mem.T  # target positions x memory positions
        a = npl.softmax(e, 0)
        b = npl.softmax(a.T, 0)  # over all memory positions
        attended = np.concatenate([(v_mem.T @ b).T, v], -1)
        low, middle, _ = self.features(target)
        h, w = low.shape[1:3]
        up = npl.resize(attended.reshape(1, h // 2, w // 2, -1), (h, w))
        f = self.block(up + self.block(middle, "fusion3_1"), "fusion3_2")
        g = self.block(f + self.block(low, "fusion2_1"), "fusion2_2")
        c = "weak_conv1"
        left = self.conv(self.conv(g, f"{c}/conv_l1", pad=(3, 0)), f"{c}/conv_l2", pad=(0, 3))
        right = self.conv(self.conv(g, f"{c}/conv_r1", pad=(0, 3)), f"{c}/conv_r2", pad=(3, 0))
        x = relu(self.norm(left + right, "weak_bn/bn"))
        return sum(
            self.conv(x, f"weak_conv2_{i}", dilation=d, pad=d)
            for i, d in ((1, 6), (2, 12), (3, 18))
        )

    def colours(self, lab):
        def step(x, name):
            x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
            return relu(self.conv(x, f"rgb_encoder/{name}"))

        x = step(step(self.conv(lab, "rgb_encoder/conv1"), "conv2"), "conv3")
        x = step(step(npl.max_pool(x, 2, 2), "conv4"), "conv5")
        x = npl.max_pool(step(npl.max_pool(x, 2, 2), "conv6"), 2, 2)
        return relu(self.conv(x, "rgb_encoder/downsample_1"))

    def painted(self, x):
        def step(x, name):
            x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
            return self.conv(x, f"decoder/{name}")

        def twice(x):
            return x.repeat(2, 1).repeat(2, 2)

        x = relu(step(relu(self.conv(twice(x), "decoder/upsample_1")), "conv7"))
        x = relu(step(relu(step(twice(x), "conv8")), "conv9"))
        return np.tanh(step(relu(step(twice(x), "conv10")), "conv11"))

    def label(self, frames, size):
        """Logits of the label network for frames of its own size."""
        x = np.asarray(frames, np.float64)[..., ::-1] / 255
        x = (x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]  # R, G, B constants on B, G, R
        f = "pseudo_labeller/feature"
        x = relu(self.norm(self.conv(x, f"{f}/conv0", stride=2, pad=3), f"{f}/norm0"))
        x = npl.max_pool(x, 3, 2, 1)
        for b, dilation in enumerate((1, 1, 2, 4), start=1):
            name = f"{f}/denseblock{b}_0"
            y = relu(self.norm(x, f"{name}_norm1"))
            y = relu(self.norm(self.conv(y, f"{name}_conv1"), f"{name}_norm2"))
            y = self.conv(y, f"{name}_conv2", dilation=dilation, pad=dilation)
            x = np.concatenate([x, y], -1)
            if b < 4:
                x = self.conv(relu(self.norm(x, f"{f}/transition{b}_norm")),
                              f"{f}/transition{b}_conv")  # fmt: skip
            if b == 1:
                x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
        x = self.norm(x, f"{f}/norm5")
        x = sum(
            self.conv(x, f"pseudo_labeller/preds_{i}", dilation=d, pad=d)
            for i, d in enumerate((6, 12, 18, 24))
        )
        up, _ = self.at("pseudo_labeller/upscale")
        return npl.transposed_conv(x, up["kernel"], up["bias"], stride=8, pad=4)[..., 0]


def lab_frames(T=3):
    rng = np.random.default_rng(2)
    return rng.uniform(-1, 1, (1, T, 32, 48, 3)).astype(np.float32)


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / max(1, np.abs(expected).max())


@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
def test_saliency_equals_the_released_order_of_operations(released, implementation):
    system, variables = released
    module = system.module.clone(attention_impl=implementation, block_size=5)
    lab = lab_frames()
    with jax.default_matmul_precision("highest"):
        found = module.apply(variables, jnp.asarray(lab), memory=2)["logits"]
    written = Written(variables)
    for t in range(3):
        expected = written.saliency(lab[0, t : t + 1], lab[0, 1:])
        assert np.abs(expected).max() > 0.1
        assert relative(found[0, t], expected[0]) < 1e-4


def test_correspondence_equals_the_released_order_of_operations(released):
    system, variables = released
    lab = lab_frames()
    found = system.module.apply(
        variables, jnp.asarray(lab[:, 0]), jnp.asarray(lab[:, 1]), method="correspond"
    )
    written = Written(variables)
    f_ref, f_tar = (written.features(lab[:, t])[2].reshape(24, -1) for t in (0, 1))
    affinity = npl.softmax(f_ref @ f_tar.T, 0)
    c_ref, c_tar = (written.colours(lab[:, t]) for t in (0, 1))
    assert relative(found["affinity"][0], affinity) < 1e-3
    target = written.painted((affinity.T @ c_ref.reshape(24, -1)).reshape(c_ref.shape))
    reference = written.painted((affinity @ c_tar.reshape(24, -1)).reshape(c_tar.shape))
    assert relative(found["target"], target) < 1e-3
    assert relative(found["reference"], reference) < 1e-3


def test_the_label_network_equals_the_released_order_of_operations(released):
    system, variables = released
    frames = np.random.default_rng(3).integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    found = system.module.apply(variables, jnp.asarray(frames), method="label")
    expected = Written(variables).label(frames, (32, 32))
    assert found.shape == (1, 32, 32)
    assert relative(found, expected) < 1e-4


def test_frames_are_scaled_lightness_as_opencv_stores_it():
    rgb = jnp.asarray([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 0, 255], [119, 119, 119]])
    expected = [[0, 128, 128], [255, 128, 128], [136, 208, 195], [82, 207, 20], [128, 128, 128]]
    lab = rgb_to_lab_bytes(rgb.astype(jnp.float32) / 255)
    np.testing.assert_allclose(lab, expected, atol=1)
    np.testing.assert_allclose(
        rgb_to_lab(jnp.asarray([1.0, 0.0, 0.0])), [53.24, 80.09, 67.2], atol=0.05
    )
    system = uvos.build("mug:tiny_release")
    np.testing.assert_allclose(
        system.normalize(rgb.astype(jnp.uint8)), (np.asarray(lab) - 128) / 128, atol=1e-6
    )


# ----- saliency -----------------------------------------------------------------------------------


def test_ranking_equals_the_formula():
    rng = np.random.default_rng(0)
    cells, colours = (4, 5), rng.uniform(0, 100, (20, 3)).astype(np.float32)
    y, x = np.divmod(np.arange(20), 5)
    border = (y == 0) | (y == 3) | (x == 0) | (x == 4)
    W, D = np.zeros((20, 20)), np.zeros((20, 20))
    for i in range(20):
        for j in range(20):
            D[i, j] = np.sqrt(np.sum((colours[i].astype(np.float64) - colours[j]) ** 2))
            W[i, j] = i != j and (
                max(abs(y[i] - y[j]), abs(x[i] - x[j])) <= 2 or (border[i] and border[j])
            )
    edges = W > 0
    np.testing.assert_array_equal(_graph(cells)[0], edges)
    low, high = D[edges].min(), D[edges].max()
    W = np.where(edges, np.exp(-10 * (D - low) / (high - low)), 0)
    A = np.linalg.inv(np.diag(W.sum(1)) - 0.99 * W)
    np.fill_diagonal(A, 0)

    def stretched(f):
        return (f - f.min()) / (f.max() - f.min())

    seeds = np.ones(20)
    for side in (y == 0, y == 3, x == 0, x == 4):
        seeds = seeds * (1 - stretched(A @ side.astype(float)))
    expected = stretched(A @ (seeds >= seeds.mean()).astype(float))
    np.testing.assert_allclose(rank_nodes(jnp.asarray(colours), cells), expected, atol=2e-4)


def test_an_object_of_another_colour_is_salient():
    y, x = np.indices((48, 64))
    disc = (y - 22) ** 2 + (x - 36) ** 2 < 144
    noise = np.random.default_rng(0).integers(0, 20, (48, 64, 3))
    frame = np.where(disc[..., None], [200, 60, 40], [60, 110, 90]) + noise
    saliency = manifold_ranking_saliency(jnp.asarray(frame[None], jnp.float32), (8, 8))[0]
    found = np.asarray(saliency) > 0.5
    overlap = (found & disc).sum() / (found | disc).sum()
    assert overlap > 0.8
    labels, _ = superpixels(rgb_to_lab(jnp.asarray(frame / 255.0, jnp.float32)), (8, 8))
    inside = np.bincount(np.asarray(labels)[disc], minlength=64)
    mixed = np.minimum(inside, np.bincount(np.asarray(labels)[~disc], minlength=64)).sum()
    assert mixed < 0.03 * disc.size  # superpixels follow the outline


# ----- granularities ------------------------------------------------------------------------------


def test_responses_are_sliding_inner_products():
    rng = np.random.default_rng(0)
    x, k = rng.standard_normal((1, 6, 7, 4)), rng.standard_normal((1, 3, 2, 4))
    found = gran.responses(jnp.asarray(k, jnp.float32), jnp.asarray(x, jnp.float32), scale="mean")
    for r in range(6):
        for c in range(7):
            total = 0.0
            for i in range(3):
                for j in range(2):
                    a, b = r + i - 1, c + j - 1
                    if 0 <= a < 6 and 0 <= b < 7:
                        total += x[0, a, b] @ k[0, i, j]
            np.testing.assert_allclose(found[0, r, c], total / 24, atol=1e-5)


def test_a_patch_is_found_where_it_was_cut_out_and_where_it_went():
    rng = np.random.default_rng(0)
    image = rng.standard_normal((2, 64, 64, 3)).astype(np.float32)
    moved = np.roll(image, (16, -8), (1, 2))

    def encode(x):  # stands for the network: 8x8 pixels to one cell of 192 features
        B, H, W, _ = x.shape
        return x.reshape(B, H // 8, 8, W // 8, 8, 3).swapaxes(2, 3).reshape(B, H // 8, W // 8, -1)

    start = jnp.asarray([[3, 5], [4, 4]])
    patch = gran.crop(jnp.asarray(image), start, 24, 8)
    there = gran.peak(gran.responses(encode(patch), encode(jnp.asarray(moved))))
    np.testing.assert_array_equal(there, np.asarray(start) + np.asarray([2, -1]))
    again = gran.crop(jnp.asarray(moved), there, 24, 8)
    back = gran.peak(gran.responses(encode(again), encode(jnp.asarray(image))))
    np.testing.assert_array_equal(back, start)
    target = gran.gaussian_target(back, (8, 8), 0.75)
    np.testing.assert_array_equal(gran.peak(target), start)
    np.testing.assert_allclose(target[0, 3, 7], np.exp(-4 / (2 * 0.75**2)), rtol=1e-5)


def test_the_inlier_loss_is_least_for_the_affine_map_that_makes_the_matches():
    grid = (5, 5)
    shift = jnp.asarray([[1.0, 0.0, 0.5, 0.0, 1.0, -0.5]])  # one cell right, one cell up
    points = np.asarray(gran.affine_points(shift, grid))[0]
    affinity = np.zeros((1, 25, 25), np.float32)
    inside = 0
    for o2, (r, c) in enumerate(points):
        r, c = round(float(r)), round(float(c))
        if 0 <= r < 5 and 0 <= c < 5:
            affinity[0, r * 5 + c, o2] = 1
            inside += 1

    def share(theta, soft=True):
        return float(
            gran.inlier_share(jnp.asarray(affinity), theta, grid, radius=1.0, soft=soft)[0]
        )

    assert inside == 16
    np.testing.assert_allclose(share(shift), 16 / 25, rtol=1e-4)
    identity = jnp.asarray([[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]])
    assert share(identity) < share(shift)
    gradient = jax.grad(lambda t: jnp.sum(gran.inlier_share(
        jnp.asarray(affinity), t, grid, radius=1.0, soft=True)))(shift)  # fmt: skip
    np.testing.assert_allclose(gradient, 0, atol=1e-4)
    np.testing.assert_allclose(share(shift, soft=False), 16 / 25, rtol=1e-4)


def test_equal_frames_match_by_the_identity():
    x = 5 * jax.random.normal(jax.random.key(0), (1, 4, 4, 16))
    affinity = gran.column_affinity(x, x)
    np.testing.assert_allclose(np.sum(affinity, axis=1), 1, atol=1e-5)
    identity = jnp.asarray([[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]])
    turned = jnp.asarray([[0.0, 1.0, 0.0, -1.0, 0.0, 0.0]])
    at = [
        float(gran.inlier_share(affinity, t, (4, 4), radius=1.0, soft=True)[0])
        for t in (identity, turned)
    ]
    assert at[0] > 0.99 > at[1]


# ----- one shot and objects -----------------------------------------------------------------------


def test_propagation_equals_the_loop():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3, 3, 6)).astype(np.float32)
    first = rng.dirichlet(np.ones(3), (3, 3)).astype(np.float32)
    found = propagation.propagate(jnp.asarray(x), jnp.asarray(first), neighbours=5)
    flat, labels = x.reshape(4, 9, 6), [first.reshape(9, 3)]
    for t in range(1, 4):
        keys = np.concatenate([flat[0], flat[t - 1]])
        known = np.concatenate([labels[0], labels[t - 1]])
        rows = []
        for now in flat[t]:
            p = npl.softmax(keys @ now, 0)
            best = np.argsort(-p, kind="stable")[:5]
            rows.append((p[best] / p[best].sum()) @ known[best])
        labels.append(np.stack(rows))
    np.testing.assert_allclose(found, np.reshape(labels, (4, 3, 3, 3)), atol=1e-5)


def test_parts_of_a_mask_are_told_apart():
    mask = np.zeros((6, 8), bool)
    mask[1:3, 1:4] = mask[2:5, 3] = True
    mask[0, 6:8] = mask[5, 7] = True
    parts = propagation.components(mask, least=2)
    assert sorted(int(p.sum()) for p in parts) == [2, 8]
    np.testing.assert_array_equal(parts.any(0), mask & ~(np.indices(mask.shape)[0] == 5))
    assert propagation.components(np.zeros((3, 3), bool)).shape == (0, 3, 3)


def test_objects_keep_their_ids_while_they_cross():
    features = np.zeros((3, 4, 8, 2), np.float32)
    proposals, probabilities = [], np.full((3, 4, 8), 0.1)
    places = ((0, 6), (3, 4), (6, 0))  # columns of two objects
    for t, (a, b) in enumerate(places):
        masks = np.zeros((3, 4, 8), bool)
        masks[0, :, b : b + 2], masks[1, :, a : a + 1] = True, True
        masks[2, 0, :] = True  # background: no support
        features[t, :, :, :] = [0.1, 0.1]
        features[t, :, a : a + 1], features[t, :, b : b + 2] = [1, 0], [0, 1]
        probabilities[t, :, a : a + 1], probabilities[t, :, b : b + 2] = 0.95, 0.9
        proposals.append(masks if t != 1 else masks[::-1])
    ids = propagation.link_objects(proposals, probabilities, features)
    for t, (a, b) in enumerate(places):
        assert set(np.unique(ids[t, :, a : a + 1])) == {1}
        assert set(np.unique(ids[t, :, b : b + 2])) == {2}
        assert (ids[t] > 0).sum() == 12
