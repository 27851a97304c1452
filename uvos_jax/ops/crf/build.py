"""Builds the lattice of a term, in stages, with the table sizes an image needs.

Eagerly, the stages are separate programs and the number of vertices is read between them, so the
tables are as large as needed and never too small. Inside somebody else's trace the sizes must be
known beforehand: they are then sized for the worst case, or for the `capacity` given, and
a lattice that does not fit is reported by `Lattice.count`.

Apart from speed there is a reason for separate programs: XLA on CPU fuses through optimisation
barriers and recomputes a stage's producers for each of its results (15 times slower, measured).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from uvos_jax.errors import UnsupportedError
from uvos_jax.ops.crf import embedding
from uvos_jax.ops.crf.lattice import Lattice, connect, find_vertices
from uvos_jax.ops.crf.terms import TermKey


def _programs(batched: bool) -> dict[str, Callable]:
    """The compiled stages, for one image or (vectorised) for several at once."""

    def compiled(function, in_axes, *static):
        def call(*arguments, **options):
            one = partial(function, **options)
            return (jax.vmap(one, in_axes) if batched else one)(*arguments)

        return jax.jit(call, static_argnames=static)

    return {
        "elevate": compiled(embedding.elevate, (None, 0), "axes", "extra"),
        "locate": compiled(embedding.locate, (0, None, None)),
        "find": compiled(find_vertices, (0, 0, 0, None), "bits", "pixels"),
        "connect": compiled(connect, (0, None), "bits", "capacity"),
    }


_ONE, _SEVERAL = _programs(False), _programs(True)

#: log2 of hash slots per class, and table lengths, that an earlier image of this size and term
#: needed; the next frames of a video then run the same compiled programs.
_BITS: dict[tuple, int] = {}
_ROOM: dict[tuple, int] = {}
_MAX_BITS = 26


def is_traced(*values) -> bool:
    """Whether any leaf is a tracer."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def room(count: int, before: int = 0) -> int:
    """The table length for `count` vertices: `before` if that fits well, else a round number.

    Round numbers have three significant bits and leave a margin of a twentieth, so that few
    lengths are ever compiled.
    """
    if 0.6 * before <= count <= before:
        return before
    wanted = count + count // 20 + 1
    step = 1 << max(wanted.bit_length() - 4, 3)
    return -(-wanted // step) * step


def _bits_for(points: int) -> int:
    return max(int(points // 4).bit_length(), 8)


def build_lattice(
    image: UInt8[Array, "*B H W 3"] | np.ndarray,
    key: TermKey,
    *,
    capacity: int | None = None,
) -> Lattice:
    """Builds the lattice of the bilateral term `key` on an image.

    For a batch of images (not traced) the arrays of the lattice have a leading batch axis.

    Args:
      capacity: vertices to make room for; only used when the image is traced.

    Raises:
      ConfigError: scales too small for 16-bit lattice coordinates.
    """
    size = H, W = image.shape[-3:-1]
    plan = embedding.geometry(H, W, key)
    pixels, extra = H * W, (H * W) % 4 != 0
    strides, origin = jnp.asarray(plan.strides), jnp.asarray(plan.origin)
    tables = tuple(jnp.asarray(t) for t in plan.tables)
    if is_traced(image):
        worst = pixels + extra
        # At a load of 1/2 the probability of an unserved code is negligible, and it is reported.
        bits = max((2 * (worst if capacity is None else -(-capacity // len(tables)))), 256)
        bits = int(bits - 1).bit_length()
        capacity = room((len(tables) + 1) * worst + 1) if capacity is None else capacity
        elevated = embedding.opaque(embedding.elevate(tables, image, axes=plan.axes, extra=extra))
        located = embedding.opaque(embedding.locate(elevated, strides, origin))
        found = embedding.opaque(find_vertices(*located, strides, bits=bits, pixels=pixels))
        minus, plus = connect(found, strides, bits=bits, capacity=capacity)
        count = jnp.where(found.unserved > 0, jnp.int32(2**31 - 1), found.starts[-1])
        return Lattice(jnp.minimum(found.offsets, capacity - 1), found.weights, minus, plus, count)

    run = _SEVERAL if image.ndim == 4 else _ONE
    elevated = run["elevate"](tables, image, axes=plan.axes, extra=extra)
    located = run["locate"](elevated, strides, origin)
    memo = (size, key)
    bits = _BITS.get(memo, _bits_for(pixels))
    while True:
        found = run["find"](*located, strides, bits=bits, pixels=pixels)
        starts, unserved = jax.device_get((found.starts, found.unserved))
        # Beyond half load the probes get long; one size more is remembered for the next frames.
        if np.max(unserved) == 0 and np.max(np.diff(starts)) <= 1 << (bits - 1):
            break
        if bits >= _MAX_BITS:
            raise UnsupportedError(
                f"the lattice of {key.scales} on a {H}x{W} image does not fit 2^{bits} hash slots; "
                "use larger scales or a smaller image"
            )
        bits += 1
        _BITS[memo] = bits
    count = int(np.max(starts[..., -1]))
    capacity = _ROOM[memo] = room(count, _ROOM.get(memo, 0))
    minus, plus = run["connect"](found, strides, bits=bits, capacity=capacity)
    return Lattice(found.offsets, found.weights, minus, plus, found.starts[..., -1])
