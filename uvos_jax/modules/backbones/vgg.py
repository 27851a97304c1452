"""VGG-16 (Simonyan & Zisserman 2015) as the field uses it: plain, dilated, with fc6 as LargeFOV.

Convolutions are called `conv1_1` ... `conv5_3` (3x3, bias, ReLU, no BatchNorm) in every variant, so
that one set of pre-trained weights serves all of them. What the variants disagree on is how they
pool; the settings in use have names:

    VGG16(name="vgg")                             # 2x2/2 pools, sizes rounded down (PyTorch)
    VGG16(**KERAS, name="vgg")                    # rounded up, padding at the bottom and right
    VGG16(**DEEPLAB, name="vgg")                  # stride 8: 3x3 pools, conv5 dilated by 2
    VGG16(**DEEPLAB, fc6=1024, name="vgg")        # the same with LargeFOV's fc6 on top
    VGG16(**DSS, pool5=True, name="vgg")          # the saliency network of Hou et al. 2017
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from uvos_jax.errors import ConfigError
from uvos_jax.modules.layers import Conv
from uvos_jax.ops.pooling import max_pool

#: Convolutions per block of the 16-layer network.
COUNTS = (2, 2, 3, 3, 3)
WIDTHS = (64, 128, 256, 512, 512)
HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")

#: Keras applications and TensorFlow.
KERAS: dict[str, Any] = {"pool_padding": "SAME"}
#: DeepLab on VGG-16 (Chen et al., ICLR 2015), output stride 8; from memory of the public prototxt.
DEEPLAB: dict[str, Any] = {
    "pool_windows": (3, 3, 3, 3, 3),
    "pool_strides": (2, 2, 2, 1, 1),
    "pool_padding": (1, 1, 1, 1, 1),
    "ceil_pool": True,
    "dilations": (1, 1, 1, 1, 2),
}
#: DSS (`train.prototxt@houqb/DSS`); its crops undo the first convolution's wide padding.
DSS: dict[str, Any] = {
    "pool_windows": (2, 2, 2, 3, 3),
    "pool_padding": (0, 0, 0, 1, 1),
    "ceil_pool": True,
    "first_padding": 5,
}


class VGG16(nn.Module):
    """Five blocks of 3x3 convolutions with max pooling between them.

    Parameters lie flat under the module: `conv1_1/kernel`, ..., `conv5_3/bias`, `fc6/kernel`. The
    input may have any number of channels; converted weights want BGR, 0..255 minus the mean.

    Attributes:
      counts, widths: convolutions per block and their channels.
      pool_windows, pool_strides: of the pools behind blocks 1 to 5.
      pool_padding: pixels on every side, one number for each pool, or `SAME` for all.
      ceil_pool: round sizes up (Caffe); not used with `SAME`.
      dilations: of the convolutions of each block.
      first_padding: of conv1_1; None keeps the size.
      use_bias: of all convolutions.
      pool5: also return what is behind the fifth pool.
      fc6: channels of a dilated convolution behind the fifth pool (LargeFOV); 0 leaves it out.
      fc6_kernel, fc6_dilation: 3 and 12 in LargeFOV.
      fc6_dropout: rate of the dropout behind it in training; needs the rng `dropout`.
      remat: recompute each block in the backward pass.
    """

    counts: tuple[int, ...] = COUNTS
    widths: tuple[int, ...] = WIDTHS
    pool_windows: tuple[int, ...] = (2, 2, 2, 2, 2)
    pool_strides: tuple[int, ...] = (2, 2, 2, 2, 2)
    pool_padding: tuple[int, ...] | Literal["SAME"] = (0, 0, 0, 0, 0)
    ceil_pool: bool = False
    dilations: tuple[int, ...] = (1, 1, 1, 1, 1)
    first_padding: int | None = None
    use_bias: bool = True
    pool5: bool = False
    fc6: int = 0
    fc6_kernel: int = 3
    fc6_dilation: int = 12
    fc6_dropout: float = 0.5
    remat: bool = False
    dtype: Any = jnp.float32
    kernel_init: Any = HE

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> dict[str, jax.Array]:
        """Feature maps of normalised frames.

        Returns:
          `c1` ... `c5`: the last map of every block, before its pool, at strides 1, 2, 4, 8, 16 of
          the plain network; `pool5` and `fc6` on request.

        Raises:
          ConfigError: settings of other than five blocks.
        """
        for field in ("counts", "widths", "pool_windows", "pool_strides", "dilations"):
            if len(getattr(self, field)) != 5:
                raise ConfigError(f"VGG16: {field} must have 5 entries, got {getattr(self, field)}")
        features: dict[str, jax.Array] = {}
        for i in range(5):
            if i:
                x = self._pool(x, i - 1)
            block = partial(type(self)._block, i=i)
            x = nn.remat(block)(self, x) if self.remat else block(self, x)
            features[f"c{i + 1}"] = x
        if not (self.pool5 or self.fc6):
            return features
        x = self._pool(x, 4)
        if self.pool5:
            features["pool5"] = x
        if self.fc6:
            x = Conv(
                self.fc6,
                self.fc6_kernel,
                dilation=self.fc6_dilation,
                use_bias=self.use_bias,
                dtype=self.dtype,
                kernel_init=self.kernel_init,
                name="fc6",
            )(x)
            x = nn.relu(x)
            features["fc6"] = nn.Dropout(self.fc6_dropout, deterministic=not train)(x)
        return features

    def _block(self, x: jax.Array, i: int) -> jax.Array:
        for j in range(1, self.counts[i] + 1):
            x = Conv(
                self.widths[i],
                3,
                dilation=self.dilations[i],
                padding=self.first_padding if (i, j) == (0, 1) else None,
                use_bias=self.use_bias,
                dtype=self.dtype,
                kernel_init=self.kernel_init,
                name=f"conv{i + 1}_{j}",
            )(x)
            x = nn.relu(x)
        return x

    def _pool(self, x: jax.Array, i: int) -> jax.Array:
        padding = "SAME" if self.pool_padding == "SAME" else self.pool_padding[i]
        return max_pool(
            x, self.pool_windows[i], self.pool_strides[i], padding, ceil_mode=self.ceil_pool
        )
