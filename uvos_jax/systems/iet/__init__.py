"""IET: instance embedding transfer (Li, Seybold, Vorobyov, Fathi, Huang, Kuo, CVPR 2018).

A network trained on still images gives every position an embedding, near for positions of one
instance and far for others, and an objectness. On video nothing is trained: per frame, seeds are
spread over the embedding; seeds are linked to tracks; the track that is most object-like and moves
least like the background becomes foreground, seeds of low objectness background; every position
goes with the set that holds what it is most like, and a dense CRF refines (`crf` preset `iet`).

`model.labelling="bilateral"` is the successor of the same group (Li, Seybold, Vorobyov, Lei, Kuo,
ECCV 2018): a learned bilateral filter over place and flow spreads the evidence of sure background,
and a graph cut over all seeds labels them. The cut runs on the host (`graph_cut="exact"`, maximum
flow of scipy) or as a linear system inside jit (`"relaxed"`).

A video is worked on in windows of `clip_len` frames, inside which tracks live; set
`predict.window` to the length of a video for tracks over all of it. Objects stand against
background in two classes, since only P(background) is read; the paper's network had PASCAL's 21.

Ours, off unless configured: `motion_share` puts what `planar_motion` leaves of the flow beside the
embedding, so that seeds and sets keep things apart that move apart; `objects="motion"` takes its
strength for objectness. A network that has seen generated stills only knows neither instances nor
objects of real ones; `configs/iet.py:light` therefore uses both.

Doubtful, hence fields: the number of background seeds (10), all thresholds of linking, labelling
and expansion, the smallest distance as motion saliency, the seeds' energy of the graph cut (it was
never published) and where a track score is normalised. The bilateral network works on the
embedding's grid here, on pixels there; its input is rescaled to the same total either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from uvos_jax.errors import ConfigError
from uvos_jax.ops.flow import planar_motion
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.registry import register
from uvos_jax.systems.base import System
from uvos_jax.systems.iet import embed, propagate, propose
from uvos_jax.systems.iet.numbers import EmbeddingNumbers
from uvos_jax.types import VOID, Batch, ModelCard, ModelSpec, Outputs, Phase, Stage, State

LABELLINGS = ("embedding", "bilateral")
CUTS = ("exact", "relaxed")
OBJECTS = ("network", "motion")
#: Squared motion at which an object is as likely as not, over the mean of its frame.
STRONG = 2.0
#: Sure background the released inference of the bilateral network scales to, in positions.
BACKGROUND_TOTAL = 50_000.0


def _nearest(ids: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Ids `[...,H,W]` at the middle of each cell of a grid of `size`."""
    H, W = ids.shape[-2:]
    rows = ((jnp.arange(size[0]) + 0.5) * (H / size[0])).astype(jnp.int32)
    cols = ((jnp.arange(size[1]) + 0.5) * (W / size[1])).astype(jnp.int32)
    return ids[..., rows, :][..., cols]


@register("iet")
class IET(System):
    """Instance embedding transfer on video, in windows."""

    card = ModelCard(
        title="IET",
        year=2018,
        venue="CVPR",
        official_weights="none published",
        parity="formulas against loops",
        learned="J 0.02 to 0.19 in 200 steps",
        davis16_j=78.5,
        davis16_f=75.5,
    )
    object_modes = ("instances",)
    parameter_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "backbone": (r"(^|/)backbone/",),
        "heads": (r"(^|/)(embedding|semantic)_head/",),
        "bilateral": (r"(^|/)motion_background/",),
    }

    def __init__(self, config: Any):
        super().__init__(config)
        choices = (("labelling", LABELLINGS), ("graph_cut", CUTS), ("objects", OBJECTS))
        for field, allowed in choices:
            if config[field] not in allowed:
                raise ConfigError(
                    f"config field model.{field} is {config[field]!r}: use one of {allowed}"
                )
        if config.seeds < propagate.LOWEST + 1:
            raise ConfigError(
                f"config field model.seeds must be at least {propagate.LOWEST + 1}, of which some "
                f"are background, got {config.seeds}"
            )
        if config.seed_window % 2 == 0:
            raise ConfigError(f"config field model.seed_window must be odd, got "
                              f"{config.seed_window}")  # fmt: skip
        stride = 4
        for s in config.strides:
            stride *= s
        self.bilateral = config.labelling == "bilateral"
        self.spec = ModelSpec(
            name="iet",
            paper="Li, Seybold, Vorobyov, Fathi, Huang, Kuo: Instance Embedding Transfer to "
            "Unsupervised Video Object Segmentation, CVPR 2018",
            temporal="clip",
            clip_len=config.clip_len,
            input_size=tuple(config.input_size) or None,
            stride=stride,
            num_classes=2,
            normalization="caffe_bgr",
            requires=frozenset({"flow"}),
            outputs=("logits", "embedding"),
            causal=False,
            flow_at_end="repeat",
        )
        self.module = embed.EmbeddingNetwork(
            block_counts=tuple(config.block_counts),
            widths=tuple(config.widths),
            strides=tuple(config.strides),
            dilations=tuple(config.dilations),
            embedding=config.embedding,
            head_dilations=tuple(config.head_dilations),
            bilateral=self.bilateral,
            lattice=tuple(config.lattice),
            kernels=tuple(config.kernels),
            low_objectness=config.low_objectness,
            freeze_bn=bool(config.get("freeze_bn", False)),
            remat=bool(config.get("remat", False)),
            dtype=self.compute_dtype,
        )

    # ----- network ------------------------------------------------------------------------

    def module_inputs(self, batch: Batch) -> tuple[jax.Array, ...]:
        frames = self.normalize(batch["frames"])
        if not self.bilateral or "flow" not in batch:
            return (frames,)
        return frames, batch["flow"]

    def module_kwargs(self, train: bool, phase: str = "default") -> dict[str, Any]:
        # the bilateral stage trains its filters on scores that no longer move
        motion = phase == "bilateral"
        return {"train": train and not motion, "motion": motion}

    # ----- training -----------------------------------------------------------------------

    def loss_fn(
        self, outputs: Outputs, batch: Batch, *, step: jax.Array | int, phase: str = "default"
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Embedding and semantic loss, or that of the bilateral network in its own phase."""
        logits, masks = outputs["logits"], batch["masks"]
        B, T, h, w, _ = logits.shape
        ids = _nearest(masks, (h, w)).astype(jnp.int32).reshape(B * T, h, w)
        use = (batch["valid"] & batch["has_mask"]).reshape(B * T).astype(jnp.float32)
        count = jnp.maximum(jnp.sum(use), 1.0)
        if phase == "bilateral":
            loss = self._bilateral_loss(outputs, batch, ids.reshape(B, T, h, w), use)
            return loss, {"bilateral": loss}
        keys = jax.random.split(jax.random.fold_in(jax.random.key(17), step), B * T)

        def one(embedding, ids, key):
            return embed.embedding_loss(
                embedding, ids, key,
                points=self.config.points, instances=self.config.instances,
            )  # fmt: skip

        f = outputs["embedding"].reshape(B * T, h, w, -1)
        instance = jnp.sum(use * jax.vmap(one)(f, ids, keys)) / count
        scores = logits.reshape(B * T, h, w, -1)
        semantic = jnp.sum(use * jax.vmap(embed.semantic_loss)(scores, ids)) / count
        total = instance + self.config.semantic_weight * semantic
        return total, {"embedding": instance, "semantic": semantic}

    def _bilateral_loss(self, outputs: Outputs, batch: Batch, ids: jax.Array, use: jax.Array):
        """Cross entropy with 1 on background and 1/2 on objects, where objects are possible.

        Frames whose flow has edges all over the place are left out (`max_flow_spread`).
        """
        B, T, h, w = ids.shape
        known = (ids != VOID) & (embed.objectness(outputs["logits"]) > self.config.low_objectness)
        target = 1.0 - 0.5 * (ids > 0)
        values = optax.sigmoid_binary_cross_entropy(outputs["background_logits"], target)
        flow = embed.at_grid(batch["flow"], (h, w))
        good = flow_spread(flow) <= self.config.max_flow_spread
        good = good & batch.get("flow_valid", jnp.ones((B, T), bool))
        frames = use.reshape(B, T) * good
        per_frame = jnp.mean(values * known, axis=(2, 3))
        return jnp.sum(per_frame * frames) / jnp.maximum(jnp.sum(frames), 1.0)

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """Embeddings on stills; with the bilateral labelling, its filters on clips with flow."""
        total = int(config.train.total_steps)
        heads = ((r"(^|/)(embedding|semantic)_head/", float(config.model.head_lr_multiplier)),)
        resting = (r"(^|/)motion_background/",) if self.bilateral else ()
        first = Phase("embedding", data="static", lr_multipliers=heads, frozen=resting)
        if not self.bilateral:
            return (Stage("embedding", total, (first,)),)
        second = round(total * config.model.bilateral_share)
        frozen = (r"(^|/)(backbone|embedding_head|semantic_head)/",)
        return (
            Stage("embedding", total - second, (first,)),
            Stage("bilateral", second, (Phase("bilateral", data="video", frozen=frozen),),
                  optim=(("name", "sgd"), ("lr", config.model.bilateral_lr), ("clip_norm", 5.0))),
        )  # fmt: skip

    # ----- video --------------------------------------------------------------------------

    def encode(
        self, variables: Mapping[str, Any], frames: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Embeddings `[T,h,w,E]` and objectness `[T,h,w]` of frames uint8 `[T,H,W,3]`."""

        def one(frame: jax.Array) -> tuple[jax.Array, jax.Array]:
            outputs = self.module.apply(dict(variables), self.normalize(frame)[None, None])
            scores = embed.objectness(outputs["logits"][0, 0])
            return outputs["embedding"][0, 0].astype(jnp.float32), scores

        return jax.lax.map(one, frames)

    def look(
        self, variables: Mapping[str, Any], frames: jax.Array, flow: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """`encode`, with what flow `[T,H,W,2]` adds to it: `motion_share`, `objects`."""
        config = self.config
        embedding, objects = self.encode(variables, frames)
        if not config.motion_share and config.objects == "network":
            return embedding, objects
        size = embedding.shape[1:3]
        left = flow - planar_motion(flow)
        squared = jnp.sum(left**2, axis=-1, keepdims=True)
        mean = jnp.mean(squared, axis=(1, 2), keepdims=True)
        least = 1e-5 * float(np.hypot(*flow.shape[1:3]))  # slower motion is noise
        if config.motion_share:
            beside = resize_bilinear(left, size) / jnp.sqrt(mean + least)
            embedding = jnp.concatenate(
                [config.embedding_share * embedding, config.motion_share * beside], axis=-1
            )
        if config.objects == "motion":
            strength = squared / (squared + STRONG * mean + least)
            objects = resize_bilinear(strength, size)[..., 0]
        return embedding, objects

    def label(
        self, embedding: jax.Array, objects: jax.Array, flow: jax.Array, variables: Any = None
    ) -> jax.Array:
        """Foreground probabilities `[T,h,w]` of one clip from what the network saw in it.

        Args:
          embedding: `[T,h,w,E]`. objects: objectness `[T,h,w]`. flow: `[T,h,w,2]`.
          variables: for the filters of the bilateral labelling.
        """
        config = self.config

        def seeds_of(embedding, objects, flow):
            return propose.frame_seeds(
                embedding, objects, flow, count=config.seeds, window=config.seed_window,
                background_seeds=config.background_seeds,
            )  # fmt: skip

        seeds = jax.vmap(seeds_of)(embedding, objects, flow)
        before = jax.tree.map(lambda x: x[:-1], seeds)
        after = jax.tree.map(lambda x: x[1:], seeds)
        link = jax.vmap(
            lambda a, b: propose.links(
                a, b, similarity=config.link_similarity, reach=config.link_reach
            )
        )(before, after)
        if self.bilateral:
            score = self.module.apply(
                dict(variables), flow[None], objects[None], BACKGROUND_TOTAL, method="background"
            )[0]
            return propagate.graph_labels(
                embedding, seeds, jnp.tanh(score / 2), cut=config.graph_cut,
                smoothness=config.smoothness,
            )  # fmt: skip
        return propagate.embedding_labels(
            embedding, seeds, link, online=config.online,
            background_objectness=config.background_objectness, overlap=config.overlap,
            object_threshold=config.object_threshold, motion_threshold=config.motion_threshold,
        )  # fmt: skip

    def predict(
        self, variables: Mapping[str, Any], state: State, chunk: Batch
    ) -> tuple[State, jax.Array]:
        frames = chunk["frames"]
        B, T, H, W, _ = frames.shape

        def clip(item: tuple[jax.Array, jax.Array]) -> jax.Array:
            frames, flow = item
            embedding, objects = self.look(variables, frames, flow)
            grid = embed.at_grid(flow[None], embedding.shape[1:3])[0]
            return self.label(embedding, objects, grid, variables)

        probs = jax.lax.map(clip, (frames, chunk["flow"]))
        full = resize_bilinear(probs.reshape(B * T, *probs.shape[2:], 1), (H, W))
        return state, full.reshape(B, T, H, W)

    def number_objects(self, variables: Mapping[str, Any], **options: float) -> EmbeddingNumbers:
        """Instances of a video that arrives frame by frame; `options` of `EmbeddingNumbers`."""
        return EmbeddingNumbers(self, variables, **options)


def flow_spread(flow: jax.Array) -> jax.Array:
    """Spatial variance of the edges of flow `[...,h,w,2]`, in units of the frame's sides."""
    h, w = flow.shape[-3:-1]
    dy = jnp.diff(flow, axis=-3, append=flow[..., -1:, :, :])
    dx = jnp.diff(flow, axis=-2, append=flow[..., :, -1:, :])
    edges = 1 - jnp.exp(-jnp.sum(dy**2 + dx**2, axis=-1))
    weight = edges / jnp.maximum(jnp.sum(edges, axis=(-2, -1), keepdims=True), 1e-6)
    y, x = jnp.linspace(0, 1, h)[:, None], jnp.linspace(0, 1, w)
    total = 0.0
    for place in (y, x):
        mean = jnp.sum(weight * place, axis=(-2, -1), keepdims=True)
        total = total + jnp.sum(weight * (place - mean) ** 2, axis=(-2, -1))
    return total
