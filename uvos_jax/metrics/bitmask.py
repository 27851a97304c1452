"""Binary masks packed 32 pixels to a word, and the set operations the contour measure needs.

Pixel x of a row is bit `x % 32` of word `x // 32` (lowest bit leftmost); bits beyond the width are
zero. A 854x480 mask is 52 kB instead of 410 kB, a dilation is a few dozen shifts and ORs, and
counting is a population count. Everything is exact integer work and runs on any backend.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Int32, Shaped, UInt32

from uvos_jax.errors import ConfigError

WORD = 32

Mask = Shaped[Array | np.ndarray, "*batch H W"]
#: a mask that is to have the size of another; functions check that themselves, in words.
OtherMask = Shaped[Array | np.ndarray, "..."]
Words = UInt32[Array | np.ndarray, "*batch H words"]


def num_words(width: int) -> int:
    """Words per row of `width` pixels."""
    return -(-width // WORD)


def pack(mask: Mask) -> UInt32[Array, "*batch H words"]:
    """Packs a mask inside jit; non-zero means set."""
    W = mask.shape[-1]
    bits = jnp.asarray(mask) != 0
    bits = jnp.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, num_words(W) * WORD - W)])
    bits = bits.reshape(*bits.shape[:-1], num_words(W), WORD).astype(jnp.uint32)
    return (bits << jnp.arange(WORD, dtype=jnp.uint32)).sum(-1, dtype=jnp.uint32)


def pack_host(mask: np.ndarray) -> np.ndarray:
    """Packs a mask `[...,H,W]` with numpy (several times faster than `pack` on a CPU)."""
    mask = np.asarray(mask)
    packed = np.packbits(mask if mask.dtype == bool else mask != 0, axis=-1, bitorder="little")
    words = np.zeros((*mask.shape[:-1], num_words(mask.shape[-1]) * 4), np.uint8)
    words[..., : packed.shape[-1]] = packed
    return words.view("<u4").astype(np.uint32, copy=False)


def unpack_host(words: np.ndarray, width: int) -> np.ndarray:
    """The bool mask `[...,H,width]` of packed words."""
    octets = np.ascontiguousarray(words).astype("<u4", copy=False).view(np.uint8)
    return np.unpackbits(octets, axis=-1, count=width, bitorder="little").astype(bool)


def count(words: Words) -> Int32[Array, "*batch"]:
    """Number of set pixels of each mask."""
    return lax.population_count(jnp.asarray(words)).sum((-1, -2), dtype=jnp.int32)


def boundary(words: Words, width: int) -> UInt32[Array, "*batch H words"]:
    """Pixels that differ from their right, lower or lower-right neighbour.

    Pixels outside the image count as equal to the border pixel, so a mask has no boundary along the
    image border, and a mask that fills the image has none at all (`seg2bmap` of the DAVIS code).
    """
    words = jnp.asarray(words)
    last = np.zeros(words.shape[-1], np.uint32)
    last[(width - 1) // WORD] = np.uint32(1) << np.uint32((width - 1) % WORD)
    following = jnp.concatenate([words[..., 1:], jnp.zeros_like(words[..., :1])], -1)
    east = (words >> 1) | (following << 31)
    east = (east & ~last) | (words & last)
    south = _row_below(words)
    south_east = _row_below(east)
    return (words ^ east) | (words ^ south) | (words ^ south_east)


def _row_below(words: Array) -> Array:
    return jnp.concatenate([words[..., 1:, :], words[..., -1:, :]], -2)


def dilate_disk(words: Words, radius: int) -> UInt32[Array, "*batch H words"]:
    """Dilation by the disk `dx^2 + dy^2 <= radius^2`; outside the image counts as unset.

    Bits beyond the width may become set; they are harmless where the result is ANDed with a mask.

    Raises:
      ConfigError: negative radius.
    """
    if radius < 0:
        raise ConfigError(f"radius {radius} is negative: a disk needs a radius of at least 0")
    words = jnp.asarray(words)
    H, n = words.shape[-2:]
    margin = radius // WORD + 1
    lead = [(0, 0)] * (words.ndim - 2)
    wide = jnp.pad(words, [*lead, (0, 0), (margin, margin)])

    def shifted(k: int) -> Array:  # its pixel x is pixel x-k of the mask
        whole, bits = divmod(k, WORD)
        start = margin - whole
        here = wide[..., start : start + n]
        if bits == 0:
            return here
        return (here << bits) | (wide[..., start - 1 : start - 1 + n] >> (WORD - bits))

    # Horizontal runs of every half-width grow from one another; each row offset of the disk then
    # takes the run of its own half-width. Rows are padded once and sliced: padding per offset
    # costs six times the rest.
    half_width = [math.isqrt(radius * radius - dy * dy) for dy in range(radius + 1)]
    run, runs = words, {0: words}
    for k in range(1, radius + 1):
        run = run | shifted(k) | shifted(-k)
        runs[k] = run
    tall = {w: jnp.pad(runs[w], [*lead, (radius, radius), (0, 0)]) for w in set(half_width)}
    out = words
    for dy in range(-radius, radius + 1):
        rows = tall[half_width[abs(dy)]]
        out = out | rows[..., radius + dy : radius + dy + H, :]
    return out
