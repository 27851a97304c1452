"""AGS: attention-guided object segmentation (Wang, Song, Zhao, Shen, Zhao, Hoi, Ling, CVPR 2019).

Where people look is where the primary object is. Two branches share a dilated ResNet-101. The
attention branch (DVAP) shrinks its features to 32 channels at stride 16, follows them with a
ConvLSTM over clips of three frames and predicts a map of fixations; it learns from eye-tracking on
videos. The segmentation branch (AGOS), three blocks of atrous spatial pyramid pooling one after
another, looks at single frames and learns from stills; its features Y are weighed by the map M as
(1 + M) Y before the last layer. No masks of videos are needed.

Followed is the released network (`deploy.prototxt@wenguanwang/AGS`, commit 6b2edc6, with the layer
of agethen/ConvLSTM-for-Caffe): peepholes shared by all channels, which tie the weights to 473x473
(`peephole`); two output channels of which the second is the mask (`head_channels`); average pools
that round their size up and divide by the cells inside the map; enlarging with aligned corners; M
is the sigmoid of logits enlarged first. As in the release every clip starts from zero states, so
its first frame has no past; a stream counts frames and starts anew every `clip_len`, which makes
streamed and whole videos equal. A clip marker of 0 inside a call zeroes the hidden state and the
forget gate, while the peepholes still see the old cell, as in the Caffe layer (`reset_peephole`).
The release's min-max stretch of every map is part of `predict` (`stretch`), once, at the input
size and in floating point.

Doubtful, since only the deployed network is published and the paper's body could not be read: the
losses (cross entropy for both maps here, per pixel as Caffe sums it; `attention_loss="kl"` for the
other usual choice), the alternation of video and image batches (`alternate`), rates and lengths of
training, and whether stills passed the ConvLSTM as clips of one frame (they do here).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from uvos_jax.errors import ConfigError, DataError
from uvos_jax.losses import fixation, masks
from uvos_jax.losses.dice import soft_iou_loss
from uvos_jax.losses.reduction import REDUCTIONS, reduce_pixels
from uvos_jax.modules.backbones.deeplab import ConvBNReLU
from uvos_jax.modules.backbones.pspnet import PSPResNet
from uvos_jax.modules.layers import Conv
from uvos_jax.modules.recurrent import ConvLSTM, symmetric_uniform
from uvos_jax.ops.pooling import caffe_pool
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.registry import register
from uvos_jax.systems.base import System
from uvos_jax.types import Batch, ModelCard, ModelSpec, Outputs, Phase, Stage, State

ATTENTIONS = ("none", "residual", "multiplicative")
SOURCES = ("predicted", "given")
SUPERVISIONS = ("explicit", "implicit")
TEMPORAL_MODULES = ("none", "convlstm")
PEEPHOLES = ("none", "spatial", "full")
ATTENTION_LOSSES = ("bce", "kl")
#: B, G, R, as the release's prototxt writes them.
MEAN = (104.00698793, 116.66876762, 122.67891434)


class PyramidBlock(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, dilated 3x3 and pooled branches, joined by a 1x1.

    Attributes:
      width: channels of each branch and of the result.
      dilations: of the 3x3 convolutions, in the order of concatenation.
      pool: window and stride of the average pool, whose size rounds up.
    """

    width: int
    dilations: tuple[int, ...]
    pool: int
    freeze_bn: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv = partial(ConvBNReLU, self.width, freeze_bn=self.freeze_bn, dtype=self.dtype)
        branches = [conv(1, name="point")(x, train)]
        branches += [conv(3, dilation=d, name=f"d{d}")(x, train) for d in self.dilations]
        pooled = conv(1, name="pool")(caffe_pool(x, "ave", self.pool, self.pool), train)
        branches.append(resize_bilinear(pooled, x.shape[1:3], align_corners=True))
        return conv(1, name="join")(jnp.concatenate(branches, axis=-1), train)


class AttentionGuidedNetwork(nn.Module):
    """The network: backbone, attention branch, segmentation branch, guidance, head.

    Takes normalised NHWC frames and can be used alone: `network(frames)`.

    Attributes:
      block_counts, stem, widths: of the backbone.
      fixation_widths, fixation_dilations: of the attention branch's convolutions; the first
        strides by two.
      temporal_module: `convlstm`, or `none` for attention frame by frame.
      lstm_features, lstm_kernel, lstm_dilation, peephole, reset_peephole: of the ConvLSTM.
      pyramid_widths, pyramid_dilations, pyramid_pools: of the blocks; as many blocks as widths.
      attention: `residual` (1 + M) Y, `multiplicative` M Y, or `none`.
      stop_attention_gradient: the mask's loss does not move the attention branch.
      head_channels: 1, or 2 of which the second is the mask.
      init_range: kernels of the ConvLSTM start uniform within this range.
      freeze_bn: use running statistics in training.
      remat: recompute blocks and time steps in the backward pass.
    """

    block_counts: tuple[int, ...] = (3, 4, 23, 3)
    stem: tuple[int, int, int] = (64, 64, 128)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    fixation_widths: tuple[int, ...] = (256, 128, 32)
    fixation_dilations: tuple[int, ...] = (2, 4, 8)
    temporal_module: str = "convlstm"
    lstm_features: int = 32
    lstm_kernel: int = 3
    lstm_dilation: int = 2
    peephole: str = "spatial"
    reset_peephole: bool = False
    pyramid_widths: tuple[int, ...] = (256, 64, 32)
    pyramid_dilations: tuple[tuple[int, ...], ...] = ((6, 12, 18, 24), (3, 6, 9, 12), (2, 4, 6, 8))
    pyramid_pools: tuple[int, ...] = (8, 4, 2)
    attention: str = "residual"
    stop_attention_gradient: bool = False
    head_channels: int = 2
    init_range: float = 0.0297
    freeze_bn: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        common = {"freeze_bn": self.freeze_bn, "dtype": self.dtype}
        self.backbone = PSPResNet(
            block_counts=self.block_counts,
            stem=self.stem,
            widths=self.widths,
            stride_on="conv2",
            remat=self.remat,
            **common,
        )
        self.pyramid = [
            PyramidBlock(width, dilations, pool, **common)
            for width, dilations, pool in zip(
                self.pyramid_widths, self.pyramid_dilations, self.pyramid_pools, strict=False
            )
        ]
        self.head = Conv(self.head_channels, 1, use_bias=True, dtype=self.dtype)
        if self.attention == "none":
            return
        self.fixation = [
            ConvBNReLU(width, 3, dilation=dilation, stride=2 if i == 0 else 1, **common)
            for i, (width, dilation) in enumerate(
                zip(self.fixation_widths, self.fixation_dilations, strict=True)
            )
        ]
        self.fixation_head = Conv(1, 1, use_bias=True, dtype=self.dtype)
        if self.temporal_module == "convlstm":
            self.recurrence = ConvLSTM(
                self.lstm_features,
                kernel_size=self.lstm_kernel,
                dilation=self.lstm_dilation,
                peephole=self.peephole,
                output_sees="old" if self.peephole == "spatial" else "new",
                peephole_init=1.0 if self.peephole == "spatial" else 0.0,
                bias="recurrent",
                reset_peephole=self.reset_peephole,
                kernel_init=symmetric_uniform(self.init_range),
                remat=self.remat,
                dtype=self.dtype,
            )

    def attend(
        self,
        deep: jax.Array,
        carry: Any = None,
        *,
        train: bool = False,
        markers: jax.Array | None = None,
        reset: bool | None = None,
    ) -> tuple[Any, jax.Array]:
        """The attention branch.

        Args:
          deep: backbone features `[B,T,h,w,D]`.
          carry: of the ConvLSTM; None starts from zeros.
          markers: 0 where a frame starts a new clip, else 1, `[B,T]`.
          reset: whether a marker of 0 also hides the old cell from the peepholes.

        Returns:
          the next carry (None without ConvLSTM) and logits of the map at half the size,
          `[B,T,h',w',1]`.
        """
        B, T = deep.shape[:2]
        x = deep.reshape(B * T, *deep.shape[2:])
        for layer in self.fixation:
            x = layer(x, train)
        if self.temporal_module == "convlstm":
            frames = x.reshape(B, T, *x.shape[1:])
            carry, hidden = self.recurrence(frames, carry, markers=markers, reset_peephole=reset)
            x = hidden.reshape(B * T, *hidden.shape[2:])
        logits = self.fixation_head(x)
        return carry, logits.reshape(B, T, *logits.shape[1:])

    def segment(
        self, deep: jax.Array, attention: jax.Array | None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """The segmentation branch.

        Args:
          deep: backbone features `[B,T,h,w,D]`.
          attention: M in [0, 1], `[B,T,h,w,1]`; None to go without.

        Returns:
          mask logits `[B,T,h,w,1]` and the guided features they are made of.
        """
        B, T = deep.shape[:2]
        x = deep.reshape(B * T, *deep.shape[2:])
        for block in self.pyramid:
            x = block(x, train)
        if attention is not None:
            M = attention.reshape(B * T, *attention.shape[2:]).astype(x.dtype)
            x = x + x * M if self.attention == "residual" else x * M
        logits = self.head(x)[..., -1:]
        return logits.reshape(B, T, *logits.shape[1:]), x.reshape(B, T, *x.shape[1:])

    def __call__(
        self,
        frames: jax.Array,
        attention: jax.Array | None = None,
        carry: Any = None,
        *,
        train: bool = False,
        markers: jax.Array | None = None,
        reset: bool | None = None,
        attention_only: bool = False,
    ) -> Outputs:
        """Mask and attention logits of the frames of a clip.

        Args:
          frames: `[B,T,H,W,3]` normalised.
          attention: a map in [0, 1] at any size, `[B,T,H',W',1]`, in place of the predicted one.
          carry, markers, reset: see `attend`.
          attention_only: leave the segmentation branch out; `logits` are those of the attention.

        Returns:
          `logits [B,T,h,w,1]` at stride 8; and unless there is no attention: `attention_logits`
          at stride 16, `attention [B,T,h,w,1]`, the map that was used; `features`, the guided
          ones; `carry`, of the ConvLSTM.
        """
        B, T = frames.shape[:2]
        *_, deep = self.backbone(frames.reshape(B * T, *frames.shape[2:]), train)
        deep = deep.reshape(B, T, *deep.shape[1:])
        outputs: Outputs = {}
        if self.attention != "none":
            carry, logits = self.attend(deep, carry, train=train, markers=markers, reset=reset)
            outputs = {"attention_logits": logits, "carry": carry}
            if attention_only and not self.is_initializing():
                return {**outputs, "logits": logits}
            if attention is None:
                full = resize_bilinear(
                    logits.astype(jnp.float32), deep.shape[2:4], align_corners=True
                )
                attention = jax.nn.sigmoid(full)
                if self.stop_attention_gradient:
                    attention = jax.lax.stop_gradient(attention)
            else:
                attention = resize_bilinear(
                    attention.astype(jnp.float32), deep.shape[2:4], align_corners=True
                )
            outputs["attention"] = attention
        logits, features = self.segment(deep, attention, train=train)
        return {**outputs, "logits": logits, "features": features}


@register("ags")
class AGS(System):
    """AGS on video: clips of three frames one after another, each from a state of zeros.

    The released procedure walks back from the last frame to complete the last clip and stretches
    every map to [0, 1]; masks come from the dense CRF `ags`.
    """

    card = ModelCard(
        title="AGS",
        year=2019,
        venue="CVPR",
        official_weights="Caffe, linked from github.com/wenguanwang/AGS",
        parity="NumPy formulas of all parts; official names and shapes",
        learned="J 0.00 to 0.14 in 180 steps",
        davis16_j=79.7,
        davis16_f=77.4,
    )

    def __init__(self, config: Any):
        super().__init__(config)
        for field, allowed in (
            ("attention", ATTENTIONS),
            ("attention_source", SOURCES),
            ("attention_supervision", SUPERVISIONS),
            ("attention_loss", ATTENTION_LOSSES),
            ("temporal_module", TEMPORAL_MODULES),
            ("peephole", PEEPHOLES),
            ("head_channels", (1, 2)),
            ("reduction", REDUCTIONS),
        ):
            if config[field] not in allowed:
                raise ConfigError(
                    f"config field model.{field} is {config[field]!r}: use one of {allowed}"
                )
        if config.clip_len < 1:
            raise ConfigError(
                f"config field model.clip_len must be at least 1, got {config.clip_len}"
            )
        blocks = len(config.pyramid_widths)
        if not 1 <= config.aspp_blocks <= blocks:
            raise ConfigError(
                f"config field model.aspp_blocks must lie in [1, {blocks}], as many as "
                f"model.pyramid_widths has, got {config.aspp_blocks}"
            )
        if not len(config.pyramid_dilations) == len(config.pyramid_pools) == blocks:
            raise ConfigError(
                "config fields model.pyramid_widths, pyramid_dilations and pyramid_pools must have "
                f"one entry per block, got {blocks}, {len(config.pyramid_dilations)} and "
                f"{len(config.pyramid_pools)}"
            )
        if len(config.fixation_widths) != len(config.fixation_dilations):
            raise ConfigError(
                "config fields model.fixation_widths and fixation_dilations must have one entry "
                f"per layer, got {len(config.fixation_widths)} and "
                f"{len(config.fixation_dilations)}"
            )
        if config.attention == "none" and config.attention_source == "given":
            raise ConfigError(
                "config field model.attention_source is 'given', but model.attention is 'none': "
                "there is nothing to give; set model.attention to 'residual'"
            )
        self._attends = config.attention != "none"
        self._given = config.attention_source == "given"
        self._recurrent = self._attends and config.temporal_module == "convlstm"
        self._explicit = (
            self._attends and not self._given and config.attention_supervision == "explicit"
        )
        if self._recurrent and config.peephole != "none" and not tuple(config.input_size):
            raise ConfigError(
                f"config field model.peephole is {config.peephole!r}, whose weights belong to one "
                "size of feature maps: set model.input_size, or peephole='none' for native sizes"
            )
        self.parameter_groups = {
            "backbone": (r"(^|/)backbone/",),
            "segmentation": (r"(^|/)(pyramid_\d+|head)/",),
        }
        if self._attends:
            self.parameter_groups["attention"] = (r"(^|/)(fixation_\d+|fixation_head|recurrence)/",)
        self.training_requires = frozenset({"fixations"} if self._explicit else ())
        outputs = ("logits", "features") + (("attention_logits", "attention") * self._attends)
        self.spec = ModelSpec(
            name="ags",
            paper="Wang, Song, Zhao, Shen, Zhao, Hoi, Ling: Learning Unsupervised Video Object "
            "Segmentation through Visual Attention, CVPR 2019",
            temporal="clip",
            clip_len=config.clip_len,
            input_size=tuple(config.input_size) or None,
            stride=8,
            normalization="caffe_bgr",
            channel_mean=MEAN,
            requires=frozenset({"fixations"} if self._given else ()),
            outputs=outputs,
            causal=True,
        )
        self.module = AttentionGuidedNetwork(
            block_counts=tuple(config.block_counts),
            stem=tuple(config.stem),
            widths=tuple(config.widths),
            fixation_widths=tuple(config.fixation_widths),
            fixation_dilations=tuple(config.fixation_dilations),
            temporal_module=config.temporal_module,
            lstm_features=config.lstm_features,
            lstm_kernel=config.lstm_kernel,
            lstm_dilation=config.lstm_dilation,
            peephole=config.peephole,
            reset_peephole=bool(config.reset_peephole),
            pyramid_widths=tuple(config.pyramid_widths[: config.aspp_blocks]),
            pyramid_dilations=tuple(tuple(d) for d in config.pyramid_dilations),
            pyramid_pools=tuple(config.pyramid_pools),
            attention=config.attention,
            stop_attention_gradient=bool(config.stop_attention_gradient),
            head_channels=config.head_channels,
            init_range=config.init_range,
            freeze_bn=bool(config.get("freeze_bn", False)),
            remat=bool(config.get("remat", False)),
            dtype=self.compute_dtype,
        )

    def example_batch(self, batch_size: int = 1, size: tuple[int, int] | None = None) -> dict:
        shapes = super().example_batch(batch_size, size)
        if self._given:
            shapes["fixations"] = jax.ShapeDtypeStruct(shapes["frames"].shape[:-1], jnp.float32)
        return shapes

    def module_inputs(self, batch: Batch) -> tuple[jax.Array, ...]:
        frames = self.normalize(batch["frames"])
        if not self._given:
            return (frames,)
        return frames, self._given_map(batch)

    def _given_map(self, batch: Batch) -> jax.Array:
        if "fixations" not in batch:
            raise DataError(
                "ags with model.attention_source='given' needs fixations beside the frames: add "
                "`fixations` float32 [B,T,H,W] in [0,1] to the batch, or set it to 'predicted'"
            )
        return jnp.clip(jnp.asarray(batch["fixations"]), 0.0, 1.0)[..., None]

    def module_kwargs(self, train: bool, phase: str = "default") -> dict[str, Any]:
        return {"train": train, "attention_only": phase == "attention"}

    # ----- training -----------------------------------------------------------------------

    def loss_fn(
        self, outputs: Outputs, batch: Batch, *, step: jax.Array | int, phase: str = "default"
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`L_seg + l L_att`: cross entropy of the mask, and of the attention where l is 1.

        l is 1 for frames with fixations (a map that is not all zero). In the phase `attention`,
        videos without masks, only L_att is there; in the others L_att counts if the batch has
        fixations at all. Implicit supervision has no L_att. An overlap loss (`iou_weight`), not the
        authors', is meant to keep training from scratch from ending in empty masks.

        Returns:
          the loss and its terms; `iou`, of the batch's pixels at 0.5, is for the log only.

        Raises:
          DataError: fixations are needed and the batch has none.
        """
        terms = {}
        size = batch["frames"].shape[2:4]
        if phase == "attention" and "fixations" not in batch:
            raise DataError(
                "ags learns attention from fixations and the batch has none: use a source that "
                "gives them (fixation_video, fixation_image, or synthetic with fixations=True), or "
                "set model.attention_supervision='implicit'"
            )
        if self._explicit and "fixations" in batch:
            fixations = jnp.asarray(batch["fixations"])
            logits = self._enlarged(outputs["attention_logits"], size)
            counts = fixation.has_fixations(fixations)
            if "valid" in batch:
                counts = counts * jnp.asarray(batch["valid"]).astype(jnp.float32)
            weight = self.config.attention_weight
            if self.config.attention_loss == "kl":
                divergence = fixation.kl_divergence(logits, fixations)
                mean = jnp.sum(counts * divergence) / jnp.maximum(jnp.sum(counts), 1.0)
                terms["attention"] = weight * mean
            else:
                pixels = jnp.broadcast_to(counts[..., None, None], logits.shape)
                losses = fixation.soft_bce(logits, fixations)
                terms["attention"] = weight * reduce_pixels(losses, pixels, self.config.reduction)
        if phase == "attention":
            return terms["attention"], terms
        labels = jnp.asarray(batch["masks"])
        flags = {k: jnp.asarray(batch[k]) for k in ("valid", "has_mask") if k in batch}
        target, weights = masks.binary_target(labels), masks.pixel_weights(labels, **flags)
        logits = self._enlarged(outputs["logits"], size)
        losses = target * jax.nn.softplus(-logits) + (1.0 - target) * jax.nn.softplus(logits)
        terms["mask"] = reduce_pixels(losses, weights, self.config.reduction)
        if self.config.iou_weight:
            flat = (x.reshape(-1, *size) for x in (logits, target, weights))
            terms["soft_iou"] = self.config.iou_weight * soft_iou_loss(*flat)
        predicted = (logits > 0).astype(jnp.float32)
        union = jnp.sum(jnp.maximum(predicted, target) * weights)
        overlap = jnp.sum(predicted * target * weights)
        return sum(terms.values()), {**terms, "iou": overlap / jnp.maximum(union, 1.0)}

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """Clips with fixations and stills with masks in turn (`alternate`), or one after the other.

        Clips move backbone and attention branch, stills everything; trained one after the other,
        the second stage leaves the attention branch as it is. Without explicit supervision there
        are only stills.
        """
        total = int(config.train.total_steps)
        if not self._explicit:
            return (Stage("segmentation", total, (Phase("static", "static"),)),)
        segmentation, attention = (
            self.parameter_groups[name] for name in ("segmentation", "attention")
        )
        video = Phase("attention", "video", frozen=segmentation)
        static = Phase("static", "static")
        if config.model.alternate:
            return (Stage("joint", total, (video, static)),)
        return (
            Stage("attention", total // 2, (video,)),
            Stage("segmentation", total - total // 2, (Phase("static", "static", (), attention),)),
        )

    # ----- video --------------------------------------------------------------------------

    def init_state(
        self, variables: Mapping[str, Any], batch_size: int, frame_size: tuple[int, int]
    ) -> State:
        """The ConvLSTM's carry and the number of frames seen, `()` without ConvLSTM."""
        if not self._recurrent or self._given:
            return ()
        one = jax.ShapeDtypeStruct((batch_size, 1, *frame_size, 3), self.compute_dtype)
        shape = jax.eval_shape(
            lambda v, x: self.module.apply(dict(v), x)["attention_logits"], variables, one
        ).shape
        carry = ConvLSTM(self.config.lstm_features).initial_carry(batch_size, shape[2:4])
        return {"carry": carry, "count": jnp.zeros((batch_size,), jnp.int32)}

    def predict(
        self, variables: Mapping[str, Any], state: State, chunk: Batch
    ) -> tuple[State, jax.Array]:
        """Foreground probabilities `[B,T,H,W]`, each frame stretched to [0, 1] (`stretch`)."""
        T = chunk["frames"].shape[1]
        arguments = {}
        if state != ():
            seen = state["count"][:, None] + jnp.arange(T)
            starts = seen % self.config.clip_len == 0
            arguments = {"carry": state["carry"], "markers": ~starts, "reset": True}
        outputs = self.module.apply(dict(variables), *self.module_inputs(chunk), **arguments)
        if state != ():
            state = {"carry": outputs["carry"], "count": state["count"] + T}
        probs = self.probabilities(outputs["logits"], chunk["frames"].shape[2:4])
        if self.config.stretch:
            low = jnp.min(probs, axis=(2, 3), keepdims=True)
            span = jnp.max(probs, axis=(2, 3), keepdims=True) - low
            probs = (probs - low) / jnp.where(span > 0, span, 1.0)
        return state, probs

    def probabilities(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Foreground probability `[B,T,H,W]` of `logits [B,T,h,w,1]`; aligned corners, as Caffe.

        The same makes fixation maps of `attention_logits`.
        """
        return jax.nn.sigmoid(self._enlarged(logits, size))

    @staticmethod
    def _enlarged(logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """`[B,T,h,w,1]` to float32 `[B,T,H,W]`."""
        return resize_bilinear(logits.astype(jnp.float32), size, align_corners=True)[..., 0]
