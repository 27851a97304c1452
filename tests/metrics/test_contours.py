"""Outlines of masks: nothing is lost in tracing, little in simplifying."""

import itertools

import numpy as np
import pytest

from tests.metrics.shapes import blobs, special
from uvos_jax.metrics import contours


def filled(loops, height, width):
    """The mask inside an odd number of loops: each vertical edge flips all pixels right of it."""
    flips = np.zeros((height, width + 1), int)
    for loop in loops:
        for (x, y), (x2, y2) in itertools.pairwise(loop):
            if x == x2:
                flips[min(y, y2), x] += 1
    return np.cumsum(flips, 1)[:, :width] % 2 == 1


@pytest.mark.parametrize("seed", range(6))
def test_traced_loops_enclose_exactly_the_mask(seed):
    rng = np.random.default_rng(seed)
    masks = [*blobs(rng, (2, 21, 26), 1.5), rng.random((21, 26)) < 0.5, rng.random((5, 4)) < 0.7]
    for mask in masks:
        loops = contours.trace(mask)
        np.testing.assert_array_equal(filled(loops, *mask.shape), mask)
        for loop in loops:
            steps = np.abs(np.diff(loop, axis=0)).sum(1)
            np.testing.assert_array_equal(steps, 1)  # pixel edge by pixel edge
            np.testing.assert_array_equal(loop[0], loop[-1])
        padded = np.pad(mask, 1).astype(int)
        edges = sum(np.abs(np.diff(padded, axis=a)).sum() for a in (0, 1))
        assert sum(len(loop) - 1 for loop in loops) == edges  # each edge once


@pytest.mark.parametrize("name", special(6, 9))
def test_masks_at_the_image_border_are_traced(name):
    mask = special(6, 9)[name]
    np.testing.assert_array_equal(filled(contours.trace(mask), 6, 9), mask)


@pytest.mark.parametrize("mask", [np.eye(2, dtype=bool), ~np.eye(2, dtype=bool)])
def test_pixels_that_touch_at_a_corner_are_separate_curves(mask):
    assert sorted(len(loop) for loop in contours.trace(mask)) == [5, 5]


def test_a_hole_is_a_curve_of_its_own():
    mask = np.ones((9, 9), bool)
    mask[3:6, 3:6] = False
    assert sorted(len(loop) for loop in contours.trace(mask)) == [13, 37]


def test_a_rectangle_is_its_four_corners():
    mask = np.zeros((20, 30), bool)
    mask[4:12, 5:25] = True
    polygon = contours.longest_polygon(mask)
    assert len(polygon) == 5
    np.testing.assert_array_equal(polygon[0], polygon[-1])
    assert {tuple(p) for p in polygon.tolist()} == {(5, 4), (25, 4), (25, 12), (5, 12)}


def test_the_polygon_with_most_vertices_is_taken():
    mask = np.zeros((40, 60), bool)
    mask[2:22, 2:22] = True  # four corners
    y, x = np.mgrid[:40, :60]
    mask |= (y - 24) ** 2 + (x - 43) ** 2 <= 12**2
    assert contours.longest_polygon(mask)[:, 0].min() > 25


def test_nothing_and_specks_have_no_outline():
    mask = np.zeros((8, 8), bool)
    assert contours.longest_polygon(mask) is None
    mask[3, 3] = True  # simplified to fewer than three sides
    assert contours.longest_polygon(mask) is None


def distance_to_polyline(point, polyline):
    nearest = np.inf
    for a, b in itertools.pairwise(polyline):
        along = b - a
        share = np.clip((point - a) @ along / max(along @ along, 1e-12), 0, 1)
        nearest = min(nearest, np.linalg.norm(point - a - share * along))
    return nearest


@pytest.mark.parametrize("tolerance", [0.1, 3.0, 8.0])
def test_simplifying_keeps_ends_and_stays_near(rng, tolerance):
    points = np.cumsum(rng.integers(-2, 3, (150, 2)), 0)
    kept = contours.simplify(points, tolerance)
    np.testing.assert_array_equal(kept[[0, -1]], points[[0, -1]])
    rows = [tuple(p) for p in points.tolist()]
    at = 0
    for p in kept.tolist():  # a subsequence
        at = rows.index(tuple(p), at)
    # Points near the last kept one go first, so twice the tolerance can be lost.
    gaps = [distance_to_polyline(p.astype(float), kept.astype(float)) for p in points]
    assert max(gaps) <= 2 * tolerance + 1e-6


def test_simplifying_a_straight_line_leaves_its_ends():
    line = np.stack([np.arange(0, 40, 4), np.arange(0, 20, 2)], -1)
    np.testing.assert_array_equal(contours.simplify(line, 0.1), line[[0, -1]])


def test_long_segments_are_split_evenly():
    polygon = np.array([[0, 0], [10, 0], [10, 3], [0, 0]])
    points = contours.upsample(polygon)
    assert points.dtype == np.float32
    np.testing.assert_allclose(points[:6], [[0, 0], [2.5, 0], [5, 0], [7.5, 0], [10, 0], [10, 3]])
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert lengths.max() <= contours.UPSAMPLE_STEP + 1e-5
    np.testing.assert_array_equal(points[-1], points[0])  # the start is there twice
