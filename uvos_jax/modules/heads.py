"""Read-outs: from features to mask logits."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from uvos_jax.modules.layers import Conv, batch_norm


class SegmentationHead(nn.Module):
    """3x3 conv, BatchNorm, ReLU (`convs` times), then a 1x1 conv to one logit.

    Attributes:
      features: width of the hidden layers.
      convs: number of hidden layers; the releases of COSNet and AGNN have 1.
    """

    features: int
    convs: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], train: bool) -> Float[Array, "B h w 1"]:
        for i in range(1, self.convs + 1):
            x = Conv(self.features, 3, dtype=self.dtype, name=f"conv{i}")(x)
            x = nn.relu(batch_norm(train=train, dtype=self.dtype, name=f"norm{i}")(x))
        return Conv(1, 1, use_bias=True, dtype=self.dtype, name="classifier")(x)
