"""Region similarity on annotated frames, and the averages in circulation."""

import numpy as np
import pytest

from tests.metrics import oracles
from tests.metrics.shapes import blobs
from uvos_jax.errors import DataError, ShapeError
from uvos_jax.metrics.sparse import averages, iou, sparse_sequence_j


@pytest.fixture
def video(rng):
    pred = blobs(rng, (9, 16, 20))
    gt = blobs(rng, (3, 16, 20))
    gt[1] = False
    return pred, gt, (0, 4, 8)


def test_only_annotated_frames_are_scored_and_empty_ones_left_out(video):
    pred, gt, ids = video
    values = sparse_sequence_j(pred, gt, ids)
    assert np.isnan(values[1])
    for k in (0, 2):
        assert values[k] == oracles.region_similarity(pred[ids[k]], gt[k])


def test_empty_annotations_can_be_scored_instead(video):
    pred, gt, ids = video
    assert sparse_sequence_j(pred, gt, ids, skip_empty=False)[1] == 0.0
    pred[4] = False
    assert sparse_sequence_j(pred, gt, ids, skip_empty=False)[1] == 1.0


def test_a_mapping_may_hold_the_annotated_frames_only(video):
    pred, gt, ids = video
    table = {i: pred[i].astype(np.uint8) * 255 for i in ids}
    np.testing.assert_array_equal(
        sparse_sequence_j(table, gt, ids), sparse_sequence_j(pred, gt, ids)
    )


def test_missing_predictions_and_annotations_are_named(video):
    pred, gt, ids = video
    with pytest.raises(DataError, match="annotated frame 8 has no prediction"):
        sparse_sequence_j(pred[:8], gt, ids)
    with pytest.raises(DataError, match="annotated frame 4 has no prediction"):
        sparse_sequence_j({0: pred[0]}, gt, ids, skip_empty=False)
    with pytest.raises(DataError, match="3 annotations for 2 annotated frames"):
        sparse_sequence_j(pred, gt, ids[:2])
    with pytest.raises(ShapeError, match=r"pred has shape \(2, 3\) but gt has \(3, 2\)"):
        iou(np.zeros((2, 3), bool), np.zeros((3, 2), bool))


def test_the_averages_differ_as_defined():
    nan = np.nan
    sequences = {
        "a": np.array([1.0, 0.5, nan]),  # .75
        "b": np.array([0.25]),
        "c": np.array([0.5, 0.5, 0.5, 0.1]),  # .4
        "d": np.array([nan]),  # nothing annotated: in no average
    }
    found = averages(sequences, {"a": "cat", "b": "cat", "c": "dog", "d": "cow"})
    assert found["sequences"] == pytest.approx((0.75 + 0.25 + 0.4) / 3)
    assert found["frames"] == pytest.approx((1.5 + 0.25 + 1.6) / 7)
    assert found["categories"] == pytest.approx((0.5 + 0.4) / 2)
    assert set(averages(sequences)) == {"sequences", "frames"}


def test_averages_of_nothing_are_nan():
    found = averages({"a": np.array([np.nan])}, {"a": "cat"})
    assert set(found) == {"sequences", "frames", "categories"}
    assert all(np.isnan(v) for v in found.values())
