"""Attentive message passing between the frames of a video (Wang et al., ICCV 2019, section 3).

Frames are the nodes of a fully connected graph; a node's state is a feature map. In a round every
node looks at every other node through a dense attention map (inter-attention), optionally at itself
(intra-attention), weighs what it sees by gates, adds it up and updates its state with a
convolutional GRU whose weights all nodes, edges and rounds share.

All nodes are one array `[B,N,h,w,C]`. The messages of a round are computed for all nodes at once:
the nodes stand in a ring and keys and values make N-1 turns past the queries, so no array of all
N x N affinities exists, and with the node axis split over devices each turn is one exchange between
neighbouring devices. Nothing depends on the order of the nodes, unless `aggregation="fusion"`.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from uvos_jax.errors import ShapeError
from uvos_jax.modules.attention import AffinityProjection, SpatialGate, attend
from uvos_jax.modules.layers import Conv
from uvos_jax.modules.recurrent import ConvGRU

GATES = ("spatial", "channel", "none")
AGGREGATIONS = ("sum", "mean", "fusion")


class IntraAttention(nn.Module):
    """Self-attention of a map with a residual (paper eq. 3; PAM of the DANet family).

        y_i = gamma sum_j softmax_j(q_i . k_j) v_j + x_i,      q, k, v = 1x1 convolutions of x

    Attributes:
      key_features: channels of queries and keys.
      use_bias: of the three convolutions.
      gamma_init: initial gamma; 0 starts as the identity.
      attention_impl, block_size: see `uvos_jax.modules.attention`.
    """

    key_features: int = 64
    use_bias: bool = True
    gamma_init: float = 0.0
    attention_impl: str = "blockwise"
    block_size: int = 512
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B h w C"]) -> Float[Array, "*B h w C"]:
        *B, h, w, C = x.shape
        rows = x.reshape(-1, h * w, 1, C)

        def conv(features: int, name: str) -> jax.Array:
            layer = Conv(features, 1, use_bias=self.use_bias, dtype=self.dtype, name=name)
            return layer(rows).reshape(*B, h * w, features)

        found = attend(
            conv(self.key_features, "query_conv"),
            conv(self.key_features, "key_conv"),
            conv(C, "value_conv"),
            implementation=self.attention_impl,
            block_size=self.block_size,
        )
        gamma = self.param("gamma", nn.initializers.constant(self.gamma_init), (1,), jnp.float32)
        return jnp.asarray(gamma, x.dtype) * found.reshape(x.shape).astype(x.dtype) + x


class ChannelGate(nn.Module):
    """Multiplies a message by `sigmoid(mean_p(W m_p + b))`, one factor per channel (eq. 6)."""

    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, message: Float[Array, "*B n C"]) -> Float[Array, "*B n C"]:
        # mean and 1x1 convolution commute: one matrix product per message, not per position
        mean = jnp.mean(message.astype(jnp.float32), axis=-2, keepdims=True).astype(self.dtype)
        layer = nn.Dense(message.shape[-1], use_bias=self.use_bias, dtype=self.dtype, name="conv")
        return message * nn.sigmoid(layer(mean).astype(jnp.float32)).astype(message.dtype)


def inter_attention(
    queries: Float[Array, "B N n C"],
    keys: Float[Array, "B N m C"],
    values: Float[Array, "B N m D"],
    *,
    attention_impl: str = "blockwise",
    block_size: int = 512,
) -> Float[Array, "B N M n D"]:
    """What every node reads from each of the M = N-1 others, in ascending order of the others.

    `out[:, i, .]` are `softmax_q(queries_i[p] . keys_j[q]) values_j[q]` for all j except i. Each
    direction of an edge has its own product (the two are transposes only if the projection is
    symmetric).
    """
    N = queries.shape[1]

    def turn(ring, _):
        # after turn d, place i holds node i+d
        ring = jax.tree.map(lambda x: jnp.roll(x, -1, axis=1), ring)
        found = attend(queries, *ring, implementation=attention_impl, block_size=block_size)
        return ring, found

    _, found = jax.lax.scan(jax.checkpoint(turn, prevent_cse=False), (keys, values), length=N - 1)
    nodes, turns = np.arange(N)[:, None], np.arange(1, N)[None, :]
    ascending = np.argsort((nodes + turns) % N, axis=1)  # [N,M]
    found = jnp.moveaxis(found, 0, 2)
    return jnp.take_along_axis(found, jnp.asarray(ascending)[None, :, :, None, None], axis=2)


class MessagePassing(nn.Module):
    """One round: messages, gates, aggregation, update of all nodes at once (synchronous).

    Attributes:
      features: C, channels of the nodes.
      gate: `spatial` (one factor per position), `channel` (one per channel), `none`.
      gate_bias: whether the gate has a bias.
      aggregation: `sum` or `mean` of the gated messages, or `fusion`: a 3x3 convolution of the two
        neighbours' messages side by side (three nodes). With another number of nodes `fusion` sees
        the mean message twice, the average over all ordered pairs of neighbours.
      loop: whether a node also sends itself a message (`IntraAttention`), gated like the others.
      loop_features: key channels of that.
      attention_impl, block_size: see `uvos_jax.modules.attention`.
    """

    features: int
    gate: Literal["spatial", "channel", "none"] = "spatial"
    gate_bias: bool = False
    aggregation: Literal["sum", "mean", "fusion"] = "sum"
    loop: bool = True
    loop_features: int = 64
    attention_impl: str = "blockwise"
    block_size: int = 512
    dtype: Any = jnp.float32

    def setup(self):
        options = {"attention_impl": self.attention_impl, "block_size": self.block_size}
        self.affinity = AffinityProjection(self.features, dtype=self.dtype)
        if self.loop:
            self.intra = IntraAttention(
                self.loop_features, use_bias=False, dtype=self.dtype, **options
            )
        if self.gate == "spatial":
            self.gate_of = SpatialGate(use_bias=self.gate_bias, dtype=self.dtype)
        elif self.gate == "channel":
            self.gate_of = ChannelGate(use_bias=self.gate_bias, dtype=self.dtype)
        if self.aggregation == "fusion":
            self.fusion = Conv(self.features, 3, use_bias=True, dtype=self.dtype)
        self.update = ConvGRU(self.features, kernel_size=1, dtype=self.dtype)

    def _gated(self, messages: jax.Array) -> jax.Array:
        """Gates messages `[B,N,M,n,C]`."""
        return messages if self.gate == "none" else self.gate_of(messages)

    def messages(self, nodes: Float[Array, "B N h w C"]) -> Float[Array, "B N M n C"]:
        """Gated messages to every node: from the others in ascending order, then from itself."""
        B, N, h, w, C = nodes.shape
        rows = nodes.reshape(B, N, h * w, C)
        found = []
        if N > 1:
            sent = inter_attention(
                self.affinity(rows),
                rows,
                rows,
                attention_impl=self.attention_impl,
                block_size=self.block_size,
            )
            found.append(self._gated(sent))
        if self.loop:
            found.append(self._gated(self.intra(nodes).reshape(B, N, 1, h * w, C)))
        if not found:
            raise ShapeError(
                "a graph of one node without loops has no messages: give at least 2 nodes"
            )
        return jnp.concatenate(found, axis=2)

    def aggregate(
        self, messages: Float[Array, "B N M n C"], size: tuple[int, int]
    ) -> Float[Array, "B N h w C"]:
        """One message per node from its M messages; `size` is (h, w)."""
        B, N, M, _, C = messages.shape
        if self.aggregation == "sum":
            return jnp.sum(messages, axis=2).reshape(B, N, *size, C)
        if self.aggregation == "mean":
            return jnp.mean(messages, axis=2).reshape(B, N, *size, C)
        if M != 2:
            messages = jnp.repeat(jnp.mean(messages, axis=2, keepdims=True), 2, axis=2)
        pair = messages.reshape(B * N, 2, *size, C)
        fused = self.fusion(jnp.concatenate([pair[:, 0], pair[:, 1]], axis=-1))
        return fused.reshape(B, N, *size, C)

    def __call__(
        self, nodes: Float[Array, "B N h w C"], _: None = None
    ) -> tuple[Float[Array, "B N h w C"], Float[Array, "B N h w C"]]:
        """The nodes after one round, twice: as carry and as output of a scan over rounds."""
        B, N, h, w, C = nodes.shape
        message = self.aggregate(self.messages(nodes), (h, w))
        new, _ = self.update(
            message.reshape(B * N, 1, h, w, C), nodes.reshape(B * N, h, w, C).astype(jnp.float32)
        )
        new = new.reshape(nodes.shape).astype(nodes.dtype)
        return new, new


class MessageRounds(nn.Module):
    """K rounds of `MessagePassing` with the same weights, each recomputed in the backward pass.

    Attributes:
      rounds: K; 0 returns the nodes as they came.
      options: keyword arguments of `MessagePassing` as pairs.
    """

    rounds: int
    options: tuple[tuple[str, Any], ...]

    @nn.compact
    def __call__(
        self, nodes: Float[Array, "B N h w C"]
    ) -> tuple[Float[Array, "B N h w C"], Float[Array, "K B N h w C"]]:
        """The nodes after the last round, and after each round."""
        length = max(self.rounds, 1) if self.is_initializing() else self.rounds
        if length == 0:
            return nodes, nodes[None][:0]
        # A round's body is one step of a loop anyway: CSE across the recomputation cannot happen.
        body = nn.remat(MessagePassing, prevent_cse=False)
        scanned = nn.scan(
            body, variable_broadcast="params", split_rngs={"params": False}, length=length
        )
        return scanned(**dict(self.options), name="round")(nodes, None)
