"""The ResNet of PSPNet (Zhao et al., CVPR 2017), which PDB-ConvLSTM and AGS build on.

It differs from the plain one (`resnet.py`) in its stem, three 3x3 convolutions instead of one 7x7,
and is dilated to output stride 8. The 50-layer network strides on the first 1x1 convolution of a
stage (`stride_on="conv1"`), the 101-layer one on the 3x3 convolution (`stride_on="conv2"`), as the
prototxts of hszhao/PSPNet have it. Modules: `conv1_1`, `bn1_1`, ..., `conv1_3`, `bn1_3`, then
`layer1_0/conv1`, ... as in `resnet.py`; Caffe calls these `conv2_1_1x1_reduce`, ....
"""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from uvos_jax.modules.backbones.resnet import BLOCKS, Bottleneck
from uvos_jax.modules.layers import Conv, batch_norm
from uvos_jax.ops.pooling import max_pool


class PSPResNet(nn.Module):
    """Deep stem and four stages of bottlenecks.

    Attributes:
      block_counts: blocks per stage, `BLOCKS[50]` or `BLOCKS[101]` for the published depths.
      stem: channels of the three 3x3 convolutions; the first has stride 2.
      widths: bottleneck widths per stage; the output has four times as many channels.
      strides, dilations: per stage.
      stride_on: which convolution of a stage's first block strides.
      freeze_bn: use running statistics in training, as all Caffe releases do.
      remat: recompute blocks in the backward pass.
    """

    block_counts: tuple[int, ...] = BLOCKS[50]
    stem: tuple[int, int, int] = (64, 64, 128)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 2, 1, 1)
    dilations: tuple[int, ...] = (1, 1, 2, 4)
    stride_on: Literal["conv1", "conv2"] = "conv1"
    freeze_bn: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W 3"], train: bool = False
    ) -> tuple[Float[Array, "B h w D"], ...]:
        """Feature maps `(stem, layer1, layer2, layer3, layer4)`, the stem's after pooling.

        Sides of `8k + 1` pixels become `k + 1`; the pooling rounds up, which other sides notice.
        """
        for i, width in enumerate(self.stem, start=1):
            x = Conv(width, 3, stride=2 if i == 1 else 1, dtype=self.dtype, name=f"conv1_{i}")(x)
            x = nn.relu(
                batch_norm(train=train, freeze=self.freeze_bn, dtype=self.dtype, name=f"bn1_{i}")(x)
            )
        x = max_pool(x, 3, 2, 1, ceil_mode=True)
        features = [x]
        block = nn.remat(Bottleneck, static_argnums=(2,)) if self.remat else Bottleneck
        for stage, count in enumerate(self.block_counts):
            for i in range(count):
                x = block(
                    self.widths[stage],
                    stride=self.strides[stage] if i == 0 else 1,
                    dilation=self.dilations[stage],
                    stride_on=self.stride_on,
                    project=i == 0,
                    freeze_bn=self.freeze_bn,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
            features.append(x)
        return tuple(features)
