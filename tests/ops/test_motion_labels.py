"""Labels of independent motion from depth, camera and true flow."""

import jax.numpy as jnp
import numpy as np

from uvos_jax.ops.geometry import axis_angle_rotation
from uvos_jax.ops.motion_labels import camera_flow, depth_of_disparity, motion_labels

H, W = 12, 16
INTRINSICS = (0.5, 0.5, 1.1, 1.1 * W / H)  # square pixels
ROTATION = np.array([0.01, -0.02, 0.03])
TRANSLATION = np.array([0.1, -0.05, 0.2])


def scene(seed=0):
    rng = np.random.default_rng(seed)
    depth = 4 + rng.random((1, H, W))
    R = np.asarray(axis_angle_rotation(jnp.asarray(ROTATION, jnp.float32)))
    rigid = camera_flow(
        jnp.asarray(depth, jnp.float32),
        jnp.asarray(R)[None],
        jnp.asarray(TRANSLATION, jnp.float32)[None],
        jnp.asarray(INTRINSICS, jnp.float32)[None],
    )
    return depth, R, rigid


def test_camera_flow_equals_projection_pixel_by_pixel():
    depth, R, rigid = scene()
    cx, cy, fx, fy = np.array(INTRINSICS) * (W, H, W, H)
    for y, x in np.ndindex(H, W):
        z = depth[0, y, x]
        point = np.array([(x + 0.5 - cx) / fx * z, (y + 0.5 - cy) / fy * z, z])
        moved = R @ point + TRANSLATION
        expected = (
            fx * moved[0] / moved[2] + cx - 0.5 - x,
            fy * moved[1] / moved[2] + cy - 0.5 - y,
        )
        np.testing.assert_allclose(rigid[0, y, x], expected, atol=1e-4)


def test_objects_move_if_most_of_their_pixels_disagree_with_the_camera():
    *_, rigid = scene()
    ids = np.zeros((1, H, W), np.int32)
    ids[0, 2:6, 2:8], ids[0, 7:11, 3:9], ids[0, 2:6, 10:14] = 1, 2, 3
    flow = np.array(rigid)
    flow[ids == 1] += (2.0, 0.0)  # moves
    flow[ids == 3] += (0.5, 0.5)  # within the tolerance
    partly = np.argwhere(ids[0] == 2)[:9]  # 9 of 24 pixels: noise
    flow[0, partly[:, 0], partly[:, 1]] += (0.0, 5.0)
    labels = motion_labels(jnp.asarray(flow), rigid, jnp.asarray(ids), count=4)
    np.testing.assert_array_equal(labels, ids == 1)
    strict = motion_labels(
        jnp.asarray(flow), rigid, jnp.asarray(ids), count=4, tolerance_px=0.1, share=0.3
    )
    np.testing.assert_array_equal(strict, ids > 0)


def test_a_scene_that_follows_the_camera_has_no_label():
    *_, rigid = scene()
    ids = jnp.asarray(np.random.default_rng(1).integers(0, 5, (1, H, W)))
    assert not np.any(motion_labels(rigid, rigid, ids, count=5))


def test_depth_is_focal_length_times_baseline_over_disparity():
    np.testing.assert_allclose(depth_of_disparity(jnp.array([[[2.0]]]), 1050.0, 1.0), 525.0)
