"""MATNet: motion-attentive transition (Zhou, Wang, Zhou, Yao, Li, Shao, AAAI 2020; TIP 2020).

One ResNet-101 looks at the frame, another at its optical flow in colours. After the stages res3,
res4 and res5 motion steers appearance: both maps are attended over positions, appearance is
gathered anew by the affinity of motion and appearance, five times with the same weights, and added
back before the next stage. The streams are joined at every stage, weighed by a scale-sensitive
gate, and decoded top-down by a decoder that also predicts object boundaries at every stage. The
loss counts background more where it looks like an edge.

`encoder.py` and `decoder.py` hold the network. Followed is the released code
(`modules/MATNet.py@tfzhou/MATNet`, commit c8b95e5), with which the published numbers were made:
tanh and unit vectors in place of the paper's softmaxes (`affinity="softmax"`, whose exact form is
doubtful), no sigmoid on the gate's position attention, one dilated convolution applied three times
where dilations 3, 5, 7 were meant (`shared_dilation=False`; the release carries those weights).

Flow is encoded here: Middlebury colours, each frame's fastest vector fully saturated, 8-bit levels,
then the normalisation of images. The released pictures were coloured at 854x480 and then squashed
to 473x473, so vectors are first given back the aspect ratio `source_aspect`. Differences: colours
of the resized field instead of resized colours; mirrored views have mirrored vectors (the release
mirrors the picture and keeps its hues); boundary and hard-negative maps are made at the training
size, from masks whose instances are merged if the data has them merged.

Hard negatives need edge maps. `edges="given"` takes the batch key `edges` (0..255; the release's
were HED maps; sources read them from the folder their field `edges` names), `sobel` uses the
gradient of the frame, a stand-in that changes results, `none` leaves them out (plain cross
entropy). They matter in training only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from uvos_jax.errors import ConfigError, DataError
from uvos_jax.losses import masks
from uvos_jax.losses.boundaries import boundary_target, hard_negatives, sobel_edges
from uvos_jax.losses.dice import soft_iou_loss
from uvos_jax.modules import attention as attn
from uvos_jax.ops.flow import flow_to_color
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.registry import register
from uvos_jax.systems.base import System
from uvos_jax.systems.matnet.decoder import BoundaryAwareDecoder
from uvos_jax.systems.matnet.encoder import (
    AFFINITIES,
    BRIDGES,
    TRANSITIONS,
    InterleavedEncoder,
)
from uvos_jax.types import Batch, ModelCard, ModelSpec, Outputs, Phase, Stage

EDGES = ("given", "sobel", "none")


class MATNetwork(nn.Module):
    """The network; takes normalised NHWC pictures: `network(image, flow_picture)`.

    Attributes: see `InterleavedEncoder` and `BoundaryAwareDecoder`.
    """

    block_counts: tuple[int, ...] = (3, 4, 23, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    transition: str = "mat"
    steps: int = 5
    reduction: int = 16
    soft_attention: bool = True
    affinity: str = "tanh"
    bridge: str = "ssa"
    decoder_width: int = 256
    boundary: bool = True
    boundary_width: int = 64
    shared_dilation: bool = True
    dilations: tuple[int, int, int] = (3, 5, 7)
    init_std: float = 0.001
    attention_impl: str = "blockwise"
    block_size: int = 512
    freeze_bn: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        self.encoder = InterleavedEncoder(
            block_counts=self.block_counts,
            widths=self.widths,
            transition=self.transition,
            steps=self.steps,
            reduction=self.reduction,
            soft_attention=self.soft_attention,
            affinity=self.affinity,
            bridge=self.bridge,
            attention_impl=self.attention_impl,
            block_size=self.block_size,
            freeze_bn=self.freeze_bn,
            remat=self.remat,
            dtype=self.dtype,
        )
        self.decoder = BoundaryAwareDecoder(
            features=self.decoder_width,
            boundary=self.boundary,
            boundary_width=self.boundary_width,
            shared_dilation=self.shared_dilation,
            dilations=self.dilations,
            init_std=self.init_std,
            freeze_bn=self.freeze_bn,
            dtype=self.dtype,
        )

    def __call__(
        self,
        image: jax.Array,
        flow: jax.Array,
        *,
        train: bool = False,
        size: tuple[int, int] | None = None,
        intermediate: bool = False,
    ) -> Outputs:
        """Mask and boundaries of frames.

        Args:
          image, flow: `[B,T,H,W,3]`, normalised.
          size: of the boundary maps; default: the images'.
          intermediate: also return the maps of encoder and decoder, `[B*T,h,w,C]`.

        Returns:
          `logits [B,T,h,w,1]` at stride 4, and `boundary_logits [B,T,H,W,5]` (fused, res2 to
          res5) if the network predicts boundaries.
        """
        B, T, *shape = image.shape
        size = size or tuple(shape[:2])
        features = self.encoder(image.reshape(B * T, *shape), flow.reshape(B * T, *shape), train)
        decoded = self.decoder(features, size, train)
        outputs = {"logits": decoded["logits"]}
        if self.boundary:
            outputs["boundary_logits"] = decoded["boundary_logits"]
        outputs = {k: v.reshape(B, T, *v.shape[1:]) for k, v in outputs.items()}
        return {**features, **decoded, **outputs} if intermediate else outputs


@register("matnet")
class MATNet(System):
    """MATNet on video: every frame on its own, with the flow to its next frame.

    The released procedure skips the last frame of a video, which has no such flow; here it gets
    what the predictor gives it (its backward flow, negated).
    """

    card = ModelCard(
        title="MATNet",
        year=2020,
        venue="AAAI",
        official_weights="PyTorch, linked from github.com/tfzhou/MATNet",
        parity="official network, masks within 1e-4",
        learned="J 0.04 to 0.27 in 150 steps",
        davis16_j=82.4,
        davis16_f=80.7,
    )
    parameter_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "encoder": (r"(^|/)encoder/",),
        "decoder": (r"(^|/)decoder/",),
    }

    def __init__(self, config: Any):
        super().__init__(config)
        for field, allowed in (
            ("transition", TRANSITIONS),
            ("affinity", AFFINITIES),
            ("bridge", BRIDGES),
            ("edges", EDGES),
            ("attention_impl", attn.IMPLEMENTATIONS),
        ):
            if config[field] not in allowed:
                raise ConfigError(
                    f"config field model.{field} is {config[field]!r}: use one of {allowed}"
                )
        for field in ("steps", "reduction", "block_size", "boundary_radius", "boundary_width"):
            if config[field] < 1:
                raise ConfigError(
                    f"config field model.{field} must be at least 1, got {config[field]}"
                )
        for field in ("hard_margin", "hard_spread"):
            if config[field] < 1 or config[field] % 2 == 0:
                raise ConfigError(
                    f"config field model.{field} must be an odd number of pixels, got "
                    f"{config[field]}"
                )
        if config.decoder_width < 4 or config.decoder_width % 4:
            raise ConfigError(
                "config field model.decoder_width must be a multiple of 4, got "
                f"{config.decoder_width}"
            )
        if len(config.dilations) != 3 or min(config.dilations) < 1:
            raise ConfigError(
                "config field model.dilations must be three positive numbers, got "
                f"{tuple(config.dilations)}"
            )
        if config.source_aspect < 0:
            raise ConfigError(
                "config field model.source_aspect must be a width over a height, or 0 to keep "
                f"vectors as they are, got {config.source_aspect}"
            )
        outputs = ("logits", "boundary_logits") if config.boundary else ("logits",)
        self.spec = ModelSpec(
            name="matnet",
            paper="Zhou, Wang, Zhou, Yao, Li, Shao: Motion-Attentive Transition for Zero-Shot "
            "Video Object Segmentation, AAAI 2020",
            temporal="frame",
            clip_len=1,
            input_size=tuple(config.input_size) or None,
            stride=4,
            normalization="imagenet",
            requires=frozenset({"flow"}),
            outputs=outputs,
            causal=True,
        )
        self.module = MATNetwork(
            block_counts=tuple(config.block_counts),
            widths=tuple(config.widths),
            transition=config.transition,
            steps=config.steps,
            reduction=config.reduction,
            soft_attention=config.soft_attention,
            affinity=config.affinity,
            bridge=config.bridge,
            decoder_width=config.decoder_width,
            boundary=config.boundary,
            boundary_width=config.boundary_width,
            shared_dilation=config.shared_dilation,
            dilations=tuple(config.dilations),
            init_std=config.init_std,
            attention_impl=config.attention_impl,
            block_size=config.block_size,
            freeze_bn=bool(config.get("freeze_bn", False)),
            remat=bool(config.get("remat", False)),
            dtype=self.compute_dtype,
        )

    def module_inputs(self, batch: Batch) -> tuple[jax.Array, ...]:
        if "flow" not in batch:
            raise DataError(
                "matnet needs optical flow and the batch has none: add a source with flow, or "
                "compute flow first (`uvos flow`)"
            )
        return self.normalize(batch["frames"]), self.normalize(self.flow_picture(batch["flow"]))

    def flow_picture(self, flow: jax.Array) -> jax.Array:
        """Colours 0..255 `[B,T,H,W,3]` of flow `[B,T,H,W,2]` in pixels of this resolution."""
        H, W = flow.shape[2:4]
        aspect = self.config.source_aspect
        if aspect:
            flow = flow * jnp.asarray([aspect * H / W, 1.0], jnp.float32)
        return flow_to_color(flow)

    # ----- training -----------------------------------------------------------------------

    def loss_fn(
        self, outputs: Outputs, batch: Batch, *, step: jax.Array | int, phase: str = "default"
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Weighted cross entropies of the mask and, at 0.2, of the five boundary maps.

        `mean[w (-y log p - (1-y) log(1-p))]`, w = 1 + hard negative. The mean is over pixels that
        count, not over their weights. Frames without flow (`flow_valid`) do not count.

        Returns:
          the loss and its terms; `iou`, of the batch's pixels at 0.5, is for the log only.

        Raises:
          DataError: `edges="given"` and the batch has none.
        """
        config = self.config
        labels = jnp.asarray(batch["masks"])
        flags = {k: jnp.asarray(batch[k]) for k in ("valid", "has_mask") if k in batch}
        target, counts = masks.binary_target(labels), masks.pixel_weights(labels, **flags)
        if "flow_valid" in batch:
            counts = counts * jnp.asarray(batch["flow_valid"])[..., None, None]
        hard = self._hard_negatives(batch, target)
        total_pixels = jnp.maximum(jnp.sum(counts), 1.0)

        def mean_bce(logits: jax.Array, y: jax.Array) -> jax.Array:
            entropy = y * jax.nn.softplus(-logits) + (1.0 - y) * jax.nn.softplus(logits)
            return jnp.sum((1.0 + hard) * counts * entropy) / total_pixels

        size = target.shape[2:]
        full = self._enlarged(outputs["logits"], size)[..., 0]
        terms = {"bce": mean_bce(full, target)}
        if config.boundary:
            edges = boundary_target(labels, config.boundary_radius)
            predicted = self._enlarged(outputs["boundary_logits"], size)
            per_map = [mean_bce(predicted[..., i], edges) for i in range(predicted.shape[-1])]
            terms["boundary"] = config.boundary_weight * sum(per_map)
        if config.iou_weight:
            flat = (-1, *size)
            terms["soft_iou"] = config.iou_weight * soft_iou_loss(
                full.reshape(flat), target.reshape(flat), counts.reshape(flat)
            )
        total = sum(terms.values())
        found = (full > 0).astype(jnp.float32)
        union = jnp.sum(jnp.maximum(found, target) * counts)
        overlap = jnp.sum(found * target * counts)
        return total, {**terms, "iou": overlap / jnp.maximum(union, 1.0)}

    def _hard_negatives(self, batch: Batch, target: jax.Array) -> jax.Array:
        """`[B,T,H,W]` in [0,1]; zeros on objects."""
        config = self.config
        if config.edges == "none":
            return jnp.zeros_like(target)
        if config.edges == "given":
            if "edges" not in batch:
                raise DataError(
                    "matnet with model.edges='given' needs edge maps and the batch has none: "
                    'give the data source "edges": FOLDER with 8-bit maps '
                    "<folder>/<sequence>/<frame>.png, or set model.edges to 'sobel' or 'none'"
                )
            edges = jnp.asarray(batch["edges"]).astype(jnp.float32) / 255.0
        else:
            edges = sobel_edges(jnp.asarray(batch["frames"]).astype(jnp.float32))
        return hard_negatives(
            edges,
            target,
            margin=config.hard_margin,
            spread=config.hard_spread,
            stretch=config.hard_stretch,
        )

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """One stage; the encoder at `encoder_lr_factor` times the decoder's rate."""
        encoder = self.parameter_groups["encoder"][0]
        phase = Phase(lr_multipliers=((encoder, float(config.model.encoder_lr_factor)),))
        return (Stage("train", int(config.train.total_steps), (phase,)),)

    @staticmethod
    def _enlarged(logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """`[B,T,h,w,K]` to float32 `[B,T,H,W,K]`."""
        B, T, h, w, K = logits.shape
        full = resize_bilinear(logits.astype(jnp.float32).reshape(B * T, h, w, K), size)
        return full.reshape(B, T, *size, K)
