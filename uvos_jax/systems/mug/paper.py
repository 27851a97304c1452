"""MuG's network as the paper has it: one embedding, four granularities of supervision.

`phi`: a ResNet-50 at stride 8 and a linear projection, to signed features `x_t [h,w,C]`; `rho`: a
1x1 convolution to the foreground logit. On top of them, for training only, patch tracking
(short-term), an affine map between two frames (long-term) and the identity of the video.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from uvos_jax.modules import attention as attn
from uvos_jax.modules.backbones.resnet import BLOCKS, ResNet
from uvos_jax.modules.layers import Conv, batch_norm
from uvos_jax.systems.mug import granularity as gran
from uvos_jax.systems.mug.cam import PseudoLabeller
from uvos_jax.types import Outputs

STRIDE = 8


class AffineRegressor(nn.Module):
    """Affinity `A[o,o']` to affine parameters `[B,6]`, the identity at the start.

    A is taken as a map over the cells o' with one channel per cell o.
    """

    widths: tuple[int, int] = (128, 64)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, affinity: jax.Array, grid: tuple[int, int], train: bool) -> jax.Array:
        x = affinity.swapaxes(1, 2).reshape(-1, *grid, affinity.shape[1]).astype(self.dtype)
        for i, (width, kernel) in enumerate(zip(self.widths, (7, 5), strict=True), start=1):
            x = Conv(width, kernel, dtype=self.dtype, name=f"conv{i}")(x)
            x = nn.relu(batch_norm(train=train, dtype=self.dtype, name=f"norm{i}")(x))
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        delta = nn.Dense(6, kernel_init=nn.initializers.zeros, name="dense")(x)
        return delta + jnp.asarray([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])


class PaperNetwork(nn.Module):
    """Takes normalised NHWC clips: three consecutive frames, then one per segment of the video.

    Attributes:
      block_counts, widths: of the ResNet. embedding: C.
      patch: side of the tracked patch, in pixels. cycle: how far it is tracked before it returns,
        1 or 2 frames. response_scale: of the responses (`granularity.SCALES`).
      target_sigma: of the target's Gaussian, as a share of the patch.
      affinity_scale: of the long-term affinity. inlier_radius: in cells.
      num_videos: identities to tell apart.
      granularities: which of `short`, `long`, `video` are trained.
      cam: fields of `PseudoLabeller`, if the network that makes labels is part of this one.
      attention_impl, block_size: of the enhancement at test time.
    """

    block_counts: tuple[int, ...] = BLOCKS[50]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    embedding: int = 256
    patch: int = 64
    cycle: int = 2
    response_scale: str = "sqrt"
    target_sigma: float = 0.25
    affinity_scale: str = "none"
    inlier_radius: float = 1.0
    regressor_widths: tuple[int, int] = (128, 64)
    num_videos: int = 6277
    granularities: tuple[str, ...] = ("short", "long", "video")
    cam: tuple[tuple[str, Any], ...] | None = None
    attention_impl: str = "blockwise"
    block_size: int = 512
    remat: bool = False
    dtype: Any = jnp.float32

    #: Parts that a copy of the network needs to give masks.
    segmenting = ("encoder", "projection", "rho")

    def setup(self):
        self.encoder = ResNet(
            block_counts=self.block_counts,
            widths=self.widths,
            first_dilations=(1, 1, 1, 2),
            stride_on="conv2",
            ceil_pool=False,
            remat=self.remat,
            dtype=self.dtype,
        )
        self.projection = Conv(self.embedding, 1, use_bias=True, dtype=self.dtype)
        # small, so that no frame starts out certain: features are not normalised
        small = nn.initializers.normal(0.01)
        self.rho = Conv(1, 1, use_bias=True, dtype=self.dtype, kernel_init=small)
        if "long" in self.granularities:
            self.regressor = AffineRegressor(self.regressor_widths, self.dtype)
        if "video" in self.granularities:
            self.video_classifier = nn.Dense(self.num_videos)
        if self.cam is not None:
            self.pseudo_labeller = PseudoLabeller(**dict(self.cam), dtype=self.dtype)

    # ----- parts --------------------------------------------------------------------------

    def encode(self, frames: jax.Array, train: bool = False) -> jax.Array:
        """phi: `[B,H,W,3]` to `[B,h,w,C]`."""
        return self.projection(self.encoder(frames, train)[-1])

    def foreground(self, features: jax.Array) -> jax.Array:
        """rho: `[B,h,w,C]` to logits `[B,h,w,1]`."""
        return self.rho(features)

    def enhance(
        self, features: jax.Array, references: jax.Array, valid: jax.Array | None
    ) -> jax.Array:
        """The mean of features `[B,h,w,C]` and what they find in references `[B,R,h,w,C]`."""
        B, R, h, w, C = references.shape
        flat = features.reshape(B, h * w, C)
        kept = references.reshape(B, R * h * w, C)
        summary = attn.attend(
            flat * gran.scale_of(self.affinity_scale, C),
            kept,
            kept,
            valid=None if valid is None else jnp.repeat(valid, h * w, axis=1),
            implementation=self.attention_impl,
            block_size=self.block_size,
        )
        return (features + summary.reshape(features.shape)) / 2

    def track(self, frames: jax.Array, features: jax.Array, start: jax.Array) -> jax.Array:
        """Responses (logits) in frame 0 after a patch went forth and back, `[B,h,w]`.

        Gradients pass through the last search only; where a patch is found is taken as given.
        Patches are embedded with BatchNorm's running statistics: those of small crops with their
        padding are others, and must not enter what whole frames are normalised by at test time.

        Args:
          frames: `[B,T,H,W,3]`. features: `[B,T,h,w,C]`. start: cells of the patch, `[B,2]`.
        """
        path = (1, 0) if self.cycle == 1 else (1, 2, 1, 0)
        template = gran.crop(frames[:, 0], start, self.patch, STRIDE)
        for t in path[:-1]:
            found = gran.responses(
                jax.lax.stop_gradient(self.encode(template)),
                jax.lax.stop_gradient(features[:, t]),
                scale=self.response_scale,
            )
            template = gran.crop(frames[:, t], gran.peak(found), self.patch, STRIDE)
        return gran.responses(
            self.encode(template), features[:, path[-1]], scale=self.response_scale
        )

    def label(self, frames: jax.Array) -> jax.Array:
        """Logits `[B,H,W]` of the frozen label network for uint8 RGB frames."""
        return self.pseudo_labeller(frames)

    # ----- whole network ------------------------------------------------------------------

    def __call__(
        self,
        frames: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        memory: int | None = None,
    ) -> Outputs:
        """Everything the losses need.

        Args:
          frames: `[B,T,H,W,3]` normalised.
          key: decides on patches and pairs; None computes masks only.

        Returns:
          `logits [B,T,h,w,1]`, `embedding [B,T,h,w,C]`, and with a key what is trained of
          `response [B,h,w]` (logits) with its `response_target`, `inliers [B]`, `theta [B,6]`,
          `video_logits [B,N]`.
        """
        B, T = frames.shape[:2]
        features = self.encode(frames.reshape(B * T, *frames.shape[2:]), train)
        grid, C = features.shape[1:3], features.shape[-1]
        logits = self.foreground(features).reshape(B, T, *grid, 1)
        features = features.reshape(B, T, *grid, C)
        outputs = {"logits": logits, "embedding": features}
        initializing = self.is_initializing()
        if key is None and not initializing:
            return outputs
        key = jax.random.key(0) if key is None else key
        where, first, second = jax.random.split(key, 3)
        segments = features[:, 3:]
        K = segments.shape[1]
        if "short" in self.granularities and not initializing:
            cells = self.patch // STRIDE
            low, high = cells // 2, jnp.asarray(grid) - cells + cells // 2 + 1
            start = jax.random.randint(where, (B, 2), low, high)
            outputs["response"] = self.track(frames, features, start)
            outputs["response_target"] = gran.gaussian_target(
                start, grid, self.target_sigma * cells
            )
        if "long" in self.granularities:
            i = jax.random.randint(first, (), 0, K)
            j = (i + jax.random.randint(second, (), 1, max(K, 2))) % K
            pair = (jnp.take(segments, k, axis=1) for k in (i, j))
            affinity = gran.column_affinity(*pair, scale=self.affinity_scale)
            theta = self.regressor(affinity, grid, train)
            outputs["theta"] = theta
            outputs["inliers"] = gran.inlier_share(
                affinity, theta, grid, radius=self.inlier_radius, soft=True
            )
        if "video" in self.granularities:
            pooled = jnp.mean(segments.astype(jnp.float32), axis=(1, 2, 3))
            outputs["video_logits"] = self.video_classifier(pooled)
        if initializing and self.cam is not None:
            self.label(frames[:, 0])
        return outputs
