"""PDB-ConvLSTM: pyramid dilated deeper ConvLSTM (Song, Wang, Zhao, Shen, Lam, ECCV 2018).

Video saliency without optical flow. Each frame passes a dilated ResNet-50 and a pyramid of dilated
convolutions (PDC), which is squeezed to 32 channels. Over clips of five frames two "deeper
bidirectional" ConvLSTMs run side by side, with dilation 1 and 2: a forward layer, and a backward
layer on top of the forward one's output. Both directions are added, both dilations concatenated,
and a 1x1 convolution gives the mask. Stills train it as clips of five equal frames.

Followed is the released network (`test.prototxt@shenjianbing/PDB-ConvLSTM`, with the layer of
agethen/ConvLSTM-for-Caffe) where it differs from the paper: peepholes shared by all channels, which
tie the weights to 473x473 (`peephole`); a plain sum of both directions instead of
tanh(W Hf + W Hb) (`fusion`; the paper's index t-1 at Hb is taken for a misprint); two output
channels of which the second is the mask (`head_channels`). Configuration `paper` has the paper's.
The release's own min-max stretch of every map is part of `predict` (`stretch`), at the input size
and in floating point.

Doubtful: the head of the first training stage (a 1x1 convolution on the squeezed features here);
the lengths of the stages; whether the squared error of SSAV's trainer, whose authors overlap, was
used here as well (`loss="caffe"`); what the FC-LSTM of the ablation was (here an LSTM at every
position, convolutions 1x1), and whether a pyramid of one dilation kept the identity (here it does).
At a clip marker of 0 our cell state starts at zero, where the Caffe layer's peepholes still see the
old one (`reset_peephole=False`); whole clips, which start from zero states, cannot tell the
difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from uvos_jax.errors import ConfigError
from uvos_jax.losses import masks
from uvos_jax.losses.dice import soft_iou_loss
from uvos_jax.losses.reduction import REDUCTIONS, reduce_pixels
from uvos_jax.modules.backbones.deeplab import ConvBNReLU
from uvos_jax.modules.backbones.pspnet import PSPResNet
from uvos_jax.modules.layers import Conv
from uvos_jax.modules.recurrent import (
    Bidirectional,
    ConvLSTM,
    DilationPyramid,
    symmetric_uniform,
)
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.registry import register
from uvos_jax.systems.base import System
from uvos_jax.types import Batch, ModelCard, ModelSpec, Outputs, Phase, Stage, State

SPATIAL_MODULES = ("pdc", "aspp")
TEMPORAL_MODULES = ("none", "fc_lstm", "convlstm", "b_convlstm", "db_convlstm", "pdb_convlstm")
#: Those that look at past frames only.
CAUSAL_MODULES = ("none", "fc_lstm", "convlstm")
PEEPHOLES = ("none", "spatial", "full")
FUSIONS = ("sum", "conv_tanh")
LOSSES = ("paper", "caffe")
#: B, G, R, as the release's prototxt writes them.
MEAN = (104.00698793, 116.66876762, 122.67891434)


class PyramidDilatedConv(nn.Module):
    """Parallel dilated 3x3 convolutions, concatenated behind the input, squeezed by a 1x1 one.

    Attributes:
      dilations: of the branches, in the order of concatenation.
      width: channels of each branch.
      features: channels of the squeezed result.
      join: `pdc`, concatenate [input, branches]; `aspp`, add the branches up.
    """

    dilations: tuple[int, ...] = (2, 4, 8, 16)
    width: int = 512
    features: int = 32
    join: str = "pdc"
    freeze_bn: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        common = {"freeze_bn": self.freeze_bn, "dtype": self.dtype}
        branches = [
            ConvBNReLU(self.width, 3, dilation=d, name=f"d{d}", **common)(x, train)
            for d in self.dilations
        ]
        if self.join == "aspp":
            joined = sum(branches)
        else:
            joined = jnp.concatenate([x, *branches], axis=-1)
        return ConvBNReLU(self.features, 1, name="squeeze", **common)(joined, train)


def _bidirectional(cell: Any, mode: str, merge: str, width: int, dtype: Any, *, dilation, name):
    return Bidirectional(
        partial(cell, dilation=dilation), mode, merge, features=width, dtype=dtype, name=name
    )


class PDBNetwork(nn.Module):
    """The network: backbone, pyramid of dilated convolutions, recurrence, heads.

    Takes normalised NHWC frames and can be used alone: `network(frames)`.

    Attributes:
      block_counts, stem, widths: of the backbone.
      spatial_module: how the dilated branches are joined, see `PyramidDilatedConv`.
      pdc_dilations, pdc_width, squeeze: of that module.
      temporal_module: `none` (the spatial head decides), `fc_lstm` (an LSTM per position),
        `convlstm` (forward only), `b_convlstm` (both directions on the input), `db_convlstm` (the
        backward one on the forward one's output), `pdb_convlstm` (the same per dilation).
      lstm_features, lstm_kernel: channels of the state, kernel size.
      lstm_dilations: one branch each in `pdb_convlstm`; the others use the first.
      peephole: `none`, `spatial` (the Caffe layer) or `full` (Shi et al. 2015).
      reset_peephole: a clip marker of 0 also hides the old cell state from the peepholes.
      fusion: of both directions: `sum`, or `conv_tanh` (eq. 5).
      head_channels: 1, or 2 of which the second is the mask.
      init_range: kernels of the recurrence start uniform within this range.
      freeze_bn: use running statistics in training.
      remat: recompute blocks and time steps in the backward pass.
    """

    block_counts: tuple[int, ...] = (3, 4, 6, 3)
    stem: tuple[int, int, int] = (64, 64, 128)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    spatial_module: str = "pdc"
    pdc_dilations: tuple[int, ...] = (2, 4, 8, 16)
    pdc_width: int = 512
    squeeze: int = 32
    temporal_module: str = "pdb_convlstm"
    lstm_features: int = 32
    lstm_kernel: int = 3
    lstm_dilations: tuple[int, ...] = (1, 2)
    peephole: str = "spatial"
    reset_peephole: bool = True
    fusion: str = "sum"
    head_channels: int = 2
    init_range: float = 0.0297
    freeze_bn: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        self.backbone = PSPResNet(
            block_counts=self.block_counts,
            stem=self.stem,
            widths=self.widths,
            freeze_bn=self.freeze_bn,
            remat=self.remat,
            dtype=self.dtype,
        )
        self.pdc = PyramidDilatedConv(
            dilations=self.pdc_dilations,
            width=self.pdc_width,
            features=self.squeeze,
            join=self.spatial_module,
            freeze_bn=self.freeze_bn,
            dtype=self.dtype,
        )
        self.spatial_head = Conv(1, 1, use_bias=True, dtype=self.dtype)
        if self.temporal_module == "none":
            return
        self.head = Conv(self.head_channels, 1, use_bias=True, dtype=self.dtype)
        cell = partial(
            ConvLSTM,
            self.lstm_features,
            kernel_size=1 if self.temporal_module == "fc_lstm" else self.lstm_kernel,
            peephole=self.peephole,
            output_sees="old" if self.peephole == "spatial" else "new",
            peephole_init=1.0 if self.peephole == "spatial" else 0.0,
            bias="recurrent",
            reset_peephole=self.reset_peephole,
            kernel_init=symmetric_uniform(self.init_range),
            remat=self.remat,
            dtype=self.dtype,
        )
        mode = "parallel" if self.temporal_module == "b_convlstm" else "cascaded"
        branch = partial(_bidirectional, cell, mode, self.fusion, self.lstm_features, self.dtype)
        if self.temporal_module == "pdb_convlstm":
            self.recurrence = DilationPyramid(branch, self.lstm_dilations)
        elif self.temporal_module in CAUSAL_MODULES:
            self.recurrence = cell(dilation=self.lstm_dilations[0])
        else:
            self.recurrence = branch(dilation=self.lstm_dilations[0], name=None)

    def encode(self, frames: jax.Array, train: bool = False) -> jax.Array:
        """Squeezed features `[B,T,h,w,C]` of normalised frames `[B,T,H,W,3]`."""
        B, T = frames.shape[:2]
        *_, deep = self.backbone(frames.reshape(B * T, *frames.shape[2:]), train)
        x = self.pdc(deep, train)
        return x.reshape(B, T, *x.shape[1:])

    def decode(
        self, features: jax.Array, carry: Any = None, markers: jax.Array | None = None
    ) -> tuple[Any, jax.Array]:
        """The recurrence and its head.

        Args:
          features: `[B,T,h,w,C]`.
          carry: state of the frames before, for causal modules; None starts anew.
          markers: 0 where a frame starts a new clip, else 1, `[B,T]`; None: one clip per row.

        Returns:
          the state after the last frame (None unless causal) and logits `[B,T,h,w,1]`.
        """
        if self.temporal_module == "none":
            return carry, self._per_frame(self.spatial_head, features)
        if self.temporal_module in CAUSAL_MODULES:
            carry, hidden = self.recurrence(features, carry, markers=markers)
        else:
            hidden = self.recurrence(features, markers=markers)
        return carry, self._per_frame(self.head, hidden)[..., -1:]

    def __call__(
        self,
        frames: jax.Array,
        *,
        train: bool = False,
        spatial_only: bool = False,
        repeat: int = 1,
        markers: jax.Array | None = None,
    ) -> Outputs:
        """Logits at stride 8 of the frames of a clip.

        Args:
          frames: `[B,T,H,W,3]` normalised.
          spatial_only: `logits` are those of the spatial head.
          repeat: every frame stands for this many equal ones (stills as clips).
          markers: see `decode`.

        Returns:
          `logits [B,T*repeat,h,w,1]`, `spatial_logits [B,T,h,w,1]`, `features [B,T,h,w,C]`.
        """
        features = self.encode(frames, train)
        spatial = self._per_frame(self.spatial_head, features)
        outputs = {"spatial_logits": spatial, "features": features}
        if spatial_only and not self.is_initializing():
            return {**outputs, "logits": spatial}
        _, logits = self.decode(jnp.repeat(features, repeat, axis=1), markers=markers)
        return {**outputs, "logits": logits}

    @staticmethod
    def _per_frame(head: nn.Module, x: jax.Array) -> jax.Array:
        B, T = x.shape[:2]
        y = head(x.reshape(B * T, *x.shape[2:]))
        return y.reshape(B, T, *y.shape[1:])


@register("pdb_convlstm")
class PDBConvLSTM(System):
    """PDB-ConvLSTM on video: clips of five frames one after another, without overlap.

    The released procedure walks back from the last frame to complete the last clip, and stretches
    every map to [0, 1] before its threshold. The causal ablations (`none`, `fc_lstm`, `convlstm`)
    carry their state through the whole video instead.
    """

    card = ModelCard(
        title="PDB-ConvLSTM",
        year=2018,
        venue="ECCV",
        official_weights="Caffe, linked from github.com/shenjianbing/PDB-ConvLSTM",
        parity="official layers, masks within 1e-4",
        learned="J 0.12 to 0.20 in 360 steps",
        davis16_j=77.2,
        davis16_f=74.5,
    )
    parameter_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "spatial": (r"(^|/)(backbone|pdc)/",),
        "spatial_head": (r"(^|/)spatial_head/",),
        "temporal": (r"(^|/)(recurrence|head)/",),
    }

    def __init__(self, config: Any):
        super().__init__(config)
        for field, allowed in (
            ("spatial_module", SPATIAL_MODULES),
            ("temporal_module", TEMPORAL_MODULES),
            ("peephole", PEEPHOLES),
            ("fusion", FUSIONS),
            ("head_channels", (1, 2)),
            ("loss", LOSSES),
            ("reduction", REDUCTIONS),
        ):
            if config[field] not in allowed:
                raise ConfigError(
                    f"config field model.{field} is {config[field]!r}: use one of {allowed}"
                )
        if config.clip_len < 1:
            raise ConfigError(f"config field model.clip_len must be at least 1, got "
                              f"{config.clip_len}")  # fmt: skip
        shares = tuple(config.stage_shares)
        if len(shares) != 3 or min(shares) < 0 or sum(shares) <= 0:
            raise ConfigError(
                "config field model.stage_shares must be three numbers that are not negative and "
                f"not all 0 (spatial, joint, temporal), got {shares}"
            )
        if config.peephole != "none" and not tuple(config.input_size):
            raise ConfigError(
                f"config field model.peephole is {config.peephole!r}, whose weights belong to one "
                "size of feature maps: set model.input_size, or peephole='none' for native sizes"
            )
        causal = config.temporal_module in CAUSAL_MODULES
        self.spec = ModelSpec(
            name="pdb_convlstm",
            paper="Song, Wang, Zhao, Shen, Lam: Pyramid Dilated Deeper ConvLSTM for Video Salient "
            "Object Detection, ECCV 2018",
            temporal="recurrent" if causal else "clip",
            clip_len=config.clip_len,
            input_size=tuple(config.input_size) or None,
            stride=8,
            normalization="caffe_bgr",
            channel_mean=MEAN,
            outputs=("logits", "spatial_logits", "features"),
            causal=causal,
            window_overlap=0,
        )
        self.module = PDBNetwork(
            block_counts=tuple(config.block_counts),
            stem=tuple(config.stem),
            widths=tuple(config.widths),
            spatial_module=config.spatial_module,
            pdc_dilations=tuple(config.pdc_dilations),
            pdc_width=config.pdc_width,
            squeeze=config.squeeze,
            temporal_module=config.temporal_module,
            lstm_features=config.lstm_features,
            lstm_kernel=config.lstm_kernel,
            lstm_dilations=tuple(config.lstm_dilations),
            peephole=config.peephole,
            reset_peephole=bool(config.reset_peephole),
            fusion=config.fusion,
            head_channels=config.head_channels,
            init_range=config.init_range,
            freeze_bn=bool(config.get("freeze_bn", False)),
            remat=bool(config.get("remat", False)),
            dtype=self.compute_dtype,
        )

    def module_kwargs(self, train: bool, phase: str = "default") -> dict[str, Any]:
        return {
            # the last stage trains the recurrence on features that no longer move
            "train": train and phase != "temporal",
            "spatial_only": phase == "spatial",
            "repeat": self.config.clip_len if phase == "static" else 1,
        }

    # ----- training -----------------------------------------------------------------------

    def loss_fn(
        self, outputs: Outputs, batch: Batch, *, step: jax.Array | int, phase: str = "default"
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross entropy plus an error of the probability, with equal weights (eq. 7-9).

        The error is `|s - o|` (`loss="paper"`) or `(s - o)^2 / 2` (`loss="caffe"`). With the
        reduction `sum_per_frame` both are summed over the pixels of a frame and averaged over
        frames, as Caffe does: the published rates belong to it, and a rate of 1e-8 at 473x473 is
        one of 2.2e-3 under `mean`. An overlap loss (`iou_weight`), not the authors', is meant to
        keep training from scratch from ending in empty masks.

        Returns:
          the loss and its terms; `iou`, of the batch's pixels at 0.5, is for the log only.
        """
        logits = outputs["logits"]
        T = logits.shape[1]
        labels = jnp.asarray(batch["masks"])
        flags = {k: jnp.asarray(batch[k]) for k in ("valid", "has_mask") if k in batch}
        if labels.shape[1] != T:  # stills: one mask for all copies
            labels = jnp.repeat(labels, T // labels.shape[1], axis=1)
            flags = {k: jnp.repeat(v, T // v.shape[1], axis=1) for k, v in flags.items()}
        target, weights = masks.binary_target(labels), masks.pixel_weights(labels, **flags)
        full = self._enlarged(logits, target.shape[2:])

        s = jax.nn.sigmoid(full)
        bce = target * jax.nn.softplus(-full) + (1.0 - target) * jax.nn.softplus(full)
        if self.config.loss == "paper":
            name, error = "mae", jnp.abs(s - target)
        else:
            name, error = "l2", 0.5 * jnp.square(s - target)
        terms = {
            "bce": reduce_pixels(bce, weights, self.config.reduction),
            name: reduce_pixels(error, weights, self.config.reduction),
        }
        if self.config.iou_weight:
            flat = (x.reshape(-1, *x.shape[2:]) for x in (full, target, weights))
            terms["soft_iou"] = self.config.iou_weight * soft_iou_loss(*flat)
        predicted = (full > 0).astype(jnp.float32)
        union = jnp.sum(jnp.maximum(predicted, target) * weights)
        overlap = jnp.sum(predicted * target * weights)
        return sum(terms.values()), {**terms, "iou": overlap / jnp.maximum(union, 1.0)}

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """Spatial part on frames and stills; everything on stills and clips; recurrence on clips.

        In the second stage the recurrence moves `temporal_lr_factor` times as fast as the rest, in
        the third it is alone, at that rate. Stages without steps are left out by the trainer.
        """
        groups = {name: rules[0] for name, rules in self.parameter_groups.items()}
        factor = float(config.model.temporal_lr_factor)
        head = groups["spatial_head"]
        fast = ((groups["temporal"], factor),)
        spatial = Phase("spatial", "static", frozen=(groups["temporal"],))
        static = Phase("static", "static", fast, frozen=(head,))
        video = Phase("video", "video", fast, frozen=(head,))
        temporal = Phase("temporal", "video", frozen=(groups["spatial"], head))
        joint = (static, video) if config.model.static_steps else (video,)
        if config.model.temporal_module == "none":
            return (Stage("spatial", int(config.train.total_steps), (spatial,)),)
        steps = _split(int(config.train.total_steps), tuple(config.model.stage_shares))
        return (
            Stage("spatial", steps[0], (spatial,)),
            Stage("joint", steps[1], joint),
            Stage("temporal", steps[2], (temporal,), optim=(("lr", config.optim.lr * factor),)),
        )

    # ----- video --------------------------------------------------------------------------

    def init_state(
        self, variables: Mapping[str, Any], batch_size: int, frame_size: tuple[int, int]
    ) -> State:
        """Zero states of the recurrence if it is causal, else `()`."""
        if self.config.temporal_module not in ("fc_lstm", "convlstm"):
            return ()
        one = jax.ShapeDtypeStruct((batch_size, 1, *frame_size, 3), self.compute_dtype)
        h, w = jax.eval_shape(self._encode, variables, one).shape[2:4]
        return ConvLSTM(self.config.lstm_features).initial_carry(batch_size, (h, w))

    def predict(
        self, variables: Mapping[str, Any], state: State, chunk: Batch
    ) -> tuple[State, jax.Array]:
        """Foreground probabilities `[B,T,H,W]`, each frame stretched to [0, 1] (`stretch`)."""
        features = self._encode(variables, self.normalize(chunk["frames"]))
        carry = None if state == () else state
        carry, logits = self.module.apply(dict(variables), features, carry, method="decode")
        probs = self.probabilities(logits, chunk["frames"].shape[2:4])
        if self.config.stretch:
            low = jnp.min(probs, axis=(2, 3), keepdims=True)
            span = jnp.max(probs, axis=(2, 3), keepdims=True) - low
            probs = (probs - low) / jnp.where(span > 0, span, 1.0)
        return (() if state == () else carry), probs

    def probabilities(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Foreground probability `[B,T,H,W]` of `logits [B,T,h,w,1]`; aligned corners, as Caffe."""
        return jax.nn.sigmoid(self._enlarged(logits, size))

    def _encode(self, variables: Mapping[str, Any], frames: jax.Array) -> jax.Array:
        return self.module.apply(dict(variables), frames, method="encode")

    @staticmethod
    def _enlarged(logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """`[B,T,h,w,1]` to float32 `[B,T,H,W]`."""
        B, T, h, w, _ = logits.shape
        x = logits.astype(jnp.float32).reshape(B * T, h, w, 1)
        return resize_bilinear(x, size, align_corners=True).reshape(B, T, *size)


def _split(total: int, shares: tuple[float, ...]) -> tuple[int, ...]:
    """`total` steps in parts proportional to `shares`, without losing any."""
    ends = [round(total * sum(shares[: i + 1]) / sum(shares)) for i in range(len(shares))]
    return tuple(b - a for a, b in zip([0, *ends[:-1]], ends, strict=True))
