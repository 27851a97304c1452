"""DeepLabv3 in two forms that share a name and little else.

`DeepLabEmbedding` is the encoder of COSNet, AGNN and F2Net (`siamese_model_conf.py@
carrierlxk/COSNet`): ResNet-101 at output stride 8 with Caffe-style strides, a five-branch ASPP with
rates 6, 12, 18 and biased convolutions, a 256-channel embedding behind a PReLU with one slope, and
a 1x1 `main_classifier` for single-frame saliency.

`DeepLabV3` is the semantic-segmentation network of torchvision (stride on the 3x3 convolution,
first block of a dilated stage at the previous dilation, rates 12, 24, 36, auxiliary head).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from uvos_jax.modules.backbones.resnet import BLOCKS, ResNet
from uvos_jax.modules.layers import Conv, PReLU, batch_norm


class ConvBNReLU(nn.Module):
    """Convolution, BatchNorm, ReLU; submodules `conv` and `bn`."""

    features: int
    kernel_size: int
    dilation: int = 1
    stride: int = 1
    use_bias: bool = False
    freeze_bn: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = Conv(
            self.features,
            self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            use_bias=self.use_bias,
            dtype=self.dtype,
            name="conv",
        )(x)
        x = batch_norm(train=train, freeze=self.freeze_bn, dtype=self.dtype, name="bn")(x)
        return nn.relu(x)


def global_mean(x: Float[Array, "B H W C"]) -> Float[Array, "B 1 1 C"]:
    """Mean over the map, accumulated in float32."""
    return x.astype(jnp.float32).mean(axis=(1, 2), keepdims=True).astype(x.dtype)


class EmbeddingASPP(nn.Module):
    """ASPP of the COSNet family: branches [global, 1x1, three dilated 3x3], 3x3 squeeze, PReLU."""

    depth: int = 512
    features: int = 256
    rates: tuple[int, ...] = (6, 12, 18)
    freeze_bn: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def branch(y: jax.Array, conv: str, bn: str, kernel: int, rate: int) -> jax.Array:
            y = Conv(self.depth, kernel, dilation=rate, use_bias=True, dtype=self.dtype, name=conv)(
                y
            )
            return nn.relu(
                batch_norm(train=train, freeze=self.freeze_bn, dtype=self.dtype, name=bn)(y)
            )

        pooled = branch(global_mean(x), "conv", "bn_x", 1, 1)
        branches = [jnp.broadcast_to(pooled, (*x.shape[:3], self.depth))]
        branches.append(branch(x, "conv2d_0", "bn_0", 1, 1))
        for i, rate in enumerate(self.rates, start=1):
            branches.append(branch(x, f"conv2d_{i}", f"bn_{i}", 3, rate))
        y = Conv(self.features, 3, use_bias=True, dtype=self.dtype, name="bottleneck")(
            jnp.concatenate(branches, axis=-1)
        )
        y = batch_norm(train=train, freeze=self.freeze_bn, dtype=self.dtype, name="bn")(y)
        return PReLU(name="prelu")(y)


class DeepLabEmbedding(nn.Module):
    """Frames to an embedding at stride 8 and a single-frame saliency logit.

    Attributes:
      block_counts, widths: of the ResNet's stages.
      aspp_depth: channels of each ASPP branch.
      embedding: channels of the embedding.
      aspp_rates: dilations of the 3x3 branches.
      freeze_bn: use running statistics in training.
      remat: recompute residual blocks in the backward pass.
    """

    block_counts: tuple[int, ...] = BLOCKS[101]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    aspp_depth: int = 512
    embedding: int = 256
    aspp_rates: tuple[int, ...] = (6, 12, 18)
    stem: int | None = None
    freeze_bn: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], train: bool = False) -> dict[str, Any]:
        """Embeds normalised frames.

        Returns:
          `embedding [B,h,w,C]`, `saliency_logits [B,h,w,1]`, `stages` (layer1..layer4, tuple).
        """
        _, *stages = ResNet(
            block_counts=self.block_counts,
            widths=self.widths,
            stem=self.stem,
            freeze_bn=self.freeze_bn,
            remat=self.remat,
            dtype=self.dtype,
            name="resnet",
        )(x, train)
        embedding = EmbeddingASPP(
            self.aspp_depth,
            self.embedding,
            self.aspp_rates,
            freeze_bn=self.freeze_bn,
            dtype=self.dtype,
            name="layer5",
        )(stages[-1], train)
        logits = Conv(1, 1, use_bias=True, dtype=self.dtype, name="main_classifier")(embedding)
        return {"embedding": embedding, "saliency_logits": logits, "stages": tuple(stages)}


class ImagePoolingASPP(nn.Module):
    """torchvision's ASPP: [1x1, three dilated 3x3, image pooling], 1x1 projection."""

    depth: int = 256
    rates: tuple[int, ...] = (12, 24, 36)
    freeze_bn: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        common = {"freeze_bn": self.freeze_bn, "dtype": self.dtype}
        branches = [ConvBNReLU(self.depth, 1, name="convs_0", **common)(x, train)]
        for i, rate in enumerate(self.rates, start=1):
            branches.append(
                ConvBNReLU(self.depth, 3, dilation=rate, name=f"convs_{i}", **common)(x, train)
            )
        pooled = ConvBNReLU(self.depth, 1, name=f"convs_{len(self.rates) + 1}", **common)(
            global_mean(x), train
        )
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        y = ConvBNReLU(self.depth, 1, name="project", **common)(
            jnp.concatenate(branches, axis=-1), train
        )
        return nn.Dropout(0.5, deterministic=not train)(y)


class DeepLabV3(nn.Module):
    """torchvision's `deeplabv3_resnet50|101`: class logits at stride 8, main and auxiliary.

    Attributes:
      depth: 50 or 101.
      num_classes: 21 for the published COCO/VOC weights.
    """

    depth: int = 101
    num_classes: int = 21
    freeze_bn: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], train: bool = False) -> dict[str, Any]:
        """Returns `logits`, `aux_logits` `[B,h,w,K]`, `aspp`, `head` and `stages`."""
        features = ResNet(
            block_counts=BLOCKS[self.depth],
            dilations=(1, 1, 2, 4),
            first_dilations=(1, 1, 1, 2),
            stride_on="conv2",
            ceil_pool=False,
            freeze_bn=self.freeze_bn,
            remat=self.remat,
            dtype=self.dtype,
            name="backbone",
        )(x, train)
        common = {"freeze_bn": self.freeze_bn, "dtype": self.dtype}
        aspp = ImagePoolingASPP(name="classifier_0", **common)(features[-1], train)
        head = ConvBNReLU(256, 3, name="classifier_1", **common)(aspp, train)
        logits = Conv(self.num_classes, 1, use_bias=True, dtype=self.dtype, name="classifier_4")(
            head
        )
        aux = ConvBNReLU(256, 3, name="aux_classifier_0", **common)(features[-2], train)
        aux = nn.Dropout(0.1, deterministic=not train)(aux)
        aux = Conv(self.num_classes, 1, use_bias=True, dtype=self.dtype, name="aux_classifier_4")(
            aux
        )
        return {
            "logits": logits,
            "aux_logits": aux,
            "aspp": aspp,
            "head": head,
            "stages": features,
        }
