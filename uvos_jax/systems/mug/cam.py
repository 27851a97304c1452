"""The network that gives the released trainer its first labels: DeepLab on a DenseNet-169.

`CAM` of the release, frozen there. Transitions 2 and 3 keep the resolution (output stride 8) and
dense blocks 3 and 4 are dilated by 2 and 4; four 3x3 convolutions with dilations 6, 12, 18, 24 are
summed and enlarged eightfold by a transposed convolution. Eats BGR scaled to [0, 1] but normalised
with constants in RGB order, as its weights were trained.

Doubtful: that the last BatchNorm is followed by no ReLU, and that the enlargement is the transposed
convolution its checkpoint holds.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from uvos_jax.modules.layers import Conv, ConvTranspose, batch_norm
from uvos_jax.ops.normalize import normalize_frames
from uvos_jax.ops.pooling import avg_pool, max_pool
from uvos_jax.ops.resize import resize_bilinear

#: Dilations of the four heads.
HEADS = (6, 12, 18, 24)


class DenseNet(nn.Module):
    """DenseNet features at stride 8 (Huang, Liu, van der Maaten, Weinberger, CVPR 2017).

    Attributes:
      blocks: layers of the four dense blocks. growth: channels each layer adds.
      stem: channels of the first convolution. bottleneck: width of a layer's 1x1 convolution, in
        units of growth.
      dilations: of the blocks' 3x3 convolutions. strided: which transitions halve the size.
    """

    blocks: tuple[int, ...] = (6, 12, 32, 32)
    growth: int = 32
    stem: int = 64
    bottleneck: int = 4
    dilations: tuple[int, ...] = (1, 1, 2, 4)
    strided: tuple[bool, ...] = (True, False, False)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def norm(y: jax.Array, name: str) -> jax.Array:
            return batch_norm(train=False, dtype=self.dtype, name=name)(y)

        def conv(y: jax.Array, width: int, kernel: int, name: str, **options: Any) -> jax.Array:
            return Conv(width, kernel, dtype=self.dtype, name=name, **options)(y)

        x = nn.relu(norm(conv(x, self.stem, 7, "conv0", stride=2), "norm0"))
        x = max_pool(x, 3, 2, 1)
        for b, count in enumerate(self.blocks, start=1):
            for i in range(count):
                name = f"denseblock{b}_{i}"
                y = nn.relu(norm(x, f"{name}_norm1"))
                y = conv(y, self.bottleneck * self.growth, 1, f"{name}_conv1")
                y = nn.relu(norm(y, f"{name}_norm2"))
                y = conv(y, self.growth, 3, f"{name}_conv2", dilation=self.dilations[b - 1])
                x = jnp.concatenate([x, y], axis=-1)
            if b < len(self.blocks):
                x = nn.relu(norm(x, f"transition{b}_norm"))
                x = conv(x, x.shape[-1] // 2, 1, f"transition{b}_conv")
                if self.strided[b - 1]:
                    x = avg_pool(x, 2, 2)
        return norm(x, "norm5")


class PseudoLabeller(nn.Module):
    """uint8 RGB frames to foreground logits; nothing in it is ever trained.

    Attributes:
      blocks, growth, stem: of the DenseNet. size: (H, W) the frames are resized to.
    """

    blocks: tuple[int, ...] = (6, 12, 32, 32)
    growth: int = 32
    stem: int = 64
    size: tuple[int, int] = (256, 256)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        """Logits `[B,H,W]` at `size` (whose sides must be multiples of 8) of frames `[B,.,.,3]`."""
        x = jnp.round(resize_bilinear(frames.astype(jnp.float32), self.size))
        x = normalize_frames(x[..., ::-1], "imagenet").astype(self.dtype)
        x = DenseNet(self.blocks, self.growth, self.stem, dtype=self.dtype, name="feature")(x)
        x = sum(
            Conv(1, 3, dilation=d, use_bias=True, dtype=self.dtype, name=f"preds_{i}")(x)
            for i, d in enumerate(HEADS)
        )
        x = ConvTranspose(
            1, 16, stride=8, padding=4, use_bias=True, dtype=self.dtype, name="upscale"
        )(x)
        return jax.lax.stop_gradient(x[..., 0].astype(jnp.float32))
