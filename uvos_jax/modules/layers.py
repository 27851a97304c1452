"""Convolution, normalisation and activation as every backbone here uses them.

Padding is always explicit and symmetric: "SAME" with stride 2 pads one side only and gives other
values than the networks these weights come from. Parameters are float32; `dtype` is that of the
arithmetic.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

BN_EPSILON = 1e-5
#: Flax keeps this share of the running statistics; PyTorch's momentum 0.1.
BN_MOMENTUM = 0.9
#: Dilations from this part of the image's shorter side on are applied tap by tap on CPUs, to at
#: least so many channels: of few, a product is no faster, and nine take longer to compile.
WIDE_DILATION, WIDE_CHANNELS = 5, 512

#: Channels in and out up to which columns are computed in pairs on CPUs.
NARROW_IN, NARROW_OUT = 8, 24


class Conv(nn.Module):
    """2-D convolution with explicit padding.

    A 1x1 kernel is applied as a matrix product, which XLA's CPU back end runs about 1.3 times
    faster than the equal convolution; a strided one skips pixels first. There, too, a kernel whose
    dilation is a good part of the image (ASPP) is applied as one product for each tap, on the
    pixels where the tap meets the image: the convolution would multiply padding as well.

    Attributes:
      features: output channels.
      kernel_size: square kernel.
      stride, dilation: of both axes.
      padding: pixels on every side; None keeps the size at stride 1; `SAME` is TensorFlow's rule,
        which pads the odd pixel at the bottom and right, for networks that come from there.
      groups: feature groups.
      in_pairs: neighbouring columns may be computed together, as one column of twice the channels:
        on CPUs XLA is twice as fast forward so if there are few channels (7 and 16, say), and
        slower backward, so ask for it at inference only.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    padding: int | str | None = None
    use_bias: bool = False
    groups: int = 1
    in_pairs: bool = False
    dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Cross-correlates `x`; output in `dtype`."""
        k, d = self.kernel_size, self.dilation
        shape = (k, k, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype)
        pad = (k - 1) * d // 2 if self.padding is None else self.padding
        if k == 1 and self.groups == 1 and pad in (0, "SAME"):
            if self.stride > 1:
                x = x[:, :: self.stride, :: self.stride]
            y = x @ kernel[0, 0]
        elif self.in_pairs and self._same_on_cpu(pad) and _is_narrow(kernel, d, x.shape[2]):
            y = _conv_in_pairs(x, kernel)
        elif self._same_on_cpu(pad) and _is_wide(x.shape[1:], d):
            y = _conv_by_taps(x, kernel, d)
        else:
            y = lax.conv_general_dilated(
                x,
                kernel,
                (self.stride, self.stride),
                pad if pad == "SAME" else [(pad, pad), (pad, pad)],
                rhs_dilation=(d, d),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=self.groups,
            )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + jnp.asarray(bias, self.dtype)
        return y

    def _same_on_cpu(self, pad: int | str) -> bool:
        """Whether this is an odd kernel that keeps the size, on the CPU back end."""
        same = self.kernel_size % 2 == 1 and pad == self.dilation * (self.kernel_size // 2)
        return same and self.stride == self.groups == 1 and jax.default_backend() == "cpu"


def _is_narrow(kernel: jax.Array, dilation: int, width: int) -> bool:
    few = kernel.shape[2] <= NARROW_IN and kernel.shape[3] <= NARROW_OUT
    return few and dilation == 1 and width % 2 == 0


def _conv_in_pairs(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Correlation at stride 1 that keeps the size, of an even width and an odd kernel."""
    B, H, W, C = x.shape
    k, features = kernel.shape[0], kernel.shape[-1]
    r, n = k // 2, (k + 1) // 2  # n pairs of columns hold what two neighbouring outputs look at
    x = jnp.pad(x, ((0, 0), (0, 0), (r, 2 * n - 2 - r), (0, 0)))
    both = jnp.stack([jnp.pad(kernel, ((0, 0), (b, 1 - b), (0, 0), (0, 0))) for b in (0, 1)], 3)
    y = lax.conv_general_dilated(
        x.reshape(B, H, -1, 2 * C),
        both.reshape(k, n, 2 * C, 2 * features),
        (1, 1),
        [(r, r), (0, 0)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(B, H, W, features)


def _is_wide(shape: tuple[int, int, int], dilation: int) -> bool:
    """Whether rows, columns and channels `shape` are worth a product for each tap."""
    wide = dilation > 1 and dilation * WIDE_DILATION >= min(shape[:2])
    return wide and shape[2] >= WIDE_CHANNELS


def _conv_by_taps(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """Correlation at stride 1 that keeps the size, of an odd kernel: the sum over its taps."""
    H, W = x.shape[1:3]
    r = kernel.shape[0] // 2

    def covered(shift: int, size: int) -> tuple[slice, tuple[int, int]]:
        """Pixels that the tap sees, and the padding from there to all outputs."""
        before, after = max(-shift, 0), max(shift, 0)
        return slice(after, size - before), (before, after)

    total = jnp.zeros((*x.shape[:3], kernel.shape[-1]), jnp.float32)
    for i in range(-r, r + 1):
        for j in range(-r, r + 1):
            down, right = i * dilation, j * dilation
            if abs(down) >= H or abs(right) >= W:
                continue
            (rows, pad_rows), (columns, pad_columns) = covered(down, H), covered(right, W)
            part = jnp.matmul(
                x[:, rows, columns], kernel[i + r, j + r], preferred_element_type=jnp.float32
            )
            total = total + jnp.pad(part, ((0, 0), pad_rows, pad_columns, (0, 0)))
    return total.astype(x.dtype)


def batch_norm(
    *,
    train: bool,
    freeze: bool = False,
    dtype: Any = jnp.float32,
    name: str | None = None,
    **kwargs,
) -> nn.BatchNorm:
    """BatchNorm with the epsilon and momentum of the reference networks.

    Args:
      train: whether batch statistics are used and running ones updated.
      freeze: use running statistics even in training.

    Under jit with a sharded batch the statistics are those of the global batch.
    """
    return nn.BatchNorm(
        use_running_average=not train or freeze,
        momentum=BN_MOMENTUM,
        epsilon=BN_EPSILON,
        dtype=dtype,
        name=name,
        **kwargs,
    )


class PReLU(nn.Module):
    """`max(x, 0) + a min(x, 0)` with one shared slope, stored as `weight [1]` like PyTorch's."""

    init: float = 0.25

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.param("weight", nn.initializers.constant(self.init), (1,), jnp.float32)
        return jnp.where(x >= 0, x, jnp.asarray(weight, x.dtype) * x)


class ConvTranspose(nn.Module):
    """Transposed 2-D convolution: the gradient of a strided one, `(n - 1) s + k - 2 p` pixels out.

    The kernel `[k,k,in,out]` is stored as PyTorch (`ConvTranspose2d`) and Caffe (`Deconvolution`)
    store theirs `(in,out,k,k)`, so `convert.table.TRANSPOSED_CONV` is its layout.

    Attributes:
      features: output channels.
      kernel_size: square kernel.
      stride: of both axes.
      padding: pixels cut from every side of the full result.
    """

    features: int
    kernel_size: int = 4
    stride: int = 2
    padding: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.variance_scaling(2.0, "fan_in", "normal")

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Spreads `x` over a grid `stride` times finer; output in `dtype`."""
        k, s = self.kernel_size, self.stride
        shape = (k, k, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype)
        pad = k - 1 - self.padding
        y = lax.conv_general_dilated(
            x,
            kernel[::-1, ::-1],
            (1, 1),
            [(pad, pad), (pad, pad)],
            lhs_dilation=(s, s),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + jnp.asarray(bias, self.dtype)
        return y
