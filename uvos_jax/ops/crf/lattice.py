"""The permutohedral lattice as static-shape arrays, and the filter on it.

The vertices that the pixels of an image touch are found without sorting, by hashing: all pixels
write their index into a table at the hash of their vertex code, the smallest index stays, and
every pixel whose code equals the winner's is served; the few codes that lost are served from a
second table, and from a third one by open addressing. Class by class (a `scan`), because a
table that fits the cache is several times faster than a sort of all codes.

Vertex 0 stands for "absent" and always holds zero.
"""

from __future__ import annotations

from collections.abc import Callable
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
      numbers: number of the vertex in a slot, 0 if empty, negated where another code was turned
        away (a code that is not in such a slot may be in the other tables).
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
    return values.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


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


def _number(first: Int32[Array, "J"], points: int) -> tuple[Int32[Array, "J"], Int32[Array, ""]]:
    """Numbers the filled slots by their first pixel, from 0; also returns how many there are.

    In raster order neighbouring pixels use neighbouring memory. One bit per pixel, popcounts.
    """
    filled = first < points
    at = jnp.where(filled, first, 0)
    bit = jnp.uint32(1) << (at & 31).astype(jnp.uint32)
    bits = jnp.zeros(points // 32 + 1, jnp.uint32)
    bits = bits.at[at >> 5].add(jnp.where(filled, bit, 0), mode="promise_in_bounds")
    sums = jnp.cumsum(lax.population_count(bits).astype(jnp.int32))
    before = jnp.pad(sums, (1, 0))
    lower = lax.population_count(_take(bits, at >> 5) & (bit - 1)).astype(jnp.int32)
    return _take(before, at >> 5) + lower, sums[-1]


def _for_flagged(flags: Bool[Array, "n"], chunk: int, body: Callable, state):
    """Runs `state = body(state, positions)` on all set flags, `chunk` at a time, in order.

    The last chunk is filled up with n. Costs little where few flags are set.
    """
    n = flags.shape[0]
    lane = jnp.arange(32, dtype=jnp.uint32)
    bits = jnp.pad(flags, (0, -n % 32)).reshape(-1, 32).astype(jnp.uint32)
    bits = jnp.sum(bits << lane, axis=1, dtype=jnp.uint32)
    sums = jnp.cumsum(lax.population_count(bits).astype(jnp.int32))
    total = sums[-1]
    steps = bits.shape[0].bit_length()

    def step(carry):
        done, state = carry
        target = done + jnp.arange(chunk, dtype=jnp.int32)

        def halve(i, word):  # the number of words whose running sum is <= target
            ahead = word + (1 << (steps - 1 - i))
            inside = ahead <= bits.shape[0]
            return jnp.where(
                inside & (_take(sums, jnp.where(inside, ahead - 1, 0)) <= target), ahead, word
            )

        word = lax.fori_loop(0, steps, halve, jnp.zeros(chunk, jnp.int32))
        word = jnp.minimum(word, bits.shape[0] - 1)
        rest = _take(bits, word)
        left = target - _take(sums, word) + lax.population_count(rest).astype(jnp.int32)
        lowest = jnp.zeros(chunk, jnp.int32)
        for width in (16, 8, 4, 2, 1):  # the bit with `left` set bits below it
            half = rest & jnp.uint32((1 << width) - 1)
            count = lax.population_count(half).astype(jnp.int32)
            upper = left >= count
            left = jnp.where(upper, left - count, left)
            lowest = jnp.where(upper, lowest + width, lowest)
            rest = jnp.where(upper, rest >> width, half)
        position = jnp.where(target < total, 32 * word + lowest, n)
        return done + chunk, body(state, position)

    return lax.while_loop(lambda c: c[0] < total, step, (jnp.int32(0), state))[1]


def _insert(code: Int32[Array, "S P"], bits: int):
    """Gives all codes of one class a slot.

    Returns:
      words `[S,J]` and first pixel `[J]` (P: empty) of all slots, the slot of each pixel `[P]`
      (-1: none), and which slots of the first table turned codes away `[2^bits]`.
    """
    S, P = code.shape
    size, quarter = 1 << bits, 1 << (bits - 2)
    pixel = jnp.arange(P, dtype=jnp.int32)

    def stored(first):
        found = first < P
        at = jnp.minimum(first, P - 1)
        return jnp.stack([jnp.where(found, _take(code[s], at), -1) for s in range(S)])

    slot = _slots(_hash(code), bits, 0)
    first1 = jnp.full(size, P, jnp.int32).at[slot].min(pixel, mode="promise_in_bounds")
    words1 = stored(first1)
    served = _matches(words1, slot, code)

    def overflow(state, position):
        slot, moved, first2, first3, words3 = state
        valid = position < P
        own = jnp.stack([_take(code[s], jnp.minimum(position, P - 1)) for s in range(S)])
        h = _hash(own)
        moved = moved.at[jnp.where(valid, _slots(h, bits, 0), size)].set(True, mode="drop")
        at = _slots(h, bits, 1) - size
        first2 = first2.at[jnp.where(valid, at, quarter)].min(position, mode="drop")
        found = jnp.where(_matches(stored(first2), at, own), at + size, -1)

        def probe_once(carry):
            probe, found, first3, words3 = carry
            at = _slots(h, bits, probe) - size - quarter
            lost = valid & (found < 0)
            free = lost & (_take(words3[0], at) < 0)
            first3 = first3.at[jnp.where(free, at, quarter)].min(position, mode="drop")
            words3 = stored(first3)
            found = jnp.where(lost & _matches(words3, at, own), at + size + quarter, found)
            return probe + 1, found, first3, words3

        _, found, first3, words3 = lax.while_loop(
            lambda c: jnp.any(valid & (c[1] < 0)) & (c[0] < _PROBES),
            probe_once,
            (jnp.int32(0), found, first3, words3),
        )
        slot = slot.at[position].set(found, mode="drop")
        return slot, moved, first2, first3, words3

    empty = jnp.full(quarter, P, jnp.int32)
    state = (slot, jnp.zeros(size, bool), empty, empty, jnp.full((S, quarter), -1, jnp.int32))
    slot, moved, first2, first3, words3 = _for_flagged(~served, max(P // 8, 32), overflow, state)
    words = jnp.concatenate([words1, stored(first2), words3], axis=1)
    return words, jnp.concatenate([first1, first2, first3]), slot, moved


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
    last = sum(jnp.where((order & 7) == i, residual[i], 0.0) for i in range(K))

    def one_class(carry, k):
        code, before, start = carry
        words, first, slot, moved = _insert(code, bits)
        unserved = jnp.sum(slot < 0, dtype=jnp.int32)
        slot = jnp.maximum(slot, 0)
        rank, count = _number(first, P)
        numbers = jnp.where(first < P, start + rank, 0)
        offset = _take(numbers, slot)
        moved = jnp.pad(moved, (0, numbers.shape[0] - moved.shape[0]))
        numbers = jnp.where(moved, -numbers, numbers)
        axis = (order >> (3 * (d - k))) & 7
        here = sum(jnp.where(axis == i, residual[i], 0.0) for i in range(K))
        weight = here - before
        code = code - jnp.stack([_take(strides[s], axis) for s in range(S)])
        out = (words, numbers, start, unserved, offset[:pixels], weight[:pixels])
        return (code, here, start + count), out

    # b_0 = 1 + w_0 - w_d and b_k = w_k - w_{k-1}, w_k the residual of rank d-k.
    init = (code, last - 1.0, jnp.int32(1))
    (_, _, end), out = lax.scan(one_class, init, jnp.arange(K, dtype=jnp.int32))
    words, numbers, starts, unserved, offsets, weights = out
    return Vertices(words, numbers, jnp.append(starts, end), jnp.sum(unserved), offsets, weights)


def connect(
    vertices: Vertices, strides: Int32[Array, "S K"], *, bits: int, capacity: int
) -> tuple[Int32[Array, "K M"], Int32[Array, "K M"]]:
    """Finds the blur neighbours of all vertices; `capacity` is M, the length of the tables."""
    K, S, J = vertices.words.shape
    d = K - 1
    numbers = vertices.numbers.reshape(-1)
    words = vertices.words.swapaxes(0, 1).reshape(S, -1)
    code = jnp.stack(
        [
            jnp.full(capacity, -1, jnp.int32).at[jnp.abs(numbers)].set(words[s], mode="drop")
            for s in range(S)
        ]
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
        at = base + _slots(_hash(want), bits, 0)
        stored = _take(numbers, at)
        hit = _matches(words, at, want)
        number = jnp.where(hit, jnp.abs(stored), 0)

        def others(number, position):
            valid = position < capacity
            here = jnp.minimum(position, capacity - 1)
            own = jnp.stack([_take(want[s], here) for s in range(S)])
            h, table = _hash(own), _take(base, here)
            at = table + _slots(h, bits, 1)
            found = jnp.where(_matches(words, at, own), _take(numbers, at), 0)

            def more(carry):  # open addressing: an empty slot ends the search
                probe, found, open_ = carry
                at = table + _slots(h, bits, probe)
                found = jnp.where(open_ & _matches(words, at, own), _take(numbers, at), found)
                return probe + 1, found, open_ & (found == 0) & (_take(words[0], at) >= 0)

            start = (jnp.int32(0), found, valid & (found == 0))
            _, found, _ = lax.while_loop(lambda c: jnp.any(c[2]) & (c[0] < _PROBES), more, start)
            return number.at[position].set(found, mode="drop")

        turned_away = exists & ~hit & (stored < 0)
        number = _for_flagged(turned_away, max(capacity // 16, 32), others, number)
        minus = jnp.where(exists, number, 0)
        plus = jnp.zeros(capacity, jnp.int32).at[minus].set(vertex, mode="drop").at[0].set(0)
        return None, (minus, plus)

    _, (minus, plus) = lax.scan(one_axis, None, jnp.arange(K, dtype=jnp.int32))
    return minus, plus


def _filter(lattice: Lattice, x: jax.Array, reverse: bool) -> jax.Array:
    # Scans, although K is small: in straight-line code XLA fuses the passes of the blur into
    # gathers of gathers, and one scatter over all classes copies its operands first.
    def splat(z, corner):
        offset, weight = corner
        add = z.at[offset].add
        return add(weight * x, mode="promise_in_bounds", wrap_negative_indices=False), None

    def blur(z, neighbours):
        minus, plus = neighbours
        return z + 0.5 * (_take(z, minus) + _take(z, plus)), None

    def cut(y, corner):
        offset, weight = corner
        return y + weight * _take(z, offset), None

    z = jnp.zeros(lattice.minus.shape[1], jnp.float32)
    z, _ = lax.scan(splat, z, (lattice.offsets, lattice.weights))
    z, _ = lax.scan(blur, z, (lattice.minus, lattice.plus), reverse=reverse)
    y, _ = lax.scan(cut, jnp.zeros_like(x), (lattice.offsets, lattice.weights))
    d = lattice.offsets.shape[0] - 1
    return y * jnp.float32(1.0 / (1.0 + 2.0**-d))


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
