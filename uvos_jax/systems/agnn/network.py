"""The network of AGNN: encoder with self-attention, rounds of message passing, read-out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from uvos_jax.modules.backbones.deeplab import ConvBNReLU, EmbeddingASPP
from uvos_jax.modules.backbones.resnet import ResNet
from uvos_jax.modules.graph import IntraAttention, MessageRounds
from uvos_jax.modules.heads import SegmentationHead
from uvos_jax.modules.layers import Conv
from uvos_jax.types import Outputs


class Encoder(nn.Module):
    """Frames to nodes: DeepLabv3 embedding, self-attention, 3x3 convolution, saliency logit.

    Attributes:
      self_attention: whether the release's tail (`PAM.py`, `conv51`, dropout of whole channels)
        follows the ASPP.
      Others as in `AttentiveGraphNetwork`.
    """

    block_counts: tuple[int, ...]
    widths: tuple[int, ...]
    aspp_depth: int
    embedding: int
    aspp_rates: tuple[int, ...]
    self_attention: bool = True
    key_features: int = 64
    dropout: float = 0.1
    attention_impl: str = "blockwise"
    block_size: int = 512
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """`[B,H,W,3]` normalised to `[B,h,w,C]` and saliency logits `[B,h,w,1]`."""
        *_, x = ResNet(
            self.block_counts, self.widths, remat=self.remat, dtype=self.dtype, name="resnet"
        )(x, train)
        x = EmbeddingASPP(
            self.aspp_depth, self.embedding, self.aspp_rates, dtype=self.dtype, name="layer5"
        )(x, train)
        if self.self_attention:
            x = IntraAttention(
                self.key_features,
                attention_impl=self.attention_impl,
                block_size=self.block_size,
                dtype=self.dtype,
                name="sa",
            )(x)
            x = ConvBNReLU(self.embedding, 3, dtype=self.dtype, name="conv51")(x, train)
            x = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(x)
        saliency = Conv(1, 1, use_bias=True, dtype=self.dtype, name="main_classifier")(x)
        return x, saliency


class AttentiveGraphNetwork(nn.Module):
    """Masks of N frames of a video at once. Takes normalised NHWC frames, can be used alone.

    Attributes:
      block_counts, widths, aspp_depth, embedding, aspp_rates: of the DeepLabv3 embedding.
      self_attention, key_features, dropout: of the encoder's tail.
      rounds: K.
      gate, gate_bias, aggregation, loop: of `uvos_jax.modules.graph.MessagePassing`.
      attention_impl, block_size: see `uvos_jax.modules.attention`.
      remat: recompute the encoder's blocks in the backward pass (rounds always are).
    """

    block_counts: tuple[int, ...] = (3, 4, 23, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    aspp_depth: int = 512
    embedding: int = 256
    aspp_rates: tuple[int, ...] = (6, 12, 18)
    self_attention: bool = True
    key_features: int = 64
    dropout: float = 0.1
    rounds: int = 5
    gate: str = "spatial"
    gate_bias: bool = False
    aggregation: str = "fusion"
    loop: bool = False
    attention_impl: str = "blockwise"
    block_size: int = 512
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        shared = {
            "attention_impl": self.attention_impl,
            "block_size": self.block_size,
            "dtype": self.dtype,
        }
        self.encoder = Encoder(
            self.block_counts,
            self.widths,
            self.aspp_depth,
            self.embedding,
            self.aspp_rates,
            self_attention=self.self_attention,
            key_features=self.key_features,
            dropout=self.dropout,
            remat=self.remat,
            **shared,
        )
        options = {
            "features": self.embedding,
            "gate": self.gate,
            "gate_bias": self.gate_bias,
            "aggregation": self.aggregation,
            "loop": self.loop,
            "loop_features": self.key_features,
            **shared,
        }
        self.graph = MessageRounds(self.rounds, tuple(options.items()))
        self.head = SegmentationHead(self.embedding, dtype=self.dtype)

    def encode(self, frames: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """`[*B,H,W,3]` to nodes `[*B,h,w,C]` and saliency logits `[*B,h,w,1]`."""
        lead = frames.shape[:-3]
        nodes, saliency = self.encoder(frames.reshape(-1, *frames.shape[-3:]), train)
        return nodes.reshape(*lead, *nodes.shape[1:]), saliency.reshape(*lead, *saliency.shape[1:])

    def propagate(self, nodes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Nodes `[B,N,h,w,C]` after the last round, and after each `[K,B,N,h,w,C]`."""
        return self.graph(nodes)

    def read_out(self, nodes: jax.Array, initial: jax.Array, train: bool = False) -> jax.Array:
        """Mask logits `[*B,h,w,1]` of final and initial nodes `[*B,h,w,C]`, head shared by all."""
        lead = nodes.shape[:-3]
        joined = jnp.concatenate([nodes, initial], axis=-1)
        logits = self.head(joined.reshape(-1, *joined.shape[-3:]), train)
        return logits.reshape(*lead, *logits.shape[1:])

    def segment(self, query: jax.Array, references: jax.Array) -> jax.Array:
        """Logits `[B,h,w,1]` of a query node `[B,h,w,C]` among references `[B,R,h,w,C]`."""
        nodes, _ = self.propagate(jnp.concatenate([query[:, None], references], axis=1))
        return self.read_out(nodes[:, 0], query)

    def __call__(self, frames: jax.Array, *, train: bool = False, static: bool = False) -> Outputs:
        """Masks of all nodes.

        Args:
          frames: `[B,N,H,W,3]` normalised; a single frame meets itself once.
          static: only the encoder and its saliency logit run (the step on still images).

        Returns:
          `logits [B,N,h,w,1]`, `saliency_logits [B,N,h,w,1]`, `embedding [B,N,h,w,C]` (the nodes
          before the first round).
        """
        initial, saliency = self.encode(frames, train)
        outputs = {"embedding": initial, "saliency_logits": saliency}
        if static and not self.is_initializing():
            return {**outputs, "logits": saliency}
        N = initial.shape[1]
        nodes = initial if N > 1 else jnp.repeat(initial, 2, axis=1)
        nodes, _ = self.propagate(nodes)
        return {**outputs, "logits": self.read_out(nodes[:, :N], initial, train)}
