"""Mean, recall and decay."""

import math

import numpy as np
import pytest

from tests.metrics import oracles
from uvos_jax.errors import DataError
from uvos_jax.metrics.statistics import quarter_edges, statistics


@pytest.mark.parametrize("n", [*range(1, 31), 97, 255, 256, 257, 300, 1001])
def test_all_three_are_those_of_loops_also_beyond_256_frames(n):
    values = np.random.default_rng(n).random(n)
    np.testing.assert_allclose(statistics(values), oracles.statistics(values.tolist()), atol=1e-12)


def test_quarters_share_their_ends_and_halves_round_up():
    assert quarter_edges(5).tolist() == [0, 1, 2, 3, 4]
    # 1 + 2k/4: 1, 1.5, 2, 2.5, 3 -> 1, 2, 2, 3, 3
    assert quarter_edges(3).tolist() == [0, 1, 1, 2, 2]
    assert quarter_edges(300)[[0, -1]].tolist() == [0, 299]


def test_decay_is_first_quarter_minus_last():
    assert statistics([1.0, 1, 0.5, 0.5, 0.5, 0.5, 0, 0]).decay == pytest.approx(
        1.0 * 2 / 3 + 0.5 / 3 - 0.5 / 3
    )
    assert statistics(np.linspace(0, 1, 50)).decay < 0


def test_a_single_value_does_not_decay():
    assert statistics([0.7]) == (0.7, 1.0, 0.0)


def test_recall_is_strict():
    assert statistics([0.5, 0.5000001]).recall == 0.5


def test_nan_is_left_out_of_means_and_counts_as_a_miss():
    values = [math.nan, 0.9, 0.8, math.nan, 0.6, 0.4, 0.3, math.nan]
    found = statistics(values)
    np.testing.assert_allclose(found, oracles.statistics(values), atol=1e-12)
    assert found.mean == pytest.approx(0.6)
    assert found.recall == 3 / 8
    assert all(map(math.isnan, statistics([math.nan] * 4)[::2]))


def test_no_values_are_an_error():
    with pytest.raises(DataError, match="at least one evaluated frame"):
        statistics([])
    with pytest.raises(DataError, match=r"got shape \(2, 2\)"):
        statistics(np.zeros((2, 2)))
