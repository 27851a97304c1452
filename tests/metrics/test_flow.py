"""End-point error and outlier share."""

import math

import numpy as np
import pytest

from uvos_jax.errors import ShapeError
from uvos_jax.metrics.flow import endpoint_error, flow_errors


def by_loops(pred, gt, valid):
    errors, outliers = [], 0
    for y, x in np.argwhere(valid):
        error, length = math.dist(pred[y, x], gt[y, x]), math.hypot(*gt[y, x])
        errors.append(error)
        outliers += error > 3 and error > 0.05 * length
    return sum(errors) / len(errors), outliers / len(errors)


@pytest.fixture
def fields(rng):
    gt = rng.normal(size=(3, 8, 11, 2)).astype(np.float32) * 60
    pred = gt + rng.normal(size=gt.shape).astype(np.float32) * 3
    return pred, gt, rng.random((3, 8, 11)) < 0.7


def test_both_errors_are_those_of_loops_over_valid_pixels(fields):
    pred, gt, valid = fields
    found = flow_errors(pred, gt, valid)
    for k in range(3):
        epe, fl = by_loops(pred[k], gt[k], valid[k])
        assert float(found["epe"][k]) == pytest.approx(epe, rel=1e-5)
        assert float(found["fl"][k]) == pytest.approx(fl, abs=1e-6)
        assert 0 < fl < 1


def test_without_a_mask_every_pixel_counts(fields):
    pred, gt, valid = fields
    everywhere = flow_errors(pred, gt, np.ones_like(valid))
    for name, value in flow_errors(pred, gt).items():
        np.testing.assert_array_equal(value, everywhere[name])


def test_an_outlier_is_wrong_both_absolutely_and_relatively():
    gt = np.zeros((1, 4, 2), np.float32)
    gt[0, :, 0] = (0, 0, 100, 100)
    pred = gt + np.array([[[3.0, 0], [3.1, 0], [4.9, 0], [5.1, 0]]], np.float32)
    assert float(flow_errors(pred, gt)["fl"]) == 0.5


def test_values_at_invalid_pixels_do_not_matter(fields):
    pred, gt, valid = fields
    spoiled = np.where(valid[..., None], pred, np.nan)
    for name, value in flow_errors(pred, gt, valid).items():
        np.testing.assert_array_equal(value, flow_errors(spoiled, gt, valid)[name])


def test_no_valid_pixel_gives_nan(fields):
    pred, gt, valid = fields
    assert np.isnan(flow_errors(pred, gt, np.zeros_like(valid))["epe"]).all()


def test_sizes_must_agree():
    with pytest.raises(ShapeError, match=r"shape \(4, 5, 2\), the true one \(4, 6, 2\)"):
        endpoint_error(np.zeros((4, 5, 2)), np.zeros((4, 6, 2)))
