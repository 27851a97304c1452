"""Errors of depth and of camera motion."""

import jax.numpy as jnp
import numpy as np

from uvos_jax.metrics.geometry import depth_errors, motion_errors
from uvos_jax.ops.geometry import axis_angle_rotation


def test_depth_errors_are_those_of_loops_over_known_pixels(rng):
    true = np.where(rng.random((2, 6, 7)) < 0.7, rng.uniform(2, 9, (2, 6, 7)), 0.0)
    pred = rng.uniform(1, 12, (2, 6, 7))
    found = depth_errors(jnp.asarray(pred, jnp.float32), jnp.asarray(true, jnp.float32))
    for b in range(2):
        p, t = pred[b][true[b] > 0], true[b][true[b] > 0]
        scaled = p * np.median(t) / np.median(p)
        logs = np.log(p) - np.log(t)
        np.testing.assert_allclose(found["abs_rel"][b], (abs(p - t) / t).mean(), rtol=1e-5)
        np.testing.assert_allclose(
            found["abs_rel_scaled"][b], (abs(scaled - t) / t).mean(), rtol=1e-5
        )
        np.testing.assert_allclose(found["scale_invariant"][b], logs.std(), rtol=1e-4)


def test_only_the_absolute_error_sees_a_wrong_scale(rng):
    true = jnp.asarray(rng.uniform(2, 9, (1, 6, 7)), jnp.float32)
    found = depth_errors(3 * true, true)
    np.testing.assert_allclose(found["abs_rel"], 2.0, rtol=1e-5)
    np.testing.assert_allclose(found["abs_rel_scaled"], 0.0, atol=1e-5)
    np.testing.assert_allclose(found["scale_invariant"], 0.0, atol=1e-3)


def motion(vector, shift):
    rotation = np.asarray(axis_angle_rotation(jnp.asarray(vector, jnp.float32)))
    return jnp.asarray(np.column_stack([rotation, shift]), jnp.float32)[None]


def test_motion_errors_of_known_motions():
    true = motion([0, 0, np.deg2rad(5.0)], [0.3, 0.0, 0.0])
    found = motion_errors(motion([0, 0, np.deg2rad(2.0)], [0.0, 0.4, 0.0]), true)
    np.testing.assert_allclose(found["translation"], 0.5, rtol=1e-5)
    np.testing.assert_allclose(found["direction"], 90.0, rtol=1e-4)
    np.testing.assert_allclose(found["rotation"], 3.0, rtol=1e-3)
    found = motion_errors(true, true)
    np.testing.assert_allclose([found["translation"][0], found["rotation"][0]], 0.0, atol=1e-2)
    np.testing.assert_allclose(found["direction"], 0.0, atol=0.1)


def test_a_camera_that_stands_still_has_no_direction():
    still, moving = motion([0, 0, 0], [0.0, 0, 0]), motion([0, 0, 0], [0.0, 0, 0.2])
    assert np.isnan(motion_errors(moving, still)["direction"])
    np.testing.assert_allclose(motion_errors(still, moving)["direction"], 90.0)
