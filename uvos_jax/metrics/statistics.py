"""Mean, recall and decay of a sequence's per-frame values (DAVIS, section 5 of the 2016 paper)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from uvos_jax.errors import DataError


class Statistics(NamedTuple):
    """`mean` ignores NaN; `recall` is the share of values above 0.5; `decay` the loss in time."""

    mean: float
    recall: float
    decay: float


def quarter_edges(n: int) -> np.ndarray:
    """Five 0-based frame indices that bound the quarters of `n` frames; neighbours share one.

    `round(linspace(1, n, 5))` with halves away from zero, as in MATLAB. The Python codes of DAVIS
    cast these to uint8 and go wrong beyond 256 frames; integers of full width do not.
    """
    return np.floor(np.linspace(1, n, 5) + 0.5 + 1e-10).astype(int) - 1


def statistics(values: np.ndarray | Sequence[float | int]) -> Statistics:
    """Mean, recall and decay of per-frame values `[n]` in temporal order.

    Decay is the mean of the first quarter minus that of the last; NaN counts as a miss in recall
    and is left out of means.

    Raises:
      DataError: no values.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise DataError(
            f"statistics need a non-empty list of per-frame values, got shape {values.shape}: "
            "a sequence must have at least one evaluated frame"
        )
    edges = quarter_edges(values.size)
    first, last = values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # all-NaN slices give NaN, as they should
        mean, start, end = (float(np.nanmean(part)) for part in (values, first, last))
        recall = float(np.mean(values > 0.5))
    return Statistics(mean, recall, start - end)
