"""MATNet's decoder: boundaries at every stage, and top-down refinement that sees them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from uvos_jax.modules.layers import Conv, batch_norm
from uvos_jax.ops.resize import resize_bilinear

STAGES = (5, 4, 3, 2)


def kernel_init(std: float) -> Any:
    """Normal with this deviation; 0 takes He's for the layer."""
    if std:
        return nn.initializers.normal(std)
    return nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class BoundaryHead(nn.Module):
    """BN, 3x3 conv, ReLU, BN, 3x3 conv, ReLU, 1x1 conv to one logit.

    Attributes:
      features: hidden width. init_std: see `kernel_init`.
    """

    features: int = 64
    init_std: float = 0.001
    freeze_bn: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = {"train": train, "freeze": self.freeze_bn, "dtype": self.dtype}
        conv = {"use_bias": True, "dtype": self.dtype, "kernel_init": kernel_init(self.init_std)}
        x = batch_norm(name="bn1", **norm)(x)
        x = nn.relu(Conv(self.features, 3, name="conv1", **conv)(x))
        x = batch_norm(name="bn2", **norm)(x)
        x = nn.relu(Conv(self.features, 3, name="conv2", **conv)(x))
        return Conv(1, 1, name="conv3", **conv)(x)


class GlobalConv(nn.Module):
    """A 7x7 neighbourhood by two paths of separable convolutions, (7x1, 1x7) + (1x7, 7x1)."""

    features: int = 256
    init_std: float = 0.001
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def conv(name: str, x: jax.Array, vertical: bool) -> jax.Array:
            size, pads = ((7, 1), ((3, 3), (0, 0))) if vertical else ((1, 7), ((0, 0), (3, 3)))
            return nn.Conv(
                self.features,
                size,
                padding=pads,
                dtype=self.dtype,
                kernel_init=kernel_init(self.init_std),
                name=name,
            )(x)

        left = conv("conv_l2", conv("conv_l1", x, True), False)
        return left + conv("conv_r2", conv("conv_r1", x, False), True)


class Refine(nn.Module):
    """One step of the top-down path.

    Attributes:
      features: width, a multiple of four.
      shared_dilation: the release applies one dilated convolution three times; False has three of
        their own.
      dilations: of the three; with `shared_dilation` the first counts.
    """

    features: int = 256
    shared_dilation: bool = True
    dilations: tuple[int, int, int] = (3, 5, 7)
    init_std: float = 0.001
    freeze_bn: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, above: jax.Array, train: bool) -> jax.Array:
        """Features `x [N,h,w,C]` of this stage and the map above `[N,h',w',D]` to `[N,h,w,D]`."""
        common = {"use_bias": True, "dtype": self.dtype, "kernel_init": kernel_init(self.init_std)}
        quarter = self.features // 4

        def residual(names: tuple[str, str], x: jax.Array) -> jax.Array:
            for name in names:
                y = x if name == names[0] else y
                y = Conv(self.features, 3, name=name, **common)(nn.relu(y))
            return x + y

        branches = [Conv(quarter, 1, name="pyramid0", **common)(x)]
        count = 1 if self.shared_dilation else 3
        for i, dilation in enumerate(self.dilations[:count], start=1):
            conv = Conv(quarter, 3, dilation=dilation, name=f"pyramid{i}", **common)
            branches += [conv(x)] * (3 if self.shared_dilation else 1)
        pyramid = jnp.concatenate(branches, axis=-1)
        pyramid = batch_norm(
            train=train, freeze=self.freeze_bn, dtype=self.dtype, name="pyramid_norm"
        )(pyramid)
        side = residual(("convFS2", "convFS3"), pyramid)
        joined = side + resize_bilinear(above, side.shape[1:3])
        return residual(("convMM1", "convMM2"), joined)


class BoundaryAwareDecoder(nn.Module):
    """From gated features to a mask and to the boundaries of all stages.

    Attributes:
      features: width. boundary_width: of the boundary heads.
      boundary: without it no boundaries are predicted, nor seen by the refinement.
      Others as in `Refine`.
    """

    features: int = 256
    boundary: bool = True
    boundary_width: int = 64
    shared_dilation: bool = True
    dilations: tuple[int, int, int] = (3, 5, 7)
    init_std: float = 0.001
    freeze_bn: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, gated: dict[str, jax.Array], size: tuple[int, int], train: bool
    ) -> dict[str, jax.Array]:
        """Decodes `g2`..`g5`.

        Args:
          size: (H, W) of the boundary maps.

        Returns:
          `logits [N,h,w,1]` at the stride of `g2`; with boundaries `boundary_logits [N,H,W,5]`:
          fused, then stage 2 to 5; `boundary2`..`boundary5`, logits at their stages' sizes; and
          `top`, `refined4`, `refined3`, `refined2`.
        """
        common = {"use_bias": True, "dtype": self.dtype, "kernel_init": kernel_init(self.init_std)}
        maps: dict[str, jax.Array] = {}
        features = {k: gated[f"g{k}"] for k in STAGES}
        if self.boundary:
            for k in STAGES:
                head = BoundaryHead(
                    self.boundary_width, self.init_std, self.freeze_bn, self.dtype, name=f"bdry{k}"
                )
                logit = head(features[k], train)
                maps[f"boundary{k}"] = logit
                features[k] = jnp.concatenate([features[k], logit], axis=-1)
            sides = [resize_bilinear(maps[f"boundary{k}"], size) for k in (2, 3, 4, 5)]
            sides = jnp.concatenate(sides, axis=-1)
            fused = Conv(1, 3, name="concat", **common)(sides)
            maps["boundary_logits"] = jnp.concatenate([fused, sides], axis=-1)

        x = GlobalConv(self.features, self.init_std, self.dtype, name="GC")(features[5])
        maps["top"] = x
        y = Conv(self.features, 3, name="convG1", **common)(nn.relu(x))
        x = x + Conv(self.features, 3, name="convG2", **common)(nn.relu(y))
        for k in (4, 3, 2):
            x = Refine(
                self.features,
                self.shared_dilation,
                self.dilations,
                self.init_std,
                self.freeze_bn,
                self.dtype,
                name=f"RF{k}",
            )(features[k], x, train)
            maps[f"refined{k}"] = x
        maps["logits"] = Conv(1, 3, name="pred2", **common)(nn.relu(x))
        return maps
