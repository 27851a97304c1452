"""J and F against pixel loops, their properties, and their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.metrics import oracles
from tests.metrics.shapes import blobs, special
from uvos_jax.errors import ConfigError, ShapeError
from uvos_jax.metrics import bitmask, davis

H, W = 40, 52  # the tolerance disk has radius 1
SMALL = 18, 35  # crosses a word of the packed masks
SPECIAL = special(*SMALL)


@pytest.fixture(scope="module")
def random_pairs():
    rng = np.random.default_rng(7)
    gt = blobs(rng, (12, H, W))
    pred = np.roll(gt, (1, -2), (1, 2)) ^ blobs(rng, (12, H, W), 1.5, 2.2)
    void = blobs(rng, (12, H, W), 2.0, 1.2)
    return pred, gt, void


@pytest.fixture(scope="module")
def special_pairs():
    names = list(SPECIAL)
    pairs = [(a, b) for a in names for b in names]
    return pairs, np.stack([SPECIAL[a] for a, _ in pairs]), np.stack([SPECIAL[b] for _, b in pairs])


def test_j_and_f_are_those_of_pixel_loops(random_pairs):
    pred, gt, _ = random_pairs
    j, f = davis.j_and_f(pred, gt)
    for k in range(len(gt)):
        assert float(j[k]) == pytest.approx(oracles.region_similarity(pred[k], gt[k]), abs=1e-7)
        assert float(f[k]) == pytest.approx(oracles.contour_accuracy(pred[k], gt[k]), abs=2e-7)


def test_void_pixels_leave_both_masks_before_boundaries_are_drawn(random_pairs):
    pred, gt, void = random_pairs
    j, f = davis.j_and_f(pred, gt, void)
    for k in range(len(gt)):
        args = pred[k], gt[k], void[k]
        assert float(j[k]) == pytest.approx(oracles.region_similarity(*args), abs=1e-7)
        assert float(f[k]) == pytest.approx(oracles.contour_accuracy(*args), abs=2e-7)
    np.testing.assert_array_equal(davis.region_similarity(pred, gt, void), j)
    np.testing.assert_array_equal(davis.boundary_f(pred, gt, void), f)


def test_a_result_that_covers_object_and_void_is_perfect(random_pairs):
    _, gt, void = random_pairs
    j, f = davis.j_and_f(gt | void, gt & ~void, void)
    np.testing.assert_array_equal(j, 1.0)
    np.testing.assert_array_equal(f, 1.0)


def test_everything_void_counts_as_empty(random_pairs):
    pred, gt, _ = random_pairs
    for value in davis.j_and_f(pred, gt, np.ones_like(gt)):
        np.testing.assert_array_equal(value, 1.0)


def test_special_masks_score_as_in_pixel_loops(special_pairs):
    names, pred, gt = special_pairs
    counts = davis.pair_counts(
        bitmask.pack_host(pred), bitmask.pack_host(gt), width=SMALL[1], radius=1
    )
    j, f = davis.ratios(np.asarray(counts))
    for k, pair in enumerate(names):
        assert j[k] == oracles.region_similarity(pred[k], gt[k]), pair
        assert f[k] == pytest.approx(oracles.contour_accuracy(pred[k], gt[k]), abs=1e-15), pair


def test_empty_and_full_masks_follow_the_rules(special_pairs):
    names, pred, gt = special_pairs
    j, f = (np.asarray(v) for v in davis.j_and_f(pred, gt))
    at = {pair: k for k, pair in enumerate(names)}
    assert j[at["empty", "empty"]] == f[at["empty", "empty"]] == 1.0
    for pair in (("empty", "inner pixel"), ("inner pixel", "empty")):
        assert j[at[pair]] == f[at[pair]] == 0.0
    # A full mask has no boundary: it looks empty to F.
    assert f[at["full", "empty"]] == 1.0
    assert j[at["full", "empty"]] == 0.0
    assert f[at["full", "full"]] == j[at["full", "full"]] == 1.0
    assert f[at["full", "left half"]] == 0.0


def test_both_measures_are_symmetric_and_at_most_one(random_pairs):
    pred, gt, void = random_pairs
    for value, turned in zip(
        davis.j_and_f(pred, gt, void), davis.j_and_f(gt, pred, void), strict=True
    ):
        np.testing.assert_allclose(value, turned, atol=1e-7)
        assert np.all((np.asarray(value) >= 0) & (np.asarray(value) <= 1))
    for value in davis.j_and_f(gt, gt):
        np.testing.assert_array_equal(value, 1.0)


def test_translation_of_both_masks_changes_nothing():
    rng = np.random.default_rng(5)
    pred, gt = np.zeros((2, 12, H, W), bool)
    pred[:, 6:20, 6:20] = blobs(rng, (12, 14, 14), 2.0)
    gt[:, 6:20, 6:20] = blobs(rng, (12, 14, 14), 2.0)
    moved = [np.roll(m, (13, 25), (1, 2)) for m in (pred, gt)]
    for here, there in zip(davis.j_and_f(pred, gt), davis.j_and_f(*moved), strict=True):
        np.testing.assert_array_equal(here, there)


def test_a_shift_within_the_tolerance_costs_j_but_not_f():
    gt = np.zeros((12, H, W), bool)
    gt[:, 10:30, 10:40] = True
    j, f = davis.j_and_f(np.roll(gt, 1, 2), gt)
    np.testing.assert_array_equal(f, 1.0)
    assert np.all(np.asarray(j) < 1)
    _, f = davis.j_and_f(np.roll(gt, 2, 2), gt)
    assert np.all(np.asarray(f) < 1)


def test_a_tolerance_in_pixels_is_used_as_it_is(random_pairs):
    pred, gt, _ = random_pairs
    f = davis.boundary_f(pred, gt, bound_th=3)
    for k in range(len(gt)):
        expected = oracles.contour_accuracy(pred[k], gt[k], bound_th=3)
        assert float(f[k]) == pytest.approx(expected, abs=2e-7)


def test_radius_of_common_sizes():
    assert davis.boundary_radius(480, 854) == 8
    assert davis.boundary_radius(480, 640) == 7  # 6.4, rounded up
    assert davis.boundary_radius(600, 800) == 8  # exactly
    assert davis.boundary_radius(1080, 1920) == 18
    assert davis.boundary_radius(480, 854, 5) == 5
    with pytest.raises(ConfigError, match="bound_th 0 is not positive"):
        davis.boundary_radius(480, 854, 0)
    with pytest.raises(ConfigError, match=r"bound_th 1.5 is no whole number"):
        davis.boundary_radius(480, 854, 1.5)


def test_leading_axes_and_dtypes_do_not_matter(random_pairs):
    pred, gt, _ = random_pairs
    flat = davis.j_and_f(pred, gt)
    folded = davis.j_and_f(pred.reshape(3, 4, H, W), gt.reshape(3, 4, H, W).astype(np.uint8) * 255)
    for a, b in zip(flat, folded, strict=True):
        assert b.shape == (3, 4)
        assert b.dtype == jnp.float32
        np.testing.assert_array_equal(a, b.reshape(-1))


def test_it_can_be_used_inside_jit_and_vmap(random_pairs):
    pred, gt, _ = random_pairs
    expected = davis.j_and_f(pred, gt)
    for wrap in (jax.jit(davis.j_and_f), jax.vmap(davis.j_and_f)):
        for a, b in zip(wrap(jnp.asarray(pred), jnp.asarray(gt)), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_masks_of_different_sizes_are_refused():
    with pytest.raises(ShapeError, match=r"gt has shape \(4, 6\) but pred has \(4, 5\)"):
        davis.j_and_f(np.zeros((4, 5)), np.zeros((4, 6)))
    with pytest.raises(ShapeError, match="void has shape"):
        davis.region_similarity(np.zeros((4, 5)), np.zeros((4, 5)), np.zeros((5, 5)))
