"""Where a pixel's features fall in the permutohedral lattice.

Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice" (2010),
with the rounding and tie rules of `src/permutohedral.cpp@lucasb-eyer/pydensecrf`. Every step is
done in the same float32 operations as there, with no product that a compiler could contract into
a fused multiply-add, so that all pixels land in the same simplex.

Names: d features, K = d+1 vertices per simplex. A vertex of class k (0..d) has K coordinates that
are all congruent to k modulo K and sum to zero, so it is given by k and the d *digits*
`(coordinate_i - k) / K`. The digits are packed into one or more int32 *words* by constant strides.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, Int32, UInt8

from uvos_jax.errors import ConfigError
from uvos_jax.ops.crf.terms import TermKey

_WORD = 2**31 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
    """Everything about a term's lattice that the image size and the scales decide.

    Attributes:
      tables: per feature, its float32 value for each row, column or grey level, already times
        the lattice's scale: shapes [H], [W], [256] ...
      axes: per feature, what indexes its table: 0 row, 1 column, 2.. channel of the image.
      strides: int32 [words,K]; how far a step of -1 in a digit moves the code (last column: 0).
      origin: int32 [words]; code of the vertex whose digits are all zero.
    """

    tables: tuple[np.ndarray, ...]
    axes: tuple[int, ...]
    strides: np.ndarray
    origin: np.ndarray


@functools.lru_cache(maxsize=64)
def geometry(height: int, width: int, key: TermKey) -> Geometry:
    """Tables, digit bounds and packing of one term on images of `height` x `width`.

    Raises:
      ConfigError: scales so small that lattice coordinates leave the 16-bit range, where the
        original overflows silently.
    """
    d, K = len(key.scales), len(key.scales) + 1
    axes = (0, 1) if key.order == "yx" else (1, 0)
    axes += tuple(range(2, d))
    sizes = (height, width, 256, 256, 256)
    spread = np.float32(np.sqrt(2.0 / 3.0) * K)
    tables = []
    for i, axis in enumerate(axes):
        values = np.arange(sizes[axis], dtype=np.float32) / np.float32(key.scales[axis])
        tables.append(values * np.float32(1.0 / np.sqrt((i + 2) * (i + 1)) * spread))
    top = np.array([float(t[-1]) for t in tables])
    low = np.array([-i * top[i - 1] if i else 0.0 for i in range(K)])
    high = np.array([top[i:].sum() for i in range(K)])
    if max(-low.min(), high.max()) + 2 * K > 32767:
        raise ConfigError(
            f"the scales {key.scales} are too small for a {height}x{width} image: its lattice "
            f"coordinates reach {max(-low.min(), high.max()):.0f}, the limit is 32767; use larger "
            "sdims or schan"
        )
    # Digits of a pixel's vertices lie within -2..+1 of e/K, their neighbours one further; the rest
    # is slack for rounding, so that no neighbour code can spill into the next digit.
    first = np.floor(low[:d] / K).astype(np.int64) - 4
    count = np.ceil(high[:d] / K).astype(np.int64) + 4 - first
    strides = np.zeros((d, K), np.int64)
    origin = np.zeros(d, np.int64)
    word, step = 0, 1
    for i in range(d):
        if step * int(count[i]) > _WORD:
            word, step = word + 1, 1
        strides[word, i] = step
        origin[word] -= step * first[i]
        step *= int(count[i])
    words = word + 1
    return Geometry(
        tuple(tables), axes, strides[:words].astype(np.int32), origin[:words].astype(np.int32)
    )


def _times(j: int, c: jax.Array) -> jax.Array:
    """`j * c` rounded once, from sums whose other operand is exact (j up to 6)."""
    double = c + c
    return (None, c, double, double + c, double + double, double + double + c)[j]


def elevate(
    tables: tuple[Float32[Array, "..."], ...],
    image: UInt8[Array, "H W C"] | np.ndarray,
    *,
    axes: tuple[int, ...],
    extra: bool,
) -> Float32[Array, "K P"]:
    """Puts every pixel on the plane of the lattice.

    Args:
      tables: of `Geometry`.
      image: what the colours are read from.
      axes: of `Geometry`.
      extra: append one point with zero features, the vertices the original creates when the
        number of pixels is not a multiple of four.

    Returns:
      Coordinates of P = H*W (+1) points, K planes.
    """
    sizes = {axis: table.shape[0] for axis, table in zip(axes, tables, strict=True)}
    H, W = sizes[0], sizes[1]
    columns = []
    for axis, table in zip(axes, tables, strict=True):
        if axis == 0:
            c = jnp.broadcast_to(table[:, None], (H, W)).reshape(-1)
        elif axis == 1:
            c = jnp.broadcast_to(table[None], (H, W)).reshape(-1)
        else:
            level = image[..., axis - 2].reshape(-1).astype(jnp.int32)
            c = table.at[level].get(mode="promise_in_bounds")
        columns.append(jnp.pad(c, (0, 1)) if extra else c)
    d = len(columns)
    total = jnp.zeros_like(columns[0])
    planes = [total] * (d + 1)
    for j in range(d, 0, -1):
        planes[j] = total - _times(j, columns[j - 1])
        total = total + columns[j - 1]
    planes[0] = total
    return jnp.stack(planes)


def locate(
    elevated: Float32[Array, "K P"], strides: Int32[Array, "S K"], origin: Int32[Array, "S"]
) -> tuple[Int32[Array, "S P"], Int32[Array, "P"], Float32[Array, "K P"]]:
    """Finds the simplex of every point.

    Returns:
      code: words of the class-0 vertex.
      order: the permutation of the simplex, three bits per rank: which coordinate has that rank.
      residual: per coordinate its distance from the class-0 vertex, in units of K.
    """
    K = elevated.shape[0]
    e = [elevated[i] for i in range(K)]
    rounded = [jnp.round(x * np.float32(1.0 / K)) for x in e]
    rest = [x - y * np.float32(K) for x, y in zip(e, rounded, strict=True)]
    excess = sum(y.astype(jnp.int32) for y in rounded)
    order = jnp.zeros(elevated.shape[1], jnp.int32)
    digits, residual = [], []
    for i in range(K):
        rank = excess
        for j in range(K):  # a tie raises the later coordinate's rank
            if j != i:
                below = rest[i] < rest[j] if i < j else rest[i] <= rest[j]
                rank = rank + below.astype(jnp.int32)
        shift = (rank < 0).astype(jnp.int32) - (rank >= K).astype(jnp.int32)
        rank = rank + K * shift
        digit = rounded[i].astype(jnp.int32) + shift
        order = order | (jnp.int32(i) << (3 * rank))
        residual.append((e[i] - (K * digit).astype(jnp.float32)) * np.float32(1.0 / K))
        digits.append(digit)
    code = [
        origin[s] + sum(strides[s, i] * digits[i] for i in range(K - 1))
        for s in range(strides.shape[0])
    ]
    return jnp.stack(code), order, jnp.stack(residual)


def opaque(pytree):
    """Marks a stage boundary that fusion should not cross (recomputing producers is slow)."""
    return lax.optimization_barrier(pytree)
