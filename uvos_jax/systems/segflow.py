"""SegFlow: joint video object segmentation and optical flow (Cheng et al., ICCV 2017).

Two branches look at a frame and its successor: a ResNet-101 at the frame alone, FlowNetS at both.
At three scales their maps are put side by side; from these joint maps one decoder makes the mask, a
second one a refined flow, so that each task sees what the other found. No data set has labels for
both, so training alternates: the flow branch rests while masks are learned, and the other way
round. This is the variant without on-line tuning ("Ours-OL").

Followed is the release (JingchunCheng/SegFlow, commit 278869f), which trains masks only
(configuration `release`): its refined flow, whose layers start at zero, stays zero, and the flow
that is of use is FlowNetS's own (`pyramid_flow`). The loss is the paper's, balanced and averaged;
`balanced=False` with `reduction="sum_per_frame"` is the release's. Joint maps are cut at the
offsets of the release (made for 480x854), less where there is less to cut.

Doubtful: the paper's rates; the weight of FlowNetS's losses at its own scales beside that of the
refined flow (`pyramid_weight`); lengths and number of rounds. The release leaves weight decay off
two biases; here all weights decay alike. Enlarging layers and the gains of the middle maps
(`gains`) are weights that never move.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from uvos_jax.errors import ConfigError, DataError, ShapeError
from uvos_jax.losses import masks
from uvos_jax.modules.backbones.resnet import ResNet
from uvos_jax.modules.flownets import FLOW_UNIT, FlowNetS, padded_size
from uvos_jax.modules.layers import Conv, ConvTranspose
from uvos_jax.ops.pooling import caffe_pool
from uvos_jax.ops.resample import resample_flownet
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.registry import register
from uvos_jax.systems.base import System
from uvos_jax.types import Batch, ModelCard, ModelSpec, Outputs, Phase, Stage

REDUCTIONS = ("mean", "sum_per_frame")
#: B, G, R, as the release's scripts subtract it.
MEAN = (104.00698793, 116.66876762, 122.67891434)
#: Offsets at which the flow branch's maps for res5, res4 and res3 are cut, per decoder.
JOINT_OFFSETS = {"segmentation": (1, 2, 4), "refinement": (1, 0, 0)}
#: Offsets at which enlarged scores are cut: twice by 2, then by 8.
SCORE_OFFSETS = (2, 2, 8)
#: Weights of end-point errors at levels 2..6 (FlowNetPytorch).
PYRAMID_WEIGHTS = {2: 0.005, 3: 0.01, 4: 0.02, 5: 0.08, 6: 0.32}


def crop(x: jax.Array, size: tuple[int, int], offset: int) -> jax.Array:
    """`size` (h, w) of `x [B,H,W,C]` from `offset` on, or from as far as there is enough.

    Raises:
      ShapeError: `x` is smaller than `size`.
    """
    if any(n < m for n, m in zip(x.shape[1:3], size, strict=True)):
        raise ShapeError(f"crop: cannot cut {tuple(size)} out of {x.shape[1:3]}")
    y, x0 = (min(offset, n - m) for n, m in zip(x.shape[1:3], size, strict=True))
    return x[:, y : y + size[0], x0 : x0 + size[1]]


def bilinear_diagonal(key, shape, dtype=jnp.float32) -> jax.Array:
    """Initialiser `[k,k,C,C]`: every channel enlarged bilinearly by `k / 2`, none mixed."""
    k, _, rows, columns = shape
    factor = (k + 1) // 2
    centre = factor - 1 if k % 2 else factor - 0.5
    ramp = 1 - np.abs(np.arange(k) - centre) / factor
    return jnp.asarray(np.einsum("i,j,cd->ijcd", ramp, ramp, np.eye(rows, columns)), dtype)


class ScoreDecoder(nn.Module):
    """Two channels from joint maps of three scales, coarse to fine, by sums of enlarged scores."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, joint: tuple[jax.Array, ...], size: tuple[int, int]) -> jax.Array:
        """Joint maps at strides 32, 16, 8 to `[B,H,W,2]` of `size` (H, W)."""

        def score(x: jax.Array, name: str) -> jax.Array:
            zeros = nn.initializers.zeros
            return Conv(2, 1, use_bias=True, dtype=self.dtype, kernel_init=zeros, name=name)(x)

        def enlarged(x: jax.Array, factor: int, name: str) -> jax.Array:
            return ConvTranspose(2, 2 * factor, factor, 0, dtype=self.dtype,
                                 kernel_init=bilinear_diagonal, name=name)(x)  # fmt: skip

        y = score(joint[0], "score5")
        for level, x, offset in zip((4, 3), joint[1:], SCORE_OFFSETS, strict=False):
            own = score(x, f"score{level}")
            y = crop(enlarged(y, 2, f"up{level + 1}"), own.shape[1:3], offset) + own
        return crop(enlarged(y, 8, "up3"), size, SCORE_OFFSETS[-1])


class ChannelMean(nn.Module):
    """Subtracts a mean colour that is learned as the average over the first `steps` batches."""

    steps: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:], jnp.float32)
        count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.float32)
        if train and not self.is_initializing():
            learning = count.value < self.steps
            now = jnp.mean(x, axis=(0, 1, 2))
            moved = (mean.value * count.value + now) / (count.value + 1)
            mean.value = jnp.where(learning, moved, mean.value)
            count.value = count.value + learning
        return x - mean.value


class SegFlowNetwork(nn.Module):
    """The network; takes frames as the release does (BGR 0..255 minus mean) and can stand alone.

    Attributes:
      block_counts, widths: of the ResNet's stages.
      flow_widths, flow_decoder_widths: of FlowNetS, six levels and four.
      gains: factors on res4 and res3 before they join the flow branch's maps.
      mean_steps: batches over which the flow branch's mean colour is learned.
      freeze_bn: use running statistics in training.
      remat: recompute residual blocks in the backward pass.
    """

    block_counts: tuple[int, ...] = (3, 4, 23, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    flow_widths: tuple[int, ...] = (64, 128, 256, 512, 512, 1024)
    flow_decoder_widths: tuple[int, ...] = (512, 256, 128, 64)
    gains: tuple[float, float] = (0.01, 1e-4)
    mean_steps: int = 1000
    freeze_bn: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        self.trunk = ResNet(
            block_counts=self.block_counts,
            widths=self.widths,
            strides=(1, 2, 2, 2),
            dilations=(1, 1, 1, 1),
            pool_padding=0,
            freeze_bn=self.freeze_bn,
            remat=self.remat,
            dtype=self.dtype,
        )
        self.first_mean = ChannelMean(self.mean_steps)
        self.second_mean = ChannelMean(self.mean_steps)
        self.flow_net = FlowNetS(
            self.flow_widths,
            self.flow_decoder_widths,
            decoder_bias=True,
            upsample_bias=True,
            dtype=self.dtype,
        )

        def diagonal(key, shape, dtype=jnp.float32):
            return jnp.asarray(np.diag([854 / 896, 480 / 512]).reshape(shape), dtype)

        self.flow_scale = Conv(2, 1, use_bias=True, kernel_init=diagonal)
        channels = [4 * width for width in self.widths]
        constant = nn.initializers.constant
        self.gain4 = self.param("gain4", constant(self.gains[0]), (channels[2],), jnp.float32)
        self.gain3 = self.param("gain3", constant(self.gains[1]), (channels[1],), jnp.float32)
        self.segmentation = ScoreDecoder(self.dtype)
        self.refinement = ScoreDecoder(self.dtype)

    def flow_input(
        self, frames: jax.Array, successors: jax.Array, train: bool = False
    ) -> jax.Array:
        """Both images `[B,H,W,3]` for FlowNetS: about -0.5..0.5, sides multiples of 64."""
        size = padded_size(frames.shape[1:3])
        pair = [
            resample_flownet(mean(x.astype(jnp.float32) / 255, train), size)
            for mean, x in ((self.first_mean, frames), (self.second_mean, successors))
        ]
        return jnp.concatenate(pair, axis=-1).astype(self.dtype)

    def decode(
        self, frames: jax.Array, pair: jax.Array, *, train: bool = False, masks_rest: bool = False
    ) -> dict[str, Any]:
        """Everything from a frame `[B,H,W,3]` and FlowNetS's input `[B,h,w,6]`.

        Returns:
          `score`, `score_flow [B,H,W,2]`; `res3`, `res4`, `res5`, the trunk's maps;
          `predict_flow_final [B,H,W,2]`; and what `FlowNetS` returns.
        """
        size = frames.shape[1:3]
        _, _, res3, res4, res5 = self.trunk(frames, train and not masks_rest)
        flow = self.flow_net(pair, train=train)
        own = (
            res5,
            res4 * self.gain4.astype(self.dtype),
            res3 * self.gain3.astype(self.dtype),
        )
        pooled = [caffe_pool(flow[f"concat{level}"], "max", 3, 2) for level in (4, 3, 2)]
        outputs: dict[str, Any] = {**flow, "res3": res3, "res4": res4, "res5": res5}
        for name, decoder in (("segmentation", self.segmentation), ("refinement", self.refinement)):
            joint = tuple(
                jnp.concatenate([x, crop(y, x.shape[1:3], offset)], axis=-1)
                for x, y, offset in zip(own, pooled, JOINT_OFFSETS[name], strict=True)
            )
            outputs["score" if name == "segmentation" else "score_flow"] = decoder(joint, size)
        full = resample_flownet(flow["flow2"].astype(jnp.float32) * FLOW_UNIT, size)
        outputs["predict_flow_final"] = self.flow_scale(full)
        return outputs

    def __call__(
        self,
        frames: jax.Array,
        successors: jax.Array,
        *,
        train: bool = False,
        masks_rest: bool = False,
    ) -> Outputs:
        """Masks and flows of frames `[B,T,H,W,3]` with the frames that follow each of them.

        Args:
          masks_rest: the segmentation branch keeps its statistics (a step of the flow branch).

        Returns:
          `logits [B,T,H,W,2]`; `flow [B,T,H,W,2]`, refined, in pixels; `pyramid_flow` of the same
          shape, FlowNetS's own; `pyramid`, level 2..6 to `[B,T,h,w,2]` in units of 20 px of
          FlowNetS's input.
        """
        B, T, H, W, C = frames.shape
        x, y = (v.reshape(B * T, H, W, C) for v in (frames, successors))
        maps = self.decode(x, self.flow_input(x, y, train), train=train, masks_rest=masks_rest)

        def clip(v: jax.Array) -> jax.Array:
            return v.reshape(B, T, *v.shape[1:])

        return {
            "logits": clip(maps["score"]),
            "flow": clip(maps["score_flow"]).astype(jnp.float32),
            "pyramid_flow": clip(maps["predict_flow_final"]),
            "pyramid": {level: clip(maps[f"flow{level}"]) for level in PYRAMID_WEIGHTS},
        }


@register("segflow")
class SegFlow(System):
    """SegFlow on video: every frame with its successor, the last one with itself.

    The mask of a frame depends on the next frame, so a stream cannot be segmented as it arrives.
    """

    card = ModelCard(
        title="SegFlow",
        year=2017,
        venue="ICCV",
        official_weights="Caffe, linked from github.com/JingchunCheng/SegFlow",
        parity="official layers by oracles of each operation; blob names of the release",
        learned="J 0.00 to 0.21 in 240 steps",
        davis16_j=67.4,
        davis16_f=66.7,
    )
    parameter_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "segmentation": (r"(^|/)(trunk|segmentation/score\d)/",),
        "flow": (r"(^|/)(flow_net|flow_scale|refinement/score\d)/",),
        "fixed": (r"((segmentation|refinement)/up\d/|(^|/)gain\d$)",),
    }

    def __init__(self, config: Any):
        super().__init__(config)
        if config.reduction not in REDUCTIONS:
            raise ConfigError(
                f"config field model.reduction is {config.reduction!r}: use one of {REDUCTIONS}"
            )
        if config.rounds < 1 or not 0.0 < config.segmentation_share <= 1.0:
            raise ConfigError(
                "config fields model.rounds and model.segmentation_share must be at least 1 and in "
                f"(0, 1], got {config.rounds} and {config.segmentation_share}"
            )
        if len(config.flow_widths) != 6 or len(config.gains) != 2:
            raise ConfigError(
                "config fields model.flow_widths and model.gains must hold 6 and 2 numbers, got "
                f"{tuple(config.flow_widths)} and {tuple(config.gains)}"
            )
        self.spec = ModelSpec(
            name="segflow",
            paper="Cheng, Tsai, Wang, Yang: SegFlow: Joint Learning for Video Object Segmentation "
            "and Optical Flow, ICCV 2017",
            temporal="pair",
            clip_len=2,
            input_size=tuple(config.input_size) or None,
            stride=1,
            num_classes=2,
            normalization="caffe_bgr",
            outputs=("logits", "flow", "pyramid_flow", "pyramid"),
            causal=False,
            lookahead=1,
            channel_mean=MEAN,
        )
        self.module = SegFlowNetwork(
            block_counts=tuple(config.block_counts),
            widths=tuple(config.widths),
            flow_widths=tuple(config.flow_widths),
            flow_decoder_widths=tuple(config.flow_decoder_widths),
            gains=tuple(config.gains),
            mean_steps=config.mean_steps,
            freeze_bn=bool(config.get("freeze_bn", False)),
            remat=bool(config.get("remat", False)),
            dtype=self.compute_dtype,
        )

    def example_batch(self, batch_size: int = 1, size: tuple[int, int] | None = None) -> dict:
        """As of any system, with the flow that the stages of the flow branch learn from."""
        shapes = super().example_batch(batch_size, size)
        leading = shapes["frames"].shape[:-1]
        return {**shapes, "flow": jax.ShapeDtypeStruct((*leading, 2), jnp.float32)}

    def module_inputs(self, batch: Batch) -> tuple[jax.Array, ...]:
        frames = self.normalize(batch["frames"])
        return frames, jnp.concatenate([frames[:, 1:], frames[:, -1:]], axis=1)

    def module_kwargs(self, train: bool, phase: str = "default") -> dict[str, Any]:
        return {"train": train, "masks_rest": phase == "flow"}

    # ----- training -----------------------------------------------------------------------

    def loss_fn(
        self, outputs: Outputs, batch: Batch, *, step: jax.Array | int, phase: str = "default"
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross entropy of the masks, or in the phase `flow` end-point errors of the flows."""
        if phase == "flow":
            return self._flow_loss(outputs, batch)
        return self._mask_loss(outputs, batch)

    def _mask_loss(self, outputs: Outputs, batch: Batch) -> tuple[jax.Array, dict]:
        """`-(1-w) o log p - w (1-o) log(1-p)`, w the share of foreground in its frame.

        Without `balanced` all pixels weigh 1. The mean over pixels, or the sum over those of a
        frame, averaged over frames.
        """
        labels = jnp.asarray(batch["masks"])
        flags = {k: jnp.asarray(batch[k]) for k in ("valid", "has_mask") if k in batch}
        target, weights = masks.binary_target(labels), masks.pixel_weights(labels, **flags)
        logits = outputs["logits"].astype(jnp.float32)
        margin = logits[..., 1] - logits[..., 0]
        entropy = target * jax.nn.softplus(-margin) + (1.0 - target) * jax.nn.softplus(margin)
        if self.config.balanced:
            share = masks.weighted_mean(target, weights, axis=(2, 3))[:, :, None, None]
            entropy = entropy * jnp.where(target > 0, 1.0 - share, share)
        if self.config.reduction == "mean":
            loss = masks.weighted_mean(entropy, weights)
        else:
            frames = jnp.sum(jnp.any(weights > 0, axis=(2, 3)).astype(jnp.float32))
            loss = jnp.sum(entropy * weights) / jnp.maximum(frames, 1.0)
        predicted = (margin > 0).astype(jnp.float32)
        union = jnp.sum(jnp.maximum(predicted, target) * weights)
        overlap = jnp.sum(predicted * target * weights)
        return loss, {"cross_entropy": loss, "iou": overlap / jnp.maximum(union, 1.0)}

    def _flow_loss(self, outputs: Outputs, batch: Batch) -> tuple[jax.Array, dict]:
        """Mean end-point error of the refined flow, and of FlowNetS's scales as it was trained.

        At the scales, errors are summed over pixels and averaged over frames, in units of 20 px.
        """
        if "flow" not in batch:
            raise DataError(
                "segflow needs the batch key 'flow' to train its flow branch, and the batch has "
                f"{sorted(batch)}: give float32 [B,T,H,W,2], pixels to the next frame, or train "
                "the configuration segflow:release, which learns masks only"
            )
        flow = jnp.asarray(batch["flow"], jnp.float32)
        B, T, H, W, _ = flow.shape
        counts = jnp.ones((B, T), bool)
        for key in ("valid", "flow_valid"):
            if key in batch:
                counts = counts & jnp.asarray(batch[key])
        counts = counts.astype(jnp.float32)
        frames = jnp.maximum(jnp.sum(counts), 1.0)

        def mean_of_frames(errors: jax.Array) -> jax.Array:
            return jnp.sum(errors * counts) / frames

        error = mean_of_frames(jnp.mean(_end_point_error(outputs["flow"], flow), axis=(2, 3)))
        h, w = padded_size((H, W))
        ratio = jnp.asarray([w / W, h / H], jnp.float32)
        target = resize_bilinear(flow, (h, w)) * ratio / FLOW_UNIT
        pyramid = 0.0
        for level, weight in PYRAMID_WEIGHTS.items():
            n = 2**level
            means = target.reshape(B, T, h // n, n, w // n, n, 2).mean(axis=(3, 5))
            errors = _end_point_error(outputs["pyramid"][level], means)
            pyramid += weight * mean_of_frames(jnp.sum(errors, axis=(2, 3)))
        pyramid = self.config.pyramid_weight * pyramid
        own = mean_of_frames(jnp.mean(_end_point_error(outputs["pyramid_flow"], flow), axis=(2, 3)))
        terms = {"epe": error, "pyramid": pyramid, "pyramid_epe": jax.lax.stop_gradient(own)}
        return error + pyramid, terms

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """Rounds of two stages: masks with the flow branch at rest, then flow with the other."""
        rules = {name: patterns[0] for name, patterns in self.parameter_groups.items()}
        biases = ((r"segmentation/score[34]/bias$", 2.0),)
        phases = {
            "segmentation": Phase(
                "segmentation", "video", biases, frozen=(rules["flow"], rules["fixed"])
            ),
            "flow": Phase("flow", "flow", frozen=(rules["segmentation"], rules["fixed"])),
        }
        rates = {"segmentation": config.optim.lr, "flow": config.optim.lr * config.model.flow_lr}
        total, rounds = int(config.train.total_steps), int(config.model.rounds)
        ends = [round(total * (i + 1) / rounds) for i in range(rounds)]
        stages = []
        for i, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True), start=1):
            first = round((end - start) * config.model.segmentation_share)
            for name, steps in (("segmentation", first), ("flow", end - start - first)):
                if steps or config.model.segmentation_share < 1:
                    optim = (("lr", float(rates[name])),)
                    stages.append(Stage(f"{name}_{i}", steps, (phases[name],), optim=optim))
        return tuple(stages)


def _end_point_error(flow: jax.Array, target: jax.Array) -> jax.Array:
    """Euclidean distance `[...]` of vectors `[...,2]`; its gradient is finite at 0."""
    square = jnp.sum(jnp.square(flow.astype(jnp.float32) - target), axis=-1)
    return jnp.sqrt(square + 1e-12)
