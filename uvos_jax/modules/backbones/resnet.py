"""ResNet with bottlenecks (He et al. 2016), plain or dilated, in the two strides of the field.

`stride_on="conv1"` puts a stage's stride on the first 1x1 convolution of its first block, as the
Caffe weights and the COSNet family have it; `stride_on="conv2"` on the 3x3 one, as torchvision has
it. Modules are named like the official parameters: `conv1`, `bn1`, `layer1_0/conv1`, ...,
`layer1_0/downsample_0`, `layer1_0/downsample_1`.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from uvos_jax.modules.layers import Conv, batch_norm
from uvos_jax.ops.pooling import max_pool

#: Blocks per stage of the published depths.
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a residual connection.

    Attributes:
      width: channels of the first two convolutions; the output has four times as many.
      stride, dilation: of the block and of its 3x3 convolution.
      stride_on: which convolution strides.
      project: whether the shortcut is a 1x1 convolution with BatchNorm.
      freeze_bn: use running statistics in training.
    """

    width: int
    stride: int = 1
    dilation: int = 1
    stride_on: Literal["conv1", "conv2"] = "conv1"
    project: bool = False
    freeze_bn: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def bn(name: str, y: jax.Array) -> jax.Array:
            return batch_norm(train=train, freeze=self.freeze_bn, dtype=self.dtype, name=name)(y)

        first, second = (self.stride, 1) if self.stride_on == "conv1" else (1, self.stride)
        y = Conv(self.width, 1, stride=first, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(bn("bn1", y))
        y = Conv(
            self.width, 3, stride=second, dilation=self.dilation, dtype=self.dtype, name="conv2"
        )(y)
        y = nn.relu(bn("bn2", y))
        y = bn("bn3", Conv(EXPANSION * self.width, 1, dtype=self.dtype, name="conv3")(y))
        if self.project:
            x = Conv(
                EXPANSION * self.width,
                1,
                stride=self.stride,
                dtype=self.dtype,
                name="downsample_0",
            )(x)
            x = bn("downsample_1", x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Stem and four stages of bottlenecks.

    Attributes:
      block_counts: blocks per stage.
      widths: bottleneck widths per stage (output channels are four times these).
      strides, dilations: per stage. Output stride 8 is strides (1,2,1,1), dilations (1,1,2,4).
      first_dilations: dilation of each stage's first block; None means as `dilations`
        (torchvision keeps the previous stage's dilation there).
      stem: channels of the 7x7 stride-2 convolution; None takes `widths[0]`.
      ceil_pool: round the size of the 3x3 stride-2 max pool up (COSNet family, Caffe).
      pool_padding: pixels on every side of that pool; SegFlow has none.
      remat: recompute blocks in the backward pass.
    """

    block_counts: tuple[int, ...] = BLOCKS[101]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 2, 1, 1)
    dilations: tuple[int, ...] = (1, 1, 2, 4)
    first_dilations: tuple[int, ...] | None = None
    stride_on: Literal["conv1", "conv2"] = "conv1"
    stem: int | None = None
    ceil_pool: bool = True
    pool_padding: int = 1
    freeze_bn: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool = False
    ) -> tuple[Float[Array, "B h w D"], ...]:
        """Feature maps `(stem, layer1, layer2, layer3, layer4)`, stem after pooling."""
        x = Conv(self.stem or self.widths[0], 7, stride=2, dtype=self.dtype, name="conv1")(x)
        x = batch_norm(train=train, freeze=self.freeze_bn, dtype=self.dtype, name="bn1")(x)
        x = max_pool(nn.relu(x), 3, 2, self.pool_padding, ceil_mode=self.ceil_pool)
        features = [x]
        block = nn.remat(Bottleneck, static_argnums=(2,)) if self.remat else Bottleneck
        first = self.first_dilations or self.dilations
        for stage, count in enumerate(self.block_counts):
            for i in range(count):
                x = block(
                    self.widths[stage],
                    stride=self.strides[stage] if i == 0 else 1,
                    dilation=first[stage] if i == 0 else self.dilations[stage],
                    stride_on=self.stride_on,
                    project=i == 0,
                    freeze_bn=self.freeze_bn,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
            features.append(x)
        return tuple(features)
