"""Proposals against objects: every pair, void, and the best assignment."""

import itertools

import numpy as np
import pytest

from tests.metrics import oracles
from uvos_jax.errors import ShapeError
from uvos_jax.metrics import proposals

H, W = 20, 37


def scene(seed):
    """Overlapping discs: object ids, proposal ids (one object is cut in two), void."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:H, :W]
    gt, pred = np.zeros((2, H, W), np.uint8)
    for k in (1, 2, 3):
        cy, cx = rng.integers(3, H - 3), rng.integers(3, W - 3)
        gt[(y - cy) ** 2 + (x - cx) ** 2 < 30] = k
        inside = (y - cy - 1) ** 2 + (x - cx) ** 2 < 25
        pred[inside] = 4 - k
    pred[(pred == 2) & (x % 2 == 0)] = 5
    return pred, gt, rng.random((H, W)) < 0.1


@pytest.mark.parametrize("with_void", [False, True])
def test_every_pair_scores_as_in_pixel_loops(with_void):
    pred, gt, void = scene(0)
    void = void if with_void else None
    j, f = proposals.pairwise_j_and_f(pred, gt, num_proposals=5, num_objects=3, void=void)
    assert j.shape == f.shape == (6, 3)
    for p, o in np.ndindex(j.shape):
        # Row 5 is the empty proposal; id 4 is in no frame and equally empty.
        args = pred == (p + 1 if p < 5 else 99), gt == o + 1, void
        assert j[p, o] == pytest.approx(oracles.region_similarity(*args), abs=1e-12)
        assert f[p, o] == pytest.approx(oracles.contour_accuracy(*args), abs=1e-12)


def test_ids_beyond_the_objects_are_background():
    pred, gt, _ = scene(1)
    _ = proposals.pairwise_j_and_f(pred, gt, num_proposals=5, num_objects=2)
    expected = proposals.pairwise_j_and_f(
        pred, np.where(gt > 2, 0, gt), num_proposals=5, num_objects=2
    )
    for a, b in zip(_, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("seed", range(6))
def test_the_assignment_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    objects = int(rng.integers(1, 4))
    j, f = rng.random((2, objects + int(rng.integers(0, 3)), objects, 7))
    for f_or_none in (f, None):
        score = j.mean(-1) if f_or_none is None else (j.mean(-1) + f.mean(-1)) / 2
        chosen = proposals.match(j, f_or_none)
        assert len(set(chosen.tolist())) == objects
        best = max(
            sum(score[p, o] for o, p in enumerate(rows))
            for rows in itertools.permutations(range(len(score)), objects)
        )
        assert score[chosen, range(objects)].sum() == pytest.approx(best)


def test_renumbered_annotations_are_matched_perfectly():
    _, gt, _ = scene(2)
    renumber = np.array([0, 3, 1, 2])
    frames = [
        proposals.pairwise_j_and_f(renumber[m], m, num_proposals=3, num_objects=3)
        for m in (gt, gt[::-1])
    ]
    j, f = (np.stack([frame[k][:-1] for frame in frames], -1) for k in (0, 1))
    chosen = proposals.match(j, f)
    assert chosen.tolist() == [2, 0, 1]
    np.testing.assert_array_equal(j[chosen, range(3)], 1.0)
    np.testing.assert_array_equal(f[chosen, range(3)], 1.0)


def test_the_empty_proposal_fits_an_absent_object():
    gt = np.zeros((H, W), np.uint8)
    j, f = proposals.pairwise_j_and_f(gt, gt, num_proposals=1, num_objects=2)
    np.testing.assert_array_equal(j, 1.0)
    np.testing.assert_array_equal(f, 1.0)


def test_too_few_proposals_and_unequal_sizes_are_refused():
    with pytest.raises(ShapeError, match="1 proposals for 2 objects: pad with empty"):
        proposals.match(np.zeros((1, 2, 3)))
    with pytest.raises(ShapeError, match="of one size"):
        proposals.pairwise_j_and_f(
            np.zeros((4, 4), int), np.zeros((4, 5), int), num_proposals=1, num_objects=1
        )
