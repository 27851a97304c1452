"""The embedding network, its losses, and the similarity of two embeddings."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float

from uvos_jax.modules.backbones.resnet import ResNet
from uvos_jax.modules.layers import Conv
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.systems.iet.bilateral import BilateralFilter, lattice_cells
from uvos_jax.types import VOID, Outputs


def squared_distance(a: Float[Array, "... N E"], b: Float[Array, "... M E"]) -> jax.Array:
    """`|a_i - b_j|^2`, float32 `[..., N, M]`, never negative."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    product = jnp.einsum("...ne,...me->...nm", a, b, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.sum(a * a, -1)[..., :, None] + jnp.sum(b * b, -1)[..., None, :]
    return jnp.maximum(norms - 2 * product, 0.0)


def log_similarity(distance: jax.Array) -> jax.Array:
    """`log R` of `R = 2 / (1 + exp(d))`, d the squared distance of two embeddings."""
    return jnp.log(2.0) - jax.nn.softplus(distance)


def log_dissimilarity(distance: jax.Array) -> jax.Array:
    """`log (1 - R)`; d is held above 1e-6, where it is finite."""
    d = jnp.maximum(distance, 1e-6)
    return jnp.log(-jnp.expm1(-d)) - jnp.log1p(jnp.exp(-d))


class FieldOfViewHead(nn.Module):
    """Parallel dilated 3x3 convolutions, added up (the last layer of DeepLab-v2)."""

    features: int
    dilations: tuple[int, ...] = (6, 12, 18, 24)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return sum(
            Conv(self.features, 3, dilation=d, use_bias=True, dtype=self.dtype, name=f"d{d}",
                 kernel_init=nn.initializers.normal(0.01))(x)
            for d in self.dilations
        )  # fmt: skip


class EmbeddingNetwork(nn.Module):
    """Per position an embedding and the scores of background and object.

    Takes normalised frames and can be used alone: `network(frames)`.

    Attributes:
      block_counts, widths, strides, dilations: of the ResNet.
      embedding: E, numbers per embedding.
      classes: scores per position; class 0 is the background.
      head_dilations: of both heads.
      bilateral: also hold the motion-based bilateral network.
      lattice, kernels: its cells along (y, x, dy, dx) and the lengths of its filters.
      freeze_bn: use running statistics in training.
    """

    block_counts: tuple[int, ...] = (3, 4, 23, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 2, 1, 1)
    dilations: tuple[int, ...] = (1, 1, 2, 4)
    embedding: int = 64
    classes: int = 2
    head_dilations: tuple[int, ...] = (6, 12, 18, 24)
    bilateral: bool = False
    lattice: tuple[int, int, int, int] = (18, 18, 40, 40)
    kernels: tuple[int, int, int, int] = (37, 37, 21, 21)
    low_objectness: float = 0.001
    freeze_bn: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        self.backbone = ResNet(
            block_counts=self.block_counts,
            widths=self.widths,
            strides=self.strides,
            dilations=self.dilations,
            freeze_bn=self.freeze_bn,
            remat=self.remat,
            dtype=self.dtype,
        )
        self.embedding_head = FieldOfViewHead(self.embedding, self.head_dilations, self.dtype)
        self.semantic_head = FieldOfViewHead(self.classes, self.head_dilations, self.dtype)
        if self.bilateral:
            self.motion_background = BilateralFilter(self.lattice, self.kernels)

    def __call__(
        self,
        frames: jax.Array,
        flow: jax.Array | None = None,
        *,
        train: bool = False,
        motion: bool = False,
    ) -> Outputs:
        """Embeddings and scores at the network's stride.

        Args:
          frames: `[B,T,H,W,3]` normalised.
          flow: `[B,T,H,W,2]` in pixels; for `motion` only.
          motion: also run the bilateral network (`background_logits [B,T,h,w]`).

        Returns:
          `logits [B,T,h,w,classes]`, `embedding [B,T,h,w,E]`.
        """
        B, T = frames.shape[:2]
        *_, deep = self.backbone(frames.reshape(B * T, *frames.shape[2:]), train)
        logits, embedding = self.semantic_head(deep), self.embedding_head(deep)
        outputs = {
            "logits": logits.reshape(B, T, *logits.shape[1:]),
            "embedding": embedding.reshape(B, T, *embedding.shape[1:]),
        }
        if self.bilateral and (motion or self.is_initializing()):
            grid = outputs["logits"].shape[2:4]
            if flow is None:
                flow = jnp.zeros((B, T, *grid, 2), jnp.float32)
            flow = at_grid(flow, grid)
            objects = jax.lax.stop_gradient(objectness(outputs["logits"]))
            outputs["background_logits"] = self.background(flow, objects)
        return outputs

    def background(self, flow: jax.Array, objects: jax.Array, total: float | None = None):
        """Evidence `[B,T,h,w]`, at least 0, that a position moves as sure background does.

        Args:
          flow: `[B,T,h,w,2]`. objects: objectness `[B,T,h,w]`.
          total: rescale as if this many positions had been sure background.
        """
        B, T, h, w = objects.shape

        def one(flow: jax.Array, objects: jax.Array) -> jax.Array:
            cells = lattice_cells(flow, self.lattice)
            sure = (objects < self.low_objectness).astype(jnp.float32)
            score = self.motion_background(cells, sure)
            if total is None:
                return score
            return score * total / jnp.maximum(jnp.sum(sure), 1.0)

        flat = jax.vmap(one)(flow.reshape(B * T, h, w, 2), objects.reshape(B * T, h, w))
        return flat.reshape(B, T, h, w)


def at_grid(flow: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Flow `[B,T,H,W,2]` at the positions of a grid of `size`, still in pixels of the frame."""
    B, T, H, W, _ = flow.shape
    return resize_bilinear(flow.reshape(B * T, H, W, 2), size).reshape(B, T, *size, 2)


def objectness(logits: jax.Array) -> jax.Array:
    """`1 - P(background)` float32 of scores `[..., classes]`."""
    return 1.0 - jax.nn.softmax(logits.astype(jnp.float32), axis=-1)[..., 0]


def embedding_loss(
    embedding: Float[Array, "h w E"],
    ids: jax.Array,
    key: jax.Array,
    *,
    points: int = 32,
    instances: int = 8,
) -> jax.Array:
    """Draws embeddings of one instance together and those of different ones apart.

    `points` positions are drawn in each of the first `instances` ids, the background (0) being one
    of them; over all pairs, the mean of `-log R` if both lie in one instance, else of
    `-log (1 - R)`, in which every pair of instances weighs the same.

    Args:
      ids: instance ids `[h,w]`; 255 is void.
    """
    h, w, E = embedding.shape
    flat, labels = embedding.reshape(h * w, E), ids.reshape(h * w)
    points = min(points, h * w)
    order = jax.random.uniform(key, (instances, h * w))
    inside = labels[None] == jnp.arange(instances)[:, None]
    drawn, index = jax.lax.top_k(jnp.where(inside, order, -1.0), points)
    counts = (drawn >= 0).astype(jnp.float32)  # [instances, points]
    share = counts / jnp.maximum(jnp.sum(counts, 1, keepdims=True), 1.0)
    weight = share.reshape(-1)
    chosen = flat[index.reshape(-1)]
    owner = jnp.repeat(jnp.arange(instances), points)
    distance = squared_distance(chosen, chosen)
    same = owner[:, None] == owner[None]
    values = jnp.where(same, -log_similarity(distance), -log_dissimilarity(distance))
    pairs = weight[:, None] * weight[None]
    return jnp.sum(pairs * values) / jnp.maximum(jnp.sum(pairs), 1e-6)


def semantic_loss(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """Cross entropy of object (any id) against background, the mean over pixels that are not void.

    Args:
      logits: `[h,w,K]`; objects count as class 1. ids: `[h,w]`.
    """
    known = (ids != VOID).astype(jnp.float32)
    target = ((ids > 0) & (ids != VOID)).astype(jnp.int32)
    values = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), target)
    return jnp.sum(values * known) / jnp.maximum(jnp.sum(known), 1.0)
