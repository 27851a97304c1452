"""Evidence of motion, on scenes where the truth is known and against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.ops.blur import gaussian_mean
from uvos_jax.ops.color import rgb_to_lab
from uvos_jax.ops.evidence import NOISE, WINDOW, motion_evidence

H, W = 48, 80
SQUARE = (slice(16, 32), slice(30, 50))


def scene(flat: bool):
    """Frame, the one before, and a flow that spills from a moving square into all columns right of
    it; `flat` ground shows nothing there."""
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 256, (H, W, 3))
    if flat:
        ground[:, 30:] = 120
    square = rng.integers(0, 256, (16, 20, 3))
    now, before = ground.copy(), ground.copy()
    now[SQUARE] = square
    before[SQUARE[0], 27:47] = square
    flow = np.zeros((H, W, 2), np.float32)
    flow[SQUARE[0], 30:, 0] = -3.0
    return jnp.asarray(now, jnp.uint8), jnp.asarray(before, jnp.uint8), jnp.asarray(flow)


@pytest.mark.parametrize("flat", [True, False])
def test_what_moves_has_evidence_and_flow_that_spilled_into_the_flat_has_none(flat):
    now, before, flow = scene(flat)
    evidence, share = np.moveaxis(np.asarray(jax.jit(motion_evidence)(now, before, flow)), -1, 0)
    assert evidence[20:28, 34:46].min() > 0.9
    np.testing.assert_allclose(share[:, 8:72], 1.0, atol=1e-6)
    spilled = evidence[20:28, 54:70]
    if flat:
        assert np.abs(spilled).max() < 0.05
    else:  # there the pictures say that the flow is wrong
        assert spilled.max() < -0.9
    assert np.abs(evidence[36:44, 8:24]).max() < 0.05


def test_a_pixel_equals_the_formula_written_out():
    rng = np.random.default_rng(1)
    now, before = jnp.asarray(rng.integers(0, 256, (2, H, W, 3)), jnp.uint8)
    flow = np.zeros((H, W, 2), np.float32)
    flow[20:24, 36:44] = (2.0, -1.0)  # the rest stands still, and so does the camera
    got = np.asarray(motion_evidence(now, before, jnp.asarray(flow)))[22, 40]
    lab = [np.asarray(rgb_to_lab(jnp.asarray(x, jnp.float32) / 255)) for x in (now, before)]
    sums = np.zeros(3)
    for y in range(H):
        for x in range(W):
            weight = np.exp(-0.5 * ((y - 22) ** 2 + (x - 40) ** 2) / (WINDOW * W) ** 2)
            v, u = int(flow[y, x, 1]), int(flow[y, x, 0])
            errors = [
                np.linalg.norm(lab[0][y, x] - lab[1][y + dy, x + dx]) for dy, dx in ((0, 0), (v, u))
            ]
            sums += weight * np.asarray([1.0, *errors])
    camera, own = sums[1:] / sums[0]
    np.testing.assert_allclose(got, [(camera - own) / (camera + own + NOISE), 1.0], atol=2e-3)


def test_positions_outside_the_other_frame_do_not_count():
    frames = np.random.default_rng(2).integers(0, 256, (2, 3, H, W, 3))
    frames = jnp.asarray(frames, jnp.uint8)
    flow = jnp.broadcast_to(jnp.float32([W / 2, 0]), (2, 3, H, W, 2))
    out = np.asarray(motion_evidence(frames, frames[::-1], flow))
    assert out.shape == (2, 3, H, W, 2)
    np.testing.assert_allclose(out[:, :, :, W // 2 + 5 :], 0.0, atol=1e-6)
    assert out[:, :, :, : W // 2 - 4, 1].min() > 0.99


def test_a_mean_in_a_window_keeps_constants_and_ends_at_the_border():
    x = np.random.default_rng(3).random((9, 7, 2)).astype(np.float32)
    np.testing.assert_allclose(gaussian_mean(jnp.full((2, 9, 7, 1), 3.0), 1.5), 3.0, rtol=1e-6)
    weights = np.exp(-0.5 * (np.mgrid[:9, :7] ** 2).sum(0) / 1.5**2)
    expected = (x * weights[..., None]).sum((0, 1)) / weights.sum()
    np.testing.assert_allclose(gaussian_mean(jnp.asarray(x), 1.5)[0, 0], expected, rtol=1e-5)
