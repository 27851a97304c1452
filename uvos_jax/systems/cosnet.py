"""COSNet: co-attention between frames of a video (Lu, Wang, Ma, Shen, Shao, Porikli, CVPR 2019).

What belongs to the primary object is what keeps coming back. A frame (the query) is compared with
other frames of its video (the references) by a bilinear affinity between all positions; it is
re-expressed by the references' features that match (co-attention), a gate discounts what does not
match well, and summary and own features are decoded to a mask. N references are drawn from the
whole video, or, in a stream, kept from the past.

Followed is the released code (`siamese_model_conf.py` and, for `variant="group"`,
`siamese_model_conf_try_single.py@carrierlxk/COSNet`) where it differs from the paper: a gate
without bias (`gate_bias`), one 3x3 convolution per head (`head_convs`; the paper speaks of two), a
loss with a scalar weight plus L1 (`loss="paper"` for class weights). Fusion of several references
is the paper's (`fusion="summary"`, about one point of J better); the release averages masks
(`fusion="prediction"`). Both frames of a training pair pass the encoder as one batch, so its batch
statistics see both. Doubtful: the norm of the symmetric variant's penalty (squared Frobenius here),
the direction and hidden width of the channel-wise variant's squeeze-and-excitation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from uvos_jax.errors import ConfigError
from uvos_jax.losses import balanced_bce, masks
from uvos_jax.losses.dice import soft_iou_loss
from uvos_jax.losses.orthogonality import orthogonality_penalty
from uvos_jax.modules import attention as attn
from uvos_jax.modules import memory
from uvos_jax.modules.backbones.deeplab import DeepLabEmbedding
from uvos_jax.modules.heads import SegmentationHead
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.registry import register
from uvos_jax.systems.base import System
from uvos_jax.types import Batch, ModelCard, ModelSpec, Outputs, Phase, Stage, State

ATTENTIONS = ("vanilla", "symmetric", "channel", "none")
VARIANTS = ("pair", "group")
FUSIONS = ("summary", "prediction")
LOSSES = ("code", "paper")


class CoAttentionNetwork(nn.Module):
    """The network: encoder, co-attention, gate, one head per side of the pair.

    Takes normalised NHWC frames and can be used alone: `network(query, reference)`.

    Attributes:
      block_counts, widths, aspp_depth, embedding, aspp_rates: of the DeepLabv3 embedding.
      attention: `vanilla` (any matrix), `symmetric` (the same, drawn to an orthogonal matrix by a
        penalty), `channel` (diagonal, from squeeze-and-excitation), `none` (decode the embedding).
      variant: `pair` (a softmax per reference) or `group` (all references at once).
      fusion: of several references in the pair variant: mean of the gated summaries, decoded once
        (`summary`), or mean of the masks (`prediction`).
      attention_impl, block_size: see `uvos_jax.modules.attention`.
      remat: recompute the encoder's blocks in the backward pass.
    """

    block_counts: tuple[int, ...] = (3, 4, 23, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    aspp_depth: int = 512
    embedding: int = 256
    aspp_rates: tuple[int, ...] = (6, 12, 18)
    attention: str = "vanilla"
    variant: str = "pair"
    fusion: str = "summary"
    gate_bias: bool = False
    head_convs: int = 1
    attention_impl: str = "blockwise"
    block_size: int = 512
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        self.encoder = DeepLabEmbedding(
            block_counts=self.block_counts,
            widths=self.widths,
            aspp_depth=self.aspp_depth,
            embedding=self.embedding,
            aspp_rates=self.aspp_rates,
            remat=self.remat,
            dtype=self.dtype,
        )
        head = {"features": self.embedding, "convs": self.head_convs, "dtype": self.dtype}
        self.query_head = SegmentationHead(**head)
        if self.attention == "none":
            return
        self.reference_head = SegmentationHead(**head)
        self.gate = attn.SpatialGate(use_bias=self.gate_bias, dtype=self.dtype)
        if self.attention == "channel":
            self.channel_weights = attn.ChannelWeights(dtype=self.dtype)
        else:
            self.affinity = attn.AffinityProjection(self.embedding, dtype=self.dtype)

    # ----- parts --------------------------------------------------------------------------

    def encode(self, frames: jax.Array, train: bool = False) -> dict[str, Any]:
        """`[B,H,W,3]` to `embedding [B,h,w,C]` and the encoder's `saliency_logits [B,h,w,1]`."""
        return self.encoder(frames, train)

    def queries_and_keys(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Both sides of the affinity `q_a . k_b` for features `[B,n,C]`."""
        if self.attention == "channel":
            # S = (D_a V_b)^T (D_b V_a), D_x from frame x: in a dot product a diagonal may stand on
            # either side, so each frame can carry its own, and references are prepared only once.
            weighted = features * self.channel_weights(features)[:, None, :]
            return weighted, weighted
        return self.affinity(features), features

    def decode(self, summary: jax.Array, features: jax.Array, head: Any, train: bool) -> jax.Array:
        """Mask logits `[B,h,w,1]` of a gated summary and the frame's own features `[B,h,w,C]`."""
        return head(jnp.concatenate([summary, features], axis=-1), train)

    @property
    def _attend_options(self) -> dict[str, Any]:
        return {"implementation": self.attention_impl, "block_size": self.block_size}

    def summaries(
        self, query: jax.Array, references: jax.Array, valid: jax.Array | None = None
    ) -> jax.Array:
        """Gated summaries of a query in terms of its references.

        Args:
          query: `[B,h,w,C]`.
          references: `[B,N,h,w,C]`.
          valid: references that count, `[B,N]` bool; the pair variant leaves that to the fusion.

        Returns:
          `[B,N,h,w,C]`, one per reference, or `[B,1,h,w,C]` in the group variant.
        """
        B, N, h, w, C = references.shape
        queries, _ = self.queries_and_keys(query.reshape(B, h * w, C))
        values = references.reshape(B * N, h * w, C)
        _, keys = self.queries_and_keys(values)
        if self.variant == "group":
            joined = (B, N * h * w, C)
            columns = None if valid is None else jnp.repeat(valid, h * w, axis=1)
            summary = attn.group_attend(
                queries,
                keys.reshape(joined),
                values.reshape(joined),
                valid=columns,
                **self._attend_options,
            )
            return self.gate(summary.reshape(B, 1, h, w, C))
        queries = jnp.repeat(queries, N, axis=0)
        summary = attn.attend(queries, keys, values, **self._attend_options)
        return self.gate(summary.reshape(B, N, h, w, C))

    def fuse(
        self, query: jax.Array, summaries: jax.Array, weights: jax.Array, train: bool = False
    ) -> jax.Array:
        """Logits `[B,M,h,w,1]` of the query: M = 1 mask decoded from the mean summary, or N masks.

        Args:
          summaries: gated, `[B,N,h,w,C]`.
          weights: of the references, `[B,N]`, summing to 1.
        """
        B, N, h, w, C = summaries.shape
        if self.fusion == "summary" or N == 1:
            mean = jnp.einsum("bnhwc,bn->bhwc", summaries.astype(jnp.float32), weights)
            logits = self.decode(mean.astype(summaries.dtype), query, self.query_head, train)
            return logits[:, None]
        logits = self.decode(
            summaries.reshape(B * N, h, w, C),
            jnp.repeat(query, N, axis=0),
            self.query_head,
            train,
        )
        return logits.reshape(B, N, h, w, 1)

    def segment(
        self, query: jax.Array, references: jax.Array | None, valid: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Inference on embeddings, the references encoded beforehand.

        Args:
          query: `[B,h,w,C]`.
          references: `[B,N,h,w,C]`; not used without attention.
          valid: references that count, `[B,N]` bool; None for all, at least one per query.

        Returns:
          logits `[B,M,h,w,1]` and the weights `[B,M]` with which the M masks are to be averaged.
        """
        one = jnp.ones((query.shape[0], 1), jnp.float32)
        if self.attention == "none":
            return self.query_head(query, False)[:, None], one
        if self.variant == "group":
            return self.fuse(query, self.summaries(query, references, valid), one), one
        counts = jnp.ones(references.shape[:2]) if valid is None else valid.astype(jnp.float32)
        weights = counts / jnp.sum(counts, axis=1, keepdims=True)
        logits = self.fuse(query, self.summaries(query, references), weights)
        return logits, (weights if logits.shape[1] > 1 else one)

    # ----- training and whole network -------------------------------------------------------

    def __call__(
        self,
        query: jax.Array,
        references: jax.Array | None = None,
        *,
        train: bool = False,
        static: bool = False,
    ) -> Outputs:
        """Masks of a query frame and of its reference frames.

        Args:
          query: `[B,H,W,3]` normalised.
          references: `[B,H,W,3]` or `[B,N,H,W,3]`; None or N = 0: the query refers to itself.
          static: only the encoder and its saliency head run (the step on still images).

        Returns:
          `logits [B,1+N,h,w,1]`: the query's, fused over references, then each reference's from
          its pairing with the query (in the group variant, which decodes only its query, and in a
          static step: the encoder's saliency); `query_logits [B,M,h,w,1]` before the fusion of
          masks; `saliency_logits [B,1+N,h,w,1]`; `embedding [B,1+N,h,w,C]`; `orthogonality` (a
          scalar, symmetric variant only).
        """
        frames = query[:, None]
        if references is not None:
            references = references[:, None] if references.ndim == 4 else references
            frames = jnp.concatenate([frames, references], axis=1)
        B, T = frames.shape[:2]
        encoded = self.encode(frames.reshape(B * T, *frames.shape[2:]), train)
        embedding = encoded["embedding"]
        embedding = embedding.reshape(B, T, *embedding.shape[1:])
        saliency = encoded["saliency_logits"].reshape(*embedding.shape[:-1], 1)
        outputs = {"embedding": embedding, "saliency_logits": saliency}
        if static and not self.is_initializing():
            return {**outputs, "logits": saliency}
        if self.attention == "symmetric":
            outputs["orthogonality"] = orthogonality_penalty(self.affinity.kernel)
        return {**outputs, **self._decode_all(embedding, saliency, train)}

    def _decode_all(self, embedding: jax.Array, saliency: jax.Array, train: bool) -> Outputs:
        B, T, h, w, C = embedding.shape
        if self.attention == "none":
            logits = self.query_head(embedding.reshape(B * T, h, w, C), train)
            logits = logits.reshape(B, T, h, w, 1)
            return {"logits": logits, "query_logits": logits[:, :1]}
        query = embedding[:, 0]
        references = embedding[:, 1:] if T > 1 else embedding
        N = references.shape[1]
        if self.variant == "group":
            logits = self.fuse(query, self.summaries(query, references), jnp.ones((B, 1)), train)
            if self.is_initializing():  # the released network carries an unused second head
                self.decode(query, query, self.reference_head, train)
            return {
                "logits": jnp.concatenate([logits, saliency[:, 1:]], axis=1),
                "query_logits": logits,
            }
        # one affinity per pair serves both directions
        values_a = jnp.repeat(query.reshape(B, h * w, C), N, axis=0)
        values_b = references.reshape(B * N, h * w, C)
        queries_a, _ = self.queries_and_keys(values_a)
        _, keys_b = self.queries_and_keys(values_b)
        summary_a, summary_b = attn.co_attention(
            queries_a, keys_b, values_a, values_b, **self._attend_options
        )
        summaries = self.gate(summary_a.reshape(B, N, h, w, C))
        query_logits = self.fuse(query, summaries, jnp.full((B, N), 1.0 / N), train)
        logits = _mean_mask_logits(query_logits)
        reference_logits = self.decode(
            self.gate(summary_b.reshape(B * N, h, w, C)),
            values_b.reshape(B * N, h, w, C),
            self.reference_head,
            train,
        ).reshape(B, N, h, w, 1)
        if T > 1:
            logits = jnp.concatenate([logits, reference_logits], axis=1)
        return {"logits": logits, "query_logits": query_logits}


def _mean_mask_logits(logits: jax.Array) -> jax.Array:
    """Log-odds `[B,1,...]` of the mean probability over M masks `[B,M,...]`."""
    if logits.shape[1] == 1:
        return logits
    x = logits.astype(jnp.float32)
    log_foreground = jax.nn.logsumexp(jax.nn.log_sigmoid(x), axis=1, keepdims=True)
    log_background = jax.nn.logsumexp(jax.nn.log_sigmoid(-x), axis=1, keepdims=True)
    return (log_foreground - log_background).astype(logits.dtype)


@register("cosnet")
class COSNet(System):
    """COSNet on video: pairs in training, N references per query at test time.

    Whole video: `prepare` encodes the references once, `predict` every query once. Stream: the
    state keeps up to `num_references` past frames. A frame attends to the past only, the first to
    itself; then it joins the memory. When the memory is full, the frame whose neighbours in memory
    are nearest in time is forgotten, never the first nor the newest, so that the references stay
    spread over the whole past.
    """

    card = ModelCard(
        title="COSNet",
        year=2019,
        venue="CVPR",
        official_weights="PyTorch, linked from github.com/carrierlxk/COSNet",
        parity="official network, masks within 1e-4",
        learned="J 0.06 to 0.20 in 240 steps",
        davis16_j=80.5,
        davis16_f=79.4,
    )
    parameter_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "encoder": (r"(^|/)encoder/",),
        "co_attention": (r"(^|/)(affinity|channel_weights|gate|query_head|reference_head)/",),
    }

    def __init__(self, config: Any):
        super().__init__(config)
        for field, allowed in (
            ("attention", ATTENTIONS),
            ("variant", VARIANTS),
            ("fusion", FUSIONS),
            ("loss", LOSSES),
            ("attention_impl", attn.IMPLEMENTATIONS),
        ):
            if config[field] not in allowed:
                raise ConfigError(
                    f"config field model.{field} is {config[field]!r}: use one of {allowed}"
                )
        for field in ("num_references", "block_size", "head_convs"):
            if config[field] < 1:
                raise ConfigError(
                    f"config field model.{field} must be at least 1, got {config[field]}"
                )
        self._attends = config.attention != "none"
        self.spec = ModelSpec(
            name="cosnet",
            paper="Lu, Wang, Ma, Shen, Shao, Porikli: See More, Know More: Unsupervised Video "
            "Object Segmentation with Co-Attention Siamese Networks, CVPR 2019",
            temporal="global",
            clip_len=3 if config.variant == "group" else 2,
            input_size=tuple(config.input_size) or None,
            stride=8,
            normalization="caffe_bgr",
            outputs=("logits", "query_logits", "saliency_logits", "embedding"),
            causal=True,
            num_references=config.num_references if self._attends else 0,
        )
        self.module = CoAttentionNetwork(
            block_counts=tuple(config.block_counts),
            widths=tuple(config.widths),
            aspp_depth=config.aspp_depth,
            embedding=config.embedding,
            aspp_rates=tuple(config.aspp_rates),
            attention=config.attention,
            variant=config.variant,
            fusion=config.fusion,
            gate_bias=config.gate_bias,
            head_convs=config.head_convs,
            attention_impl=config.attention_impl,
            block_size=config.block_size,
            remat=bool(config.get("remat", False)),
            dtype=self.compute_dtype,
        )

    def module_inputs(self, batch: Batch) -> tuple[jax.Array, ...]:
        frames = self.normalize(batch["frames"])
        return frames[:, 0], frames[:, 1:]

    def module_kwargs(self, train: bool, phase: str = "default") -> dict[str, Any]:
        return {
            "train": train and not self.config.get("freeze_bn", False),
            "static": phase == "static",
        }

    # ----- training -----------------------------------------------------------------------

    def loss_fn(
        self, outputs: Outputs, batch: Batch, *, step: jax.Array | int, phase: str = "default"
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`l(s,o)` summed over the frames of the clip; times `static_weight` in a static step.

        `l = BCE / r + 0.8 L1` (`loss="code"`) or the class-weighted cross entropy
        (`loss="paper"`), plus `iou_weight` times an overlap loss that is in neither; the symmetric
        variant adds its penalty. In the group variant only the first frame, the target, is
        supervised.

        Returns:
          the loss and its terms; `iou`, of the batch's pixels at 0.5, is for the log only.
        """
        config = self.config
        labels = jnp.asarray(batch["masks"])
        flags = {k: jnp.asarray(batch[k]) for k in ("valid", "has_mask") if k in batch}
        target, weights = masks.binary_target(labels), masks.pixel_weights(labels, **flags)
        static = phase == "static"
        logits = outputs["logits"]
        if config.variant == "group" and self._attends and not static:
            logits, target, weights = logits[:, :1], target[:, :1], weights[:, :1]
        B, T, h, w, _ = logits.shape
        size = target.shape[2:]
        full = resize_bilinear(logits.astype(jnp.float32).reshape(B * T, h, w, 1), size)
        full = full.reshape(B, T, *size)

        terms = {"bce": 0.0, "l1": 0.0, "soft_iou": 0.0}
        for t in range(T):  # every frame of the clip has its own foreground ratio
            of_frame = (full[:, t], target[:, t], weights[:, t])
            if config.loss == "paper":
                terms["bce"] += balanced_bce.class_weighted_bce(*of_frame)
            else:
                terms["bce"] += balanced_bce.ratio_weighted_bce(
                    *of_frame, min_ratio=config.min_positive_ratio
                )
                terms["l1"] += config.l1_weight * balanced_bce.mean_absolute_error(*of_frame)
            if config.iou_weight:
                terms["soft_iou"] += config.iou_weight * soft_iou_loss(*of_frame)
        if static:
            terms = {k: config.static_weight * v for k, v in terms.items()}
        if config.loss == "paper":
            del terms["l1"]
        if not config.iou_weight:
            del terms["soft_iou"]
        if config.attention == "symmetric" and not static:
            terms["orthogonality"] = config.orthogonality_weight * outputs["orthogonality"]
        total = sum(terms.values())
        predicted = (full > 0).astype(jnp.float32)
        union = jnp.sum(jnp.maximum(predicted, target) * weights)
        overlap = jnp.sum(predicted * target * weights)
        return total, {**terms, "iou": overlap / jnp.maximum(union, 1.0)}

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """One stage of three phases in turn: a static step, then two steps on pairs.

        Static steps move the encoder at the full rate and nothing else; video steps move the
        encoder at 0.01 and the co-attention parts at 10 times the rate. (The released trainer
        counts the phases twice, once per epoch and once over all, and lets the two drift apart;
        here there is one count.)
        """
        encoder, co_attention = (
            self.parameter_groups[name][0] for name in ("encoder", "co_attention")
        )
        static = Phase("static", "static", ((encoder, 1.0), (co_attention, 0.0)))
        rates = tuple(config.model.video_lr_multipliers)
        video = Phase("video", "video", ((encoder, rates[0]), (co_attention, rates[1])))
        phases = (static, video, video) if config.model.static_steps else (video,)
        return (Stage("alternating", int(config.train.total_steps), phases),)

    # ----- video --------------------------------------------------------------------------

    def init_state(
        self, variables: Mapping[str, Any], batch_size: int, frame_size: tuple[int, int]
    ) -> State:
        """Empty memory of a stream.

        Returns:
          `embedding [B,R,h,w,C]`, `time [B,R]` int32 (-1: empty slot; filled slots come first, in
          order of time), `count [B]` int32, frames seen. `()` without attention.
        """
        if not self._attends:
            return ()
        one = jax.ShapeDtypeStruct((batch_size, *frame_size, 3), self.compute_dtype)
        shape = jax.eval_shape(self._encode, variables, one).shape
        R = self.spec.num_references
        return {
            "embedding": jnp.zeros((batch_size, R, *shape[1:]), self.compute_dtype),
            "time": jnp.full((batch_size, R), -1, jnp.int32),
            "count": jnp.zeros((batch_size,), jnp.int32),
        }

    def prepare(self, variables: Mapping[str, Any], batch: Batch) -> State:
        """Embeddings `{"embedding": [B,N,h,w,C]}` of the references; `predict` leaves them be."""
        if not self._attends:
            return ()
        frames = self.normalize(batch["frames"])
        B, N = frames.shape[:2]
        embedding = self._encode(variables, frames.reshape(B * N, *frames.shape[2:]))
        return {"embedding": embedding.reshape(B, N, *embedding.shape[1:])}

    def predict(
        self, variables: Mapping[str, Any], state: State, chunk: Batch
    ) -> tuple[State, jax.Array]:
        """Foreground probabilities `[B,T,H,W]`; a stream's state (`init_state`) takes frames in."""
        frames = self.normalize(chunk["frames"])
        B, T, H, W, _ = frames.shape
        embedding = self._encode(variables, frames.reshape(B * T, H, W, 3))
        queries = embedding.reshape(B, T, *embedding.shape[1:]).swapaxes(0, 1)

        def one_frame(state: State, query: jax.Array) -> tuple[State, jax.Array]:
            if not self._attends:
                return state, self._mask(variables, query, None, None, (H, W))
            if "count" not in state:
                return state, self._mask(variables, query, state["embedding"], None, (H, W))
            references, valid = memory.visible(state, query)
            mask = self._mask(variables, query, references, valid, (H, W))
            return memory.remember(state, query), mask

        state, probs = jax.lax.scan(one_frame, state, queries)
        return state, probs.swapaxes(0, 1)

    def _encode(self, variables: Mapping[str, Any], frames: jax.Array) -> jax.Array:
        """Embeddings `[B,h,w,C]` of normalised frames `[B,H,W,3]`."""
        return self.module.apply(dict(variables), frames, method="encode")["embedding"]

    def _mask(self, variables, query, references, valid, size) -> jax.Array:
        """Foreground probability `[B,H,W]`, averaged over what `segment` returns."""
        logits, weights = self.module.apply(
            dict(variables), query, references, valid, method="segment"
        )
        return jnp.einsum("bmhw,bm->bhw", self.probabilities(logits, size), weights)
