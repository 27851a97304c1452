"""FusionSeg (Jain, Xiong, Grauman, CVPR 2017): appearance and motion streams, fused.

Two dilated ResNet-101 with parallel classifiers (DeepLab-v2), one on the frame, one on the flow to
the next frame drawn as a colour picture, each give two logits per pixel at stride 8, enlarged to
the frame. A fusion network of some hundred weights joins them. The appearance stream learns from
masks of stills; the motion stream from boxes, inside which the appearance stream's masks are taken
for true if box and flow agree (`motion_labels="boxes"`); the fusion from a few annotated videos,
both streams frozen.

Followed is the release (suyogduttjain/fusionseg, commit a57ca36). It fuses by 3x3 convolutions of
each stream and of both together, added up (`fusion="release_sum"`, 374 weights); the paper by 1x1
convolutions of each and of their product, of which the largest counts (`fusion="paper_max"`).
`streams` leaves one stream alone. The method is said to be under patent; this code was written from
descriptions.

Doubtful: both thresholds of the pseudo masks and how they were measured (see
`uvos_jax.ops.pseudo_labels`); where the product of `paper_max` is taken (of the logits here); the
loss at the grid of stride 8 (`loss_grid`); rates, steps and the learning-rate factors of the heads.
Kernels of `paper_max` start at the identity, since random ones leave both channels of a ReLU at
zero too often. Gradients never enter the colour picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from uvos_jax.errors import ConfigError, DataError
from uvos_jax.losses import masks
from uvos_jax.modules.backbones.resnet import ResNet
from uvos_jax.modules.layers import Conv
from uvos_jax.ops.flow import flow_to_color
from uvos_jax.ops.pseudo_labels import BOX_TESTS, boxes_of_ids, pseudo_mask
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.registry import register
from uvos_jax.systems.base import System
from uvos_jax.types import VOID, Batch, ModelCard, ModelSpec, Outputs, Phase, Stage

STREAMS = ("joint", "appearance", "motion")
FUSIONS = ("release_sum", "paper_max")
MOTION_LABELS = ("boxes", "masks")
STRIDE = 8
#: B, G, R, as the release's inference subtracts it.
MEAN = (104.007, 116.669, 122.679)
#: Added to the largest speed of a frame before dividing by it (the MATLAB flow colours).
COLOR_EPSILON = 2e-16
#: Scale and bias of every BatchNorm, which no recipe moves.
NORM_PARAMETERS = r"(bn\d|downsample_1)/(scale|bias)$"


def grid_size(n: int) -> int:
    """The next `8 k + 1` from `n` on: sides that the stride-8 grid meets at both ends."""
    return -(-(n - 1) // STRIDE) * STRIDE + 1


class Stream(nn.Module):
    """Dilated ResNet and parallel dilated classifiers, added up: two logits at stride 8.

    Attributes:
      block_counts, widths: of the ResNet's stages.
      rates: dilations of the classifiers.
      freeze_bn: use running statistics in training.
      remat: recompute residual blocks in the backward pass.
    """

    block_counts: tuple[int, ...] = (3, 4, 23, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    rates: tuple[int, ...] = (6, 12, 18, 24)
    freeze_bn: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Normalised `[B,H,W,3]`, sides `8 k + 1`, to `[B,h,w,2]` with sides `k + 1`."""
        *_, deep = ResNet(
            block_counts=self.block_counts,
            widths=self.widths,
            freeze_bn=self.freeze_bn,
            remat=self.remat,
            dtype=self.dtype,
            name="resnet",
        )(x, train)
        return sum(
            Conv(2, 3, dilation=rate, use_bias=True, dtype=self.dtype, name=f"classifier{i}")(deep)
            for i, rate in enumerate(self.rates)
        )


class SumFusion(nn.Module):
    """The release: 3x3 convolutions of both, of either, added up; a 3x3 one to the logits."""

    features: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, appearance: jax.Array, motion: jax.Array) -> jax.Array:
        def conv(features: int, name: str) -> Conv:
            return Conv(features, 3, use_bias=True, dtype=self.dtype, name=name)

        both = jnp.concatenate([appearance, motion], axis=-1)
        inputs = {"conv1": both, "conva": appearance, "convm": motion}
        hidden = sum(nn.relu(conv(self.features, name)(x)) for name, x in inputs.items())
        return conv(2, "conv2")(hidden)


class MaxFusion(nn.Module):
    """The paper: `max(relu(A a), relu(M m), relu(P (a m)))`, 1x1 convolutions A, M, P."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, appearance: jax.Array, motion: jax.Array) -> jax.Array:
        inputs = {"conva": appearance, "convm": motion, "convp": appearance * motion}

        def identity(key, shape, dtype=jnp.float32):
            return jnp.eye(*shape[-2:], dtype=dtype).reshape(shape)

        branches = [
            nn.relu(Conv(2, 1, use_bias=True, dtype=self.dtype, kernel_init=identity, name=name)(x))
            for name, x in inputs.items()
        ]
        return jnp.maximum(jnp.maximum(branches[0], branches[1]), branches[2])


class FusionSegNetwork(nn.Module):
    """Both streams and their fusion; takes normalised images and can be used alone.

    Attributes:
      streams: `joint`, or the one stream there is.
      fusion: `release_sum` or `paper_max`.
      fusion_features: hidden channels of `release_sum`.
      block_counts, widths, rates, freeze_bn, remat: see `Stream`.
    """

    streams: str = "joint"
    fusion: str = "release_sum"
    fusion_features: int = 4
    block_counts: tuple[int, ...] = (3, 4, 23, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    rates: tuple[int, ...] = (6, 12, 18, 24)
    freeze_bn: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        stream = {
            "block_counts": self.block_counts,
            "widths": self.widths,
            "rates": self.rates,
            "freeze_bn": self.freeze_bn,
            "remat": self.remat,
            "dtype": self.dtype,
        }
        if self.streams != "motion":
            self.appearance = Stream(**stream)
        if self.streams != "appearance":
            self.motion = Stream(**stream)
        if self.streams == "joint" and self.fusion == "release_sum":
            self.joint = SumFusion(self.fusion_features, dtype=self.dtype)
        elif self.streams == "joint":
            self.joint = MaxFusion(dtype=self.dtype)

    def fuse(self, appearance: jax.Array, motion: jax.Array) -> jax.Array:
        """Logits `[B,H,W,2]` from those of both streams, raw, at the frame's size."""
        return self.joint(appearance, motion)

    def __call__(
        self,
        frames: jax.Array,
        pictures: jax.Array | None = None,
        *,
        size: tuple[int, int] | None = None,
        train: bool = False,
        part: str = "joint",
        teacher: bool = False,
    ) -> Outputs:
        """Logits of frames.

        Args:
          frames: normalised `[B,T,H,W,3]`, sides `8 k + 1`.
          pictures: normalised flow pictures of the same shape; None if no motion is asked for.
          size: (H, W) that the logits are cut to, from the top left corner; None keeps all.
          part: `appearance` or `motion` runs one stream, `joint` both with running statistics
            where `train` trains the fusion alone.
          teacher: with `motion`, run the appearance stream as well, without gradient.

        Returns:
          `logits [B,T,H,W,2]`, and for each stream that ran `<stream>_logits` of the same shape
          and `<stream>_scores [B,T,h,w,2]` at stride 8.
        """
        if self.is_initializing():
            part = self.streams
        outputs: Outputs = {}
        if part != "motion" or teacher:
            alone = part == "appearance"
            outputs |= self._run(self.appearance, "appearance", frames, size, train and alone)
            if teacher:
                outputs = jax.tree.map(jax.lax.stop_gradient, outputs)
        if part != "appearance":
            outputs |= self._run(self.motion, "motion", pictures, size, train and part == "motion")
        if part != "joint":
            return {**outputs, "logits": outputs[f"{part}_logits"]}
        appearance, motion = outputs["appearance_logits"], outputs["motion_logits"]
        B, T, H, W, _ = appearance.shape
        logits = self.fuse(*(x.reshape(B * T, H, W, 2) for x in (appearance, motion)))
        return {**outputs, "logits": logits.reshape(B, T, H, W, 2)}

    def _run(
        self, stream: Stream, name: str, x: jax.Array, size: tuple[int, int] | None, train: bool
    ) -> Outputs:
        B, T, H, W, _ = x.shape
        scores = stream(x.reshape(B * T, H, W, 3), train)
        height, width = size or (H, W)
        logits = resize_bilinear(scores, (H, W), align_corners=True)[:, :height, :width]
        return {
            f"{name}_scores": scores.reshape(B, T, *scores.shape[1:]),
            f"{name}_logits": logits.reshape(B, T, height, width, 2),
        }


@register("fusionseg")
class FusionSeg(System):
    """FusionSeg on video: every frame by itself, with the flow to its successor.

    Images are padded at the bottom and right to sides of `8 k + 1` (and to `pad_to`) with black,
    before the mean is subtracted, as the release does; logits are cut back.
    """

    card = ModelCard(
        title="FusionSeg",
        year=2017,
        venue="CVPR",
        official_weights="Caffe, linked from github.com/suyogduttjain/fusionseg",
        parity="official layers, streams and fusion within 1e-4",
        learned="J 0.13 to 0.37 in 220 steps",
        davis16_j=70.7,
        davis16_f=65.3,
    )
    parameter_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "appearance": (r"(^|/)appearance/",),
        "motion": (r"(^|/)motion/",),
        "joint": (r"(^|/)joint/",),
    }

    def __init__(self, config: Any):
        super().__init__(config)
        for field, allowed in (
            ("streams", STREAMS),
            ("fusion", FUSIONS),
            ("motion_labels", MOTION_LABELS),
            ("box_test", BOX_TESTS),
        ):
            if config[field] not in allowed:
                raise ConfigError(
                    f"config field model.{field} is {config[field]!r}: use one of {allowed}"
                )
        for field in ("box_overlap", "flow_difference"):
            if not 0.0 <= config[field] <= 1.0:
                raise ConfigError(
                    f"config field model.{field} must lie in [0, 1], got {config[field]}"
                )
        shares = tuple(config.stage_shares)
        if len(shares) != 3 or min(shares) < 0 or sum(shares) <= 0:
            raise ConfigError(
                "config field model.stage_shares must be three numbers that are not negative and "
                f"not all 0 (appearance, motion, joint), got {shares}"
            )
        joint = config.streams == "joint"
        alone = () if joint else (f"{config.streams}_logits",)
        self.spec = ModelSpec(
            name="fusionseg",
            paper="Jain, Xiong, Grauman: FusionSeg: Learning to Combine Motion and Appearance for "
            "Fully Automatic Segmentation of Generic Objects in Videos, CVPR 2017",
            temporal="frame",
            clip_len=1,
            input_size=tuple(config.input_size) or None,
            stride=1,
            num_classes=2,
            normalization="caffe_bgr",
            requires=frozenset() if config.streams == "appearance" else frozenset({"flow"}),
            flow_at_end="neighbor",  # the last frame's picture is of the flow to its predecessor
            outputs=("logits", *(("appearance_logits", "motion_logits") if joint else alone)),
            channel_mean=tuple(config.mean),
            channel_std=tuple(config.std) or None,
        )
        self.module = FusionSegNetwork(
            streams=config.streams,
            fusion=config.fusion,
            fusion_features=config.fusion_features,
            block_counts=tuple(config.block_counts),
            widths=tuple(config.widths),
            rates=tuple(config.rates),
            freeze_bn=bool(config.get("freeze_bn", False)),
            remat=bool(config.get("remat", False)),
            dtype=self.compute_dtype,
        )

    # ----- network ------------------------------------------------------------------------

    def pictures(self, flow: jax.Array) -> jax.Array:
        """Flow `[B,T,H,W,2]` as colour pictures, RGB 0..255, hue the direction, white at rest."""
        max_flow = self.config.max_flow or None
        return jax.lax.stop_gradient(
            flow_to_color(flow, max_flow, quantize=self.config.quantize, epsilon=COLOR_EPSILON)
        )

    def module_inputs(self, batch: Batch) -> tuple[jax.Array, ...]:
        frames = self._padded(batch["frames"])
        if "flow" not in batch or self.config.streams == "appearance":
            return (frames,)
        return frames, self._padded(self.pictures(batch["flow"]))

    def module_kwargs(self, train: bool, phase: str = "default") -> dict[str, Any]:
        part = phase if phase in ("appearance", "motion") else self.config.streams
        return {
            "train": train,
            "part": part,
            "teacher": phase == "motion" and train and self._learns_from_boxes,
        }

    def apply(self, variables, batch, *, train, rngs=None, phase="default"):
        part = self.module_kwargs(train, phase)["part"]
        if part != "appearance" and "flow" not in batch:
            raise DataError(
                f"fusionseg needs the batch key 'flow' for its {part} logits, and the batch has "
                f"{sorted(batch)}: give float32 [B,T,H,W,2], pixels to the next frame"
            )
        size = batch["frames"].shape[2:4]
        kwargs = {**self.module_kwargs(train, phase), "size": tuple(size), "rngs": rngs}
        arguments = (dict(variables), *self.module_inputs(batch))
        if not train:
            return self.module.apply(*arguments, **kwargs), {}
        outputs, updates = self.module.apply(*arguments, mutable=["batch_stats"], **kwargs)
        return outputs, dict(updates)

    def _padded(self, images: jax.Array) -> jax.Array:
        """Normalised images with black below and to the right."""
        pads = [(0, 0)] * images.ndim
        for axis, least in zip((-3, -2), tuple(self.config.pad_to) or (1, 1), strict=True):
            n = images.shape[axis]
            pads[axis] = (0, grid_size(max(n, least)) - n)
        return self.normalize(jnp.pad(images, pads))

    @property
    def _learns_from_boxes(self) -> bool:
        return self.config.motion_labels == "boxes" and self.config.streams == "joint"

    # ----- training -----------------------------------------------------------------------

    def pseudo_labels(self, outputs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Masks for the motion stream from boxes of the batch's object ids.

        An annotation that consists of filled boxes is as good as one of masks: only the bounding
        box of each id 1..`max_boxes` is looked at.

        Args:
          outputs: with the teacher's `appearance_logits [B,T,H,W,2]`.

        Returns:
          labels uint8 `[B,T,H,W]` (255 in boxes that fail) and frames to train on, bool `[B,T]`.
        """
        config = self.config
        logits = outputs["appearance_logits"].astype(jnp.float32)
        foreground = logits[..., 1] > logits[..., 0]
        boxes, present = boxes_of_ids(jnp.asarray(batch["masks"]), config.max_boxes)

        def one(*inputs):
            labels, keep, _ = pseudo_mask(
                *inputs,
                box_overlap=config.box_overlap,
                flow_difference=config.flow_difference,
                box_test=config.box_test,
            )
            return labels, keep

        return jax.vmap(jax.vmap(one))(foreground, boxes, present, batch["flow"])

    def loss_fn(
        self, outputs: Outputs, batch: Batch, *, step: jax.Array | int, phase: str = "default"
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean softmax cross entropy of the phase's logits.

        A stream's is taken at the grid of stride 8, on every eighth label (`loss_grid`), the
        fusion's at every pixel. Frames without flow (`flow_valid`) do not count where flow is
        looked at.

        Returns:
          the loss and its terms; `iou`, of the pixels that count, is for the log only.
        """
        labels = jnp.asarray(batch["masks"])
        part = self.module_kwargs(True, phase)["part"]
        flags = {k: jnp.asarray(batch[k]) for k in ("valid", "has_mask") if k in batch}
        if part != "appearance" and "flow_valid" in batch:
            flags["valid"] = flags.get("valid", True) & jnp.asarray(batch["flow_valid"])
        if "appearance_logits" in outputs and phase == "motion" and self._learns_from_boxes:
            labels, keep = self.pseudo_labels(outputs, batch)
            flags["valid"] = flags.get("valid", True) & keep
        logits = outputs["logits"]
        if part != "joint" and self.config.loss_grid:
            logits = outputs[f"{part}_scores"]
            H, W = labels.shape[2:]
            h, w = (STRIDE * (n - 1) + 1 for n in logits.shape[2:4])
            pads = ((0, 0), (0, 0), (0, h - H), (0, w - W))
            labels = jnp.pad(labels, pads, constant_values=VOID)[:, :, ::STRIDE, ::STRIDE]
        target, weights = masks.binary_target(labels), masks.pixel_weights(labels, **flags)
        margin = logits[..., 1].astype(jnp.float32) - logits[..., 0].astype(jnp.float32)
        entropy = target * jax.nn.softplus(-margin) + (1.0 - target) * jax.nn.softplus(margin)
        loss = masks.weighted_mean(entropy, weights)
        predicted = (margin > 0).astype(jnp.float32)
        union = jnp.sum(jnp.maximum(predicted, target) * weights)
        overlap = jnp.sum(predicted * target * weights)
        return loss, {"cross_entropy": loss, "iou": overlap / jnp.maximum(union, 1.0)}

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """Appearance on stills, motion on frames with flow, fusion on a few annotated videos."""
        weight, bias = tuple(config.model.head_lr_factors)
        everything = {name: rules[0] for name, rules in self.parameter_groups.items()}

        def stage(name: str, data: str, steps: int) -> Stage:
            heads = r"(^|/)joint/" if name == "joint" else rf"(^|/){name}/classifier\d+/"
            factors = ((heads + ".*bias$", bias), (heads + ".*kernel$", weight))
            others = tuple(
                rule
                for other, rule in everything.items()
                if other != name and config.model.streams in (other, "joint")
            )
            return Stage(name, steps, (Phase(name, data, factors, others),))

        total = int(config.train.total_steps)
        if config.model.streams == "appearance":
            return (stage("appearance", "static", total),)
        if config.model.streams == "motion":
            return (stage("motion", "motion", total),)
        a, m, j = _split(total, tuple(config.model.stage_shares))
        return (
            stage("appearance", "static", a),
            stage("motion", "motion", m),
            stage("joint", "video", j),
        )


def _split(total: int, shares: tuple[float, ...]) -> tuple[int, ...]:
    """`total` steps in parts proportional to `shares`, without losing any."""
    ends = [round(total * sum(shares[: i + 1]) / sum(shares)) for i in range(len(shares))]
    return tuple(b - a for a, b in zip([0, *ends[:-1]], ends, strict=True))
