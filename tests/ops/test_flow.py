"""Encodings of flow against slow versions of their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.errors import ConfigError
from uvos_jax.ops import flow as ops


@pytest.fixture
def field(rng):
    return rng.normal(0, 4, (2, 3, 9, 11, 2)).astype(np.float32)


def middlebury(flow, largest):
    """Colours of `[H,W,2]`, written pixel by pixel after Baker et al.'s colorcode."""
    wheel = []
    for n, full, moving, rises in (
        (15, 0, 1, 1), (6, 1, 0, 0), (4, 1, 2, 1), (11, 2, 1, 0), (13, 2, 0, 1), (6, 0, 2, 0),
    ):  # fmt: skip
        for i in range(n):
            color = [0, 0, 0]
            color[full] = 255
            color[moving] = 255 * i // n if rises else 255 - 255 * i // n
            wheel.append(color)
    out = np.zeros((*flow.shape[:2], 3))
    for y, x in np.ndindex(*flow.shape[:2]):
        u, v = flow[y, x].astype(np.float64) / (largest + 1e-5)
        radius = np.hypot(u, v)
        position = (np.arctan2(-v, -u) / np.pi + 1) / 2 * 54
        k = int(position)
        for c in range(3):
            a, b = wheel[k][c] / 255, wheel[(k + 1) % 55][c] / 255
            color = a + (position - k) * (b - a)
            color = 1 - radius * (1 - color) if radius <= 1 else color * 0.75
            out[y, x, c] = np.floor(255 * color)
    return out


def test_colors_equal_the_middlebury_code_to_one_level(field):
    speed = np.linalg.norm(field, axis=-1)
    ours = np.asarray(ops.flow_to_color(jnp.asarray(field)))
    oracle = middlebury(field[1, 2], speed[1, 2].max())
    assert np.abs(ours[1, 2] - oracle).max() <= 1
    assert (ours[1, 2] != oracle).mean() < 0.02
    clip = np.asarray(ops.flow_to_color(jnp.asarray(field), "clip"))
    assert np.abs(clip[1, 2] - middlebury(field[1, 2], speed[1].max())).max() <= 1
    fixed = np.asarray(ops.flow_to_color(jnp.asarray(field), 2.0))
    assert np.abs(fixed[0, 0] - middlebury(field[0, 0], 2.0)).max() <= 1


def test_rest_is_white_and_unknown_flow_black():
    flow = jnp.zeros((4, 5, 2)).at[1, 2, 0].set(1e10).at[2, 2].set(jnp.nan)
    image = np.asarray(ops.flow_to_color(flow))
    assert (image[1, 2] == 0).all()
    assert (image[2, 2] == 0).all()
    assert (image[0] == 255).all()


def test_angle_and_magnitude_of_known_vectors():
    flow = jnp.asarray([[[3.0, 4.0], [-3.0, -4.0]], [[0.0, 0.0], [0.5, 0.0]]])
    got = np.asarray(ops.flow_to_angle_magnitude(flow, diagonal=60.0))
    np.testing.assert_allclose(got[..., 1], [[0.5, 0.5], [0.0, 0.05]], atol=1e-6)
    up_or_down = np.arccos(0.6)
    np.testing.assert_allclose(got[0, :, 0], [up_or_down, np.pi - up_or_down], atol=1e-6)
    assert got[1, 0, 0] == 0
    slow = ops.flow_to_angle_magnitude(-flow, diagonal=60.0, zero_below=1.0)
    assert slow[1, 1, 0] == 0
    signed = ops.flow_to_angle_magnitude(flow, mode="atan2")
    np.testing.assert_allclose(signed[0, :, 0], [np.arctan2(4, 3), np.arctan2(-4, -3)], atol=1e-6)
    both = ops.flow_to_angle_magnitude(flow, mode="sincos")
    np.testing.assert_allclose(both[0, 0], [0.6, 0.8, 30 / np.hypot(2, 2)], rtol=1e-6)
    with pytest.raises(ConfigError, match="angle mode 'arccos' is unknown: use one of acos"):
        ops.flow_to_angle_magnitude(flow, mode="arccos")


def test_three_channels_are_grey_at_rest_and_cut_off_at_their_ends():
    flow = jnp.asarray([[[0.0, 0.0], [2.0, -1.0], [30.0, -30.0]]])
    got = np.asarray(ops.flow_to_components(flow))[0]
    np.testing.assert_array_equal(got[0], 128)
    np.testing.assert_array_equal(got[1], [160, 112, np.round(128 + 16 * np.sqrt(5))])
    np.testing.assert_array_equal(got[2], [255, 0, 255])


def test_eight_bits_keep_256_levels_between_the_extremes(field):
    got = np.asarray(ops.through_8_bits(jnp.asarray(field)))
    span = np.ptp(field, axis=(2, 3), keepdims=True)
    assert (np.abs(got - field) <= span / 255 / 2 + 1e-4).all()
    for reduce in (np.min, np.max):
        np.testing.assert_allclose(reduce(got, (2, 3)), reduce(field, (2, 3)), atol=1e-4)
    np.testing.assert_array_equal(ops.through_8_bits(jnp.ones((3, 4, 1))), 1.0)


def _planar(H, W, a):
    y, x = np.meshgrid(np.linspace(-1, 1, H), np.linspace(-1, 1, W), indexing="ij")
    u = a[0] + a[1] * x + a[2] * y + a[6] * x * x + a[7] * x * y
    v = a[3] + a[4] * x + a[5] * y + a[6] * x * y + a[7] * y * y
    return np.stack([u, v], axis=-1).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_the_motion_of_a_plane_is_found_behind_an_object(seed):
    rng = np.random.default_rng(seed)
    plane = _planar(64, 96, 4 * rng.standard_normal(8))
    flow = plane + 0.02 * rng.standard_normal(plane.shape).astype(np.float32)
    flow[20:50, 30:70] = [9, -7]  # a fifth of the field
    found = ops.planar_motion(jnp.asarray(flow))
    np.testing.assert_allclose(found, plane, atol=0.1)


def test_every_field_of_a_batch_is_fitted_alone():
    rng = np.random.default_rng(0)
    fields = np.stack([_planar(32, 48, 4 * rng.standard_normal(8)) for _ in range(6)])
    together = ops.planar_motion(jnp.asarray(fields.reshape(2, 3, 32, 48, 2)))
    for i in range(6):
        alone = ops.planar_motion(jnp.asarray(fields[i]))
        np.testing.assert_allclose(together[i // 3, i % 3], alone, atol=1e-4)


def _scene(rng, H=64, W=96):
    """Flow of a camera that moves and turns before blocks at random depths (Longuet-Higgins and
    Prazdny 1980, focal length half a width)."""
    y, x = np.meshgrid(np.arange(H) - (H - 1) / 2, np.arange(W) - (W - 1) / 2, indexing="ij")
    x, y = x / (W / 2), y / (W / 2)
    near = 1 / rng.uniform(1, 6, (H // 8, W // 8)).repeat(8, 0).repeat(8, 1)
    t, r = 0.08 * rng.standard_normal(3), 0.03 * rng.standard_normal(3)
    u = near * (t[2] * x - t[0]) + r[0] * x * y - r[1] * (1 + x * x) + r[2] * y
    v = near * (t[2] * y - t[1]) + r[0] * (1 + y * y) - r[1] * x * y - r[2] * x
    return (np.stack([u, v], axis=-1) * (W / 2)).astype(np.float32), t, r, (x, y)


@pytest.mark.parametrize("seed", range(4))
def test_a_scene_at_rest_leaves_nothing_whatever_its_depth(seed):
    rng = np.random.default_rng(seed)
    scene, t, r, (x, y) = _scene(rng)
    flow = scene + 0.02 * rng.standard_normal(scene.shape).astype(np.float32)
    flow[20:44, 30:60] += [3, -2]
    found = np.asarray(jax.jit(ops.rigid_residual)(jnp.asarray(flow)))
    # the true line at each pixel: the motion of what is infinitely far, and on along the parallax
    turn = np.stack([r[0] * x * y - r[1] * (1 + x * x) + r[2] * y,
                     r[0] * (1 + y * y) - r[1] * x * y - r[2] * x], axis=-1) * 48  # fmt: skip
    along = np.stack([t[2] * x - t[0], t[2] * y - t[1]], axis=-1)
    along /= np.linalg.norm(along, axis=-1, keepdims=True)
    off = flow - turn
    expected = off - np.sum(off * along, axis=-1, keepdims=True) * along
    far = np.hypot(*np.moveaxis(found - expected, -1, 0))
    assert np.median(far) < 0.02
    assert np.quantile(far, 0.95) < 0.1
    inside = np.zeros(far.shape, bool)
    inside[20:44, 30:60] = True
    length = np.hypot(*np.moveaxis(found, -1, 0))
    assert length[~inside].max() < 0.25
    plane = np.hypot(*np.moveaxis(flow - np.asarray(ops.planar_motion(jnp.asarray(flow))), -1, 0))
    assert np.median(plane[~inside]) > 5 * np.median(length[~inside])


def test_what_is_not_rigid_is_measured_in_pixels_and_alone_in_its_batch():
    rng = np.random.default_rng(5)
    fields = np.stack([_scene(rng)[0] for _ in range(4)])
    fields[:, 20:44, 30:60] += [4, 3]
    fields += 0.05 * rng.standard_normal(fields.shape).astype(np.float32)
    together = np.asarray(ops.rigid_residual(jnp.asarray(fields.reshape(2, 2, 64, 96, 2))))
    for i in range(4):
        alone = ops.rigid_residual(jnp.asarray(fields[i]))
        np.testing.assert_allclose(together[i // 2, i % 2], alone, atol=2e-3)
    twice = np.asarray(ops.rigid_residual(jnp.asarray(2 * fields)))
    np.testing.assert_allclose(twice, 2 * together.reshape(fields.shape), atol=0.02)
    nothing = np.asarray(ops.rigid_residual(jnp.zeros((1, 32, 48, 2))))
    np.testing.assert_array_equal(nothing, 0)


def test_residuals_do_not_depend_on_the_speed_of_a_video():
    rng = np.random.default_rng(1)
    flow = _planar(64, 96, 40 * rng.standard_normal(8))
    flow[20:40, 30:60] += [60, 20]
    slow, fast = (
        ops.flow_to_residual(jnp.asarray(flow)),
        ops.flow_to_residual(jnp.asarray(3 * flow)),
    )
    np.testing.assert_allclose(slow[..., :4], fast[..., :4], atol=0.02)
    level = np.asarray(fast - slow)[..., 4]
    np.testing.assert_allclose(level, np.log(3), atol=0.02)


def test_rigid_residuals_stand_behind_those_of_the_plane():
    flow = jnp.asarray(_scene(np.random.default_rng(6))[0])
    plain = ops.flow_to_residual(flow)
    both = ops.flow_to_residual(flow, rigid=True)
    np.testing.assert_array_equal(both[..., :5], plain)
    left = ops.rigid_residual(flow)
    scale = 5e-4 * np.hypot(64, 96) + np.sqrt(np.mean(np.sum(np.square(left), axis=-1)))
    np.testing.assert_allclose(both[..., 5:7], left / scale, atol=1e-5)
    np.testing.assert_allclose(both[..., 7], np.log(scale / (5e-4 * np.hypot(64, 96))), atol=1e-5)


def test_no_motion_has_no_residual():
    encoded = ops.flow_to_residual(jnp.zeros((1, 32, 48, 2)))
    assert encoded.shape == (1, 32, 48, 5)
    np.testing.assert_allclose(encoded, 0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 100, 101])
def test_median_by_bisection(count, rng):
    for values in (rng.exponential(size=count) ** 4, rng.integers(0, 4, count), np.zeros(count)):
        values = values.astype(np.float32)
        np.testing.assert_allclose(ops._median(jnp.asarray(values)), np.median(values), rtol=1e-6)


def test_resizing_scales_every_field_of_four_channels():
    field = jnp.broadcast_to(jnp.asarray([2.0, -4.0, 6.0, 8.0]), (10, 20, 4))
    expected = np.broadcast_to([3.0, -2.0, 9.0, 4.0], (5, 30, 4))
    np.testing.assert_allclose(ops.resize_flow(field, (5, 30)), expected, rtol=1e-6)
