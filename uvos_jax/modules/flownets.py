"""Trainable optical-flow networks: FlowNetS, FlowNetC and PWC-Net (full size and lite).

Dosovitskiy et al., "FlowNet: Learning Optical Flow with Convolutional Networks", ICCV 2015, and Sun
et al., "PWC-Net: CNNs for Optical Flow Using Pyramid, Warping, and Cost Volume", CVPR 2018. The
networks take two images and return flow from the first to the second at several scales in units of
`FLOW_UNIT` pixels of the input; `full_flow` turns the finest one into pixels at full size.

Releases of FlowNet differ in which layers have a bias: `FlowNetPytorch` none in the decoder,
FlowNet2 in all but the flow upsamplers, the Caffe originals (and SegFlow) everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Real

from uvos_jax.errors import ShapeError
from uvos_jax.modules.layers import Conv, ConvTranspose, batch_norm
from uvos_jax.ops.correlation import correlation
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.ops.warp import backward_warp

#: Pixels per unit of what the networks return.
FLOW_UNIT = 20.0
#: Subtracted from RGB in 0..1 (FlowNetPytorch).
FLOWNET_MEAN = (0.45, 0.432, 0.411)
LEAK = 0.1
_HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def _leaky(x: jax.Array) -> jax.Array:
    return nn.leaky_relu(x, LEAK)


def normalize_pair(
    first: Real[Array, "B H W 3"], second: Real[Array, "B H W 3"]
) -> tuple[Float[Array, "B H W 3"], Float[Array, "B H W 3"]]:
    """RGB 0..255 to what the networks here are trained on: 0..1 minus `FLOWNET_MEAN`."""
    mean = jnp.asarray(FLOWNET_MEAN, jnp.float32)
    return first.astype(jnp.float32) / 255 - mean, second.astype(jnp.float32) / 255 - mean


def padded_size(size: tuple[int, int], multiple: int = 64) -> tuple[int, int]:
    """(H, W) rounded up to the multiple that a network's strides want."""
    return tuple(-(-n // multiple) * multiple for n in size)


def full_flow(
    flow: Float[Array, "B h w 2"], network_size: tuple[int, int], size: tuple[int, int]
) -> Float[Array, "B H W 2"]:
    """Flow in pixels at `size` from a network's output for images resized to `network_size`."""
    ratio = jnp.asarray([size[1] / network_size[1], size[0] / network_size[0]], jnp.float32)
    return resize_bilinear(flow.astype(jnp.float32), size) * (FLOW_UNIT * ratio)


class FlowNetConv(nn.Module):
    """Convolution, optional BatchNorm, LeakyReLU 0.1."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Output in `dtype`."""
        x = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            use_bias=not self.norm,
            dtype=self.dtype,
            kernel_init=_HE,
            name="conv",
        )(x)
        if self.norm:
            x = batch_norm(train=train, dtype=self.dtype, name="bn")(x)
        return _leaky(x)


class FlowDecoder(nn.Module):
    """Coarse-to-fine decoder of FlowNet: predict flow, upsample it and the features, join, repeat.

    Attributes:
      features: channels of the deconvolutions, from the coarsest to level 2.
      decoder_bias: bias of deconvolutions and flow predictions.
      upsample_bias: bias of the flow upsamplers.
    """

    features: Sequence[int]
    decoder_bias: bool
    upsample_bias: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, skips: dict[int, jax.Array]) -> dict[str, jax.Array]:
        """Decodes the encoder's maps `{level: [B,h,w,C]}`, level n at 1/2^n of the input.

        Returns:
          `flow<n>` float32 `[B,h,w,2]` for every level n >= 2, and `concat<n>`, the joined map
          that flow n is predicted from (all but the coarsest).
        """
        top = max(skips)
        if len(self.features) != top - 2:
            raise ShapeError(
                f"FlowNet: {top} levels need {top - 2} deconvolution widths, got "
                f"{tuple(self.features)}"
            )
        outputs: dict[str, jax.Array] = {}

        def predict(level: int, x: jax.Array) -> jax.Array:
            layer = Conv(2, 3, use_bias=self.decoder_bias, dtype=self.dtype, kernel_init=_HE,
                         name=f"predict_flow{level}")  # fmt: skip
            return layer(x).astype(jnp.float32)

        x = skips[top]
        flow = outputs[f"flow{top}"] = predict(top, x)
        for level, width in zip(range(top - 1, 1, -1), self.features, strict=True):
            skip = skips[level]
            h, w = skip.shape[1:3]
            up_flow = ConvTranspose(2, use_bias=self.upsample_bias, dtype=self.dtype,
                                    name=f"upsample_flow{level + 1}")(flow)  # fmt: skip
            up = _leaky(ConvTranspose(width, use_bias=self.decoder_bias, dtype=self.dtype,
                                      name=f"deconv{level}")(x))  # fmt: skip
            # at sizes that 2^n does not divide the upsampled maps stick out: cut below and right
            x = jnp.concatenate([skip, up[:, :h, :w], up_flow[:, :h, :w]], axis=-1)
            outputs[f"concat{level}"] = x
            flow = outputs[f"flow{level}"] = predict(level, x)
        return outputs


#: Kernel of the strided convolution of each level.
_KERNELS = (7, 5, 5, 3, 3, 3)


class FlowNetS(nn.Module):
    """FlowNetSimple: both images enter as one 6-channel map.

    Attributes:
      widths: channels of level 1 (1/2 size) to the last (6 levels: 1/64); fewer make a smaller net.
      decoder_widths: channels of the deconvolutions, coarse to fine, one for every level from the
        second-last to level 2.
      norm: BatchNorm instead of a bias in the encoder (`flownets_bn`).
      decoder_bias, upsample_bias: see the module's docstring.
    """

    widths: Sequence[int] = (64, 128, 256, 512, 512, 1024)
    decoder_widths: Sequence[int] = (512, 256, 128, 64)
    norm: bool = False
    decoder_bias: bool = False
    upsample_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, pair: Float[Array, "B H W 6"], *, train: bool = False
    ) -> dict[str, jax.Array]:
        """Flow of a pair of images stacked on channels (first, second).

        Returns:
          `flow2` (1/4 size) to `flow6` (1/64) float32 in units of 20 px, `concat2` to `concat5`,
          the decoder's joined maps, and `conv1` to `conv6`, the encoder's.
        """
        maps = _encoder_levels(pair, self.widths, 1, self.norm, self.dtype, train)
        decoder = FlowDecoder(
            self.decoder_widths, self.decoder_bias, self.upsample_bias, self.dtype, name="decoder"
        )
        outputs = decoder({n: x for n, x in maps.items() if n >= 2})
        return outputs | {f"conv{n}": x for n, x in maps.items()}


def _encoder_levels(
    x: jax.Array, widths: Sequence[int], start: int, norm: bool, dtype: Any, train: bool
) -> dict[int, jax.Array]:
    """Convolutions `conv<n>`, and `conv<n>_1` from level 3 on; called inside a compact module."""
    maps = {}
    for level, width in enumerate(widths[start - 1 :], start=start):
        kernel = _KERNELS[min(level, len(_KERNELS)) - 1]
        x = FlowNetConv(width, kernel, 2, norm, dtype, name=f"conv{level}")(x, train=train)
        if level >= 3:
            x = FlowNetConv(width, 3, 1, norm, dtype, name=f"conv{level}_1")(x, train=train)
        maps[level] = x
    return maps


class FlowNetC(nn.Module):
    """FlowNetCorr: the images meet in a cost volume after three convolutions of their own.

    Attributes:
      widths, decoder_widths, norm, decoder_bias, upsample_bias: as in `FlowNetS`.
      redirect_width: channels of the first image that bypass the cost volume.
      radius, step: of the cost volume, in pixels of level 3.
    """

    widths: Sequence[int] = (64, 128, 256, 512, 512, 1024)
    decoder_widths: Sequence[int] = (512, 256, 128, 64)
    redirect_width: int = 32
    radius: int = 10
    step: int = 2
    norm: bool = False
    decoder_bias: bool = False
    upsample_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, pair: Float[Array, "B H W 6"], *, train: bool = False
    ) -> dict[str, jax.Array]:
        """Flow of a pair of images stacked on channels; outputs as of `FlowNetS`."""
        B = pair.shape[0]
        x = jnp.concatenate([pair[..., :3], pair[..., 3:]])  # both images share the layers
        maps = {}
        for level in (1, 2, 3):
            x = FlowNetConv(self.widths[level - 1], _KERNELS[level - 1], 2, self.norm, self.dtype,
                            name=f"conv{level}")(x, train=train)  # fmt: skip
            maps[level] = x[:B]
        volume = _leaky(correlation(x[:B], x[B:], self.radius, step=self.step))
        redirected = FlowNetConv(self.redirect_width, 1, 1, self.norm, self.dtype,
                                 name="conv_redir")(x[:B], train=train)  # fmt: skip
        x = jnp.concatenate([redirected, volume.astype(redirected.dtype)], axis=-1)
        maps[3] = FlowNetConv(self.widths[2], 3, 1, self.norm, self.dtype, name="conv3_1")(
            x, train=train
        )
        maps |= _encoder_levels(maps[3], self.widths, 4, self.norm, self.dtype, train)
        decoder = FlowDecoder(
            self.decoder_widths, self.decoder_bias, self.upsample_bias, self.dtype, name="decoder"
        )
        outputs = decoder({n: x for n, x in maps.items() if n >= 2})
        return outputs | {f"conv{n}": x for n, x in maps.items()}


class PWCNet(nn.Module):
    """PWC-Net: at each level warp the second image's features, correlate, refine the flow.

    The defaults are the lite network; `PWC_FULL` holds the paper's sizes.

    Attributes:
      widths: channels of level 1 (1/2 size) to the last; three convolutions each.
      radius: search radius of the cost volume in pixels of the level.
      dense_widths: channels of the densely connected decoder convolutions.
      context: whether a dilated network refines the finest flow.
      normalize: whether features are standardised before they are compared (over the maps of both
        images together), without which a small network hardly starts to learn (UFlow, section 3).
    """

    widths: Sequence[int] = (8, 16, 24, 32, 48)
    radius: int = 3
    dense_widths: Sequence[int] = (48, 32, 24, 16)
    context: bool = False
    normalize: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        first: Float[Array, "B H W 3"],
        second: Float[Array, "B H W 3"],
        *,
        train: bool = False,
    ) -> dict[str, jax.Array]:
        """Flow from `first` to `second`, whose sides `2^levels` must divide.

        Returns:
          `flow2` (1/4 size) to `flow<levels>` float32 in units of 20 px.

        Raises:
          ShapeError: sides that the pyramid does not divide.
        """
        levels, multiple = len(self.widths), 2 ** len(self.widths)
        if any(n % multiple for n in first.shape[1:3]) or first.shape != second.shape:
            raise ShapeError(
                f"PWC-Net: expected two images of one size whose sides {multiple} divides, got "
                f"{first.shape} and {second.shape}; resize them first (padded_size)"
            )
        B = first.shape[0]
        pyramid = self._pyramid(jnp.concatenate([first, second]))
        outputs: dict[str, jax.Array] = {}
        flow = up_flow = up_features = None
        for level in range(levels, 1, -1):
            left, right = pyramid[level][:B], pyramid[level][B:]
            if self.normalize:
                left, right = _standardized(left, right)
            if up_flow is not None:
                right = backward_warp(right, up_flow * (FLOW_UNIT / 2**level), padding="zeros")
            volume = _leaky(correlation(left, right, self.radius))
            parts = [volume] if up_flow is None else [volume, left, up_flow, up_features]
            x = jnp.concatenate([p.astype(self.dtype) for p in parts], axis=-1)
            for i, width in enumerate(self.dense_widths):
                y = self._conv(width, f"decode{level}_{i}")(x)
                x = jnp.concatenate([_leaky(y), x], axis=-1)
            flow = self._flow(f"predict_flow{level}")(x).astype(jnp.float32)
            if level > 2:
                up = {"use_bias": True, "dtype": self.dtype}
                up_flow = ConvTranspose(2, **up, name=f"upsample_flow{level}")(flow)
                up_flow = up_flow.astype(jnp.float32)
                up_features = ConvTranspose(2, **up, name=f"upsample_features{level}")(x)
            elif self.context:
                flow = flow + self._refine(x)
            outputs[f"flow{level}"] = flow
        return outputs

    def _conv(self, width: int, name: str, **kwargs: Any) -> Conv:
        kwargs = {"kernel_init": _HE, **kwargs}
        return Conv(width, 3, use_bias=True, dtype=self.dtype, name=name, **kwargs)

    def _flow(self, name: str) -> Conv:
        # nearly no motion at first: warping by random flow would hide what the costs say
        return self._conv(2, name, kernel_init=nn.initializers.normal(1e-3))

    def _pyramid(self, x: jax.Array) -> dict[int, jax.Array]:
        maps = {}
        for level, width in enumerate(self.widths, start=1):
            for i in range(3):
                x = _leaky(self._conv(width, f"extract{level}_{i}", stride=2 if i == 0 else 1)(x))
            maps[level] = x
        return maps

    def _refine(self, x: jax.Array) -> jax.Array:
        layers = ((128, 1), (128, 2), (128, 4), (96, 8), (64, 16), (32, 1))
        for i, (width, dilation) in enumerate(layers):
            x = _leaky(self._conv(width, f"refine{i}", dilation=dilation)(x))
        return self._flow("refine_flow")(x).astype(jnp.float32)


def _standardized(left: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both maps with mean 0 and variance 1 over the two together, for each example."""
    both = jnp.stack([left, right]).astype(jnp.float32)
    mean = both.mean((0, 2, 3, 4), keepdims=True)
    scale = jax.lax.rsqrt(both.var((0, 2, 3, 4), keepdims=True) + 1e-6)
    both = ((both - mean) * scale).astype(left.dtype)
    return both[0], both[1]


#: Arguments of `PWCNet` for the network of the paper.
PWC_FULL: dict[str, Any] = {
    "widths": (16, 32, 64, 96, 128, 196),
    "radius": 4,
    "dense_widths": (128, 128, 96, 64, 32),
    "context": True,
    "normalize": False,
}


def estimate_flow(
    module: nn.Module,
    variables: Any,
    first: Real[Array, "B H W 3"],
    second: Real[Array, "B H W 3"],
) -> Float[Array, "B H W 2"]:
    """Flow in pixels from `first` to `second`, RGB 0..255 of any one size, by a network here.

    Images are resized to the next multiple of what the network's strides divide; the result is
    resized back and its vectors with it.
    """
    size = first.shape[1:3]
    network_size = padded_size(size, 2 ** len(module.widths))
    pair = [resize_bilinear(x, network_size) for x in normalize_pair(first, second)]
    inputs = pair if isinstance(module, PWCNet) else [jnp.concatenate(pair, axis=-1)]
    outputs = module.apply(variables, *inputs)
    return full_flow(outputs["flow2"], network_size, size)
