"""Cameras and rigid motion: identities, closed forms, finite gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.ops import geometry as g

H, W = 24, 40
CAMERA = jnp.asarray([[0.45, 0.55, 1.1, 1.7]])


def random_rotation(rng, *shape):
    return g.axis_angle_rotation(jnp.asarray(rng.standard_normal((*shape, 3)), jnp.float32))


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_points_project_back_onto_their_pixels(rng, offset):
    depth = jnp.asarray(rng.uniform(1, 50, (1, H, W)), jnp.float32)
    points = g.back_project(depth, CAMERA, offset)
    np.testing.assert_array_equal(points[..., 2], depth)
    flow = g.flow_of_points(points, CAMERA, offset)
    np.testing.assert_allclose(flow, 0.0, atol=1e-4)


def test_back_projection_is_equation_one_of_the_paper():
    depth = jnp.full((1, H, W), 3.0)
    points = np.asarray(g.back_project(depth, jnp.asarray([[0.5, 0.5, 0.8, 0.8]]), offset=0.0))
    y, x = 7, 13
    expected = 3.0 / 0.8 * np.asarray([x / W - 0.5, y / H - 0.5, 0.8])
    np.testing.assert_allclose(points[0, y, x], expected, rtol=1e-6)


def test_intrinsics_survive_a_resize():
    """The same ray passes through the same place of an image of twice the size."""
    small, large = g.rays(CAMERA, H, W), g.rays(CAMERA, 2 * H, 2 * W)
    means = large.reshape(1, H, 2, W, 2, 3).mean((2, 4))
    np.testing.assert_allclose(small, means, atol=1e-6)


def test_a_sideways_move_shifts_by_focal_length_over_depth():
    depth, tx = 5.0, 0.3
    points = g.back_project(jnp.full((1, H, W), depth), CAMERA) + jnp.asarray([tx, 0.0, 0.0])
    flow = g.flow_of_points(points, CAMERA)
    np.testing.assert_allclose(flow[..., 0], W * 1.1 * tx / depth, rtol=1e-4)
    np.testing.assert_allclose(flow[..., 1], 0.0, atol=1e-4)


def test_a_forward_move_is_radial_from_the_principal_point():
    depth, tz = 5.0, 1.0
    points = g.back_project(jnp.full((1, H, W), depth), CAMERA) + jnp.asarray([0.0, 0.0, tz])
    flow = np.asarray(g.flow_of_points(points, CAMERA))[0]
    centre = np.asarray([0.45 * W, 0.55 * H]) - 0.5
    y, x = np.mgrid[:H, :W]
    radial = np.stack([x, y], axis=-1) - centre
    np.testing.assert_allclose(flow, radial * (depth / (depth + tz) - 1), atol=1e-4)


def test_euler_rotation_is_the_product_of_the_papers_matrices(rng):
    a, b, c = rng.uniform(-0.9, 0.9, 3)
    cos, sin = np.cos, np.sin
    X = np.asarray([[cos(a), -sin(a), 0], [sin(a), cos(a), 0], [0, 0, 1]])
    Y = np.asarray([[cos(b), 0, sin(b)], [0, 1, 0], [-sin(b), 0, cos(b)]])
    Z = np.asarray([[1, 0, 0], [0, cos(c), -sin(c)], [0, sin(c), cos(c)]])
    R = g.euler_rotation(jnp.sin(jnp.asarray([a, b, c], jnp.float32)))
    np.testing.assert_allclose(R, X @ Y @ Z, atol=1e-6)


def test_rotations_are_rotations(rng):
    for R in (random_rotation(rng, 5), g.euler_rotation(jnp.asarray(rng.uniform(-1, 1, (5, 3))))):
        product = np.einsum("nij,nkj->nik", R, R)
        np.testing.assert_allclose(product, np.broadcast_to(np.eye(3), product.shape), atol=1e-5)
        np.testing.assert_allclose(np.linalg.det(np.asarray(R)), 1.0, atol=1e-5)


def test_the_angle_of_a_rotation_is_the_length_of_its_vector():
    vectors = jnp.asarray([[0.3, 0.0, 0.0], [0.0, -2.0, 1.0], [0.0, 0.0, 0.0]])
    angles = g.rotation_angle(g.axis_angle_rotation(vectors))
    np.testing.assert_allclose(angles, [0.3, np.sqrt(5.0), 0.0], atol=1e-5)


def test_gradients_are_finite_at_the_identity():
    def angle(v):
        return g.rotation_angle(g.axis_angle_rotation(v)) + g.safe_norm(v)

    assert np.all(np.isfinite(jax.grad(angle)(jnp.zeros(3))))
    sines = jnp.asarray([1.0, 0.0, -1.0])
    assert np.all(np.isfinite(jax.jacobian(g.euler_rotation)(sines)))


def test_composing_with_the_inverse_is_the_identity(rng):
    motion = (random_rotation(rng, 4), jnp.asarray(rng.standard_normal((4, 3)), jnp.float32))
    R, t = g.compose(g.invert(motion), motion)
    np.testing.assert_allclose(R, np.broadcast_to(np.eye(3), (4, 3, 3)), atol=1e-5)
    np.testing.assert_allclose(t, 0.0, atol=1e-5)


@pytest.mark.parametrize("add_back", [True, False])
def test_a_folded_pivot_moves_points_as_the_formula_says(rng, add_back):
    R, x, t, p = random_rotation(rng), *(jnp.asarray(rng.standard_normal((3, 3)), jnp.float32))
    folded = g.fold_pivot(R, t, p, add_back=add_back)
    expected = R @ (x - p) + t + (p if add_back else 0)
    np.testing.assert_allclose(g.rotate(R, x) + folded, expected, atol=1e-5)


def test_object_displacements_equal_a_loop(rng):
    points = jnp.asarray(rng.standard_normal((2, 3, 4, 3)), jnp.float32)
    masks = jnp.asarray(rng.random((2, 3, 4, 2)), jnp.float32)
    R, t = random_rotation(rng, 2, 2), jnp.asarray(rng.standard_normal((2, 2, 3)), jnp.float32)
    got = g.object_displacements(points, masks, R, t)
    for b in range(2):
        for k in range(2):
            for y in range(3):
                for x in range(4):
                    point = np.asarray(points[b, y, x])
                    moved = np.asarray(R[b, k]) @ point + np.asarray(t[b, k]) - point
                    want = float(masks[b, y, x, k]) * moved
                    np.testing.assert_allclose(got[b, y, x, k], want, atol=1e-5)


def test_the_path_of_a_camera_that_walks_and_turns():
    """Two steps forward with a right turn between them: the world comes nearer by one each step."""
    half = jnp.pi / 2
    turn = g.axis_angle_rotation(jnp.asarray([0.0, -half, 0.0]))
    ahead = jnp.concatenate([jnp.eye(3), jnp.asarray([[0.0], [0.0], [-1.0]])], axis=1)
    turned = jnp.concatenate([turn, jnp.zeros((3, 1))], axis=1)
    path = g.camera_path(jnp.stack([ahead, turned, ahead, ahead]))
    expected = [[0, 0, 0], [0, 0, 1], [0, 0, 1], [1, 0, 1]]
    np.testing.assert_allclose(path, expected, atol=1e-6)
