"""Temporal stability: each step against loops, and the measure's plain properties."""

import numpy as np
import pytest

from tests.metrics import oracles
from uvos_jax.metrics import temporal


def disc(radius, centre=(30, 40), size=(64, 80), lobes=0.0):
    y, x = np.mgrid[: size[0], : size[1]]
    angle = np.arctan2(y - centre[0], x - centre[1])
    distance = np.hypot(y - centre[0], x - centre[1])
    return distance < radius * (1 + lobes * np.sin(4 * angle))


def test_shape_contexts_are_those_of_loops(rng):
    points = rng.normal(size=(25, 2)) * (3, 7)
    found = temporal.shape_contexts(points)
    np.testing.assert_allclose(found, oracles.shape_contexts(points.tolist()), atol=1e-12)
    np.testing.assert_allclose(found.sum(1), 1.0)


def test_matching_cost_is_that_of_loops(rng):
    first, second = (rng.dirichlet(np.full(60, 0.1), n) for n in (11, 17))
    cost = temporal.matching_cost(first, second)
    np.testing.assert_allclose(cost, oracles.matching_cost(first, second), atol=1e-14)
    np.testing.assert_allclose(temporal.matching_cost(second, first), cost.T, atol=1e-14)


SHAPES = [(1, 1), (1, 6), (6, 1), (2, 2), (9, 14), (33, 64), (70, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_warping_path_is_as_cheap_as_a_plain_programme(rng, shape):
    cost = rng.random(shape)
    path = temporal.warp(cost)
    assert tuple(path[0]) == (shape[0] - 1, shape[1] - 1)
    assert tuple(path[-1]) == (0, 0)
    steps = path[:-1] - path[1:]
    assert {tuple(s) for s in steps.tolist()} <= {(1, 1), (1, 0), (0, 1)}
    total = cost[path[:-1, 0], path[:-1, 1]].sum()
    assert total == pytest.approx(oracles.path_sums(cost)[-1, -1], abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_among_equal_paths_diagonal_moves_come_first(seed):
    cost = np.random.default_rng(seed).integers(0, 3, (9, 12)) / 4.0
    first = next(iter(oracles.cheapest_paths(cost)))  # diagonal, above, left in this order
    np.testing.assert_array_equal(temporal.warp(cost), first)


@pytest.mark.parametrize("seed", range(4))
def test_t_of_a_pair_is_that_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    first, second = (rng.dirichlet(np.full(60, 0.2), n) for n in rng.integers(4, 9, 2))
    possible = oracles.stabilities(oracles.matching_cost(first, second))
    assert len(possible) == 1  # no ties
    assert temporal.stability_of_pair(first, second) == pytest.approx(possible[0], abs=1e-10)


def test_a_mask_that_stays_or_moves_is_stable():
    masks = np.stack([disc(18), disc(18), disc(18, (32, 44)), disc(18, (33, 44))])
    values = temporal.temporal_stability(masks)
    assert values.shape == (3,)
    np.testing.assert_allclose(values[0], 0.0, atol=1e-12)
    assert np.all(values[1:] < 0.1)  # rounding of points moves some across bins


def test_a_change_of_outline_costs_more_the_larger_it_is():
    small, large = (
        temporal.temporal_stability(np.stack([disc(18), disc(18, lobes=k)]))[0] for k in (0.1, 0.4)
    )
    assert 0 < small < large <= temporal.SCALE


def test_empty_masks_give_nan_for_both_their_pairs():
    masks = np.stack([disc(18), np.zeros((64, 80), bool), disc(18), disc(18)])
    np.testing.assert_array_equal(np.isnan(temporal.temporal_stability(masks)), [True, True, False])


def test_one_mask_has_no_pair():
    assert temporal.temporal_stability(disc(18)[None]).shape == (0,)


def test_any_non_zero_value_is_foreground():
    masks = np.stack([disc(18), disc(14)])
    np.testing.assert_array_equal(
        temporal.temporal_stability(masks.astype(np.uint8) * 255),
        temporal.temporal_stability(masks),
    )
