"""F2Net: learning to focus on the foreground (Liu, Yu, Wang, Zhou, AAAI 2021).

The first frame is the reference. In every later frame a branch in the manner of CenterNet predicts
where the object's centre is, helped by the Gaussian around the object in the previous frame; a
Gaussian prior around the centre weights two non-local matchings, of the frame with itself (intra)
and with the reference (inter); both and the frame's own embedding are fused by learned channel and
spatial weights and decoded to a mask. The mask gives the next frame its Gaussian.

`variant="paper"` is all of that. `variant="release"` is the released forward pass
(`deeplab/anchor.py@liudaizong/F2Net`, commit d86da8b), which leaves the prior out, lays the inter
feature out on the reference's grid (its queries are the reference's positions, what is read is the
current frame) and skips the spatial weights; the centre then does not touch the mask. Both have
the same parameters. Further differences, each a field of its own: how a centre is chosen
(`centre_choice`), what an empty mask asks for (`mark_empty`), which training centres are fed
(`recipe`). The released test script hands the network Gaussians of the ground truth; that is not
done here.

Doubtful: where exactly the paper multiplies by the prior (`prior_on`: on the keys of the intra
matching by default, and on the rows of the inter one); the sides of a box are taken as last minus
first pixel; the paper's "separate" training of the first 20 epochs is read as the sum of both
losses with true centres, which no gradient links; what counts as a missed frame, whose velocity
decays, is our own (`min_score`, by default never). Both frames of a training pair pass the encoder
as one batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from uvos_jax.errors import ConfigError, DataError
from uvos_jax.losses import balanced_bce, masks
from uvos_jax.losses.dice import soft_iou_loss
from uvos_jax.losses.heatmap import penalty_reduced_focal
from uvos_jax.modules import attention as attn
from uvos_jax.modules.backbones.deeplab import DeepLabEmbedding
from uvos_jax.modules.layers import Conv, batch_norm
from uvos_jax.ops import centres
from uvos_jax.ops.pooling import pooled_size
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.registry import register
from uvos_jax.systems.base import System
from uvos_jax.types import Batch, ModelCard, ModelSpec, Outputs, Phase, Stage, State

VARIANTS = ("paper", "release")
PRIORS = ("key", "query", "both", "none")
FUSIONS = ("channel_spatial", "channel", "spatial", "sum")
#: In the order of the channel weights.
SOURCES = ("inter", "intra", "original")
CHOICES = ("history", "top1")
RECIPES = ("paper", "release")
LOSSES = ("code", "balanced")
#: Input pixels per cell of the heat map.
HEAT_STRIDE = 4
#: Initial bias of the heat map: about a tenth of the cells start as positive.
HEAT_BIAS = -2.19


def heat_size(size: tuple[int, int]) -> tuple[int, int]:
    """Size of the heat map (that of the encoder's first stage) for frames of `size`."""
    stem = (pooled_size(n, 7, 2, 3, ceil_mode=False) for n in size)
    return tuple(pooled_size(n, 3, 2, 1, ceil_mode=True) for n in stem)


class UpsampleUnit(nn.Module):
    """`ReLU(BN(1x1 skip) + BN(1x1 resized previous))`, and a narrower map behind the last unit.

    Attributes:
      features: of the unit.
      cross: channels of the extra 1x1 convolution of the last unit; 0: none.
    """

    features: int
    cross: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, skip: jax.Array, previous: jax.Array | None, train: bool) -> jax.Array:
        def projected(x: jax.Array, width: int, conv: str, bn: str) -> jax.Array:
            x = Conv(width, 1, dtype=self.dtype, name=conv)(x)
            return batch_norm(train=train, dtype=self.dtype, name=bn)(x)

        x = projected(skip, self.features, "u_skip", "bn1")
        if previous is not None:
            resized = resize_bilinear(previous, skip.shape[1:3])
            x = x + projected(resized, self.features, "up_conv", "bn2")
        x = nn.relu(x)
        return nn.relu(projected(x, self.cross, "cross_conv", "bn5")) if self.cross else x


class Upsample(nn.Module):
    """Stages layer4 ... layer1 `[B,.,.,C_k]` to one map `[B,hh,hw,cross]` at stride 4."""

    features: int = 256
    cross: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, stages: tuple[jax.Array, ...], train: bool) -> jax.Array:
        x = None
        for k, stage in enumerate(reversed(stages), start=1):
            cross = self.cross if k == len(stages) else 0
            x = UpsampleUnit(self.features, cross, self.dtype, name=f"up{k}")(stage, x, train)
        return x


class ForegroundNetwork(nn.Module):
    """The network: siamese encoder, centre branch, prior-guided matching, fusion, decoder.

    Takes normalised NHWC frames: `network(reference, current, previous_gaussian, centre)`.

    Attributes:
      block_counts, widths, aspp_depth, embedding, aspp_rates: of the DeepLabv3 embedding.
      upsample_features, centre_features, heat_features: widths of the centre branch (units, their
        result U, hidden layer of the heat map).
      bottleneck: hidden width of the channel weights.
      variant, prior_on, fusion, sources: see the module's docstring; `release` overrules the
        prior and knows the fusion `channel` only.
      motion_clue: whether the previous Gaussian takes part in the heat map.
      prior_sigma: of the Gaussian prior, in input pixels.
      attention_impl, block_size: see `uvos_jax.modules.attention`.
    """

    block_counts: tuple[int, ...] = (3, 4, 23, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    aspp_depth: int = 512
    embedding: int = 256
    aspp_rates: tuple[int, ...] = (6, 12, 18)
    upsample_features: int = 256
    centre_features: int = 64
    heat_features: int = 256
    bottleneck: int = 16
    variant: str = "paper"
    prior_on: str = "key"
    fusion: str = "channel_spatial"
    sources: tuple[str, ...] = SOURCES
    motion_clue: bool = True
    prior_sigma: float = 15.0
    attention_impl: str = "blockwise"
    block_size: int = 512
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        def conv(features: int, kernel: int, bias: bool = True, **options: Any) -> Conv:
            return Conv(features, kernel, use_bias=bias, dtype=self.dtype, **options)

        self.encoder = DeepLabEmbedding(
            block_counts=self.block_counts,
            widths=self.widths,
            aspp_depth=self.aspp_depth,
            embedding=self.embedding,
            aspp_rates=self.aspp_rates,
            remat=self.remat,
            dtype=self.dtype,
        )
        self.upsample = Upsample(self.upsample_features, self.centre_features, self.dtype)
        self.fc_0 = conv(self.heat_features, 3)
        self.fc_2 = HeatLogit(self.dtype)
        self.motion_conv_w = conv(1, 1)
        self.motion_conv_b = conv(1, 1)
        self.channel_attention_conv1 = conv(self.bottleneck, 1, bias=False)
        self.channel_attention_bn = _Norm(self.dtype)
        self.channel_attention_conv2 = conv(len(SOURCES) * self.embedding, 1, bias=False)
        self.spatial_attention_conv = conv(len(SOURCES), 1, bias=False)
        self.cls_0 = conv(self.embedding, 1)
        self.cls_1 = _Norm(self.dtype)
        self.cls_3 = conv(1, 1)

    # ----- parts --------------------------------------------------------------------------

    def encode(self, frames: jax.Array, train: bool = False) -> dict[str, Any]:
        """`[B,H,W,3]` to `embedding [B,h,w,C]`, `saliency_logits [B,h,w,1]`, four `stages`."""
        return self.encoder(frames, train)

    def centre_features_of(
        self, stages: tuple[jax.Array, ...], train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """What a frame's heat map needs of the frame alone.

        Returns:
          U `[B,hh,hw,64]` and the semantic clue F `[B,hh,hw,1]`.
        """
        U = self.upsample(stages, train)
        return U, self.fc_2(nn.relu(self.fc_0(U)))

    def heat(self, U: jax.Array, semantic: jax.Array, previous: jax.Array) -> jax.Array:
        """Heat logits `[B,hh,hw]` in float32: `sigma(w) G + sigma(b) + F`.

        Args:
          previous: G, the Gaussian of the previous frame, `[B,hh,hw]`; zeros on the first frame.
        """
        logits = semantic[..., 0].astype(jnp.float32)
        if not self.motion_clue and not self.is_initializing():
            return logits
        joined = jnp.concatenate([U, previous[..., None].astype(U.dtype)], axis=-1)
        weight = nn.sigmoid(self.motion_conv_w(joined)[..., 0].astype(jnp.float32))
        offset = nn.sigmoid(self.motion_conv_b(joined)[..., 0].astype(jnp.float32))
        return weight * previous + offset + logits

    def match(self, reference: jax.Array, current: jax.Array, prior: jax.Array) -> jax.Array:
        """Inter and intra matching.

        Args:
          reference, current: embeddings `[B,h,w,C]`.
          prior: `[B,h,w]` around the centre in the current frame.

        Returns:
          [inter, intra, original] as `[B,3,h,w,C]`.
        """
        B, h, w, C = current.shape
        v0, vt = reference.reshape(B, h * w, C), current.reshape(B, h * w, C)
        g = prior.reshape(B, h * w, 1).astype(vt.dtype)
        options = {"implementation": self.attention_impl, "block_size": self.block_size}
        scale = C**-0.5
        if self.variant == "release":
            inter = attn.attend(v0 * scale, vt, vt, **options)
            intra = attn.attend(vt * scale, vt, vt, **options)
        else:
            on_keys, on_rows = self.prior_on in ("key", "both"), self.prior_on in ("query", "both")
            inter = attn.attend(vt * scale, v0, v0, **options)
            intra = attn.attend(vt * scale, vt, vt * g if on_keys else vt, **options)
            if self.prior_on != "none":
                inter = inter * g
            if on_rows:
                intra = intra * g
        return jnp.stack([inter, intra, vt], axis=1).reshape(B, 3, h, w, C)

    def fusion_weights(
        self, features: jax.Array, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Channel weights `[B,3,C]` and spatial weights `[B,3,h,w]`, float32, sums over 3 are 1.

        Args:
          features: `[B,3,h,w,C]` in the order of `SOURCES`; unused sources get the weight 0.
        """
        B, _, h, w, C = features.shape
        used = jnp.asarray([name in self.sources for name in SOURCES])

        def shares(logits: jax.Array) -> jax.Array:  # over axis 1
            mask = used.reshape(1, 3, *(1,) * (logits.ndim - 2))
            return jax.nn.softmax(jnp.where(mask, logits.astype(jnp.float32), -1e30), axis=1)

        chosen = features * used.reshape(1, 3, 1, 1, 1).astype(features.dtype)
        pooled = jnp.mean(jnp.sum(chosen, axis=1).astype(jnp.float32), axis=(1, 2), keepdims=True)
        z = self.channel_attention_conv1(pooled.astype(self.dtype))
        z = nn.relu(self.channel_attention_bn(z, train))
        a = shares(self.channel_attention_conv2(z).reshape(B, 3, C))
        if "channel" not in self.fusion:
            a = jnp.broadcast_to(shares(jnp.zeros((1, 3, 1))), a.shape)
        fused = jnp.sum(a[:, :, None, None].astype(features.dtype) * features, axis=1)
        if "spatial" in self.fusion or self.is_initializing():
            b = shares(jnp.moveaxis(self.spatial_attention_conv(fused), -1, 1))
        else:
            b = jnp.broadcast_to(shares(jnp.zeros((1, 3, 1, 1))), (B, 3, h, w))
        return a, b

    def fuse(self, features: jax.Array, train: bool = False) -> jax.Array:
        """`[B,3,h,w,C]` to `[B,h,w,C]`: channel weights, then spatial ones on top (`fusion`)."""
        a, b = self.fusion_weights(features, train)
        if self.fusion == "sum":
            used = jnp.asarray([name in self.sources for name in SOURCES], features.dtype)
            return jnp.einsum("bkhwc,k->bhwc", features, used)
        if "channel" in self.fusion:
            features = features * a[:, :, None, None].astype(features.dtype)
        if "spatial" in self.fusion:
            features = features * b[..., None].astype(features.dtype)
        return jnp.sum(features, axis=1)

    def segment(
        self, reference: jax.Array, current: jax.Array, prior: jax.Array, train: bool = False
    ) -> jax.Array:
        """Mask logits `[B,h,w,1]` of the current frame from embeddings and the prior."""
        x = self.cls_0(self.fuse(self.match(reference, current, prior), train))
        return self.cls_3(nn.relu(self.cls_1(x, train)))

    def prior(self, centre: jax.Array, size: tuple[int, int], grid: tuple[int, int]) -> jax.Array:
        """The Gaussian prior `[B,h,w]` around centres (x, y) in pixels of frames of `size`."""
        return centres.gaussian_prior(centre, size, grid, sigma=self.prior_sigma)

    # ----- whole network ------------------------------------------------------------------

    def __call__(
        self,
        reference: jax.Array,
        current: jax.Array,
        previous_gaussian: jax.Array | None = None,
        centre: jax.Array | None = None,
        *,
        train: bool = False,
        static: bool = False,
    ) -> Outputs:
        """The mask of one frame.

        Args:
          reference, current: `[B,H,W,3]` normalised.
          previous_gaussian: `[B,hh,hw]` around the object in the previous frame; None: zeros.
          centre: (x, y) in pixels, `[B,2]`; None takes the heat map's best peak.
          static: only the encoder's saliency and the centre branch, on `current`.

        Returns:
          `logits [B,1,h,w,1]` and `saliency_logits [B,1,h,w,1]` at stride 8, `heat_logits
          [B,1,hh,hw,1]`, the `centre [B,2]` used.
        """
        static = static and not self.is_initializing()
        size, B = current.shape[1:3], current.shape[0]
        frames = current if static else jnp.concatenate([current, reference])
        encoded = self.encode(frames, train)
        stages = tuple(stage[:B] for stage in encoded["stages"])
        saliency = encoded["saliency_logits"][:B]
        U, semantic = self.centre_features_of(stages, train)
        if previous_gaussian is None:
            previous_gaussian = jnp.zeros(U.shape[:3], jnp.float32)
        heat = self.heat(U, semantic, previous_gaussian)
        if centre is None:
            _, peaks = centres.top_peaks(jax.nn.sigmoid(jax.lax.stop_gradient(heat)), 2)
            centre = to_pixels(best_peak(peaks))
        outputs = {
            "saliency_logits": saliency[:, None],
            "heat_logits": heat[:, None, ..., None],
            "centre": centre,
        }
        if static:
            return {**outputs, "logits": saliency[:, None]}
        embedding = encoded["embedding"]
        prior = self.prior(centre, size, embedding.shape[1:3])
        logits = self.segment(embedding[B:], embedding[:B], prior, train)
        return {**outputs, "logits": logits[:, None]}


class HeatLogit(nn.Module):
    """1x1 convolution to the heat map's semantic part, its bias set so that few cells are on."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        shape = (1, 1, x.shape[-1], 1)
        kernel = self.param("kernel", kernel_init, shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.constant(HEAT_BIAS), (1,), jnp.float32)
        return x @ kernel[0, 0] + bias.astype(self.dtype)


class _Norm(nn.Module):
    """BatchNorm that is told by argument whether it trains; parameters lie directly in it."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return batch_norm(train=train, dtype=self.dtype, name="bn")(x)


# ----- choosing the centre ------------------------------------------------------------------


def to_pixels(peaks: jax.Array) -> jax.Array:
    """Cells (x, y) of the heat map to input pixels: `4 (i - 1)`, as released; float32."""
    return HEAT_STRIDE * (peaks.astype(jnp.float32) - 1.0)


def best_peak(peaks: jax.Array) -> jax.Array:
    """The best of `[B,K,2]` peaks, K > 1; the second if the best lies in row or column 0."""
    border = jnp.any(peaks[:, 0] == 0, axis=-1)
    return jnp.where(border[:, None], peaks[:, 1], peaks[:, 0])


def expected_centre(
    history: jax.Array, count: jax.Array, missed: jax.Array, decay: float
) -> jax.Array:
    """Where a motion of constant velocity leads: last centre plus the mean of past differences.

    Args:
      history: centres (x, y) of the past, newest last, `[B,R,2]`.
      count: how many of them are real, `[B]`, at least 1.
      missed: frames since a centre was last seen, `[B]`; the velocity is `decay**missed`.
    """
    R = history.shape[1]
    steps = history[:, 1:] - history[:, :-1]
    real = jnp.arange(1, R)[None] > R - count[:, None]  # both ends of the step are
    total = jnp.sum(jnp.where(real[..., None], steps, 0.0), axis=1)
    velocity = total / jnp.maximum(jnp.sum(real, axis=1), 1)[:, None]
    return history[:, -1] + velocity * (decay ** missed.astype(jnp.float32))[:, None]


def choose_centre(
    scores: jax.Array,
    peaks: jax.Array,
    state: State,
    *,
    choice: str,
    decay: float,
    min_score: float,
) -> tuple[jax.Array, jax.Array]:
    """The centre of a frame among the peaks of its heat map.

    `top1` takes the best peak. `history` takes it on the first frame only, and later the peak
    nearest (L1) to `expected_centre`; peaks in row or column 0 and empty slots come last. If no
    peak reaches `min_score`, the frame counts as missed and the expected centre is kept.

    Returns:
      (x, y) in pixels `[B,2]` and which frames are missed `[B]`.
    """
    top = to_pixels(best_peak(peaks))
    first = state["count"] == 0
    if choice == "top1":
        return top, jnp.zeros_like(first)
    count = jnp.minimum(state["count"], state["history"].shape[1])
    expected = expected_centre(state["history"], count, state["missed"], decay)
    candidates = to_pixels(peaks)
    distance = jnp.sum(jnp.abs(candidates - expected[:, None]), axis=-1)
    unusable = jnp.any(peaks == 0, axis=-1) | (scores <= 0)
    nearest = jnp.argmin(distance + 1e6 * unusable, axis=1)
    nearest = jnp.take_along_axis(candidates, nearest[:, None, None], axis=1)[:, 0]
    missed = ~first & (scores[:, 0] < min_score)
    chosen = jnp.where(first[:, None], top, nearest)
    return jnp.where(missed[:, None], expected, chosen), missed


@register("f2net")
class F2Net(System):
    """F2Net on video: frame by frame, remembering the first frame, past centres and a Gaussian."""

    card = ModelCard(
        title="F2Net",
        year=2021,
        venue="AAAI",
        official_weights="none published; the converter reads checkpoints of the released trainer",
        parity="names and shapes of the released network; formulas against NumPy",
        learned="J 0.02 to 0.22 in 360 steps",
        davis16_j=83.1,
        davis16_f=84.4,
    )
    parameter_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "encoder": (r"^encoder/",),
        "centre": (r"^(upsample|fc_0|fc_2|motion_conv_[wb])/",),
        "matching": (r"^(channel_attention_|spatial_attention_|cls_)",),
    }

    def __init__(self, config: Any):
        super().__init__(config)
        for field, allowed in (
            ("variant", VARIANTS),
            ("prior_on", PRIORS),
            ("fusion", FUSIONS),
            ("centre_choice", CHOICES),
            ("recipe", RECIPES),
            ("loss", LOSSES),
            ("attention_impl", attn.IMPLEMENTATIONS),
        ):
            if config[field] not in allowed:
                raise ConfigError(
                    f"config field model.{field} is {config[field]!r}: use one of {allowed}"
                )
        sources = tuple(config.sources)
        if not sources or set(sources) - set(SOURCES):
            raise ConfigError(
                f"config field model.sources is {sources}: use one or more of {SOURCES}"
            )
        for field, least in (("candidates", 2), ("history", 1), ("block_size", 1)):
            if config[field] < least:
                raise ConfigError(
                    f"config field model.{field} must be at least {least}, got {config[field]}"
                )
        if config.prior_sigma <= 0:
            raise ConfigError(
                f"config field model.prior_sigma must be positive, got {config.prior_sigma}"
            )
        released = config.variant == "release"
        self.spec = ModelSpec(
            name="f2net",
            paper="Liu, Yu, Wang, Zhou: F2Net: Learning to Focus on the Foreground for "
            "Unsupervised Video Object Segmentation, AAAI 2021",
            temporal="recurrent",
            clip_len=3,
            input_size=tuple(config.input_size) or None,
            stride=8,
            normalization="caffe_bgr",
            outputs=("logits", "heat_logits", "saliency_logits", "centre"),
            causal=True,
        )
        self.module = ForegroundNetwork(
            block_counts=tuple(config.block_counts),
            widths=tuple(config.widths),
            aspp_depth=config.aspp_depth,
            embedding=config.embedding,
            aspp_rates=tuple(config.aspp_rates),
            upsample_features=config.upsample_features,
            centre_features=config.centre_features,
            heat_features=config.heat_features,
            bottleneck=config.bottleneck,
            variant=config.variant,
            prior_on="none" if released else config.prior_on,
            fusion="channel" if released else config.fusion,
            sources=sources,
            motion_clue=bool(config.motion_clue),
            prior_sigma=float(config.prior_sigma),
            attention_impl=config.attention_impl,
            block_size=config.block_size,
            remat=bool(config.get("remat", False)),
            dtype=self.compute_dtype,
        )

    # ----- network ------------------------------------------------------------------------

    def module_inputs(self, batch: Batch) -> tuple[jax.Array, ...]:
        frames = self.normalize(batch["frames"])
        return frames[:, 0], frames[:, -1]

    def apply(
        self,
        variables: Mapping[str, Any],
        batch: Batch,
        *,
        train: bool,
        rngs: Mapping[str, jax.Array] | None = None,
        phase: str = "default",
    ) -> tuple[Outputs, dict[str, Any]]:
        """Training: the last frame of a clip [reference, previous, current]; else every frame.

        In training the previous Gaussian and (but for the phase `joint`) the centre come from the
        masks, and the outputs have T = 1: the current frame. A still is its own reference and
        previous frame. Otherwise the clip is a video, its first frame the reference, no mask is
        looked at, and the outputs have all T frames.

        Raises:
          DataError: training without masks.
        """
        if not train:
            state = self.init_state(variables, *batch["frames"].shape[:1], self._size(batch))
            return self._sequence(variables, state, batch["frames"])[1], {}
        if "masks" not in batch:
            raise DataError("f2net trains on masks, which give it centres; the batch has none")
        frames = self.normalize(batch["frames"])
        previous = max(frames.shape[1] - 2, 0)
        gaussian, _ = self._true_centres(batch, previous)
        centre = None if phase == "joint" else self._true_centres(batch, -1)[1]
        outputs, updates = self.module.apply(
            dict(variables),
            frames[:, 0],
            frames[:, -1],
            gaussian,
            centre,
            train=not self.config.get("freeze_bn", False),
            static=phase == "static",
            rngs=rngs,
            mutable=["batch_stats"],
        )
        return outputs, dict(updates)

    @staticmethod
    def _size(batch: Batch) -> tuple[int, int]:
        return tuple(batch["frames"].shape[2:4])

    def _true_centres(self, batch: Batch, t: int) -> tuple[jax.Array, jax.Array]:
        """Gaussian `[B,hh,hw]` and centre (x, y) `[B,2]` of frame t; zeros if not annotated."""
        mask = jnp.asarray(batch["masks"])[:, t]
        known = jnp.ones(mask.shape[:1], bool)
        for key in ("valid", "has_mask"):
            if key in batch:
                known = known & jnp.asarray(batch[key])[:, t]
        foreground = (masks.binary_target(mask) > 0) & known[:, None, None]
        maps = centres.centre_maps(
            foreground, heat_size(self._size(batch)), mark_empty=bool(self.config.mark_empty)
        )
        boxes, _ = centres.bounding_boxes(foreground)
        return maps * known[:, None, None], centres.box_centres(boxes).astype(jnp.float32)

    # ----- training -----------------------------------------------------------------------

    def loss_fn(
        self, outputs: Outputs, batch: Batch, *, step: jax.Array | int, phase: str = "default"
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`l(s, o) + focal(H, Y)` on the last frame; in a static step `l` is of the saliency.

        `l = BCE / r + 0.8 L1` (`loss="code"`), or class-weighted cross entropy (`balanced`), plus
        `iou_weight` times an overlap loss that is in neither; times `static_weight` in a static
        step.

        Returns:
          the loss and its terms; `iou`, of the batch's pixels at 0.5, is for the log only.
        """
        config = self.config
        labels = jnp.asarray(batch["masks"])[:, -1]
        flags = {k: jnp.asarray(batch[k])[:, -1] for k in ("valid", "has_mask") if k in batch}
        target, weights = masks.binary_target(labels), masks.pixel_weights(labels, **flags)
        static = phase == "static"
        logits = outputs["saliency_logits" if static else "logits"][:, -1]
        full = resize_bilinear(logits.astype(jnp.float32), target.shape[1:])[..., 0]

        if config.loss == "balanced":
            terms = {"bce": balanced_bce.class_weighted_bce(full, target, weights)}
        else:
            terms = {
                "bce": balanced_bce.ratio_weighted_bce(
                    full, target, weights, min_ratio=config.min_positive_ratio
                ),
                "l1": config.l1_weight * balanced_bce.mean_absolute_error(full, target, weights),
            }
        if config.iou_weight:
            terms["soft_iou"] = config.iou_weight * soft_iou_loss(full, target, weights)
        if static:
            terms = {k: config.static_weight * v for k, v in terms.items()}
        heat = outputs["heat_logits"][:, -1, ..., 0]
        maps, _ = self._true_centres(batch, -1)
        known = jnp.any(weights > 0, axis=(1, 2)).astype(jnp.float32)
        terms["heat"] = config.heat_weight * penalty_reduced_focal(heat, maps, known)

        predicted = (full > 0).astype(jnp.float32)
        union = jnp.sum(jnp.maximum(predicted, target) * weights)
        overlap = jnp.sum(predicted * target * weights)
        return sum(terms.values()), {**terms, "iou": overlap / jnp.maximum(union, 1.0)}

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """One step on stills, two on video, over and over.

        `recipe="paper"`: for `separate_share` of the steps (20 of 60 epochs) video steps are fed
        true centres (phase `separate`), then predicted ones (`joint`). `release`: always true
        ones. The learning rate's schedule runs through both stages. Static steps move the encoder
        at the full rate and the centre branch at `head_lr`; video steps the encoder at
        `video_encoder_lr` and both branches at `head_lr`.
        """
        encoder, centre, matching = (rules[0] for rules in self.parameter_groups.values())
        head = float(config.model.head_lr)
        static = Phase("static", "static", ((encoder, 1.0), (centre, head)), frozen=(matching,))
        rates = ((encoder, float(config.model.video_encoder_lr)), (centre, head), (matching, head))
        total = int(config.train.total_steps)

        def stage(name: str, start: int, steps: int) -> Stage:
            video = Phase(name, "video", rates)
            phases = (static, video, video) if config.model.static_steps else (video,)
            schedule = (("schedule.start_step", start), ("schedule.total_steps", total))
            return Stage(name, steps, phases, optim=schedule, reset_optimizer=start == 0)

        if config.model.recipe == "release":
            return (stage("separate", 0, total),)
        first = round(total * float(config.model.separate_share))
        return (stage("separate", 0, first), stage("joint", first, total - first))

    # ----- video --------------------------------------------------------------------------

    def init_state(
        self, variables: Mapping[str, Any], batch_size: int, frame_size: tuple[int, int]
    ) -> State:
        """State before the first frame.

        Returns:
          `reference [B,h,w,C]`, the first frame's embedding; `gaussian [B,hh,hw]` of the previous
          frame; `history [B,R,2]`, past centres (x, y), newest last; `missed` and `count` `[B]`.
        """
        one = jax.ShapeDtypeStruct((batch_size, *frame_size, 3), self.compute_dtype)
        shape = jax.eval_shape(self._encode, variables, one)["embedding"].shape
        return {
            "reference": jnp.zeros(shape, self.compute_dtype),
            "gaussian": jnp.zeros((batch_size, *heat_size(frame_size)), jnp.float32),
            "history": jnp.zeros((batch_size, self.config.history + 1, 2), jnp.float32),
            "missed": jnp.zeros((batch_size,), jnp.int32),
            "count": jnp.zeros((batch_size,), jnp.int32),
        }

    def predict(
        self, variables: Mapping[str, Any], state: State, chunk: Batch
    ) -> tuple[State, jax.Array]:
        """Foreground probabilities `[B,T,H,W]`, each frame handing its Gaussian to the next."""
        state, outputs = self._sequence(variables, state, chunk["frames"])
        return state, self.probabilities(outputs["logits"], self._size(chunk))

    def _sequence(
        self, variables: Mapping[str, Any], state: State, frames: jax.Array
    ) -> tuple[State, Outputs]:
        """The network on frames `[B,T,H,W,3]` uint8 one after another; outputs as of `apply`."""
        frames = self.normalize(frames)
        B, T, H, W, _ = frames.shape

        def call(method: str, *args: Any) -> Any:
            return self.module.apply(dict(variables), *args, method=method)

        encoded = self._encode(variables, frames.reshape(B * T, H, W, 3))
        U, semantic = call("centre_features_of", encoded["stages"])

        def time_first(x: jax.Array) -> jax.Array:
            return x.reshape(B, T, *x.shape[1:]).swapaxes(0, 1)

        def one_frame(state: State, inputs: tuple) -> tuple[State, tuple]:
            embedding, u, clue = inputs
            first = (state["count"] == 0)[:, None, None, None]
            reference = jnp.where(first, embedding, state["reference"])
            heat = call("heat", u, clue, state["gaussian"])
            scores, peaks = centres.top_peaks(jax.nn.sigmoid(heat), self.config.candidates)
            centre, missed = choose_centre(
                scores,
                peaks,
                state,
                choice=self.config.centre_choice,
                decay=float(self.config.velocity_decay),
                min_score=float(self.config.min_score),
            )
            prior = call("prior", centre, (H, W), embedding.shape[1:3])
            logits = call("segment", reference, embedding, prior)
            mask = self.probabilities(logits[:, None], (H, W))[:, 0] > 0.5
            state = {
                "reference": reference,
                "gaussian": centres.centre_maps(
                    mask, heat.shape[1:3], mark_empty=bool(self.config.mark_empty)
                ),
                "history": jnp.concatenate([state["history"][:, 1:], centre[:, None]], axis=1),
                "missed": jnp.where(missed, state["missed"] + 1, 0),
                "count": state["count"] + 1,
            }
            return state, (logits, heat[..., None], centre)

        inputs = tuple(map(time_first, (encoded["embedding"], U, semantic)))
        state, (logits, heat, centre) = jax.lax.scan(one_frame, state, inputs)
        saliency = encoded["saliency_logits"]
        return state, {
            "logits": logits.swapaxes(0, 1),
            "heat_logits": heat.swapaxes(0, 1),
            "saliency_logits": saliency.reshape(B, T, *saliency.shape[1:]),
            "centre": centre.swapaxes(0, 1),
        }

    def _encode(self, variables: Mapping[str, Any], frames: jax.Array) -> dict[str, Any]:
        return self.module.apply(dict(variables), frames, method="encode")
