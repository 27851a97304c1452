"""Resizing as the original frameworks did it: bilinear, nearest and bicubic, never antialiased.

Three conventions of where samples lie are in use: half-pixel centres (PyTorch's default, OpenCV),
aligned corners (Caffe's Interp, PyTorch on request) and the legacy TF1 rule. `jax.image.resize`
antialiases when shrinking and knows only the first, hence an implementation of our own.

Each axis is a small matrix that is known at trace time. Short axes are resized by a matrix
product, whose gradient is one too; long ones (camera frames) by two gathers and a blend.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from uvos_jax.errors import ShapeError

Convention = Literal["half_pixel", "align_corners", "legacy"]
#: Input lengths above this are resized by gathers.
MATRIX_LIMIT = 256


def _positions(n_in: int, n_out: int, convention: Convention) -> np.ndarray:
    """Where the output samples lie on the input axis, float64 `[n_out]`, not clipped."""
    i = np.arange(n_out, dtype=np.float64)
    if convention == "align_corners":
        return i * ((n_in - 1) / (n_out - 1)) if n_out > 1 else np.zeros(1)
    if convention == "legacy":
        return i * (n_in / n_out)
    return (i + 0.5) * (n_in / n_out) - 0.5


@lru_cache(maxsize=512)
def _linear_taps(
    n_in: int, n_out: int, convention: Convention
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the two neighbours and the weight of the second, with edges clamped."""
    x = np.clip(_positions(n_in, n_out, convention), 0, n_in - 1)
    low = np.minimum(np.floor(x).astype(np.int32), max(n_in - 1, 0))
    high = np.minimum(low + 1, n_in - 1)
    return low, high, (x - low).astype(np.float32)


@lru_cache(maxsize=512)
def _linear_matrix(n_in: int, n_out: int, convention: Convention) -> np.ndarray:
    low, high, weight = _linear_taps(n_in, n_out, convention)
    matrix = np.zeros((n_out, n_in), np.float32)
    rows = np.arange(n_out)
    np.add.at(matrix, (rows, low), 1 - weight)
    np.add.at(matrix, (rows, high), weight)
    return matrix


def _apply_axis(x: Array, n_out: int, axis: int, convention: Convention) -> Array:
    n_in = x.shape[axis]
    if n_in == n_out:
        return x
    if n_in > MATRIX_LIMIT:
        low, high, weight = _linear_taps(n_in, n_out, convention)
        shape = [1] * x.ndim
        shape[axis] = n_out
        w = weight.reshape(shape).astype(x.dtype)
        return jnp.take(x, low, axis=axis) * (1 - w) + jnp.take(x, high, axis=axis) * w
    matrix = jnp.asarray(_linear_matrix(n_in, n_out, convention), x.dtype)
    y = jnp.tensordot(x, matrix, axes=((axis,), (1,)), precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(y, -1, axis)


def _check(x: Array, size: tuple[int, int]) -> None:
    if len(size) != 2 or min(size) < 1 or min(x.shape[-3:-1]) < 1:
        raise ShapeError(
            f"resize: cannot go from {x.shape[-3:-1]} to {size}; both sizes must be positive (h, w)"
        )


def resize_bilinear(
    x: Float[Array, "*B H W C"], size: tuple[int, int], *, align_corners: bool = False
) -> Float[Array, "*B h w C"]:
    """Bilinear resize to `size` (h, w), edges clamped, no antialiasing.

    Args:
      align_corners: False puts samples at pixel centres (PyTorch's default, OpenCV's
        INTER_LINEAR), True maps the corner pixels onto each other (Caffe's Interp).

    Raises:
      ShapeError: an empty image or size.
    """
    convention = "align_corners" if align_corners else "half_pixel"
    return _resize(x, tuple(size), convention)


def resize_bilinear_legacy(
    x: Float[Array, "*B H W C"], size: tuple[int, int]
) -> Float[Array, "*B h w C"]:
    """TF1's default `resize_images`: samples at `i * in / out`, without the half-pixel offset."""
    return _resize(x, tuple(size), "legacy")


def _resize(x: Array, size: tuple[int, int], convention: Convention) -> Array:
    _check(x, size)
    # The axis that shrinks most goes first: less work for the second.
    axes = sorted((-3, -2), key=lambda a: size[a + 3] / x.shape[a])
    for axis in axes:
        x = _apply_axis(x, size[axis + 3], axis + x.ndim, convention)
    return x


def resize_nearest(
    x: Shaped[Array, "*B H W C"],
    size: tuple[int, int],
    *,
    convention: Literal["floor", "half_pixel"] = "floor",
) -> Shaped[Array, "*B h w C"]:
    """Nearest neighbour; `floor` takes pixel `floor(i * in / out)` (PyTorch, OpenCV, TF1 legacy),
    `half_pixel` the one whose centre is nearest.

    Raises:
      ShapeError: an empty image or size.
    """
    _check(x, size)
    for axis, n_out in zip((-3, -2), size, strict=True):
        n_in = x.shape[axis]
        i = np.arange(n_out)
        if convention == "floor":
            index = (i * n_in) // n_out
        else:
            index = np.floor((i + 0.5) * n_in / n_out).astype(int)
        index = np.minimum(index, n_in - 1)
        if n_in != n_out:
            x = jnp.take(x, index, axis=axis)
    return x


@lru_cache(maxsize=128)
def _cubic_matrix(n_in: int, n_out: int, a: float) -> np.ndarray:
    x = _positions(n_in, n_out, "half_pixel")
    base = np.floor(x)
    matrix = np.zeros((n_out, n_in), np.float32)
    rows = np.arange(n_out)
    for k in range(-1, 3):
        d = np.abs(x - (base + k))
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        weight = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
        np.add.at(matrix, (rows, np.clip(base + k, 0, n_in - 1).astype(int)), weight)
    return matrix


def resize_bicubic(
    x: Float[Array, "*B H W C"], size: tuple[int, int], *, a: float = -0.75
) -> Float[Array, "*B h w C"]:
    """Bicubic convolution at pixel centres, edges clamped; a = -0.75 as in PyTorch and OpenCV."""
    _check(x, size)
    product = partial(jnp.tensordot, precision=lax.Precision.HIGHEST)
    for axis, n_out in zip((-3, -2), size, strict=True):
        matrix = jnp.asarray(_cubic_matrix(x.shape[axis], n_out, a), x.dtype)
        x = jnp.moveaxis(product(x, matrix, axes=((axis + x.ndim,), (1,))), -1, axis)
    return x


@lru_cache(maxsize=128)
def _area_matrix(n_in: int, n_out: int) -> np.ndarray:
    edges = np.arange(n_out + 1) * (n_in / n_out)
    low, high = edges[:-1, None], edges[1:, None]
    cell = np.arange(n_in)[None]
    overlap = np.clip(np.minimum(high, cell + 1) - np.maximum(low, cell), 0, None)
    return (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)


def resize_area(x: Float[Array, "*B H W C"], size: tuple[int, int]) -> Float[Array, "*B h w C"]:
    """Mean over the area of each output pixel, with parts of input pixels counted in part.

    Raises:
      ShapeError: an empty image or size.
    """
    _check(x, size)
    product = partial(jnp.tensordot, precision=lax.Precision.HIGHEST)
    for axis, n_out in zip((-3, -2), size, strict=True):
        n_in, at = x.shape[axis], axis + x.ndim
        if n_in % n_out == 0:
            step = n_in // n_out
            x = sum(lax.slice_in_dim(x, i, n_in, step, at) for i in range(step)) / step
        else:
            matrix = jnp.asarray(_area_matrix(n_in, n_out), x.dtype)
            x = jnp.moveaxis(product(x, matrix, axes=((at,), (1,))), -1, axis)
    return x
