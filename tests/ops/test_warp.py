"""Warping against PyTorch's grid_sample and FlowNet2's resampling, and properties."""

import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.errors import ConfigError, ShapeError
from uvos_jax.ops import warp

backward_warp = jax.jit(warp.backward_warp, static_argnames="padding")
forward_backward_occlusion = jax.jit(warp.forward_backward_occlusion)
grid_sample = jax.jit(warp.grid_sample, static_argnames=("padding", "align_corners"))
STORED = {
    name: jnp.asarray(array)
    for name, array in np.load(
        Path(__file__).resolve().parents[1] / "data" / "ops_warp.npz"
    ).items()
}


@pytest.mark.parametrize("padding", warp.PADDINGS)
@pytest.mark.parametrize("align_corners", [False, True])
def test_grid_sample_equals_pytorch(padding, align_corners):
    ours = grid_sample(STORED["x"], STORED["grid"], padding=padding, align_corners=align_corners)
    reference = STORED[f"grid_sample_{padding}_ac{int(align_corners)}"]
    np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=2e-6)


def test_gradients_of_image_and_positions_equal_pytorch():
    _, pull = jax.vjp(
        lambda x, grid: grid_sample(x, grid, padding="zeros", align_corners=True),
        STORED["x"],
        STORED["grid"],
    )
    image, grid = pull(STORED["cotangent_zeros_ac1"])
    np.testing.assert_allclose(image, STORED["grad_x_zeros_ac1"], rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(grid, STORED["grad_grid_zeros_ac1"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_flow_warp_equals_pytorch(padding):
    ours = backward_warp(STORED["x"], STORED["flow"], padding=padding)
    np.testing.assert_allclose(ours, STORED[f"flow_warp_{padding}"], rtol=1e-5, atol=4e-6)


def test_border_padding_equals_flownet2():
    ours = backward_warp(STORED["x"], STORED["flow"])
    np.testing.assert_allclose(ours, STORED["resample2d_flownet2"], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("padding", warp.PADDINGS)
def test_zero_flow_is_identity(padding):
    x = STORED["x"]
    y = backward_warp(x, jnp.zeros((*x.shape[:3], 2)), padding=padding)
    np.testing.assert_array_equal(y, x)


def test_whole_pixel_flow_shifts_the_image():
    x = jnp.arange(20.0).reshape(1, 4, 5, 1)
    flow = jnp.broadcast_to(jnp.asarray([2.0, -1.0]), (1, 4, 5, 2))
    zeros = backward_warp(x, flow, padding="zeros")
    np.testing.assert_array_equal(zeros[0, 1:, :3, 0], x[0, :3, 2:, 0])
    np.testing.assert_array_equal(zeros[0, 0], 0)
    np.testing.assert_array_equal(zeros[0, :, 3:], 0)
    border = backward_warp(x, flow)
    np.testing.assert_array_equal(border[0, 0, :3, 0], x[0, 0, 2:, 0])


def test_an_image_of_one_pixel_can_be_sampled_anywhere():
    x = jnp.full((1, 1, 1, 2), 7.0)
    grid = jnp.asarray([[[[-3.0, 0.2], [0.0, 5.0]]]])
    for align_corners in (False, True):
        y = grid_sample(x, grid, padding="reflection", align_corners=align_corners)
        np.testing.assert_array_equal(y, 7.0)


def test_wild_positions_give_finite_values_and_gradients():
    grid = jnp.asarray([[[[1e9, -1e9], [-1e30, 1e30]]]])
    for padding in warp.PADDINGS:
        value, gradient = jax.value_and_grad(
            lambda x, padding=padding: grid_sample(x, grid, padding=padding).sum()
        )(jnp.ones((1, 4, 5, 1)))
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_bfloat16_images_are_sampled_at_exact_positions():
    W = 700  # bfloat16 has no 513
    x = jnp.broadcast_to((jnp.arange(W) % 2)[None, None, :, None], (1, 2, W, 1)).astype(
        jnp.bfloat16
    )
    y = backward_warp(x, jnp.full((1, 2, W, 2), 2.0, jnp.bfloat16) * jnp.asarray([1, 0]))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y[0, 0, : W - 2, 0], x[0, 0, 2:, 0])


def test_consistent_flows_have_no_occlusion_inside():
    shift = jnp.broadcast_to(jnp.asarray([3.0, 0.0]), (1, 6, 20, 2))
    occluded = forward_backward_occlusion(shift, -shift)
    assert not occluded[0, :, :17].any()
    assert occluded[0, :, 17:].all()


def test_a_covered_background_is_occluded():
    # a square of columns 5..9 moves 4 to the right over a still background
    column = jnp.arange(24)
    forward = jnp.where((column >= 5) & (column < 10), 4.0, 0.0)
    backward = jnp.where((column >= 9) & (column < 14), -4.0, 0.0)

    def field(u):
        u = jnp.broadcast_to(u, (1, 8, 24))
        return jnp.stack([u, jnp.zeros_like(u)], axis=-1)

    occluded = np.asarray(forward_backward_occlusion(field(forward), field(backward)))
    np.testing.assert_array_equal(occluded[0, 3], (column >= 10) & (column < 14))


def test_wrong_arguments_are_explained():
    x = jnp.zeros((2, 4, 5, 1))
    with pytest.raises(ConfigError, match="padding 'wrap' is unknown"):
        warp._check(x, x, "wrap")
    with pytest.raises(ShapeError, match="same batch size"):
        warp._check(x, jnp.zeros((1, 4, 5, 2)), "zeros")
    with pytest.raises(ShapeError, match="resize the flow and scale its values"):
        inspect.unwrap(warp.backward_warp)(x, jnp.zeros((2, 2, 2, 2)))
