"""The released MuG network (`libs/model_match_residual.py@carrierlxk/MuG`, commit c923518).

A ResNet-18 at stride 8 looks at the lightness channel alone. Keys and values of a memory of frames
are read by the current frame's keys, with two softmaxes one after the other, and a residual decoder
brings read-out and own features to a saliency map at stride 8. A correspondence branch (affinity of
two frames, a frozen colour auto-encoder) comes along; it takes no part in the saliency.

Takes 8-bit L*a*b* scaled to `(x - 128) / 128`, NHWC; sides must be multiples of 16.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from uvos_jax.modules import attention as attn
from uvos_jax.modules.layers import Conv, batch_norm
from uvos_jax.ops.normalize import IMAGENET_MEAN, IMAGENET_STD
from uvos_jax.ops.pooling import max_pool
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.systems.mug.cam import PseudoLabeller
from uvos_jax.types import Outputs

#: Dilations of the three heads.
HEADS = (6, 12, 18)
#: Sides of frames must be multiples of this.
SIZE_MULTIPLE = 16


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, projected where stride or width change.

    Attributes:
      project_always: keep the parameters of a projection that is not used (the released fusion
        blocks hold them).
    """

    features: int
    stride: int = 1
    project_always: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def norm(y: jax.Array, name: str, train: bool = train) -> jax.Array:
            return batch_norm(train=train, dtype=self.dtype, name=name)(y)

        def conv(y: jax.Array, kernel: int, stride: int, name: str) -> jax.Array:
            return Conv(self.features, kernel, stride=stride, dtype=self.dtype, name=name)(y)

        y = nn.relu(norm(conv(x, 3, self.stride, "conv1"), "bn1"))
        y = norm(conv(y, 3, 1, "conv2"), "bn2")
        needed = self.stride > 1 or x.shape[-1] != self.features
        if needed:
            x = norm(conv(x, 1, self.stride, "downsample_0"), "downsample_1")
        elif self.project_always:  # parameters only: what it computes is not used
            norm(conv(x[:, :1, :1], 1, 1, "downsample_0"), "downsample_1", False)
        return nn.relu(x + y)


class GrayEncoder(nn.Module):
    """ResNet-18 whose last two stages keep the resolution; features layer2, layer3, layer4."""

    widths: tuple[int, ...] = (64, 128, 256, 512)
    blocks: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, ...]:
        x = Conv(self.widths[0], 7, stride=2, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(batch_norm(train=train, dtype=self.dtype, name="bn1")(x))
        x = max_pool(x, 3, 2, 1)
        features = []
        for stage, (width, stride) in enumerate(zip(self.widths, (1, 2, 1, 1), strict=True)):
            for i in range(self.blocks):
                x = ResidualBlock(
                    width,
                    stride if i == 0 else 1,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
            features.append(x)
        return tuple(features[1:])


class GlobalConv(nn.Module):
    """Two separable 7x7 convolutions of either order, added; biased, nothing in between."""

    hidden: int = 256
    features: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def conv(width: int, tall: bool, name: str) -> nn.Conv:
            kernel, padding = ((7, 1), ((3, 3), (0, 0))) if tall else ((1, 7), ((0, 0), (3, 3)))
            return nn.Conv(width, kernel, padding=padding, dtype=self.dtype, name=name)

        left = conv(self.features, False, "conv_l2")(conv(self.hidden, True, "conv_l1")(x))
        right = conv(self.features, True, "conv_r2")(conv(self.hidden, False, "conv_r1")(x))
        return left + right


def _mirror_padded(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")


class ColourEncoder(nn.Module):
    """L*a*b* to 256 features at stride 8; mirrored borders. Frozen."""

    widths: tuple[int, int, int] = (64, 128, 256)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def conv(x: jax.Array, width: int, name: str) -> jax.Array:
            options = {"padding": 0, "use_bias": True, "dtype": self.dtype, "name": name}
            return nn.relu(Conv(width, 3, **options)(_mirror_padded(x)))

        a, b, c = self.widths
        x = Conv(3, 1, use_bias=True, dtype=self.dtype, name="conv1")(x)
        x = max_pool(conv(conv(x, a, "conv2"), a, "conv3"), 2, 2)
        x = max_pool(conv(conv(x, b, "conv4"), b, "conv5"), 2, 2)
        x = max_pool(conv(x, c, "conv6"), 2, 2)
        return nn.relu(Conv(c, 1, use_bias=True, dtype=self.dtype, name="downsample_1")(x))


class ColourDecoder(nn.Module):
    """256 features at stride 8 to L*a*b* in [-1, 1]; the encoder backwards. Frozen."""

    widths: tuple[int, int, int] = (64, 128, 256)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def enlarged(x: jax.Array) -> jax.Array:
            return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)

        def conv(x: jax.Array, width: int, name: str) -> jax.Array:
            options = {"padding": 0, "use_bias": True, "dtype": self.dtype, "name": name}
            return Conv(width, 3, **options)(_mirror_padded(x))

        a, b, c = self.widths
        x = Conv(c, 1, use_bias=True, dtype=self.dtype, name="upsample_1")(enlarged(x))
        x = nn.relu(conv(nn.relu(x), b, "conv7"))
        x = nn.relu(conv(enlarged(x), b, "conv8"))
        x = nn.relu(conv(x, a, "conv9"))
        x = nn.relu(conv(enlarged(x), a, "conv10"))
        return jnp.tanh(conv(x, 3, "conv11"))


class Normalize(nn.Module):
    """`(x - mean) / std` with constants that released checkpoints hold; they never move."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mean, std = (
            jax.lax.stop_gradient(
                self.param(name, lambda _, v=values: jnp.asarray(np.asarray(v, np.float32)))
            )
            for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD))
        )
        return (x - mean.astype(x.dtype)) / std.astype(x.dtype)


class ReleaseNetwork(nn.Module):
    """See the module's docstring. `network(frames)` segments frames that are their own memory.

    Attributes:
      widths, blocks: of the ResNet.
      key, value: channels kept per memory cell.
      head_hidden, head_features: of the global convolution.
      colour_widths: of the colour auto-encoder.
      cam: fields of `PseudoLabeller`, if the network that makes labels is part of this one.
      attention_impl, block_size: see `uvos_jax.modules.attention`.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    blocks: int = 2
    key: int = 32
    value: int = 128
    head_hidden: int = 256
    head_features: int = 64
    colour_widths: tuple[int, int, int] = (64, 128, 256)
    cam: tuple[tuple[str, Any], ...] | None = None
    attention_impl: str = "blockwise"
    block_size: int = 512
    dtype: Any = jnp.float32

    #: Parts that a copy of the network needs to give masks.
    segmenting = (
        "gray_encoder", "memory_encoder_1", "memory_encoder_2", "linear_e", "normalize",
        "fusion3_1", "fusion3_2", "fusion2_1", "fusion2_2", "weak_conv1", "weak_bn",
        "weak_conv2_1", "weak_conv2_2", "weak_conv2_3",
    )  # fmt: skip

    def setup(self):
        def conv(features: int, kernel: int = 3, **options: Any) -> Conv:
            return Conv(features, kernel, dtype=self.dtype, **options)

        def fusion(features: int) -> ResidualBlock:
            return ResidualBlock(features, project_always=True, dtype=self.dtype)

        _, low, middle, _ = self.widths
        self.normalize = Normalize()
        self.gray_encoder = GrayEncoder(self.widths, self.blocks, self.dtype)
        self.memory_encoder_1 = conv(self.key + self.value)
        self.memory_encoder_2 = Norm(self.dtype)
        self.linear_e = attn.AffinityProjection(self.key, dtype=self.dtype)
        self.fusion3_1, self.fusion3_2 = fusion(middle), fusion(low)
        self.fusion2_1, self.fusion2_2 = fusion(low), fusion(low)
        self.weak_conv1 = GlobalConv(self.head_hidden, self.head_features, self.dtype)
        self.weak_bn = Norm(self.dtype)
        head = {"use_bias": True}
        self.weak_conv2_1 = conv(1, dilation=HEADS[0], **head)
        self.weak_conv2_2 = conv(1, dilation=HEADS[1], **head)
        self.weak_conv2_3 = conv(1, dilation=HEADS[2], **head)
        self.rgb_encoder = ColourEncoder(self.colour_widths, self.dtype)
        self.decoder = ColourDecoder(self.colour_widths, self.dtype)
        if self.cam is not None:
            self.pseudo_labeller = PseudoLabeller(**dict(self.cam), dtype=self.dtype)

    # ----- saliency -----------------------------------------------------------------------

    def encode(self, lab: jax.Array, train: bool = False) -> tuple[jax.Array, ...]:
        """Features layer2, layer3, layer4 `[B,h,w,.]` at stride 8 of `[B,H,W,3]`."""
        gray = (jnp.repeat(lab[..., :1], 3, axis=-1) + 1.0) / 2.0
        return self.gray_encoder(self.normalize(gray), train)

    def remembered(
        self, features: tuple[jax.Array, ...], train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Keys `[B,n,32]` and values `[B,n,128]` of frames, n cells at stride 16."""
        x = self.memory_encoder_1(max_pool(features[2], 2, 2))
        x = nn.relu(self.memory_encoder_2(x, train))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        return x[..., : self.key], x[..., self.key :]

    def read(
        self,
        own: tuple[jax.Array, jax.Array],
        memory: tuple[jax.Array, jax.Array],
        valid: jax.Array | None = None,
    ) -> jax.Array:
        """Read-out of the memory beside the frame's own values: `[B,n,256]`.

        Args:
          own: keys and values of the frame. memory: of R frames, `[B,R,n,.]`.
          valid: frames of the memory that count, `[B,R]`.
        """
        B, R, n, _ = memory[0].shape
        keys, values = (x.reshape(B, R * n, -1) for x in memory)
        columns = None if valid is None else jnp.repeat(valid, n, axis=1)
        summary = attn.group_attend(
            self.linear_e(own[0]),
            keys,
            values,
            valid=columns,
            implementation=self.attention_impl,
            block_size=self.block_size,
        )
        return jnp.concatenate([summary, own[1]], axis=-1)

    def decode(
        self, features: tuple[jax.Array, ...], attended: jax.Array, train: bool = False
    ) -> jax.Array:
        """Saliency logits `[B,h,w,1]` of features at stride 8 and the read-out at stride 16."""
        low, middle, _ = features
        B, h, w, _ = low.shape
        x = resize_bilinear(attended.reshape(B, h // 2, w // 2, -1), (h, w))
        x = self.fusion3_2(x + self.fusion3_1(middle, train), train)
        x = self.fusion2_2(x + self.fusion2_1(low, train), train)
        x = nn.relu(self.weak_bn(self.weak_conv1(x), train))
        return self.weak_conv2_1(x) + self.weak_conv2_2(x) + self.weak_conv2_3(x)

    # ----- correspondence -----------------------------------------------------------------

    def correspond(self, reference: jax.Array, target: jax.Array) -> Outputs:
        """Affinity of two L*a*b* frames and each frame's colours copied to the other.

        Returns:
          `affinity [B,m,n]`, normalised over the reference's m cells; `target [B,H,W,3]` painted
          with the reference's features, and `reference` with the target's.
        """
        f_ref, f_tar = (self.encode(x)[2] for x in (reference, target))
        c_ref, c_tar = (self.rgb_encoder(x) for x in (reference, target))

        def flat(x: jax.Array) -> jax.Array:
            return x.reshape(x.shape[0], -1, x.shape[-1])

        affinity = jax.nn.softmax(attn.affinity(flat(f_ref), flat(f_tar)), axis=1)
        to_target = jnp.einsum("bmn,bmc->bnc", affinity, flat(c_ref).astype(jnp.float32))
        to_reference = jnp.einsum("bmn,bnc->bmc", affinity, flat(c_tar).astype(jnp.float32))
        return {
            "affinity": affinity,
            "target": self.decoder(to_target.reshape(c_tar.shape).astype(self.dtype)),
            "reference": self.decoder(to_reference.reshape(c_ref.shape).astype(self.dtype)),
        }

    def label(self, frames: jax.Array) -> jax.Array:
        """Logits `[B,H,W]` of the frozen label network for uint8 RGB frames."""
        return self.pseudo_labeller(frames)

    # ----- whole network ------------------------------------------------------------------

    def __call__(
        self, lab: jax.Array, *, train: bool = False, memory: int | None = None, **_: Any
    ) -> Outputs:
        """Frames `[B,T,H,W,3]` of a video, the last `memory` of which (all) are the memory.

        Returns:
          `logits [B,T,h,w,1]`.
        """
        B, T = lab.shape[:2]
        features = self.encode(lab.reshape(B * T, *lab.shape[2:]), train)
        keys, values = self.remembered(features, train)
        start = T - min(memory or T, T)
        kept = tuple(x.reshape(B, T, *x.shape[1:])[:, start:] for x in (keys, values))
        kept = tuple(jnp.repeat(x, T, axis=0) for x in kept)
        logits = self.decode(features, self.read((keys, values), kept), train)
        if self.is_initializing():
            self.decoder(self.rgb_encoder(lab[:, 0]))
            if self.cam is not None:
                self.label(lab[:, 0])
        return {"logits": logits.reshape(B, T, *logits.shape[1:])}


class Norm(nn.Module):
    """BatchNorm that is told by argument whether it trains."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return batch_norm(train=train, dtype=self.dtype, name="bn")(x)
