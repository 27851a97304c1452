"""Exact Gaussian filtering by brute force, block by block: the yardstick for small images.

Every pair of pixels is visited, so time grows with the square of their number: half an hour per
filter at 854x480 on a CPU core pair, tenths of a second on a large accelerator.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, UInt8

from uvos_jax.ops.crf.terms import TermKey

_BLOCK = 512


def features(
    image: UInt8[Array, "H W 3"] | Float32[Array, "H W 3"] | np.ndarray | None,
    size: tuple[int, int],
    key: TermKey,
) -> Float32[Array, "N D"]:
    """Feature vectors of all pixels in units of the term's scales."""
    H, W = size
    planes = [
        jnp.broadcast_to(jnp.arange(H, dtype=jnp.float32)[:, None] / key.scales[0], size),
        jnp.broadcast_to(jnp.arange(W, dtype=jnp.float32)[None] / key.scales[1], size),
    ]
    if key.is_bilateral:
        planes += [
            jnp.asarray(image)[..., c].astype(jnp.float32) / key.scales[2 + c] for c in (0, 1, 2)
        ]
    return jnp.stack(planes, axis=-1).reshape(H * W, -1)


def gaussian_filter(f: Float32[Array, "N D"], x: Float32[Array, "N"]) -> Float32[Array, "N"]:
    """sum_j exp(-|f_i - f_j|^2 / 2) x_j, in blocks of rows and columns of the kernel matrix."""
    N, D = f.shape
    pad = -N % _BLOCK
    f_blocks = jnp.pad(f, ((0, pad), (0, 0))).reshape(-1, _BLOCK, D)
    x_blocks = jnp.pad(x, (0, pad)).reshape(-1, _BLOCK)  # padding has no mass

    def rows(f_rows):
        def add(total, block):
            f_columns, x_columns = block
            distance = jnp.sum((f_rows[:, None] - f_columns[None]) ** 2, axis=-1)
            return total + jnp.sum(jnp.exp(-0.5 * distance) * x_columns[None], axis=1), None

        return lax.scan(add, jnp.zeros(_BLOCK, jnp.float32), (f_blocks, x_blocks))[0]

    return lax.map(jax.checkpoint(rows), f_blocks).reshape(-1)[:N]
