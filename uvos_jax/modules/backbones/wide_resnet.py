"""Wide ResNet-38 with pre-activation units, as OnAVOS and its successors segment with it.

After "Wider or Deeper" (Wu, Shen, van den Hengel, 2016), model A1: strides of 8, then dilation,
and a large-field head. Convolutions pad as TensorFlow's SAME does: the odd pixel of a stride goes
to the bottom and right. Units are numbered through, `res0` to `res16` at full size.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from uvos_jax.modules.layers import BN_EPSILON, Conv

#: Share of the running statistics that BatchNorm keeps.
MOMENTUM = 0.95
HE_FAN_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def _norm(train: bool, dtype: Any, name: str) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train, momentum=MOMENTUM, epsilon=BN_EPSILON, dtype=dtype, name=name
    )


class PreActivationUnit(nn.Module):
    """`x + W_n ... ReLU(BN(W_1 a))` with `a = ReLU(BN(x))`; a projected shortcut also reads `a`.

    Parts: `norm1`, `conv1`, `norm2`, `conv2`, ...; `shortcut` if width or stride change.

    Attributes:
      features, kernel_sizes, dilations: of the convolutions, in order.
      stride: of the first convolution and the shortcut.
    """

    features: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    dilations: tuple[int, ...]
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B h w D"]:
        def conv(i: int, y: jax.Array) -> jax.Array:
            return Conv(
                self.features[i],
                self.kernel_sizes[i],
                stride=self.stride if i == 0 else 1,
                dilation=self.dilations[i],
                padding="SAME",
                dtype=self.dtype,
                kernel_init=HE_FAN_IN,
                name=f"conv{i + 1}",
            )(y)

        y = active = nn.relu(_norm(train, self.dtype, "norm1")(x))
        if self.stride > 1 or x.shape[-1] != self.features[-1]:
            x = Conv(
                self.features[-1],
                1,
                stride=self.stride,
                padding="SAME",
                dtype=self.dtype,
                kernel_init=HE_FAN_IN,
                name="shortcut",
            )(active)
        for i in range(len(self.features)):
            if i:
                y = nn.relu(_norm(train, self.dtype, f"norm{i + 1}")(y))
            y = conv(i, y)
        return x + y


class WideResNetTrunk(nn.Module):
    """A 3x3 convolution and three stages of units of two 3x3 convolutions; stride 8.

    Attributes:
      stem: channels of the convolution.
      widths, units: channels and number of units per stage; each stage halves the size.
    """

    stem: int = 64
    widths: tuple[int, ...] = (128, 256, 512)
    units: tuple[int, ...] = (3, 3, 6)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], train: bool = False) -> Float[Array, "B h w C"]:
        x = Conv(
            self.stem, 3, padding="SAME", dtype=self.dtype, kernel_init=HE_FAN_IN, name="conv0"
        )(x)
        number = 0
        for width, count in zip(self.widths, self.units, strict=True):
            for i in range(count):
                x = PreActivationUnit(
                    (width, width), (3, 3), (1, 1), 2 if i == 0 else 1, self.dtype,
                    name=f"res{number}",
                )(x, train)  # fmt: skip
                number += 1
        return x


class WideResNetHead(nn.Module):
    """Dilated units, two bottlenecks and two large-field convolutions to class logits.

    Attributes:
      first_unit: number of the first unit, which follows the trunk's.
      middle, context, context_units: the first units' inner and outer width and their number; the
        very first convolution is not dilated yet.
      bottlenecks: widths (1x1, 3x3, 1x1) of the units after those.
      hidden: width of the last hidden layer.
      dilations: of the context units, the bottlenecks and the last two convolutions.
    """

    first_unit: int = 12
    middle: int = 512
    context: int = 1024
    context_units: int = 3
    bottlenecks: tuple[tuple[int, int, int], ...] = ((512, 1024, 2048), (1024, 2048, 4096))
    hidden: int = 512
    dilations: tuple[int, int, int] = (2, 4, 12)
    num_classes: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], train: bool = False) -> Float[Array, "B h w K"]:
        number, (d1, d2, d3) = self.first_unit, self.dilations
        for i in range(self.context_units):
            x = PreActivationUnit(
                (self.middle, self.context), (3, 3), (1 if i == 0 else d1, d1), 1, self.dtype,
                name=f"res{number}",
            )(x, train)  # fmt: skip
            number += 1
        for widths in self.bottlenecks:
            x = PreActivationUnit(
                tuple(widths), (1, 3, 1), (1, d2, 1), 1, self.dtype, name=f"res{number}"
            )(x, train)
            number += 1
        x = nn.relu(_norm(train, self.dtype, "norm1")(x))
        wide = {
            "dilation": d3, "padding": "SAME", "use_bias": True, "dtype": self.dtype,
            "kernel_init": HE_FAN_IN,
        }  # fmt: skip
        x = nn.relu(Conv(self.hidden, 3, name="conv1", **wide)(x))
        return Conv(self.num_classes, 3, name="output", **wide)(x)
