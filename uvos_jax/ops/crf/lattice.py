"""The permutohedral lattice as static-shape arrays, and the filter on it.

The vertices that the pixels of an image touch are found without sorting, by hashing: all pixels
write their index into a table at the hash of their vertex code, the smallest index stays, and
every pixel whose code equals the winner's is served; the few codes that lost are served from a
second table, and from a third one by open addressing. Class by class (a `scan`), because a
table that fits the cache is several times faster than a sort of all codes.

Vertex 0 stands for "absent" and always holds zero.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32, UInt32

_PROBES = 32


class Lattice(NamedTuple):
    """A built lattice: N pixels, K vertices per pixel, room for M vertices (number 0: absent).

    Attributes:
      offsets: vertex of each pixel, per class.
      weights: barycentric weight of that vertex.
      minus, plus: per axis, the two neighbours of every vertex in the blur (0: absent).
      count: vertices needed, with number 0; more than M means that the lattice is unusable.
    """

    offsets: Int32[Array, "K N"]
    weights: Float32[Array, "K N"]
    minus: Int32[Array, "K M"]
    plus: Int32[Array, "K M"]
    count: Int32[Array, ""]


class Vertices(NamedTuple):
    """Hash tables of the vertices (per class: S words, J slots) and what the pixels found there.

    Attributes:
      words: code stored in a slot, -1 if empty.
      numbers: number of the vertex in a slot, 0 if empty.
      starts: first number of each class and, last, the total.
      unserved: pixels left without a vertex because the tables were too small.
      offsets, weights: as in `Lattice`.
    """

    words: Int32[Array, "K S J"]
    numbers: Int32[Array, "K J"]
    starts: Int32[Array, "K1"]
    unserved: Int32[Array, ""]
    offsets: Int32[Array, "K N"]
    weights: Float32[Array, "K N"]


def _take(values: jax.Array, index: jax.Array) -> jax.Array:
    return values.at[index].get(mode="promise_in_bounds")


def _hash(code: Int32[Array, "S *n"]) -> UInt32[Array, "*n"]:
    h = jnp.zeros(code.shape[1:], jnp.uint32)
    for s in range(code.shape[0]):
        h = (h ^ code[s].astype(jnp.uint32)) * jnp.uint32(0x9E3779B1)
        h = (h ^ (h >> 15)) * jnp.uint32(0x85EBCA77)
        h = h ^ (h >> 13)
    return h


def _slots(h: jax.Array, bits: int, probe: int | jax.Array) -> jax.Array:
    """Slot of a hash: table one (2^bits), table two and three (a quarter of that, each)."""
    if isinstance(probe, int) and probe == 0:
        return (h >> (32 - bits)).astype(jnp.int32)
    again = h * jnp.uint32(0xC2B2AE35)
    size, quarter = 1 << bits, 1 << (bits - 2)
    if isinstance(probe, int) and probe == 1:
        return size + (again >> (34 - bits)).astype(jnp.int32)
    return size + quarter + ((again.astype(jnp.int32) + probe) & (quarter - 1))


def _matches(words: jax.Array, slots: jax.Array, code: jax.Array) -> jax.Array:
    same = jnp.ones(slots.shape, bool)
    for s in range(code.shape[0]):
        same = same & (_take(words[s], slots) == code[s])
    return same


def _ranks(flags: Bool[Array, "n"]) -> tuple[Int32[Array, "n"], Int32[Array, ""]]:
    """How many flags are set before each position, and how many in all (by 32-bit popcounts)."""
    n = flags.shape[0]
    bits = jnp.pad(flags, (0, -n % 32)).reshape(-1, 32).astype(jnp.uint32)
    lane = jnp.arange(32, dtype=jnp.uint32)
    packed = jnp.sum(bits << lane, axis=1, dtype=jnp.uint32)
    sums = jnp.cumsum(lax.population_count(packed).astype(jnp.int32))
    before = jnp.pad(sums, (1, 0))[:-1]
    inside = lax.population_count(packed[:, None] & ((jnp.uint32(1) << lane) - 1))
    return (before[:, None] + inside.astype(jnp.int32)).reshape(-1)[:n], sums[-1]


def _insert(code: Int32[Array, "S P"], bits: int):
    """Serves all codes of one class: (words [S,J], first pixel [J], slot of each pixel [P])."""
    S, P = code.shape
    size, quarter = 1 << bits, 1 << (bits - 2)
    pixel = jnp.arange(P, dtype=jnp.int32)
    h = _hash(code)

    def stored(first):
        found = first < P
        at = jnp.minimum(first, P - 1)
        return jnp.stack([jnp.where(found, _take(code[s], at), -1) for s in range(S)])

    slot = _slots(h, bits, 0)
    first1 = jnp.full(size, P, jnp.int32).at[slot].min(pixel, mode="promise_in_bounds")
    words1 = stored(first1)
    slot = jnp.where(_matches(words1, slot, code), slot, -1)

    at = _slots(h, bits, 1) - size
    first2 = jnp.full(quarter, P, jnp.int32)
    first2 = first2.at[jnp.where(slot < 0, at, quarter)].min(pixel, mode="drop")
    words2 = stored(first2)
    slot = jnp.where((slot < 0) & _matches(words2, at, code), at + size, slot)

    def body(carry):
        probe, slot, first, words, _ = carry
        at = _slots(h, bits, probe) - size - quarter
        free = (slot < 0) & (_take(words[0], at) < 0)
        first = first.at[jnp.where(free, at, quarter)].min(pixel, mode="drop")
        words = stored(first)
        slot = jnp.where((slot < 0) & _matches(words, at, code), at + size + quarter, slot)
        return probe + 1, slot, first, words, jnp.any(slot < 0)

    start = (
        jnp.int32(0),
        slot,
        jnp.full(quarter, P, jnp.int32),
        jnp.full((S, quarter), -1, jnp.int32),
        jnp.any(slot < 0),
    )
    _, slot, first3, words3, _ = lax.while_loop(lambda c: c[4] & (c[0] < _PROBES), body, start)
    words = jnp.concatenate([words1, words2, words3], axis=1)
    return words, jnp.concatenate([first1, first2, first3]), slot


def find_vertices(
    code: Int32[Array, "S P"],
    order: Int32[Array, "P"],
    residual: Float32[Array, "K P"],
    strides: Int32[Array, "S K"],
    *,
    bits: int,
    pixels: int,
) -> Vertices:
    """Numbers all lattice vertices that the points touch.

    Args:
      code, order, residual: of `embedding.locate`.
      strides: of `Geometry`.
      bits: the hash table of a class has 1.5 * 2^bits slots.
      pixels: how many of the P points are pixels; the others only make vertices.
    """
    S, P = code.shape
    K = residual.shape[0]
    d = K - 1
    flat = residual.reshape(-1)
    point = jnp.arange(P, dtype=jnp.int32)
    last = _take(flat, (order & 7) * P + point)

    def one_class(carry, k):
        code, before, start = carry
        words, first, slot = _insert(code, bits)
        unserved = jnp.sum(slot < 0, dtype=jnp.int32)
        slot = jnp.maximum(slot, 0)
        rank, count = _ranks(_take(first, slot) == point)
        numbers = jnp.where(first < P, start + _take(rank, jnp.minimum(first, P - 1)), 0)
        offset = _take(numbers, slot)
        axis = (order >> (3 * (d - k))) & 7
        here = _take(flat, axis * P + point)
        weight = here - before
        code = code - jnp.stack([_take(strides[s], axis) for s in range(S)])
        out = (words, numbers, start, unserved, offset[:pixels], weight[:pixels])
        return (code, here, start + count), out

    # b_0 = 1 + w_0 - w_d and b_k = w_k - w_{k-1}, w_k the residual of rank d-k.
    init = (code, last - 1.0, jnp.int32(1))
    (_, _, end), out = lax.scan(one_class, init, jnp.arange(K, dtype=jnp.int32))
    words, numbers, starts, unserved, offsets, weights = out
    return Vertices(
        words, numbers, jnp.append(starts, end), jnp.sum(unserved), offsets, weights
    )


def connect(
    vertices: Vertices, strides: Int32[Array, "S K"], *, bits: int, capacity: int
) -> tuple[Int32[Array, "K M"], Int32[Array, "K M"]]:
    """Finds the blur neighbours of all vertices; `capacity` is M, the length of the tables."""
    K, S, J = vertices.words.shape
    d = K - 1
    numbers = vertices.numbers.reshape(-1)
    words = vertices.words.swapaxes(0, 1).reshape(S, -1)
    code = jnp.stack(
        [jnp.full(capacity, -1, jnp.int32).at[numbers].set(words[s], mode="drop") for s in range(S)]
    )
    vertex = jnp.arange(capacity, dtype=jnp.int32)
    kind = sum((vertex >= vertices.starts[k]).astype(jnp.int32) for k in range(1, K))
    is_last = kind == d
    base = jnp.where(is_last, 0, kind + 1) * J
    exists = (vertex > 0) & (vertex < vertices.starts[K])

    def one_axis(_, j):
        # v- has +1 on all coordinates but -d on coordinate j: the next class, digit j one less;
        # after the last class comes class 0 with one more in every digit.
        want = code + jnp.where(is_last, jnp.sum(strides, axis=1)[:, None], 0)
        want = want - lax.dynamic_index_in_dim(strides, j, axis=1)
        h = _hash(want)
        number = jnp.zeros(capacity, jnp.int32)

        def look(probe, number):
            at = base + _slots(h, bits, probe)
            return jnp.where(_matches(words, at, want), _take(numbers, at), number)

        number = look(1, look(0, number))

        def more(carry):
            probe, number, _ = carry
            at = base + _slots(h, bits, probe)
            stored = _take(words[0], at)
            hit = _matches(words, at, want)
            number = jnp.where(hit, _take(numbers, at), number)
            return probe + 1, number, jnp.any((number == 0) & (stored >= 0) & exists)

        start = (jnp.int32(0), number, jnp.any((number == 0) & exists))
        _, number, _ = lax.while_loop(lambda c: c[2] & (c[0] < _PROBES), more, start)
        minus = jnp.where(exists, number, 0)
        plus = jnp.zeros(capacity, jnp.int32).at[minus].set(vertex, mode="drop").at[0].set(0)
        return None, (minus, plus)

    _, (minus, plus) = lax.scan(one_axis, None, jnp.arange(K, dtype=jnp.int32))
    return minus, plus


def _filter(lattice: Lattice, x: jax.Array, reverse: bool) -> jax.Array:
    K, N = lattice.offsets.shape
    M = lattice.minus.shape[1]
    z = jnp.zeros(M, jnp.float32)
    z = z.at[lattice.offsets].add(lattice.weights * x, mode="drop")

    # A scan, although K is small: unrolled, XLA fuses the passes into gathers of gathers.
    def blur(z, neighbours):
        minus, plus = neighbours
        return z + 0.5 * (_take(z, minus) + _take(z, plus)), None

    z, _ = lax.scan(blur, z, (lattice.minus, lattice.plus), reverse=reverse)
    y = jnp.zeros(N, jnp.float32)
    for k in range(K):
        y = y + lattice.weights[k] * z.at[lattice.offsets[k]].get(mode="clip")
    return y * jnp.float32(1.0 / (1.0 + 2.0 ** -(K - 1)))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def lattice_filter(
    lattice: Lattice, x: Float32[Array, "N"], reverse: bool = False
) -> Float32[Array, "N"]:
    """Splat, blur along all axes, slice. `reverse=True` is the transposed operator.

    Not normalised. Differentiable in `x` (not in the lattice, that is, the image): the gradient
    is the same filter with the axes in the opposite order.
    """
    return _filter(lattice, x, reverse)


def _forward(lattice, x, reverse):
    return lattice_filter(lattice, x, reverse), lattice


def _backward(reverse, lattice, g):
    return None, lattice_filter(lattice, g, not reverse)


lattice_filter.defvjp(_forward, _backward)
