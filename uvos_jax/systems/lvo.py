"""LVO: learning video object segmentation with visual memory (Tokmakov et al., ICCV 2017).

Per frame a segmentation network (DeepLab-LargeFOV on VGG-16) gives appearance features and MP-Net,
on optical flow, a map of what moves. A convolutional GRU runs over the clip in both directions with
the same weights and decides per pixel, so that an object found while it moves stays found when it
stops. Both streams are frozen; the memory and two projections are trained, on windows of which a
fifth has its object stopped artificially at one end ("stop and go").

No code of the authors is public; followed are descriptions of the paper and, for the motion stream,
the released MP-Net. Doubtful, each a field: the width between the two projections (`projection`),
how the motion map is halved (`motion_pool`), whether a ReLU follows the head's 3x3 convolution
(`head_relu`), DeepLab's rounding of sizes (`ceil_pool`), clipping of gradients at 50, the training
rule for the copied frames' number (`stop_frames` = 5 of 14). The GRU's convention is
`h = (1-z) h + z c`. Crops are of frames, not of cached features. The IJCV version's stronger
backbone is `backbone="resnet101"` (stage res5 in place of fc6).

Additions of ours: a first stage `streams` that trains both streams on masks through heads of their
own (no steps in the published recipe, which starts from streams pre-trained on PASCAL VOC and
FlyingThings3D), and memories that see the past only (`memory="forward"`) or are absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from uvos_jax.errors import ConfigError, DataError
from uvos_jax.losses import masks
from uvos_jax.losses.dice import soft_iou_loss
from uvos_jax.modules.backbones.resnet import ResNet
from uvos_jax.modules.backbones.vgg import DEEPLAB, VGG16
from uvos_jax.modules.layers import Conv
from uvos_jax.modules.mpnet_stream import MPNetStream
from uvos_jax.modules.recurrent import ConvGRU, ConvLSTM
from uvos_jax.ops.flow import flow_to_angle_magnitude
from uvos_jax.ops.pooling import avg_pool, max_pool
from uvos_jax.ops.resize import resize_bilinear, resize_nearest
from uvos_jax.registry import register
from uvos_jax.systems.base import System
from uvos_jax.types import Batch, ModelCard, ModelSpec, Outputs, Phase, Stage, State

MEMORIES = ("bidirectional", "forward", "none")
CELLS = ("gru", "lstm")
STREAMS = ("both", "appearance", "motion")
BACKBONES = ("vgg_largefov", "resnet101")
POOLS = ("average", "max")
#: B, G, R, as DeepLab's prototxts write them.
MEAN = (104.008, 116.669, 122.675)
XAVIER = nn.initializers.xavier_uniform()


class LVONetwork(nn.Module):
    """The network; takes normalised frames and encoded flow: `network(frames, flow)`.

    Attributes:
      backbone: of the appearance stream. counts, widths, fc6: of VGG-16, or block counts and
        bottleneck widths of the ResNet (`fc6` then counts for nothing).
      fc6_dilation, ceil_pool: of LargeFOV.
      motion_widths, motion_decoder, motion_head: of MP-Net.
      motion_pool: how its map is halved.
      streams: which of them the memory sees.
      projection, features: channels of the two projections of the appearance.
      memory: `bidirectional`, `forward` or `none`. cell: `gru` or `lstm`.
      hidden, kernel: channels and kernel size of the memory.
      head_features, head_relu: of the 3x3 convolution behind a bidirectional memory.
      train_streams: let gradients and batch statistics into the streams while the memory trains.
      remat: recompute the steps of the memory in the backward pass.
    """

    backbone: str = "vgg_largefov"
    counts: tuple[int, ...] = (2, 2, 3, 3, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    fc6: int = 1024
    fc6_dilation: int = 12
    ceil_pool: bool = False
    motion_widths: tuple[int, ...] = (64, 128, 256, 256, 256, 256)
    motion_decoder: int = 256
    motion_head: int = 512
    motion_pool: str = "average"
    streams: str = "both"
    projection: int = 256
    features: int = 128
    memory: str = "bidirectional"
    cell: str = "gru"
    hidden: int = 64
    kernel: int = 7
    head_features: int = 64
    head_relu: bool = False
    train_streams: bool = False
    freeze_bn: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        conv = {"use_bias": True, "dtype": self.dtype, "kernel_init": XAVIER}
        if self.streams != "motion":
            if self.backbone == "resnet101":
                self.appearance = ResNet(
                    block_counts=self.counts,
                    widths=self.widths,
                    freeze_bn=self.freeze_bn,
                    remat=self.remat,
                    dtype=self.dtype,
                )
            else:
                settings = {**DEEPLAB, "ceil_pool": self.ceil_pool}
                self.appearance = VGG16(
                    counts=self.counts,
                    widths=self.widths,
                    fc6=self.fc6,
                    fc6_dilation=self.fc6_dilation,
                    remat=self.remat,
                    dtype=self.dtype,
                    **settings,
                )
            self.appearance_head = Conv(1, 1, **conv)
            self.project1 = Conv(self.projection, 1, **conv)
            self.project2 = Conv(self.features, 1, **conv)
        if self.streams != "appearance":
            self.motion = MPNetStream(
                self.motion_widths,
                self.motion_decoder,
                self.motion_head,
                freeze_bn=self.freeze_bn,
                remat=self.remat,
                dtype=self.dtype,
            )
        if self.memory != "none":
            cell = ConvGRU if self.cell == "gru" else ConvLSTM
            self.recurrence = cell(
                self.hidden, kernel_size=self.kernel, remat=self.remat, dtype=self.dtype
            )
        if self.memory == "bidirectional":
            self.head = Conv(self.head_features, 3, **conv)
        self.classifier = Conv(2, 1, **conv)

    def encode(
        self, frames: jax.Array, flow: jax.Array, moves: jax.Array | None, train: bool = False
    ) -> dict[str, jax.Array]:
        """Both streams, frame by frame.

        Args:
          frames: `[B,T,H,W,3]` normalised.
          flow: `[B,T,H,W,2]` angle and magnitude.
          moves: 0 where a frame has no flow, `[B,T]`; None: all have.
          train: whether the streams train.

        Returns:
          `appearance [B,T,h,w,C]` (fc6), `motion [B,T,h,w,1]` in [0,1], and
          `appearance_logits [B,T,h,w,1]`, `motion_logits [B,T,H/4,W/4,1]` of the streams alone.
        """
        B, T, H, W = frames.shape[:4]
        maps: dict[str, jax.Array] = {}
        size = None
        if self.streams != "motion":
            found = self.appearance(frames.reshape(B * T, H, W, 3), train)
            deep = found["fc6"] if isinstance(found, dict) else found[-1]
            size = deep.shape[1:3]
            maps["appearance"], maps["appearance_logits"] = deep, self.appearance_head(deep)
        if self.streams != "appearance":
            encoded = flow.reshape(B * T, H, W, 2).astype(self.dtype)
            logits = self.motion(resize_nearest(encoded, (H // 2, W // 2)), train)
            maps["motion_logits"] = logits
            moving = nn.sigmoid(logits.astype(jnp.float32))
            if self.motion_pool == "average":
                moving = avg_pool(moving, 2, 2, ceil_mode=True, count="valid")
            else:
                moving = max_pool(moving, 2, 2, ceil_mode=True)
            size = size or (-(-H // 8), -(-W // 8))
            moving = resize_bilinear(moving, size).reshape(B, T, *size, 1)
            if moves is not None:
                moving = moving * moves.astype(jnp.float32)[:, :, None, None, None]
            maps["motion"] = moving.astype(self.dtype)
        return {k: v if k == "motion" else v.reshape(B, T, *v.shape[1:]) for k, v in maps.items()}

    def fuse(self, maps: Mapping[str, jax.Array]) -> jax.Array:
        """What the memory sees: `[B,T,h,w,C+1]`, all within (-1, 1)."""
        parts = []
        if "appearance" in maps:
            deep = maps["appearance"]
            B, T = deep.shape[:2]
            x = jnp.tanh(self.project1(deep.reshape(B * T, *deep.shape[2:])))
            x = jnp.tanh(self.project2(x))
            parts.append(x.reshape(B, T, *x.shape[1:]))
        if "motion" in maps:
            parts.append(maps["motion"])
        return jnp.concatenate(parts, axis=-1)

    def decide(
        self, x: jax.Array, carry: Any = None, markers: jax.Array | None = None
    ) -> tuple[Any, jax.Array]:
        """The memory and its head.

        Args:
          x: `[B,T,h,w,C]`.
          carry: state of a forward memory.
          markers: 0 where a new shot begins, else 1, `[B,T]`; None: one shot per row.

        Returns:
          the forward memory's state after the last frame, and logits `[B,T,h,w,2]`.
        """
        B, T = x.shape[:2]
        if self.memory == "forward":
            carry, x = self.recurrence(x, carry, markers=markers)
        elif self.memory == "bidirectional":
            # the same weights run both ways: the reversed clip is one more row of the batch
            both = jnp.concatenate([x, x[:, ::-1]], axis=0)
            marks = None
            if markers is not None:
                ones = jnp.ones_like(markers[:, :1])
                ends = jnp.concatenate([markers[:, 1:], ones], axis=1)[:, ::-1]
                marks = jnp.concatenate([markers, ends], axis=0)
            _, hidden = self.recurrence(both, markers=marks)
            x = jnp.concatenate([hidden[:B], hidden[B:, ::-1]], axis=-1)
        x = x.reshape(B * T, *x.shape[2:]).astype(self.dtype)
        if self.memory == "bidirectional":
            x = self.head(x)
            x = nn.relu(x) if self.head_relu else x
        logits = self.classifier(x)
        return carry, logits.reshape(B, T, *logits.shape[1:])

    def __call__(
        self,
        frames: jax.Array,
        flow: jax.Array,
        moves: jax.Array | None = None,
        *,
        train: bool = False,
        streams_only: bool = False,
        source: jax.Array | None = None,
        stopped: jax.Array | None = None,
        markers: jax.Array | None = None,
    ) -> Outputs:
        """Logits of the frames of clips.

        Args:
          frames, flow, moves: see `encode`.
          streams_only: train the streams; the memory does not run and `logits` are the
            appearance stream's (the motion stream's without one) as two classes.
          source: which frame is shown at each step, `[B,T]` int; None: each its own.
          stopped: steps without motion, `[B,T]` bool; see `stop_and_go`.
          markers: see `decide`.

        Returns:
          `logits [B,T,h,w,2]`, and the streams' `appearance_logits` and `motion_logits`.
        """
        maps = self.encode(frames, flow, moves, train and (streams_only or self.train_streams))
        outputs = {k: v for k, v in maps.items() if k.endswith("_logits")}
        if streams_only and not self.is_initializing():
            key = "appearance_logits" if "appearance_logits" in maps else "motion_logits"
            two = jnp.concatenate([jnp.zeros_like(maps[key]), maps[key]], axis=-1)
            return {**outputs, "logits": two}
        inputs = {k: maps[k] for k in ("appearance", "motion") if k in maps}
        if not self.train_streams:
            inputs = jax.lax.stop_gradient(inputs)
        if source is not None:
            index = source[:, :, None, None, None]
            inputs = {k: jnp.take_along_axis(v, index, axis=1) for k, v in inputs.items()}
        if stopped is not None and "motion" in inputs:
            still = stopped[:, :, None, None, None]
            inputs["motion"] = jnp.where(still, jnp.zeros_like(inputs["motion"]), inputs["motion"])
        _, logits = self.decide(self.fuse(inputs), markers=markers)
        return {**outputs, "logits": logits}


def stop_and_go(
    rng: jax.Array, batch_size: int, length: int, *, share: float, frames: int
) -> tuple[jax.Array, jax.Array]:
    """Windows in which everything stands still at one end.

    Args:
      share: of the windows that are changed; half of these stand still at the end, half at the
        beginning.
      frames: steps that show the same frame and get no motion.

    Returns:
      which frame each step shows, `[B,T]` int32, and which steps get no motion, `[B,T]` bool.
    """
    chosen_key, end_key = jax.random.split(rng)
    chosen = jax.random.uniform(chosen_key, (batch_size, 1)) < share
    at_end = jax.random.bernoulli(end_key, shape=(batch_size, 1))
    t = jnp.arange(length)[None]
    frames = min(frames, length)
    standing = jnp.where(at_end, t >= length - frames, t < frames) & chosen
    shown = jnp.where(at_end, length - frames, frames - 1)
    return jnp.where(standing, shown, t).astype(jnp.int32), standing


@register("lvo")
class LVO(System):
    """LVO on video: windows of a clip's length, half overlapping, read in both directions.

    The published procedure reads the whole video at once; a longer window (`predict.window`) comes
    nearer to it, at the price of memory. A forward memory carries its state through the video.
    """

    card = ModelCard(
        title="LVO",
        year=2017,
        venue="ICCV",
        official_weights="none found; the streams' (MP-Net, DeepLab-LargeFOV) can be converted",
        parity="no public code: formulas against slow loops",
        learned="J 0.06 to 0.22 in 400 steps",
        davis16_j=75.9,
        davis16_f=72.1,
    )
    parameter_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "appearance": (r"(^|/)(appearance|appearance_head)/",),
        "motion": (r"(^|/)motion/",),
        "memory": (r"^(?!motion/)(project1|project2|recurrence|head|classifier)/",),
    }

    def __init__(self, config: Any):
        super().__init__(config)
        for field, allowed in (
            ("backbone", BACKBONES),
            ("motion_pool", POOLS),
            ("streams", STREAMS),
            ("memory", MEMORIES),
            ("cell", CELLS),
        ):
            if config[field] not in allowed:
                raise ConfigError(
                    f"config field model.{field} is {config[field]!r}: use one of {allowed}"
                )
        for field in ("clip_len", "projection", "features", "hidden", "stop_frames"):
            if config[field] < 1:
                raise ConfigError(
                    f"config field model.{field} must be at least 1, got {config[field]}"
                )
        if config.kernel < 1 or config.kernel % 2 == 0:
            raise ConfigError(f"config field model.kernel must be odd, got {config.kernel}")
        if not 0.0 <= config.stop_share <= 1.0:
            raise ConfigError(
                f"config field model.stop_share must lie in [0, 1], got {config.stop_share}"
            )
        shares = tuple(config.stage_shares)
        if len(shares) != 2 or min(shares) < 0 or sum(shares) <= 0:
            raise ConfigError(
                "config field model.stage_shares must be two numbers that are not negative and "
                f"not both 0 (streams, memory), got {shares}"
            )
        causal = config.memory != "bidirectional"
        extras = {"both": ("appearance_logits", "motion_logits")}
        self.spec = ModelSpec(
            name="lvo",
            paper="Tokmakov, Alahari, Schmid: Learning Video Object Segmentation with Visual "
            "Memory, ICCV 2017",
            temporal="recurrent" if causal else "clip",
            clip_len=config.clip_len,
            input_size=tuple(config.input_size) or None,
            stride=8,
            num_classes=2,
            normalization="caffe_bgr",
            channel_mean=MEAN,
            requires=frozenset({"flow"}),
            outputs=("logits", *extras.get(config.streams, (f"{config.streams}_logits",))),
            causal=causal,
        )
        self.module = LVONetwork(
            backbone=config.backbone,
            counts=tuple(config.counts),
            widths=tuple(config.widths),
            fc6=config.fc6,
            fc6_dilation=config.fc6_dilation,
            ceil_pool=config.ceil_pool,
            motion_widths=tuple(config.motion_widths),
            motion_decoder=config.motion_decoder,
            motion_head=config.motion_head,
            motion_pool=config.motion_pool,
            streams=config.streams,
            projection=config.projection,
            features=config.features,
            memory=config.memory,
            cell=config.cell,
            hidden=config.hidden,
            kernel=config.kernel,
            head_features=config.head_features,
            head_relu=config.head_relu,
            train_streams=config.train_streams,
            freeze_bn=bool(config.get("freeze_bn", False)),
            remat=bool(config.get("remat", False)),
            dtype=self.compute_dtype,
        )

    # ----- input --------------------------------------------------------------------------

    def module_inputs(self, batch: Batch) -> tuple[Any, ...]:
        if "flow" not in batch:
            raise DataError(
                "lvo needs optical flow and the batch has none: add a source with flow, or compute "
                "flow first (`uvos flow`)"
            )
        encoded = flow_to_angle_magnitude(
            jnp.asarray(batch["flow"]), zero_below=float(self.config.zero_below)
        )
        moves = jnp.asarray(batch["flow_valid"]) if "flow_valid" in batch else None
        return self.normalize(batch["frames"]), encoded, moves

    def apply(
        self,
        variables: Mapping[str, Any],
        batch: Batch,
        *,
        train: bool,
        rngs: Mapping[str, jax.Array] | None = None,
        phase: str = "default",
    ) -> tuple[Outputs, dict[str, Any]]:
        """As `System.apply`; in training some windows stand still at one end (`stop_and_go`).

        The outputs then hold `source [B,T]`, the frame each step shows, whose mask is its target.
        """
        kwargs: dict[str, Any] = {"train": train, "streams_only": phase == "streams"}
        extra: dict[str, jax.Array] = {}
        if train and phase != "streams" and self.config.stop_share and rngs:
            B, T = batch["frames"].shape[:2]
            source, stopped = stop_and_go(
                jax.random.fold_in(rngs["dropout"], 1),
                B,
                T,
                share=float(self.config.stop_share),
                frames=int(self.config.stop_frames),
            )
            kwargs |= {"source": source, "stopped": stopped}
            extra["source"] = source
        arguments = self.module_inputs(batch)
        mutable = ["batch_stats"] if train else False
        result = self.module.apply(
            dict(variables), *arguments, rngs=rngs, mutable=mutable, **kwargs
        )
        outputs, updates = result if train else (result, {})
        return {**outputs, **extra}, dict(updates)

    # ----- training -----------------------------------------------------------------------

    def loss_fn(
        self, outputs: Outputs, batch: Batch, *, step: jax.Array | int, phase: str = "default"
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean cross entropy against masks at the logits' size; in `streams` that of each stream.

        An overlap loss (`iou_weight`), not the authors', is meant to keep training from scratch
        from ending in empty masks.

        Returns:
          the loss and its terms; `iou`, at the logits' size, is for the log only.
        """
        labels = jnp.asarray(batch["masks"])
        flags = {k: jnp.asarray(batch[k]) for k in ("valid", "has_mask") if k in batch}
        if "source" in outputs:
            source = outputs["source"]
            labels = jnp.take_along_axis(labels, source[:, :, None, None], axis=1)
            flags = {k: jnp.take_along_axis(v, source, axis=1) for k, v in flags.items()}

        def entropy(margin: jax.Array, without_flow: bool = True):
            """Mean cross entropy (and overlap loss) of `sigmoid(margin) [B,T,h,w]`; target and
            weights.
            """
            small = resize_nearest(labels[..., None], margin.shape[2:4])[..., 0]
            target = masks.binary_target(small)
            weights = masks.pixel_weights(small, **flags)
            if not without_flow and "flow_valid" in batch:
                weights = weights * jnp.asarray(batch["flow_valid"])[..., None, None]
            values = target * jax.nn.softplus(-margin) + (1.0 - target) * jax.nn.softplus(margin)
            value = masks.weighted_mean(values, weights)
            if self.config.iou_weight:
                flat = (x.reshape(-1, *x.shape[2:]) for x in (margin, target, weights))
                value += self.config.iou_weight * soft_iou_loss(*flat)
            return value, target, weights

        logits = outputs["logits"].astype(jnp.float32)
        margin = logits[..., 1] - logits[..., 0]
        value, target, weights = entropy(margin)
        terms = {}
        if phase == "streams":
            for stream in ("appearance", "motion"):
                key = f"{stream}_logits"
                if key in outputs:
                    alone = outputs[key].astype(jnp.float32)[..., 0]
                    terms[stream] = entropy(alone, without_flow=stream == "appearance")[0]
        else:
            terms["cross_entropy"] = value
        found = (margin > 0).astype(jnp.float32)
        union = jnp.sum(jnp.maximum(found, target) * weights)
        overlap = jnp.sum(found * target * weights)
        return sum(terms.values()), {**terms, "iou": overlap / jnp.maximum(union, 1.0)}

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """The streams (no steps in the published recipe), then the memory on frozen streams."""
        groups = {name: rules[0] for name, rules in self.parameter_groups.items()}
        present = {"both": ("appearance", "motion")}.get(
            config.model.streams, (config.model.streams,)
        )
        streams = tuple(groups[name] for name in present)
        first, second = (float(x) for x in config.model.stage_shares)
        total = int(config.train.total_steps)
        steps = round(total * first / (first + second))
        frozen = (r"(^|/)appearance_head/",) if "appearance" in present else ()
        if not config.model.train_streams:
            frozen = streams
        return (
            Stage("streams", steps, (Phase("streams", frozen=(groups["memory"],)),)),
            Stage("memory", total - steps, (Phase("memory", frozen=frozen),)),
        )

    # ----- video --------------------------------------------------------------------------

    def init_state(
        self, variables: Mapping[str, Any], batch_size: int, frame_size: tuple[int, int]
    ) -> State:
        """The zero state of a forward memory, else `()`."""
        if self.config.memory != "forward":
            return ()
        chunk = {
            "frames": jax.ShapeDtypeStruct((batch_size, 1, *frame_size, 3), jnp.uint8),
            "flow": jax.ShapeDtypeStruct((batch_size, 1, *frame_size, 2), jnp.float32),
        }
        h, w = jax.eval_shape(self._inputs, variables, chunk).shape[2:4]
        cell = ConvGRU if self.config.cell == "gru" else ConvLSTM
        return cell(self.config.hidden).initial_carry(batch_size, (h, w))

    def predict(
        self, variables: Mapping[str, Any], state: State, chunk: Batch
    ) -> tuple[State, jax.Array]:
        """Foreground probabilities `[B,T,H,W]`; a forward memory's state takes the frames in."""
        x = self._inputs(variables, chunk)
        carry = None if isinstance(state, tuple) and state == () else state
        carry, logits = self.module.apply(dict(variables), x, carry, method="decide")
        probs = self.probabilities(logits, chunk["frames"].shape[2:4])
        return (carry if self.config.memory == "forward" else ()), probs

    def _inputs(self, variables: Mapping[str, Any], chunk: Batch) -> jax.Array:
        maps = self.module.apply(dict(variables), *self.module_inputs(chunk), method="encode")
        return self.module.apply(dict(variables), maps, method="fuse")
