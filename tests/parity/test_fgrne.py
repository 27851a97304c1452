"""FGRNE's formulas against slow NumPy oracles; names of its convertible parts.

There is no public code to compare with: what is checked is that the modules compute what their
equations say, in the stated orders.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax.convert import convert
from uvos_jax.convert.variables import flatten
from uvos_jax.errors import UnsupportedError
from uvos_jax.modules.backbones.vgg import DSS, VGG16
from uvos_jax.systems.fgrne import (
    FeatureEncoder,
    FlowRefinement,
    former_indices,
    geometries,
    resample,
)

#: Full size: minutes in all.
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def conv(x, kernel, bias):
    """'Same' convolution of `[h,w,C]`, pixel by pixel."""
    k = kernel.shape[0]
    padded = np.pad(np.float64(x), ((k // 2,) * 2, (k // 2,) * 2, (0, 0)))
    out = np.zeros((*x.shape[:2], kernel.shape[-1]))
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = np.tensordot(padded[i : i + k, j : j + k], np.float64(kernel), 3) + bias
    return out


def lstm(sequence, params):
    """Hidden maps of a ConvLSTM without peepholes; gates in the order i, f, o, g."""
    F = params["recurrent_kernel"].shape[2]
    h = c = np.zeros((*sequence[0].shape[:2], F))
    hidden = []
    for x in sequence:
        a = conv(x, params["input"]["kernel"], np.float64(params["input"]["bias"]))
        a = a + conv(h, params["recurrent_kernel"], 0.0)
        i, f, o, g = (a[..., n * F : (n + 1) * F] for n in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        hidden.append(h)
    return hidden


def noisy(variables, seed=0):
    """Variables with noise added, so that biases and zero kernels count as well."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + 0.3 * rng.standard_normal(x.shape).astype(np.float32), variables
    )


@pytest.mark.parametrize("order", ["nearest_first", "farthest_first"])
@pytest.mark.parametrize("residual", [True, False])
def test_refined_flow_is_read_off_a_convlstm_in_the_stated_order(rng, order, residual):
    flow = rng.standard_normal((1, 3, 4, 5, 2)).astype(np.float32)
    module = FlowRefinement(features=3, order=order, residual=residual)
    params = noisy(module.init(jax.random.key(0), jnp.asarray(flow)))["params"]
    got = module.apply({"params": params}, jnp.asarray(flow))[0]
    steps = list(flow[0]) if order == "nearest_first" else list(flow[0][::-1])
    head = params["flow"]
    out = [h @ np.float64(head["kernel"][0, 0]) + head["bias"] for h in lstm(steps, params["lstm"])]
    out = np.stack(out if order == "nearest_first" else out[::-1])
    np.testing.assert_allclose(got, flow[0] + out if residual else out, atol=1e-5)


def test_a_fresh_residual_head_leaves_the_flow_as_it_is(rng):
    flow = jnp.asarray(rng.standard_normal((2, 3, 4, 5, 2)), jnp.float32)
    module = FlowRefinement(features=3)
    np.testing.assert_array_equal(module.apply(module.init(jax.random.key(0), flow), flow), flow)


def test_features_are_read_forward_in_time_the_frames_own_last(rng):
    current = rng.standard_normal((1, 4, 5, 3)).astype(np.float32)
    former = rng.standard_normal((1, 2, 4, 5, 3)).astype(np.float32)
    module = FeatureEncoder(features=3)
    arguments = (jnp.asarray(current), jnp.asarray(former), 6)
    params = noisy(module.init(jax.random.key(0), *arguments))["params"]
    got = module.apply({"params": params}, *arguments)[0]
    farthest, nearest = former[0, 1], former[0, 0]
    last = lstm([farthest, nearest, current[0]], params["lstm"])[-1]
    expand = params["expand"]
    want = last @ np.float64(expand["kernel"][0, 0]) + expand["bias"]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_ablated_encoders_are_a_mean_and_a_joint_convolution(rng):
    current = jnp.asarray(rng.standard_normal((1, 4, 5, 3)), jnp.float32)
    former = jnp.asarray(rng.standard_normal((1, 2, 4, 5, 3)), jnp.float32)
    mean = FeatureEncoder(features=0, temporal="mean")
    got = mean.apply({}, current, former, 3)
    np.testing.assert_allclose(got, (current + former[:, 0] + former[:, 1]) / 3, atol=1e-6)
    concat = FeatureEncoder(features=0, temporal="concat")
    variables = noisy(concat.init(jax.random.key(0), current, former, 3))
    join = variables["params"]["join"]
    joined = np.concatenate([current, former[:, 0], former[:, 1]], -1)
    got = concat.apply(variables, current, former, 3)
    np.testing.assert_allclose(got, joined @ join["kernel"][0, 0] + join["bias"], atol=1e-5)


# ----- geometry -------------------------------------------------------------------------------


def measured_geometry(first_padding):
    """Stride and offset of each map, from the centre of what a cell sees, layer by layer."""
    stride, offset = 1, 1 - first_padding
    found = [(stride, offset)]
    for window, padding in ((2, 0), (2, 0), (2, 0), (3, 1), (3, 1)):
        offset = offset + stride * ((window - 1) / 2 - padding)
        stride *= 2
        found.append((stride, offset))
    return found


@pytest.mark.parametrize("first_padding", [1, 2, 5])
def test_cells_lie_where_their_windows_are_centred(first_padding):
    got = list(geometries(first_padding).values())
    assert got == measured_geometry(first_padding)


@pytest.mark.parametrize(
    "level,factor,crop", [(0, 1, 4), (1, 2, 5), (2, 4, 6), (3, 8, 8), (4, 16, 16)]
)
def test_resampling_equals_a_bilinear_deconvolution_and_a_crop(rng, level, factor, crop):
    """Kernel 2f, stride f, as DSS has it; the crops follow from padding 5."""
    x = rng.standard_normal((6, 7, 2))
    kernel = 1 - np.abs((np.arange(2 * factor) + 0.5) / factor - 1) if factor > 1 else np.ones(1)
    k = len(kernel)
    big = np.zeros((5 * factor + k, 6 * factor + k, 2))
    for i in range(6):
        for j in range(7):
            block = kernel[:, None, None] * kernel[None, :, None] * x[i, j]
            big[i * factor : i * factor + k, j * factor : j * factor + k] += block
    size = (min(big.shape[0] - crop, 20), min(big.shape[1] - crop, 24))
    want = big[crop : crop + size[0], crop : crop + size[1]]
    source = list(geometries(5).values())[level]
    got = resample(jnp.asarray(x[None], jnp.float32), source, (1.0, 0.0), size)[0]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_clamped_resampling_keeps_a_constant():
    x = jnp.full((1, 3, 4, 1), 2.5)
    got = resample(x, (16.0, -0.5), (1.0, 0.0), (64, 70), clamp=True)
    np.testing.assert_allclose(got, 2.5, atol=1e-6)


# ----- flow -----------------------------------------------------------------------------------


def network(**fields):
    config = uvos.load_config("fgrne:tiny")
    for key, value in fields.items():
        config.model[key] = value
    return uvos.build(config).module


def test_flow_is_scaled_to_cells_of_the_grid():
    module = network()
    flow = jnp.broadcast_to(jnp.asarray([16.0, -8.0]), (1, 64, 64, 2))
    got = module.on_grid(flow, (1.0, 0.0), (64, 64))
    assert got.shape == (1, *module.grid((64, 64)), 2)
    np.testing.assert_allclose(got[0, 1, 2], [1.0, -0.5], atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (50, 75), (256, 512)])
def test_grid_is_the_size_of_conv5_3(size):
    for padding in (1, 2, 5):
        module = network(first_padding=padding)
        frames = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)

        vgg = VGG16(widths=(2, 2, 2, 2, 2), **{**DSS, "first_padding": padding})

        def maps(x, vgg=vgg):
            return vgg.init_with_output(jax.random.key(0), x)[0]

        assert jax.eval_shape(maps, frames)["c5"].shape[1:3] == module.grid(size)


def test_given_flow_is_inverted():
    """A constant flow and a zoom, whose inverses are known."""
    module = network(flow_source="batch", first_padding=1)
    size = (128, 128)
    constant = jnp.broadcast_to(jnp.asarray([6.0, -4.0]), (1, *size, 2))
    back = np.asarray(module.steps_back(constant, size))
    np.testing.assert_allclose(back, np.broadcast_to([-6 / 16, 4 / 16], back.shape), atol=1e-5)
    y, x = np.mgrid[:128, :128].astype(np.float32) - 63.5
    zoom = jnp.asarray(np.stack([0.1 * x, 0.1 * y], -1))[None]  # p -> 1.1 p about the centre
    back = np.asarray(module.steps_back(zoom, size))[0]
    stride, offset = geometries(1)["c5"]
    cells = stride * np.arange(8) + offset - 63.5
    want = (cells / 1.1 - cells) / 16
    np.testing.assert_allclose(back[4, 1:7, 0], want[1:7], atol=2e-3)
    np.testing.assert_allclose(back[1:7, 4, 1], want[1:7], atol=2e-3)


def test_steps_are_chained_to_reach_further_back():
    module = network(flow_source="batch", window_k=3)
    # frame j is reached from frame j+1 by (j+1, 0) / 8 cells, constant over the map
    speeds = np.arange(5) / 8
    steps = np.zeros((1, 5, 4, 4, 2), np.float32)
    steps[0, :, :, :, 0] = speeds[:, None, None]
    got = np.asarray(module.raw_flow(None, jnp.asarray(steps), (64, 64)))
    assert got.shape == (1, 2, 3, 4, 4, 2)
    for t in range(2):
        here = 3 + t
        total = np.cumsum([speeds[here - n] for n in range(3)])
        np.testing.assert_allclose(got[0, t, :, 0, 0, 0], total, atol=1e-6)
        np.testing.assert_array_equal(got[..., 1], 0)


def test_predecessors_of_every_frame():
    assert former_indices(3, 2).tolist() == [[1, 0], [2, 1], [3, 2]]


def test_whole_flow_moves_features_by_whole_cells(rng):
    """Mean of equal maps shifted by an integer flow: an exact shift, zeros from outside."""
    module = network(temporal="mean", refine_flow=False, encoder_features=64)
    C, (h, w) = 24, module.grid((64, 64))
    stored = rng.standard_normal((1, 3, h, w, C)).astype(np.float32)
    flow = np.zeros((1, 1, 2, h, w, 2), np.float32)
    flow[:, :, 0, ..., 0] = 1.0  # one cell to the right, to the nearest predecessor
    flow[:, :, 1, ..., 1] = -2.0  # two up, to the one before
    maps = {"c5": jnp.asarray(stored[:, 2])}
    got = module.apply({}, maps, {"c5": jnp.asarray(stored)}, jnp.asarray(flow), method="encoded")
    nearest, farthest = np.zeros((2, h, w, C))
    nearest[:, :-1] = stored[0, 1, :, 1:]
    farthest[2:] = stored[0, 0, :-2]
    want = (stored[0, 2] + nearest + farthest) / 3
    np.testing.assert_allclose(got["c5"][0], want, atol=1e-5)


# ----- names ----------------------------------------------------------------------------------


def part_shapes(part):
    from uvos_jax.convert.fgrne import PARTS

    system = uvos.build("fgrne:full")
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    return PARTS[part](system.config).official_shapes(targets)


def test_dss_has_the_layers_of_its_prototxt():
    shapes = part_shapes("dss")
    layers = {name.rpartition(":")[0] for name in shapes}
    vgg = {f"conv{b}_{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)}
    sides = {f"conv{i}-dsn{s}" for i in (1, 2, 3) for s in range(1, 7)}
    assert layers == vgg | sides | {f"conv4-dsn{s}" for s in (1, 2, 3, 4)} | {"new-score-weighting"}
    assert shapes["conv1-dsn6:0"] == (512, 512, 7, 7)
    assert shapes["conv1-dsn4:0"] == (256, 512, 5, 5)
    assert shapes["conv4-dsn2:0"] == (1, 5, 1, 1)
    assert shapes["conv4-dsn3:0"] == (1, 3, 1, 1)
    assert shapes["new-score-weighting:0"] == (1, 6, 1, 1)


def test_flow_part_has_the_names_of_flownet2s():
    shapes = part_shapes("flow")
    assert shapes["conv1.0.weight"] == (64, 6, 7, 7)
    assert shapes["predict_flow2.weight"] == (2, 194, 3, 3)
    assert len(shapes) == 20 + 8 + 10 + 4


def test_parts_convert_and_the_whole_is_refused():
    from uvos_jax.convert.fgrne import PARTS

    config = uvos.load_config("fgrne:tiny")
    config.model.sides = (1, 2, 3, 4, 5, 6)
    system = uvos.build(config)
    targets = dict(flatten(jax.eval_shape(system.init, jax.random.key(0))))
    shapes = PARTS["dss"](system.config).official_shapes(targets)
    rng = np.random.default_rng(0)
    arrays = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    arrays["upsample2:0"] = np.ones((1, 1, 4, 4), np.float32)
    params = convert("fgrne", arrays, config, part="dss")["params"]
    assert set(params) == {"vgg", "regression"}
    np.testing.assert_array_equal(
        params["vgg"]["conv1_1"]["kernel"], arrays["conv1_1:0"].transpose(2, 3, 1, 0)
    )
    with pytest.raises(UnsupportedError, match=r"no official weights.*--part dss"):
        convert("fgrne", arrays, config)
    with pytest.raises(UnsupportedError, match="fgrne:full"):
        convert("fgrne", arrays, "fgrne:tiny", part="dss")
    with pytest.raises(UnsupportedError, match="fgrne:full"):
        convert("fgrne", arrays, "fgrne:tiny", part="flow")
