"""AGNN: attentive graph neural network (Wang, Lu, Shen, Crandall, Shao, ICCV 2019).

Where COSNet compares frames in pairs, AGNN lets all frames of a set talk at once: frames are nodes
of a fully connected graph, edges are dense attention maps, and for K rounds every node collects
gated messages from all others and updates its state by a convolutional GRU. A shared head decodes
final and initial state to a mask.

Two forms, one field (`model.variant`): `release` follows the code
(`siamese_model_conf_gnn.py@carrierlxk/AGNN`) and fits the published weights (self-attention inside
the encoder, spatial gates without bias, the two neighbours' messages fused by a 3x3 convolution,
K = 5); `paper` follows the paper's equations (self-attention as a loop edge in every round, channel
gates with bias, a gated sum, K = 3). Every part can be set apart from the variant by its own field
(`gate`, `aggregation`, ...; "" and -1 follow the variant).

A release graph has three nodes. `extension` says what happens with more references: `subsets` runs
one three-node graph per pair of references and averages the masks, `mean` puts all of them into one
graph whose nodes see the mean message (`MessagePassing.aggregation`). At test time the released
script draws two references at random; here they are spread evenly over the video, so results
repeat. It resizes frames to each of `test_scales` from their native size; here from `input_size`.

Doubtful: which of `h_i W h_j^T` and its transpose belongs to which end of an edge (each direction
has its own product here, as in the code); whether the paper's loop edge is gated (it is here, as
eq. 7 reads). Instance masks for DAVIS-17: `uvos_jax.systems.agnn.instances`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.errors import ConfigError, ShapeError
from uvos_jax.losses import clips
from uvos_jax.modules import attention as attn
from uvos_jax.modules import graph, memory
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.registry import register
from uvos_jax.systems.agnn.instances import ObjectNumbers
from uvos_jax.systems.agnn.network import AttentiveGraphNetwork
from uvos_jax.systems.base import System
from uvos_jax.types import Batch, ModelCard, ModelSpec, Outputs, Phase, Stage, State

#: What each variant sets unless a field of its own says otherwise.
VARIANTS: dict[str, dict[str, Any]] = {
    "release": {
        "rounds": 5, "gate": "spatial", "gate_bias": False, "aggregation": "fusion",
        "loop": False, "self_attention": True,
    },
    "paper": {
        "rounds": 3, "gate": "channel", "gate_bias": True, "aggregation": "sum",
        "loop": True, "self_attention": False,
    },
}  # fmt: skip
EXTENSIONS = ("subsets", "mean")
LOSSES = ("code", "paper")


def settings(config: Any) -> dict[str, Any]:
    """The variant's settings with the fields that override it.

    Raises:
      ConfigError: unknown variant or value.
    """
    if config.variant not in VARIANTS:
        raise ConfigError(
            f"config field model.variant is {config.variant!r}: use one of {tuple(VARIANTS)}"
        )
    chosen = dict(VARIANTS[config.variant])
    for field, allowed in (("gate", graph.GATES), ("aggregation", graph.AGGREGATIONS)):
        if config[field]:
            if config[field] not in allowed:
                raise ConfigError(
                    f"config field model.{field} is {config[field]!r}: use one of {allowed}, or "
                    "'' for the variant's"
                )
            chosen[field] = config[field]
    if config.rounds >= 0:
        chosen["rounds"] = int(config.rounds)
    for field in ("loop", "self_attention"):
        if config[field] not in (-1, 0, 1):
            raise ConfigError(
                f"config field model.{field} is {config[field]!r}: use 1 for on, 0 for off, -1 "
                "for the variant's"
            )
        if config[field] >= 0:
            chosen[field] = bool(config[field])
    return chosen


def interleaved_subsets(count: int, nodes: int) -> list[list[int]]:
    """The paper's split of a video into sets that each span all of it: `t, t+T, t+2T, ...`.

    Returns T = ceil(count / nodes) sets of at most `nodes` frames; together every frame once.

    Example:
      >>> interleaved_subsets(7, 3)
      [[0, 3, 6], [1, 4], [2, 5]]
    """
    T = -(-count // nodes)
    return [list(range(t, count, T)) for t in range(T)]


@register("agnn")
class AGNN(System):
    """AGNN on video: a target and its references form the nodes of one graph.

    Whole video: `prepare` encodes the references once. Stream: the references are past frames
    (`uvos_jax.modules.memory`); a young stream repeats the frames it has, the first frame meets
    itself. `predict_interleaved` is the paper's test procedure for a video in memory.
    """

    card = ModelCard(
        title="AGNN",
        year=2019,
        venue="ICCV",
        official_weights="PyTorch, linked from github.com/carrierlxk/AGNN",
        parity="official network, masks within 1e-4",
        learned="J 0.03 to 0.19 in 150 steps",
        davis16_j=81.3,
        davis16_f=79.7,
    )
    parameter_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "encoder": (r"(^|/)encoder/",),
        "graph": (r"(^|/)(graph|head)/",),
    }

    def __init__(self, config: Any):
        super().__init__(config)
        chosen = settings(config)
        for field, allowed in (
            ("extension", EXTENSIONS),
            ("loss", LOSSES),
            ("attention_impl", attn.IMPLEMENTATIONS),
        ):
            if config[field] not in allowed:
                raise ConfigError(
                    f"config field model.{field} is {config[field]!r}: use one of {allowed}"
                )
        for field in ("num_references", "block_size"):
            if config[field] < 1:
                raise ConfigError(
                    f"config field model.{field} must be at least 1, got {config[field]}"
                )
        if config.nodes < 2:
            raise ConfigError(f"config field model.nodes must be at least 2, got {config.nodes}")
        if not config.test_scales or min(config.test_scales) <= 0:
            raise ConfigError(
                f"config field model.test_scales is {config.test_scales!r}: give at least one "
                "positive factor, such as (1.0,)"
            )
        self._fuses = chosen["aggregation"] == "fusion"
        if self._fuses and config.extension == "subsets" and config.nodes != 3:
            raise ConfigError(
                f"config field model.nodes is {config.nodes}, but fusion of messages by a "
                "convolution trains on three nodes: use 3, or model.extension='mean', or "
                "model.aggregation='sum'"
            )
        self.scales = tuple(float(s) for s in config.test_scales)
        self.spec = ModelSpec(
            name="agnn",
            paper="Wang, Lu, Shen, Crandall, Shao: Zero-Shot Video Object Segmentation via "
            "Attentive Graph Neural Networks, ICCV 2019",
            temporal="global",
            clip_len=config.nodes,
            input_size=tuple(config.input_size) or None,
            stride=8,
            normalization="caffe_bgr",
            outputs=("logits", "saliency_logits", "embedding"),
            causal=True,
            num_references=config.num_references,
        )
        self.module = AttentiveGraphNetwork(
            block_counts=tuple(config.block_counts),
            widths=tuple(config.widths),
            aspp_depth=config.aspp_depth,
            embedding=config.embedding,
            aspp_rates=tuple(config.aspp_rates),
            key_features=config.key_features,
            dropout=config.dropout,
            attention_impl=config.attention_impl,
            block_size=config.block_size,
            remat=bool(config.get("remat", False)),
            dtype=self.compute_dtype,
            **chosen,
        )

    def module_kwargs(self, train: bool, phase: str = "default") -> dict[str, Any]:
        return {
            "train": train and not self.config.get("freeze_bn", False),
            "static": phase == "static",
        }

    # ----- training -----------------------------------------------------------------------

    def loss_fn(
        self, outputs: Outputs, batch: Batch, *, step: jax.Array | int, phase: str = "default"
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`l(s,o)` summed over the nodes; of the encoder's saliency times `static_weight` in a
        static step. `l` is COSNet's, see `uvos_jax.losses.clips.mask_loss`.
        """
        config = self.config
        target, weights = clips.target_and_weights(batch)
        full = clips.upsampled(outputs["logits"], target.shape[2:])
        terms = clips.mask_loss(
            full,
            target,
            weights,
            kind=config.loss,
            l1_weight=config.l1_weight,
            iou_weight=config.iou_weight,
            min_ratio=config.min_positive_ratio,
        )
        if phase == "static":
            terms = {k: config.static_weight * v for k, v in terms.items()}
        return sum(terms.values()), {**terms, "iou": clips.hard_iou(full, target, weights)}

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """One stage of three phases in turn: a static step, then two on sets of frames.

        Static steps move the encoder at the full rate; video steps the encoder at 0.01 and the
        graph at 10 times the rate. (The released trainer counts the phases per epoch and over all
        and lets the two drift apart; here there is one count.)
        """
        encoder, rest = (self.parameter_groups[name][0] for name in ("encoder", "graph"))
        rates = tuple(config.model.video_lr_multipliers)
        static = Phase("static", "static", ((encoder, 1.0), (rest, 0.0)))
        video = Phase("video", "video", ((encoder, rates[0]), (rest, rates[1])))
        phases = (static, video, video) if config.model.static_steps else (video,)
        return (Stage("alternating", int(config.train.total_steps), phases),)

    # ----- video --------------------------------------------------------------------------

    def init_state(
        self, variables: Mapping[str, Any], batch_size: int, frame_size: tuple[int, int]
    ) -> State:
        """Empty memory of a stream, see `uvos_jax.modules.memory`; one embedding per scale."""
        one = jax.ShapeDtypeStruct((batch_size, *frame_size, 3), jnp.uint8)
        shapes = jax.eval_shape(self._encode, variables, one)
        return memory.empty(shapes, self.spec.num_references)

    def prepare(self, variables: Mapping[str, Any], batch: Batch) -> State:
        """Embeddings of the references, `{"embedding": per scale [B,R,h,w,C]}`."""
        return {"embedding": self._encode(variables, batch["frames"])}

    def predict(
        self, variables: Mapping[str, Any], state: State, chunk: Batch
    ) -> tuple[State, jax.Array]:
        """Foreground probabilities `[B,T,H,W]`; a stream's state (`init_state`) takes frames in."""
        size = chunk["frames"].shape[2:4]
        queries = jax.tree.map(lambda x: x.swapaxes(0, 1), self._encode(variables, chunk["frames"]))

        def one_frame(state: State, query: Any) -> tuple[State, jax.Array]:
            if "count" not in state:
                return state, self._mask(variables, query, state["embedding"], size)
            mask = self._mask(variables, query, memory.cycled(state, query), size)
            return memory.remember(state, query), mask

        state, probs = jax.lax.scan(one_frame, state, queries)
        return state, probs.swapaxes(0, 1)

    #: What `uvos predict` can do beside one foreground, see `uvos_jax.predict.objects`.
    object_modes = ("instances",)

    def number_objects(self, variables: Mapping[str, Any]) -> ObjectNumbers:
        """Instances of a video that arrives frame by frame."""
        return ObjectNumbers()

    def predict_interleaved(self, variables: Mapping[str, Any], frames: Any) -> np.ndarray:
        """The paper's procedure: interleaved sets of `num_references` + 1 frames, each run once.

        Args:
          frames: uint8 `[T,H,W,3]` at the network's input size, in memory.

        Returns:
          probabilities float32 `[T,H,W]`. A set that lacks frames repeats those it has.

        Raises:
          ShapeError: not frames.
        """
        frames = np.asarray(frames)
        if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
            raise ShapeError(f"frames must be uint8 [T,H,W,3] with T > 0, got {frames.shape}")
        N = min(self.spec.num_references + 1, max(len(frames), 2))
        run = jax.jit(lambda v, x: self._set_masks(v, x))
        probs = np.zeros(frames.shape[:3], np.float32)
        for chosen in interleaved_subsets(len(frames), N):
            filled = [chosen[i % len(chosen)] for i in range(N)]
            probs[chosen] = np.asarray(run(variables, frames[filled][None]))[0, : len(chosen)]
        return probs

    def _set_masks(self, variables: Mapping[str, Any], frames: jax.Array) -> jax.Array:
        """Probabilities `[B,N,H,W]` of all nodes of one graph, averaged over scales."""
        size = frames.shape[2:4]

        def of_scale(nodes: jax.Array) -> jax.Array:
            final, _ = self.module.apply(dict(variables), nodes, method="propagate")
            return self.module.apply(dict(variables), final, nodes, method="read_out")

        logits = [of_scale(nodes) for nodes in self._encode(variables, frames)]
        return self._averaged(logits, size)

    def _encode(self, variables: Mapping[str, Any], frames: jax.Array) -> tuple[jax.Array, ...]:
        """Nodes `[*B,h,w,C]` of uint8 frames `[*B,H,W,3]`, per scale."""
        size = frames.shape[-3:-1]
        found = []
        for scale in self.scales:
            x = frames
            if scale != 1.0:
                scaled = tuple(max(int(n * scale), 1) for n in size)
                x = jnp.round(resize_bilinear(frames.astype(jnp.float32), scaled))
                x = jnp.clip(x, 0, 255).astype(jnp.uint8)
            nodes, _ = self.module.apply(dict(variables), self.normalize(x), method="encode")
            found.append(nodes)
        return tuple(found)

    def _averaged(self, logits: list[jax.Array], size: tuple[int, int]) -> jax.Array:
        """Mean over scales of probabilities `[B,N,H,W]`, each squashed at its own input size."""
        total = 0.0
        for scale, x in zip(self.scales, logits, strict=True):
            scaled = tuple(max(int(n * scale), 1) for n in size)
            probs = self.probabilities(x, scaled)
            total += resize_bilinear(probs[..., None], size, align_corners=True)[..., 0]
        return total / len(self.scales)

    def _mask(self, variables, query, references, size) -> jax.Array:
        """Foreground probability `[B,H,W]` of a query among references, both per scale."""
        logits = []
        for q, r in zip(query, references, strict=True):
            sets = self._graphs(r)  # [B,G,R',h,w,C]
            B, G = sets.shape[:2]
            x = self.module.apply(
                dict(variables),
                jnp.repeat(q, G, axis=0),
                sets.reshape(B * G, *sets.shape[2:]),
                method="segment",
            )
            logits.append(x.reshape(B, G, *x.shape[1:]))
        return jnp.mean(self._averaged(logits, size), axis=1)

    def _graphs(self, references: jax.Array) -> jax.Array:
        """References `[B,R,...]` as sets `[B,G,R',...]`, one graph each."""
        if not (self._fuses and self.config.extension == "subsets"):
            return references[:, None]
        R = references.shape[1]
        pairs = (np.arange(-(-R // 2))[:, None] * 2 + np.arange(2)) % R
        return references[:, pairs]
