"""FlowNetS against outputs of ClementPinard/FlowNetPytorch (commit d5f3292), names of five
releases, and properties of FlowNetC and PWC-Net."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.rule import official_arrays, relative_difference, shapes_of
from uvos_jax.convert import flownets as tables
from uvos_jax.convert.variables import flatten, unflatten
from uvos_jax.errors import ShapeError
from uvos_jax.modules.flownets import (
    FLOW_UNIT,
    PWC_FULL,
    FlowNetC,
    FlowNetS,
    PWCNet,
    _standardized,
    estimate_flow,
    full_flow,
    padded_size,
)

DATA = Path(__file__).resolve().parents[1] / "data"
NAMES = json.loads((DATA / "flownets_names.json").read_text())
PAIR = jnp.zeros((1, 64, 64, 6))
SMALL = {"widths": (4, 4, 8, 8), "decoder_widths": (8, 4)}


@pytest.mark.parametrize(
    "release,table,module",
    [
        ("flownets", tables.flownets(), FlowNetS()),
        ("flownetc", tables.flownetc(), FlowNetC()),
        ("flownet2s", tables.flownets(decoder_bias=True), FlowNetS(decoder_bias=True)),
        ("flownets_bn", tables.flownets(norm=True), FlowNetS(norm=True)),
        (
            "segflow",
            tables.flownets_caffe("conv1_flowS"),
            FlowNetS(decoder_bias=True, upsample_bias=True),
        ),
    ],
)
def test_tables_list_every_name_and_shape_of_the_release(release, table, module):
    shapes = shapes_of(table, module, PAIR)
    want = {k: tuple(v) for k, v in NAMES[release].items() if "num_batches" not in k}
    assert {k: tuple(v) for k, v in shapes.items()} == want


def converted(table, shapes):
    ours, report = table.to_ours(official_arrays(shapes))
    assert report.complete, report.problems()
    return unflatten(ours)


@pytest.fixture(scope="module")
def flownets_outputs():
    variables = converted(tables.flownets(), NAMES["flownets"])
    x = np.random.default_rng(7).standard_normal((2, 6, 70, 100)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        return jax.jit(FlowNetS().apply)(variables, jnp.asarray(x.transpose(0, 2, 3, 1)))


@pytest.mark.slow
def test_flownets_equals_the_release(flownets_outputs):
    reference = dict(np.load(DATA / "flownets_parity.npz"))
    parts = {
        "output": ("flow2", np.s_[:]),
        "predict_flow2": ("flow2", np.s_[:]),
        "predict_flow4": ("flow4", np.s_[:]),
        "predict_flow6": ("flow6", np.s_[:]),
        "conv1": ("conv1", np.s_[:, ::8, ::3, ::3]),
        "conv3_1": ("conv3", np.s_[:, ::16]),
        "conv6_1": ("conv6", np.s_[:, ::16]),
        # parts of the joined maps, which are cut to the encoder's size
        "deconv5": ("concat5", np.s_[:, 512:1024:16]),
        "deconv2": ("concat2", np.s_[:, 128:192:16, ::2, ::2]),
        "upsampled_flow6_to_5": ("concat5", np.s_[:, 1024:]),
    }
    for name, (ours, part) in parts.items():
        got = np.asarray(flownets_outputs[ours]).transpose(0, 3, 1, 2)[part]
        want = reference[name][:, :, : got.shape[2], : got.shape[3]]
        assert relative_difference(got, want) < 1e-4, name


def test_flownetc_sees_the_second_image_through_the_cost_volume_only():
    module = FlowNetC((4, 4, 4, 4), (4, 4), redirect_width=2, radius=2, step=1)
    pair = jax.random.normal(jax.random.key(0), (1, 32, 32, 6))
    variables = jax.jit(module.init)(jax.random.key(1), pair)
    params = variables["params"]
    assert params["conv3_1"]["conv"]["kernel"].shape == (3, 3, 2 + 25, 4)
    run = jax.jit(module.apply)

    def apply(first, second):
        return run(variables, jnp.concatenate([first, second], -1))

    a, b = pair[..., :3], pair[..., 3:]
    assert apply(a, b)["flow2"].shape == (1, 8, 8, 2)
    # the second image reaches the flow by the cost volume alone
    np.testing.assert_array_equal(apply(a, b)["conv2"], apply(a, a)["conv2"])
    assert np.abs(apply(a, b)["conv3"] - apply(a, a)["conv3"]).max() > 1e-3


def test_three_levels_make_a_small_flownet_of_any_size():
    module = FlowNetS(widths=(4, 4, 8), decoder_widths=(4,))
    outputs = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((2, 37, 51, 6)))
    assert outputs[0]["flow3"].shape == (2, 5, 7, 2)
    assert outputs[0]["flow2"].shape == (2, 10, 13, 2)
    with pytest.raises(ShapeError, match="3 levels need 1 deconvolution widths, got"):
        FlowNetS(widths=(4, 4, 8)).init(jax.random.key(0), jnp.zeros((1, 32, 32, 6)))


def test_the_published_pwc_net_has_its_size():
    """9,374,274 parameters, as the public PyTorch ports count."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(PWCNet(**PWC_FULL).init, jax.random.key(0), image, image)
    count = sum(np.prod(x.shape) for x in jax.tree.leaves(shapes))
    assert count == 9_374_274
    lite = jax.eval_shape(PWCNet().init, jax.random.key(0), image, image)
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(lite)) == 621_340


@pytest.fixture(scope="module")
def small_pwc():
    module = PWCNet(widths=(4, 6, 8), radius=1, dense_widths=(6, 4))
    image = jnp.zeros((1, 32, 32, 3))
    return module, jax.jit(module.init)(jax.random.key(0), image, image)


def test_pwc_starts_from_hardly_any_motion_and_sees_no_contrast():
    rng = np.random.default_rng(3)
    pair = [jnp.asarray(rng.standard_normal((1, 32, 64, 3)), jnp.float32) for _ in range(2)]
    module = PWCNet(widths=(4, 6, 8), radius=1, dense_widths=(6, 4))
    variables = jax.jit(module.init)(jax.random.key(0), *pair)
    flow = jax.jit(module.apply)(variables, *pair)["flow2"]
    assert float(jnp.abs(flow).max()) * FLOW_UNIT < 1.0  # pixels
    left, right = _standardized(*pair)
    scaled = _standardized(*(3.0 * x + 1.0 for x in pair))
    np.testing.assert_allclose(left, scaled[0], atol=1e-4)
    both = np.stack([left, right])
    assert abs(both.mean()) < 1e-5
    assert abs(both.std() - 1) < 1e-4


def test_pwc_net_moves_the_second_image_by_the_coarser_flow(small_pwc):
    """With only biases of the flow predictions left, flow 2 is that bias and nothing is undone."""
    module, variables = small_pwc
    flat = {k: jnp.zeros_like(v) for k, v in flatten(variables)}
    flat["params/predict_flow3/bias"] = jnp.asarray([1.0, -2.0])
    flat["params/predict_flow2/bias"] = jnp.asarray([0.5, 0.25])
    images = jax.random.uniform(jax.random.key(2), (2, 1, 32, 32, 3))
    outputs = module.apply(unflatten(flat), *images)
    np.testing.assert_allclose(outputs["flow3"][0, 0, 0], [1.0, -2.0])
    np.testing.assert_allclose(outputs["flow2"][0, 0, 0], [0.5, 0.25])


def test_pwc_net_refuses_sizes_its_pyramid_does_not_divide(small_pwc):
    module, variables = small_pwc
    image = jnp.zeros((1, 36, 32, 3))
    with pytest.raises(ShapeError, match=r"sides 8 divides, got \(1, 36, 32, 3\).*padded_size"):
        module.apply(variables, image, image)


def test_full_flow_is_in_pixels_of_the_frame():
    flow = jnp.ones((1, 16, 32, 2))
    full = full_flow(flow, (64, 128), (48, 96))
    np.testing.assert_allclose(full, jnp.broadcast_to(jnp.asarray([15.0, 15.0]), (1, 48, 96, 2)))
    assert padded_size((480, 854)) == (512, 896)


def test_any_frame_size_gets_flow_of_that_size(small_pwc):
    module, variables = small_pwc
    frames = np.random.default_rng(0).integers(0, 256, (2, 2, 21, 30, 3), dtype=np.uint8)
    estimate = jax.jit(lambda *images: estimate_flow(module, variables, *images))
    flow = estimate(*map(jnp.asarray, frames))
    assert flow.shape == (2, 21, 30, 2)
    assert np.isfinite(flow).all()


@pytest.mark.parametrize("module", [FlowNetS(**SMALL), FlowNetC(**SMALL, radius=1)])
def test_bfloat16_keeps_parameters_and_flow_in_float32(module):
    module = module.clone(dtype=jnp.bfloat16)
    outputs, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), PAIR)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))
    assert outputs["flow2"].dtype == jnp.float32
    assert outputs["concat2"].dtype == jnp.bfloat16
