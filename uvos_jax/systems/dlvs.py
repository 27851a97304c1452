"""DLVS, also FCNS: static and dynamic fully convolutional saliency (Wang, Shen, Shao, TIP 2018).

Two networks on VGG-16 that share no weights. The static one maps a frame to a saliency map. The
dynamic one sees frame t, frame t+1 and the static map of t, stacked on channels, and returns the
saliency of frame t: time enters through the two stacked frames, no optical flow is estimated.
Videos with masks being rare, most of its training pairs are stills that were moved artificially
(`uvos_jax.synthetic.saliency_pair`).

Followed is the released network (`models.py`, `main.py@wenguanwang/ViSalientObject`): sigmoids on
maps at strides 16, 8 and 4, each handed up to the next finer one by nearest neighbours beside 64
channels of the backbone (`head="side"`), also behind those 64 channels (`side_activation`), where
training from scratch does better with `relu`. The release subtracts the BGR means from an RGB image
and reverses it afterwards, so that red and blue are off by 20 grey levels; its weights want that
(`preprocess="released"`), others `"vgg"`. It gives the static map to the dynamic network stretched
to 0..255 and rounded to 8 bits, beside frames of which only the mean is subtracted (`prior_range`,
`stretch`, `round_prior`). Its pairs come from a listing that is not sorted; ours are in order of
time. It gives the last frame of a video no result; here the last frame is paired with the one
before it, or keeps its static map (`last_frame`).

The network of the paper, with learned deconvolutions back to full size, is `head="deconv"`. Known
of it only from memory, and so doubtful: the widths of its deconvolutions, the loss (weighted by the
share of salient pixels), optimiser and rates. The released code does not train: that all three maps
are supervised alike is an assumption (`supervision`). Frames are shrunk bilinearly, which the
release does with antialiasing. A video shorter than a window is filled up by walking back, so its
last frame is paired with the one before it whatever `last_frame` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from uvos_jax.errors import ConfigError
from uvos_jax.losses import masks
from uvos_jax.modules.backbones.vgg import COUNTS, KERAS, VGG16, WIDTHS
from uvos_jax.modules.layers import Conv, ConvTranspose
from uvos_jax.ops.resize import resize_bilinear, resize_nearest
from uvos_jax.registry import register
from uvos_jax.systems.base import System
from uvos_jax.types import Batch, ModelCard, ModelSpec, Outputs, Phase, Stage, State

HEADS = ("side", "deconv")
ACTIVATIONS = {"sigmoid": nn.sigmoid, "relu": nn.relu}
#: Means of the three channels, in the order B, G, R in which they reach the network.
MEANS = {"vgg": (103.939, 116.779, 123.68), "released": (123.68, 116.779, 103.939)}
LAST_FRAMES = ("reverse_pair", "static")
SUPERVISIONS = ("deep", "last")
#: The share of salient pixels that weighs the loss stays away from 0 and 1 by this much.
MIN_SHARE = 1e-3


class SideHead(nn.Module):
    """Saliency at strides 16, 8 and 4, coarse maps guiding finer ones.

    Attributes:
      features: channels that a finer block contributes beside the coarser map.
      activation: of those channels, `sigmoid` (release) or `relu`.
    """

    features: int = 64
    activation: str = "sigmoid"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
        """Logits `[B,h,w,1]` of the blocks c5, c4 and c3, coarse to fine."""

        def conv(width: int, name: str, x: jax.Array) -> jax.Array:
            return Conv(width, 3, use_bias=True, dtype=self.dtype, name=name)(x)

        logits = [conv(1, "sal_conv_5", features["c5"])]
        for block in (4, 3):
            own = conv(self.features, f"conv_{block}_out", features[f"c{block}"])
            own = ACTIVATIONS[self.activation](own)
            # sizes that 16 does not divide: doubling overshoots by a pixel at the far border
            coarse = jnp.repeat(jnp.repeat(nn.sigmoid(logits[-1]), 2, axis=1), 2, axis=2)
            coarse = coarse[:, : own.shape[1], : own.shape[2]]
            joined = jnp.concatenate([own, coarse], axis=-1)
            logits.append(conv(1, f"sal_conv{block}", joined))
        return tuple(logits)


class DeconvHead(nn.Module):
    """The paper's head: deconvolutions that double the size up to that of the input.

    Attributes:
      widths: channels of the deconvolutions, from stride 16 to stride 1.
    """

    widths: tuple[int, ...] = (256, 128, 64, 64)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
        """One map of logits `[B,H,W,1]`."""
        x = features["c5"]
        for i, width in enumerate(self.widths, start=1):
            x = ConvTranspose(width, use_bias=True, dtype=self.dtype, name=f"deconv{i}")(x)
            x = nn.relu(x)
        H, W = features["c1"].shape[1:3]
        return (Conv(1, 1, use_bias=True, dtype=self.dtype, name="score")(x)[:, :H, :W],)


class SaliencyFCN(nn.Module):
    """One of the two networks: VGG-16 and a head; `fcn(x)` for `x [B,H,W,C]` of any depth.

    Attributes:
      counts, widths: of the backbone.
      head, side_features, side_activation, deconv_widths: see `SideHead`, `DeconvHead`.
      remat: recompute the backbone's blocks in the backward pass.
    """

    counts: tuple[int, ...] = COUNTS
    widths: tuple[int, ...] = WIDTHS
    head: str = "side"
    side_features: int = 64
    side_activation: str = "sigmoid"
    deconv_widths: tuple[int, ...] = (256, 128, 64, 64)
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Logits, coarse to fine."""
        features = VGG16(
            self.counts, self.widths, **KERAS, remat=self.remat, dtype=self.dtype, name="vgg"
        )(x)
        if self.head == "deconv":
            return DeconvHead(self.deconv_widths, self.dtype, name="head")(features)
        head = SideHead(self.side_features, self.side_activation, self.dtype, name="head")
        return head(features)


class DLVSNetwork(nn.Module):
    """Both networks on a clip. Takes normalised NHWC frames: `network(frames [B,T,H,W,3])`.

    Attributes:
      dynamic: False leaves the static network alone.
      static_prior: the dynamic network sees the static map (7 input channels) or not (6).
      prior_range: value of the most salient pixel of that map.
      stretch: stretch it to span 0..`prior_range`.
      round_prior: round it to 255ths of that range, as maps stored in 8 bits are.
      Others as in `SaliencyFCN`.
    """

    counts: tuple[int, ...] = COUNTS
    widths: tuple[int, ...] = WIDTHS
    head: str = "side"
    side_features: int = 64
    side_activation: str = "sigmoid"
    deconv_widths: tuple[int, ...] = (256, 128, 64, 64)
    dynamic: bool = True
    static_prior: bool = True
    prior_range: float = 255.0
    stretch: bool = True
    round_prior: bool = True
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        settings = {
            field: getattr(self, field)
            for field in ("counts", "widths", "head", "side_features", "side_activation",
                          "deconv_widths", "remat", "dtype")
        }  # fmt: skip
        self.static = SaliencyFCN(**settings)
        if self.dynamic:
            self.motion = SaliencyFCN(**settings)

    def static_maps(self, frames: jax.Array) -> tuple[jax.Array, ...]:
        """Static logits `[B,h,w,1]`, coarse to fine, of `[B,H,W,3]`."""
        return self.static(frames)

    def prior(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """The channel `[B,H,W,1]` that hands a static map to the dynamic network.

        No gradient passes: the static network is trained before and run over all frames once.
        """
        p = stretched(nn.sigmoid(logits.astype(jnp.float32))) if self.stretch else nn.sigmoid(
            logits.astype(jnp.float32)
        )  # fmt: skip
        p = resize_bilinear(self._rounded(p), size)
        p = self._rounded(stretched(p) if self.stretch else p)
        return jax.lax.stop_gradient(p * self.prior_range).astype(self.dtype)

    def _rounded(self, p: jax.Array) -> jax.Array:
        return jnp.round(p * 255) / 255 if self.round_prior else p

    def dynamic_maps(
        self, first: jax.Array, second: jax.Array, prior: jax.Array | None
    ) -> tuple[jax.Array, ...]:
        """Logits `[B,h,w,1]` of the first of two frames `[B,H,W,3]` with a prior `[B,H,W,1]`."""
        parts = [first, second] + ([prior] if self.static_prior else [])
        return self.motion(jnp.concatenate(parts, axis=-1))

    def __call__(
        self, frames: jax.Array, *, train: bool = False, static_only: bool = False
    ) -> Outputs:
        """Saliency logits of every frame of a clip.

        Every frame is paired with the next, the last with the one before it; a single frame with
        itself.

        Args:
          frames: `[B,T,H,W,3]` normalised.
          static_only: `logits` are the static network's; the other is not run.

        Returns:
          `logits [B,T,h,w,1]`, the finest map; `side_logits`, a tuple of all maps, coarse to fine;
          `static_logits [B,T,h,w,1]`, the static network's finest map.
        """
        B, T, H, W, C = frames.shape
        flat = frames.reshape(B * T, H, W, C)
        static = self.static(flat)

        def clip(maps: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            return tuple(x.reshape(B, T, *x.shape[1:]) for x in maps)

        outputs = {"static_logits": clip(static)[-1]}
        sides = static
        if self.dynamic and (self.is_initializing() or not static_only):
            neighbours = frames[:, partner_indices(T)].reshape(flat.shape)
            prior = self.prior(static[-1], (H, W)) if self.static_prior else None
            sides = self.dynamic_maps(flat, neighbours, prior)
        side_logits = clip(sides)
        return {**outputs, "logits": side_logits[-1], "side_logits": side_logits}


def partner_indices(T: int) -> jax.Array:
    """Which frame each of T frames is paired with: the next, the last one with its predecessor."""
    return jnp.asarray([*range(1, T), max(T - 2, 0)])


def stretched(x: jax.Array) -> jax.Array:
    """Maps `[...,H,W,1]` with their values spread over 0..1; a constant map becomes 0."""
    low = jnp.min(x, axis=(-3, -2), keepdims=True)
    span = jnp.max(x, axis=(-3, -2), keepdims=True) - low
    return (x - low) / jnp.where(span > 0, span, 1.0)


def share_weighted_bce(logits: jax.Array, target: jax.Array, weights: jax.Array) -> jax.Array:
    """`-mean[(1-a) g log s + a (1-g) log(1-s)]`, a the share of salient pixels of each image.

    Args:
      logits, target, weights: `[B,H,W]`; weights are 1 for pixels that count.

    Returns:
      the mean over all pixels that count, times 2 so that a half-salient image costs its plain
      cross entropy; 0 when no pixel counts.
    """
    logits = logits.astype(jnp.float32)
    count = jnp.sum(weights, axis=(1, 2), keepdims=True)
    share = jnp.sum(target * weights, axis=(1, 2), keepdims=True) / jnp.maximum(count, 1.0)
    share = jnp.clip(share, MIN_SHARE, 1.0 - MIN_SHARE)
    terms = (1.0 - share) * target * nn.softplus(-logits)
    terms += share * (1.0 - target) * nn.softplus(logits)
    return 2.0 * masks.weighted_mean(terms, weights)


@register("dlvs")
class DLVS(System):
    """DLVS on video: windows of `clip_len` frames, of which each but the last sees its successor.

    Neighbouring windows overlap by half and are blended: the frame at a window's end, which is
    paired with the one before it, counts least in its mean. The maps are spread over 0..1 frame by
    frame, as the release stores them (`stretch`); thresholds are not part of this work.
    """

    card = ModelCard(
        title="DLVS",
        year=2018,
        venue="TIP",
        official_weights="Keras, linked from github.com/wenguanwang/ViSalientObject",
        parity="names and layers of the release; NumPy oracle within 1e-4",
        learned="J 0.01 to 0.21 in 240 steps",
    )
    parameter_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "static": (r"^static/",),
        "dynamic": (r"^motion/",),
    }

    def __init__(self, config: Any):
        super().__init__(config)
        for field, allowed in (
            ("head", HEADS),
            ("side_activation", tuple(ACTIVATIONS)),
            ("preprocess", tuple(MEANS)),
            ("last_frame", LAST_FRAMES),
            ("supervision", SUPERVISIONS),
        ):
            if config[field] not in allowed:
                raise ConfigError(
                    f"config field model.{field} is {config[field]!r}: use one of {allowed}"
                )
        if config.clip_len < 2:
            raise ConfigError(
                f"config field model.clip_len must be at least 2 (a frame and the next), got "
                f"{config.clip_len}"
            )
        for field in ("prior_range", "input_scale"):
            if config[field] <= 0:
                raise ConfigError(f"config field model.{field} must be positive, got "
                                  f"{config[field]}")  # fmt: skip
        if not 0.0 <= config.static_share <= 1.0:
            raise ConfigError(
                "config field model.static_share is the part of the steps that train the static "
                f"network: it must lie in [0, 1], got {config.static_share}"
            )
        if config.head == "deconv" and len(config.deconv_widths) != 4:
            raise ConfigError(
                "config field model.deconv_widths must have 4 entries (stride 16 to 1), got "
                f"{tuple(config.deconv_widths)}"
            )
        self.spec = ModelSpec(
            name="dlvs",
            paper="Wang, Shen, Shao: Video Salient Object Detection via Fully Convolutional "
            "Networks, IEEE Transactions on Image Processing 27(1), 2018",
            temporal="frame" if config.static_only else "pair",
            clip_len=config.clip_len,
            input_size=tuple(config.input_size) or None,
            stride=4 if config.head == "side" else 1,
            normalization="caffe_bgr",
            channel_mean=MEANS[config.preprocess],
            channel_std=(config.input_scale,) * 3 if config.input_scale != 1.0 else None,
            outputs=("logits", "side_logits", "static_logits"),
            causal=bool(config.static_only),
        )
        self.module = DLVSNetwork(
            counts=tuple(config.counts),
            widths=tuple(config.widths),
            head=config.head,
            side_features=config.side_features,
            side_activation=config.side_activation,
            deconv_widths=tuple(config.deconv_widths),
            dynamic=not config.static_only,
            static_prior=config.use_static_prior,
            prior_range=config.prior_range,
            stretch=config.stretch,
            round_prior=config.round_prior,
            remat=bool(config.get("remat", False)),
            dtype=self.compute_dtype,
        )

    def module_kwargs(self, train: bool, phase: str = "default") -> dict[str, Any]:
        return {"train": train, "static_only": phase == "static"}

    # ----- training -----------------------------------------------------------------------

    def loss_fn(
        self, outputs: Outputs, batch: Batch, *, step: jax.Array | int, phase: str = "default"
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Weighted cross entropy of each map against masks of its size, summed with equal weights.

        `supervision="last"` leaves the coarse maps without a label of their own. The mean over
        pixels makes rates independent of the size.

        Returns:
          the loss and its terms `bce_<stride>`; `iou`, of the batch's pixels at 0.5, is for the
          log only.
        """
        labels = jnp.asarray(batch["masks"])
        flags = {k: jnp.asarray(batch[k]) for k in ("valid", "has_mask") if k in batch}
        target, weights = masks.binary_target(labels), masks.pixel_weights(labels, **flags)
        B, T, H, W = target.shape
        pair = jnp.stack([target, weights], axis=-1).reshape(B * T, H, W, 2)
        sides = outputs["side_logits"]
        if self.config.supervision == "last":
            sides = sides[-1:]
        terms = {}
        for logits in sides:
            h, w = logits.shape[2:4]
            small = resize_nearest(pair, (h, w), convention="half_pixel")
            flat = logits.reshape(B * T, h, w)
            terms[f"bce_{round(H / h)}"] = share_weighted_bce(flat, small[..., 0], small[..., 1])
        predicted = (flat > 0).astype(jnp.float32)
        union = jnp.sum(jnp.maximum(predicted, small[..., 0]) * small[..., 1])
        overlap = jnp.sum(predicted * small[..., 0] * small[..., 1])
        return sum(terms.values()), {**terms, "iou": overlap / jnp.maximum(union, 1.0)}

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """The static network on stills; then the dynamic one on pairs, the static one at rest."""
        total = int(config.train.total_steps)
        static = Phase("static", "static")
        if config.model.static_only:
            return (Stage("static", total, (static,)),)
        (dynamic_rule,), (static_rule,) = (
            self.parameter_groups[group] for group in ("dynamic", "static")
        )
        first = round(total * config.model.static_share)
        static = Phase("static", "static", frozen=(dynamic_rule,))
        dynamic = Phase("dynamic", "video", frozen=(static_rule,))
        return (Stage("static", first, (static,)), Stage("dynamic", total - first, (dynamic,)))

    # ----- video --------------------------------------------------------------------------

    def predict(
        self, variables: Mapping[str, Any], state: State, chunk: Batch
    ) -> tuple[State, jax.Array]:
        """Saliency `[B,T,H,W]` in [0,1]; the last frame of the chunk by `last_frame`."""
        outputs, _ = self.apply(variables, chunk, train=False)
        logits = outputs["logits"]
        if self.config.last_frame == "static":
            logits = jnp.concatenate([logits[:, :-1], outputs["static_logits"][:, -1:]], axis=1)
        return state, self.probabilities(logits, chunk["frames"].shape[2:4])

    def probabilities(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Saliency `[B,T,H,W]` of `logits [B,T,h,w,1]`: squashed, then enlarged and stretched."""
        B, T, h, w, _ = logits.shape
        p = nn.sigmoid(logits.astype(jnp.float32)).reshape(B * T, h, w, 1)
        p = resize_bilinear(p, size)
        if self.config.stretch:
            p = stretched(p)
        return p[..., 0].reshape(B, T, *size)
