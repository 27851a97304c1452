"""Pooling with the size rules of PyTorch and Caffe.

Both can round the output size up ("ceil mode"), which lets the last window hang over the border.
PyTorch (and Caffe when padded) drops a window that would start in the far padding. They differ in
what an overhanging average divides by.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from uvos_jax.errors import ConfigError, ShapeError


def pooled_size(n: int, window: int, stride: int, padding: int, *, ceil_mode: bool) -> int:
    """Output length along one axis.

    Raises:
      ShapeError: the window does not fit.
    """
    span = n + 2 * padding - window
    if span < 0:
        raise ShapeError(f"pooling: window {window} does not fit into {n} pixels + 2 x {padding}")
    if not ceil_mode:
        return span // stride + 1
    out = -(-span // stride) + 1
    if (out - 1) * stride >= n + padding:  # the last window would start beyond the image
        out -= 1
    return out


def _spatial_padding(
    shape: tuple[int, ...], window: int, stride: int, padding: int, ceil_mode: bool
) -> list[tuple[int, int]]:
    pads = []
    for n in shape:
        out = pooled_size(n, window, stride, padding, ceil_mode=ceil_mode)
        pads.append((padding, max(0, (out - 1) * stride + window - n - padding)))
    return pads


def max_pool(
    x: Float[Array, "B H W C"],
    window: int,
    stride: int,
    padding: int | Literal["SAME"] = 0,
    *,
    ceil_mode: bool = False,
) -> Float[Array, "B h w C"]:
    """Maximum over windows; padding never wins. Same rule in PyTorch and Caffe.

    Args:
      padding: pixels on every side, or `SAME`: TensorFlow's rule, `ceil(n / stride)` outputs, the
        odd pixel of padding at the bottom and right.

    Raises:
      ShapeError: the window does not fit.
    """
    if padding == "SAME":
        out = [-(-n // stride) for n in x.shape[1:3]]
        pads = lax.padtype_to_pads(x.shape[1:3], (window,) * 2, (stride,) * 2, "SAME")
    else:
        pads = _spatial_padding(x.shape[1:3], window, stride, padding, ceil_mode)
        out = [pooled_size(n, window, stride, padding, ceil_mode=ceil_mode) for n in x.shape[1:3]]
    y = lax.reduce_window(
        x,
        -np.inf,
        lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        [(0, 0), *pads, (0, 0)],
    )
    return y[:, : out[0], : out[1]]


def _sum_pool(x: Array, window: int, stride: int, pads: list[tuple[int, int]]) -> Array:
    return lax.reduce_window(
        x, 0.0, lax.add, (1, window, window, 1), (1, stride, stride, 1), [(0, 0), *pads, (0, 0)]
    )


def _divisors(n: int, out: int, window: int, stride: int, padding: int, count: str) -> np.ndarray:
    """Cells each window along one axis divides by."""
    start = np.arange(out) * stride - padding
    end = np.minimum(start + window, n + padding)
    if count == "valid":
        return np.minimum(end, n) - np.maximum(start, 0)
    return end - start


def avg_pool(
    x: Float[Array, "B H W C"],
    window: int,
    stride: int,
    padding: int = 0,
    *,
    ceil_mode: bool = False,
    count: Literal["padded", "valid"] = "padded",
) -> Float[Array, "B h w C"]:
    """Mean over windows.

    Args:
      count: `padded` divides by the window's area inside image plus padding (PyTorch's default,
        Caffe); `valid` by its area inside the image.

    Raises:
      ConfigError: unknown `count`.
      ShapeError: the window does not fit.
    """
    if count not in ("padded", "valid"):
        raise ConfigError(f"avg_pool: count {count!r} is unknown: use 'padded' or 'valid'")
    pads = _spatial_padding(x.shape[1:3], window, stride, padding, ceil_mode)
    out = [pooled_size(n, window, stride, padding, ceil_mode=ceil_mode) for n in x.shape[1:3]]
    total = _sum_pool(x, window, stride, pads)[:, : out[0], : out[1]]
    rows, cols = (
        _divisors(n, o, window, stride, padding, count)
        for n, o in zip(x.shape[1:3], out, strict=True)
    )
    return total / jnp.asarray(rows[:, None] * cols[None, :], x.dtype)[..., None]


def caffe_pool(
    x: Float[Array, "B H W C"],
    kind: Literal["max", "ave"],
    window: int,
    stride: int,
    padding: int = 0,
) -> Float[Array, "B h w C"]:
    """Caffe's Pooling layer: sizes round up; averages count padding but not the overhang.

    Raises:
      ConfigError: `kind` is neither `max` nor `ave`.
    """
    if kind == "max":
        return max_pool(x, window, stride, padding, ceil_mode=True)
    if kind == "ave":
        return avg_pool(x, window, stride, padding, ceil_mode=True, count="padded")
    raise ConfigError(f"caffe_pool: kind {kind!r} is unknown: use 'max' or 'ave'")
