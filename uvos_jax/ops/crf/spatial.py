"""The lattice of a `Gaussian` term, built once per image size by numpy on the host.

It depends on the size and the scales alone, so no frame pays for it; built inside a compiled
program from constants, it would cost minutes of constant folding.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from uvos_jax.ops.crf.embedding import geometry
from uvos_jax.ops.crf.lattice import Lattice
from uvos_jax.ops.crf.terms import TermKey

#: The two digits of a vertex are packed as `digit_0 * 2^20 + digit_1` (both fit in 15 bits).
_STRIDES = np.array([1 << 20, 1, 0], np.int64)


def _embed(size: tuple[int, int], key: TermKey) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digits `[2,P]`, ranks `[3,P]` and residuals `[3,P]`; see `embedding.locate`."""
    plan = geometry(*size, key)
    flat = [
        np.broadcast_to(table[:, None] if axis == 0 else table[None], size).reshape(-1)
        for axis, table in zip(plan.axes, plan.tables, strict=True)
    ]
    if flat[0].size % 4:
        flat = [np.append(c, np.float32(0)) for c in flat]
    first, second = flat
    zero = np.float32(0)
    e = np.stack([(zero + second) + first, (zero + second) - first, zero - (second + second)])
    rounded = np.rint(e * np.float32(1 / 3))
    rest = e - rounded * np.float32(3)
    rank = np.empty(e.shape, np.int64)
    for i in range(3):
        later = sum(rest[i] < rest[j] for j in range(i + 1, 3))
        earlier = sum(rest[i] <= rest[j] for j in range(i))
        rank[i] = later + earlier + rounded.sum(0)
    shift = (rank < 0).astype(np.int64) - (rank >= 3)
    digits = rounded.astype(np.int64) + shift
    residual = (e - (3 * digits).astype(np.float32)) * np.float32(1 / 3)
    return digits[:2], rank + 3 * shift, residual


@functools.lru_cache(maxsize=16)
def spatial_lattice(size: tuple[int, int], key: TermKey) -> tuple[Lattice, Float32[Array, "N"]]:
    """The lattice of a `Gaussian` term and its filter of ones, kept on the default device."""
    digits, rank, residual = _embed(size, key)
    pixels = size[0] * size[1]
    by_rank = np.take_along_axis(residual, np.argsort(rank, axis=0), axis=0)
    low = by_rank[::-1]  # residual of rank 2, 1, 0
    weights = np.stack([1 + low[0] - low[2], low[1] - low[0], low[2] - low[1]])[:, :pixels]

    codes, offsets, start = [], [], 1
    for k in range(3):
        code = _STRIDES[:2] @ (digits - (rank[:2] > 2 - k))
        present, index = np.unique(code, return_inverse=True)
        codes.append(present)
        offsets.append(start + index.reshape(-1)[:pixels])
        start += len(present)
    starts = np.cumsum([1, *map(len, codes)])
    minus, plus = np.zeros((2, 3, start), np.int32)
    for k in range(3):
        goal = (k + 1) % 3
        for j in range(3):
            want = codes[k] - _STRIDES[j] + (_STRIDES.sum() if k == 2 else 0)
            at = np.minimum(np.searchsorted(codes[goal], want), len(codes[goal]) - 1)
            found = codes[goal][at] == want
            here, there = starts[k] + np.flatnonzero(found), starts[goal] + at[found]
            minus[j, here], plus[j, there] = there, here

    offsets = np.stack(offsets)
    z = np.bincount(offsets.reshape(-1), weights.reshape(-1), minlength=start)
    for j in range(3):
        z = z + 0.5 * (z[minus[j]] + z[plus[j]])
    ones = np.sum(weights * z[offsets], axis=0) / (1 + 2.0**-2)
    with jax.ensure_compile_time_eval():  # a caller's trace must not capture what is kept
        lattice = Lattice(
            jnp.asarray(offsets, jnp.int32),
            jnp.asarray(weights, jnp.float32),
            jnp.asarray(minus),
            jnp.asarray(plus),
            jnp.int32(start),
        )
        return lattice, jnp.asarray(ones, jnp.float32)
