"""Boundaries, hard negatives and Sobel edges against slow NumPy loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.errors import ConfigError
from uvos_jax.losses import boundaries


def slow_boundary(mask, radius):
    H, W = mask.shape
    out = np.zeros((H, W), np.float32)
    for y in range(H):
        for x in range(W):
            for v in range(H):
                for u in range(W):
                    near = (y - v) ** 2 + (x - u) ** 2 <= radius**2
                    known = mask[y, x] != 255 and mask[v, u] != 255
                    if near and known and mask[y, x] != mask[v, u]:
                        out[y, x] = 1
    return out


def slow_dilate(x, size):
    H, W = x.shape
    r = size // 2
    return np.stack(
        [
            [
                x[max(0, i - r) : i + r + 1, max(0, j - r) : j + r + 1].max()
                for j in range(W)
            ]
            for i in range(H)
        ]
    )  # fmt: skip


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_boundaries_are_pixels_with_another_label_within_the_radius(rng, radius):
    mask = np.zeros((2, 12, 15), np.uint8)
    mask[0, 3:8, 4:10] = 1
    mask[0, 5:11, 8:13] = 2  # touches instance 1
    mask[1] = rng.choice([0, 1, 7, 255], (12, 15), p=[0.7, 0.1, 0.1, 0.1])
    got = np.asarray(boundaries.boundary_target(jnp.asarray(mask), radius))
    for b in range(2):
        np.testing.assert_array_equal(got[b], slow_boundary(mask[b], radius))
    assert 0 < got.mean() < 1


def test_an_image_of_one_label_has_no_boundary():
    for label in (0, 3, 255):
        mask = np.full((1, 2, 9, 9), label, np.uint8)
        assert not np.any(boundaries.boundary_target(jnp.asarray(mask)))


def test_hard_negatives_are_edges_away_from_objects(rng):
    edges = rng.random((1, 20, 24)).astype(np.float32)
    mask = np.zeros((1, 20, 24), np.float32)
    mask[0, 4:9, 5:11] = 1
    got = np.asarray(
        boundaries.hard_negatives(
            jnp.asarray(edges), jnp.asarray(mask), margin=5, spread=3, stretch=False
        )
    )
    away = edges[0] * (1 - slow_dilate(mask[0], 5))
    np.testing.assert_allclose(got[0], slow_dilate(away, 3), atol=1e-7)
    assert not np.any(got[0, 4:9, 5:11])


def test_stretched_hard_negatives_reach_from_0_to_1_and_empty_ones_stay_empty(rng):
    edges = np.stack([0.2 + 0.1 * rng.random((20, 20)), np.zeros((20, 20))]).astype(np.float32)
    mask = np.zeros((2, 20, 20), np.float32)
    mask[:, 6:14, 6:14] = 1
    got = np.asarray(
        boundaries.hard_negatives(jnp.asarray(edges), jnp.asarray(mask), margin=5, spread=3)
    )
    assert got[0].min() == 0.0
    assert got[0].max() == 1.0
    assert not np.any(got[1])


def test_sobel_of_a_step_lies_on_the_step_and_of_a_constant_is_zero():
    frame = np.zeros((1, 8, 10, 3), np.float32)
    frame[:, :, 5:] = 200.0
    got = np.asarray(boundaries.sobel_edges(jnp.asarray(frame)))
    expected = np.zeros((8, 10))
    expected[:, 4:6] = 1.0
    np.testing.assert_allclose(got[0], expected, atol=1e-6)
    assert not np.any(boundaries.sobel_edges(jnp.full((1, 5, 5, 3), 9.0)))


def test_impossible_sizes_are_named():
    with pytest.raises(ConfigError, match="at least 1 pixel, got 0"):
        boundaries.boundary_target(jnp.zeros((3, 3), jnp.uint8), 0)
    with pytest.raises(ConfigError, match="must be odd, got 4"):
        boundaries.dilate(jnp.zeros((1, 3, 3)), 4)
