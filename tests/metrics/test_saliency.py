"""Saliency measures against direct formulas, and the maps on which they degenerate."""

import numpy as np
import pytest
from scipy import ndimage

from tests.metrics import oracles
from tests.metrics.shapes import blobs
from uvos_jax.errors import ShapeError
from uvos_jax.metrics.saliency import normalise, saliency_scores, weighted_f

H, W = 18, 23
EMPTY = np.zeros((H, W), bool)


def pair(seed):
    rng = np.random.default_rng(seed)
    gt = blobs(rng, (H, W), 2.5)
    soft = ndimage.gaussian_filter(np.roll(gt, 1, 1).astype(float), 1.5) * 200
    return (soft + rng.integers(0, 40, (H, W))).astype(np.uint8), gt


@pytest.mark.parametrize("seed", range(4))
def test_curves_are_those_of_binary_maps_at_every_threshold(seed):
    pred, gt = pair(seed)
    found = saliency_scores(pred, gt)
    levels = (normalise(pred) * 255).astype(np.uint8)
    for k, threshold in enumerate(range(255, -1, -1)):
        mask = levels >= threshold
        assert found.f_curve[k] == pytest.approx(oracles.f_of_binary(mask, gt), abs=1e-12)
        assert found.e_curve[k] == pytest.approx(oracles.e_of_binary(mask, gt), abs=1e-12)
        hit = (mask & gt).sum()
        assert found.precision[k] == pytest.approx(hit / max(mask.sum(), 1))
        assert found.recall[k] == pytest.approx(hit / gt.sum())


@pytest.mark.parametrize("seed", range(4))
def test_adaptive_measures_use_twice_the_mean(seed):
    pred, gt = pair(seed)
    p = normalise(pred)
    mask = p >= min(2 * p.mean(), 1)
    found = saliency_scores(pred, gt)
    assert found.f_adaptive == pytest.approx(oracles.f_of_binary(mask, gt))
    assert found.e_adaptive == pytest.approx(oracles.e_of_binary(mask, gt))
    assert found.mae == pytest.approx(np.abs(p - gt).mean())


def test_weighted_f_is_that_of_loops():
    """On maps where equally near foreground pixels have equal errors the value is defined."""
    checked = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        gt = blobs(rng, (H, W), 2.5)
        # Constant on the foreground, so that ties between nearest pixels do not matter.
        p = np.where(gt, rng.random(), rng.random((H, W)))
        expected, ambiguous = oracles.weighted_f(p, gt)
        assert not ambiguous
        assert weighted_f(p, gt) == pytest.approx(expected, abs=1e-12)
        checked += 1
    assert checked == 12


def test_maps_are_stretched_to_their_range_unless_constant():
    pred, gt = pair(0)
    squeezed = (pred // 4 + 60).astype(np.uint8)
    stretched = normalise(squeezed)
    assert (stretched.min(), stretched.max()) == (0.0, 1.0)
    np.testing.assert_array_equal(normalise(np.full((2, 2), 200, np.uint8)), 200 / 255)
    assert saliency_scores(squeezed, gt).f_curve[0] > 0  # the brightest pixel reaches 255


def test_a_perfect_map_has_perfect_scores():
    _, gt = pair(1)
    found = saliency_scores(gt.astype(np.uint8) * 255, gt)
    assert found.mae == 0.0
    assert found.s_measure == pytest.approx(1.0)
    assert found.weighted_f == pytest.approx(1.0)
    assert found.f_adaptive == pytest.approx(1.0)
    assert found.f_curve.max() == pytest.approx(1.0)
    # E divides by N-1, so it is slightly above 1.
    assert found.e_adaptive == pytest.approx(gt.size / (gt.size - 1))


def test_an_inverted_map_has_the_worst():
    _, gt = pair(1)
    found = saliency_scores((~gt).astype(np.uint8) * 255, gt)
    assert found.mae == 1.0
    assert found.f_adaptive == 0.0
    assert found.s_measure < 0.3
    assert found.weighted_f < 0.1  # zeros beyond the image relieve errors at its border


@pytest.mark.parametrize("value", [0, 200, 255])
@pytest.mark.parametrize("gt", [EMPTY, ~EMPTY], ids=["empty", "full"])
def test_constant_maps_on_constant_annotations_follow_the_rules(value, gt):
    found = saliency_scores(np.full((H, W), value, np.uint8), gt)
    p, share = value / 255, float(gt.mean())
    assert found.mae == pytest.approx(abs(p - share))
    assert found.s_measure == pytest.approx(p if share else 1 - p)
    assert found.weighted_f == pytest.approx(oracles.weighted_f(np.full((H, W), p), gt)[0])
    # A constant map lies above twice its mean only where that is capped at 1, or where it is 0.
    chosen = p >= min(2 * p, 1)
    assert found.f_adaptive == pytest.approx(float(chosen and share))
    enhanced = chosen if share else not chosen
    assert found.e_adaptive == pytest.approx(enhanced * gt.size / (gt.size - 1))
    for curve in (found.f_curve, found.e_curve, found.precision, found.recall):
        assert curve.shape == (256,)
        assert np.isfinite(curve).all()


@pytest.mark.parametrize("where", [(0, 0), (-1, -1), (0, -1), (-1, 0), (5, 5)])
def test_a_single_annotated_pixel_gives_finite_scores(where):
    """The centroid may lie on the last row or column, which leaves quadrants empty."""
    gt = EMPTY.copy()
    gt[where] = True
    pred, _ = pair(2)
    found = saliency_scores(pred, gt)
    for value in (found.mae, found.s_measure, found.weighted_f, found.f_adaptive):
        assert 0.0 <= value <= 1.0


def test_wrong_types_are_refused():
    pred, gt = pair(0)
    for bad in (pred.astype(np.float32), pred[:-1], pred[None]):
        with pytest.raises(ShapeError, match="expected a uint8 map and a bool annotation"):
            saliency_scores(bad, gt)
    with pytest.raises(ShapeError, match="expected a uint8 map"):
        saliency_scores(pred, gt.astype(np.uint8))
