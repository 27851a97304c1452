"""The segmenter: from two grey frames to object masks, their translations, and the flow of both.

Every layer starts orthogonal with the gain of the release, biases at zero. All that the decoder
knows of the frames passes through the embedding: there are no skip connections.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from uvos_jax.modules.layers import Conv
from uvos_jax.ops.resize import resize_bilinear_legacy
from uvos_jax.ops.warp import backward_warp, sample
from uvos_jax.types import Outputs

#: Names of the encoder's convolutions in the release and here.
CONVS = ("c1", "c2", "c3")
#: Luma of R, G, B.
LUMA = (0.299, 0.587, 0.114)


def orthogonal(gain: float) -> Any:
    """Initialiser: orthogonal with all axes but the last as one."""
    return nn.initializers.orthogonal(gain)


def dense(features: int, gain: float, dtype: Any, name: str) -> nn.Dense:
    """A linear layer with an orthogonal start; gain 0 starts at zero."""
    init = orthogonal(gain) if gain else nn.initializers.zeros
    return nn.Dense(features, kernel_init=init, dtype=dtype, name=name)


class Encoder(nn.Module):
    """The "Nature CNN": grey frame pairs `[B,H,W,2]` to the embedding `[B,embedding]`.

    Attributes:
      convs: (features, kernel, stride) of the three convolutions, without padding.
      embedding: width of `fc1`.
    """

    convs: tuple[tuple[int, int, int], ...] = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
    embedding: int = 512
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pairs: jax.Array) -> jax.Array:
        x = pairs.astype(self.dtype)
        for name, (features, kernel, stride) in zip(CONVS, self.convs, strict=True):
            x = Conv(
                features, kernel, stride, padding=0, use_bias=True, dtype=self.dtype,
                kernel_init=orthogonal(np.sqrt(2)), name=name,
            )(x)  # fmt: skip
            x = nn.relu(x)
        x = x.reshape(x.shape[0], -1)
        return nn.relu(dense(self.embedding, np.sqrt(2), self.dtype, "fc1")(x))


class MaskDecoder(nn.Module):
    """The embedding `[B,D]` to mask logits `[B,H,W,K]` of `size` (H, W)."""

    size: tuple[int, int]
    objects: int = 20
    channels: int = 24
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, embedding: jax.Array) -> jax.Array:
        C, gain = self.channels, np.sqrt(2)
        h, w = (n // 4 for n in self.size)
        x = dense(h * w * C, gain, self.dtype, "fc2")(embedding).reshape(-1, h, w, C)
        for name, scale in (("conv5", 2), ("conv6", 1)):
            x = resize_bilinear_legacy(x, tuple(n // scale for n in self.size))
            change = Conv(
                C, 3, use_bias=True, dtype=self.dtype, kernel_init=orthogonal(gain), name=name
            )(x)
            x = nn.relu(x + change)
        return Conv(
            self.objects, 1, use_bias=True, dtype=self.dtype, kernel_init=orthogonal(1.0),
            name="masks",
        )(x)  # fmt: skip


class MotionHeads(nn.Module):
    """The embedding to `translations [B,K,2]` and `camera [B,2]`, (dy, dx), float32.

    Attributes:
      camera: False for a camera that never moves; it then has no layer.
    """

    objects: int = 20
    camera: bool = True

    @nn.compact
    def __call__(self, embedding: jax.Array) -> tuple[jax.Array, jax.Array]:
        e = embedding.astype(jnp.float32)
        t = dense(2 * self.objects, 1.0, jnp.float32, "obj_t")(e).reshape(-1, self.objects, 2)
        if not self.camera:
            return t, jnp.zeros((e.shape[0], 2), jnp.float32)
        return t, dense(2, 0.0, jnp.float32, "camera_translation")(e)


def flow_of(
    masks: jax.Array, translations: jax.Array, camera: jax.Array, scale: float = 0.01
) -> jax.Array:
    """Flow `[B,H,W,2]` in pixels (u right, v down) from the previous frame to the newest.

    `F(p) = scale (H, W) (sum_k m_k(p) t_k + c)`: the release works in (dy, dx), with 0.01 of the
    image's side as its unit.

    Args:
      masks: `[B,H,W,K]` in [0,1]. translations: `[B,K,2]`, (dy, dx). camera: `[B,2]`.
    """
    H, W = masks.shape[1:3]
    motion = jnp.einsum("bhwk,bkd->bhwd", masks, translations, precision="highest")
    motion = motion + camera[:, None, None]
    return (motion * jnp.asarray([scale * H, scale * W], jnp.float32))[..., ::-1]


class SegmentNetwork(nn.Module):
    """The whole network of stage 1; can be used alone on grey pairs in [0,1].

    Attributes:
      flow_scale: unit of motion as a share of the image's sides.
    """

    size: tuple[int, int]
    convs: tuple[tuple[int, int, int], ...] = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
    embedding: int = 512
    channels: int = 24
    objects: int = 20
    camera: bool = True
    flow_scale: float = 0.01
    dtype: Any = jnp.float32

    def setup(self):
        self.encoder = Encoder(self.convs, self.embedding, self.dtype)
        self.decoder = MaskDecoder(self.size, self.objects, self.channels, self.dtype)
        self.motion = MotionHeads(self.objects, self.camera)

    def __call__(self, pairs: jax.Array) -> Outputs:
        """`pairs [B,H,W,2]`: previous frame, newest frame.

        Returns what `decode` does.
        """
        return self.decode(self.encoder(pairs), pairs)

    def decode(self, embedding: jax.Array, pairs: jax.Array) -> Outputs:
        """What the embedding says of the pair; see `decode`."""
        return decode(self.decoder, self.motion, embedding, pairs, self.flow_scale)


def decode(
    decoder: MaskDecoder, motion: MotionHeads, embedding: jax.Array, pairs: jax.Array, scale: float
) -> Outputs:
    """Masks, motion and reconstruction from the embedding of `pairs [B,H,W,2]`.

    Returns:
      `mask_logits [B,H,W,K]`, and in float32 `masks`, which live in the previous frame,
      `translations [B,K,2]` and `camera [B,2]` (dy, dx) in units of `scale`, `flow [B,H,W,2]`
      (u, v) in pixels from the previous frame to the newest, and `reconstruction [B,H,W,1]`: the
      previous frame, fetched from the newest.
    """
    logits = decoder(embedding)
    masks = nn.sigmoid(logits.astype(jnp.float32))
    translations, camera = motion(embedding)
    flow = flow_of(masks, translations, camera, scale)
    return {
        "mask_logits": logits,
        "masks": masks,
        "translations": translations,
        "camera": camera,
        "flow": flow,
        "reconstruction": backward_warp(pairs[..., 1:].astype(jnp.float32), flow),
    }


def carried(
    masks: jax.Array, translations: jax.Array, camera: jax.Array, scale: float = 0.01
) -> jax.Array:
    """Masks `[B,H,W,K]` of the previous frame moved to where the newest shows their objects.

    Each goes as far as its own translation and the camera's take it; from outside comes nothing.
    """
    B, H, W, K = masks.shape
    shift = (translations + camera[:, None]) * jnp.asarray([scale * H, scale * W], jnp.float32)
    rows, columns = jnp.arange(H, dtype=jnp.float32), jnp.arange(W, dtype=jnp.float32)
    y = rows[:, None] - shift[..., 0, None, None]  # [B,K,H,1]
    x = columns - shift[..., 1, None, None]
    positions = jnp.stack(jnp.broadcast_arrays(x, y), axis=-1).reshape(B * K, H, W, 2)
    flat = jnp.moveaxis(masks, -1, 1).reshape(B * K, H, W, 1)
    moved = sample(flat, positions, padding="zeros").reshape(B, K, H, W)
    return jnp.moveaxis(moved, 1, -1)


def to_grey(frames: jax.Array) -> jax.Array:
    """Luma in 0..255, float32 `[...,H,W]`, of RGB frames `[...,H,W,3]`, rounded as images are."""
    return jnp.round(frames.astype(jnp.float32) @ jnp.asarray(LUMA, jnp.float32))
