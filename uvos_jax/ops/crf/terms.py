"""The pairwise terms of a dense CRF: what they are made of, and the checks a user's values need."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from uvos_jax.errors import ConfigError

Normalization = Literal["symmetric", "before", "after", "none"]
NORMALIZATIONS = ("symmetric", "before", "after", "none")
ORDERS = ("yx", "xy")

Number = int | float

#: A label compatibility: a weight (Potts), `[L]` weights (diagonal) or an `[L,L]` matrix.
Compat = Any


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Smoothness: pixels close in the image take the same label.

    The kernel is `exp(-|f_i - f_j|^2 / 2)` with `f = (row / sdims[0], column / sdims[1])`.

    Attributes:
      sdims: standard deviation in pixels, one number or (rows, columns).
      compat: label compatibility. A number rewards agreement with that weight (Potts); `[L]`
        numbers are the diagonal of an energy matrix and an `[L,L]` matrix is that energy matrix
        (its symmetric part counts), so for these two a reward is negative. May be a traced array:
        the result is differentiable in it.
      normalization: `symmetric` (n K n with n = 1/sqrt(K 1)), `before`, `after` (n = 1/(K 1)) or
        `none`.
      order: `yx` embeds (row, column) as `create_pairwise_gaussian` of pydensecrf does, `xy`
        (column, row) as `DenseCRF2D.addPairwiseGaussian`; the two lattices differ slightly.
    """

    sdims: Number | tuple[Number, Number] = 1.0
    compat: Compat = 3.0
    normalization: Normalization = "symmetric"
    order: Literal["yx", "xy"] = "yx"


@dataclasses.dataclass(frozen=True)
class Bilateral:
    """Appearance: pixels close in the image and alike in colour take the same label.

    The features are those of `Gaussian` followed by R, G, B (0..255) over `schan`.

    Attributes:
      sdims: standard deviation in pixels, one number or (rows, columns).
      schan: standard deviation in grey levels, one number or one per channel.
      compat, normalization, order: as in `Gaussian`.
    """

    sdims: Number | tuple[Number, Number] = 30.0
    schan: Number | tuple[Number, Number, Number] = 5.0
    compat: Compat = 5.0
    normalization: Normalization = "symmetric"
    order: Literal["yx", "xy"] = "yx"


Term = Gaussian | Bilateral


@dataclasses.dataclass(frozen=True)
class TermKey:
    """The hashable part of a term: everything but its compatibility.

    `scales` are (rows, columns) or (rows, columns, R, G, B); `is_bilateral` says which.
    """

    scales: tuple[float, ...]
    normalization: str
    order: str

    @property
    def is_bilateral(self) -> bool:
        return len(self.scales) == 5


def _scales(value: Any, count: int, name: str, term: Term) -> tuple[float, ...]:
    values = np.atleast_1d(np.asarray(value, np.float64))
    if values.shape not in ((1,), (count,)) or not (
        np.all(np.isfinite(values)) and np.all(values > 0)
    ):
        raise ConfigError(
            f"{type(term).__name__}.{name} is {value!r}: give one positive number or {count}"
        )
    return tuple(float(v) for v in np.broadcast_to(values, (count,)))


def term_key(term: Any) -> TermKey:
    """Checks a term and returns its hashable part.

    Raises:
      ConfigError: not a term, a scale is not positive, an unknown normalisation or order.
    """
    if not isinstance(term, Gaussian | Bilateral):
        raise ConfigError(
            f"terms holds {term!r}: expected uvos_jax.ops.crf.Gaussian or Bilateral objects"
        )
    if term.normalization not in NORMALIZATIONS:
        raise ConfigError(
            f"{type(term).__name__}.normalization is {term.normalization!r}: use one of "
            f"{NORMALIZATIONS}"
        )
    if term.order not in ORDERS:
        raise ConfigError(f"{type(term).__name__}.order is {term.order!r}: use one of {ORDERS}")
    scales = _scales(term.sdims, 2, "sdims", term)
    if isinstance(term, Bilateral):
        scales += _scales(term.schan, 3, "schan", term)
    return TermKey(scales, term.normalization, term.order)
