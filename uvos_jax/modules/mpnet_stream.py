"""The network of MP-Net (Tokmakov, Alahari, Schmid, CVPR 2017): which pixels move on their own.

An encoder-decoder over a flow field given as angle and magnitude (`ops.flow`). It is a system by
itself and the frozen motion stream of LVO. Followed is the authors' Torch7 release (`model.lua`,
the variant that resizes to the size of the skip connection).

Layers are numbered in the order in which they run, as the release's file lists them: `block1` ...
`block15`, each with `conv`, `norm` and ReLU; `classifier` is the sixteenth convolution.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from uvos_jax.modules.layers import BN_EPSILON, BN_MOMENTUM, Conv
from uvos_jax.ops.pooling import max_pool
from uvos_jax.ops.resize import resize_bilinear

#: Channels of the first convolution and of the five encoder scales, strides 2 to 32.
WIDTHS = (64, 128, 256, 256, 256, 256)
#: BatchNorm epsilon of the first layer; the others have the usual one.
FIRST_EPSILON = 1e-4


class MPNetStream(nn.Module):
    """Encoder over five scales, decoder with skip connections back to half the input's size.

    Attributes:
      widths: of the first convolution and of the scales at strides 2, 4, 8, 16, 32.
      decoder: channels of the decoder's convolutions.
      head: channels of the last 3x3 convolution.
      freeze_bn: use running statistics in training.
      remat: recompute convolutions in the backward pass.
    """

    widths: tuple[int, ...] = WIDTHS
    decoder: int = 256
    head: int = 512
    freeze_bn: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, flow: Float[Array, "N H W C"], train: bool = False
    ) -> Float[Array, "N h w 1"]:
        """Logits of "moves independently of the camera" at half the size of the encoded flow.

        Sizes round down (58 becomes 29, then 14); at least 32 pixels a side.
        """
        count = 0

        def block(x: jax.Array, features: int, kernel: int = 3) -> jax.Array:
            nonlocal count
            count += 1
            layer = nn.remat(ConvNormReLU, static_argnums=(2,)) if self.remat else ConvNormReLU
            return layer(
                features,
                kernel,
                epsilon=FIRST_EPSILON if count == 1 else BN_EPSILON,
                freeze_bn=self.freeze_bn,
                dtype=self.dtype,
                name=f"block{count}",
            )(x, train)

        first, w1, w2, w3, w4, w5 = self.widths
        s1 = block(max_pool(block(flow, first, 7), 2, 2), w1, 5)  # 1/2
        s2 = block(max_pool(s1, 2, 2), w2, 5)  # 1/4
        s3 = block(block(max_pool(s2, 2, 2), w3), w3)  # 1/8
        s4 = block(max_pool(s3, 2, 2), w4)  # 1/16
        x = block(max_pool(s4, 2, 2), w5)  # 1/32
        for skip in (s4, s3, s2):
            x = block(block(_joined(x, skip), self.decoder), self.decoder)
        x = block(block(_joined(x, s1), self.decoder), self.head)
        return Conv(1, 1, use_bias=True, dtype=self.dtype, name="classifier")(x)


def _joined(x: jax.Array, skip: jax.Array) -> jax.Array:
    """`[x enlarged, skip]`, aligned corners."""
    return jnp.concatenate([resize_bilinear(x, skip.shape[1:3], align_corners=True), skip], -1)


class ConvNormReLU(nn.Module):
    """Convolution with bias, BatchNorm, ReLU."""

    features: int
    kernel: int
    epsilon: float = BN_EPSILON
    freeze_bn: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = Conv(
            self.features,
            self.kernel,
            use_bias=True,
            in_pairs=not train,
            dtype=self.dtype,
            name="conv",
        )(x)
        return nn.relu(
            nn.BatchNorm(
                use_running_average=not train or self.freeze_bn,
                momentum=BN_MOMENTUM,
                epsilon=self.epsilon,
                dtype=self.dtype,
                name="norm",
            )(x)
        )
