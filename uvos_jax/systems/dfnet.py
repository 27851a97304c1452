"""DFNet: discriminative features with a CRF (Zhen, Li, Zhou, Shang, Feng, Fang, Quan, ECCV 2020).

K discriminative features (D-features), each a score-weighted mean over all positions of all frames
at hand, summarise a video; every pixel is re-expressed as a mixture of them, the mixture weights
are smoothed by a CRF, gated and decoded. Linear in the number of pixels: K columns instead of hw.

    scores      s^k = softmax_i(F_i W_k) over all positions i of all frames,  F'_k = sum_i s_i^k F_i
    attention   P = F W_att F'^T,  Q = mean field from softmax_K(P),  F_new = Q F'
    read-out    concat[gate(F_new), gate(F)], 3x3 conv, BatchNorm, ReLU, 1x1 conv

W is no parameter: it follows the D-features by a moving average (collection `batch_stats`, path
`dfm/W`, float32, global batch mean) and is frozen at test time. On video the statistics of the
scores are merged frame by frame (running maximum, sum and weighted sum), so F' of any number of
frames needs the memory of one; a stream sees all of its past.

No code was published and the paper leaves much open. Constants by origin, all config fields:
stated: `groups` much smaller than the positions, 1x1 convolution to `embedding`, random companion
frames (spread evenly here). Quoted from memory: `groups` 256, bilateral and spatial kernels of the
CRF. Assumed here: ASPP width `aspp_depth` 256; `momentum` 0.1, `w_normalization`, `w_init`,
`w_std` of the moving average; `crf_iterations` (3 in training, 5 at test), `crf_sdims` 8 and
`crf_smooth_sdims` 1 cells, `crf_schan` 13 grey levels, `crf_weights` (4, 2), `crf_compat` Potts,
kernels normalised by row; gates by a biased 1x1 convolution (`gates`); the ReLU; loss `bce` with
`aux_weight` 0.5; the whole recipe. `w_normalization="l2"`, the plain reading, lets all groups drift
to the mean feature; `centered` (default) takes the mean over groups out first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from uvos_jax.errors import ConfigError
from uvos_jax.losses import clips, masks
from uvos_jax.modules.attention import AffinityProjection, SpatialGate
from uvos_jax.modules.backbones.deeplab import EmbeddingASPP
from uvos_jax.modules.backbones.resnet import ResNet
from uvos_jax.modules.heads import SegmentationHead
from uvos_jax.modules.layers import Conv
from uvos_jax.ops.crf.grid import smooth_labels
from uvos_jax.ops.resize import resize_area, resize_bilinear
from uvos_jax.registry import register
from uvos_jax.systems.base import System
from uvos_jax.types import Batch, ModelCard, ModelSpec, Outputs, Phase, Stage, State

ATTENTIONS = ("discriminative", "none")
UPDATES = ("moving_average", "gradient", "frozen")
NORMALIZATIONS = ("centered", "l2", "none")
INITS = ("orthogonal", "normal")
COMPATS = ("potts", "matrix")
LOSSES = clips.KINDS

#: Stands for minus infinity where two of them may be subtracted.
_LOW = -1e30

Statistics = dict[str, jax.Array]


# ----- scores over all positions (DFM) --------------------------------------------------------


def no_statistics(batch: int, groups: int, channels: int) -> Statistics:
    """Statistics of no position at all."""
    return {
        "max": jnp.full((batch, groups), _LOW, jnp.float32),
        "sum": jnp.zeros((batch, groups), jnp.float32),
        "weighted": jnp.zeros((batch, groups, channels), jnp.float32),
    }


def score_statistics(features: jax.Array, W: jax.Array, valid: jax.Array | None) -> Statistics:
    """What of `features [B,M,C]` the D-features need: maxima, sums and weighted sums per group.

    Args:
      W: `[C,K]`. valid: positions that count `[B,M]`; None for all.
    """
    x = features.astype(jnp.float32)
    scores = jnp.einsum("bmc,ck->bmk", x, W)
    if valid is not None:
        scores = jnp.where(valid[:, :, None], scores, _LOW)
    # the maximum only keeps the exponentials in range: no gradient
    top = jax.lax.stop_gradient(jnp.max(scores, axis=1))
    shares = jnp.exp(scores - top[:, None])
    if valid is not None:
        shares = jnp.where(valid[:, :, None], shares, 0.0)
    return {
        "max": top,
        "sum": jnp.sum(shares, axis=1),
        "weighted": jnp.einsum("bmk,bmc->bkc", shares, x),
    }


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Statistics of the positions of both; exact, in any order."""
    top = jnp.maximum(a["max"], b["max"])
    of_a, of_b = jnp.exp(a["max"] - top), jnp.exp(b["max"] - top)
    return {
        "max": top,
        "sum": of_a * a["sum"] + of_b * b["sum"],
        "weighted": of_a[..., None] * a["weighted"] + of_b[..., None] * b["weighted"],
    }


def d_features(statistics: Statistics) -> jax.Array:
    """`F' [B,K,C]`, float32."""
    return statistics["weighted"] / jnp.maximum(statistics["sum"], 1e-20)[..., None]


def normalized_groups(features: jax.Array, how: str) -> jax.Array:
    """Rows `[K,C]` to unit length (`l2`), after taking out their mean (`centered`), or as is."""
    if how == "none":
        return features
    if how == "centered":
        features = features - jnp.mean(features, axis=0, keepdims=True)
    return features / jnp.maximum(jnp.linalg.norm(features, axis=1, keepdims=True), 1e-6)


def initial_weights(key: jax.Array, channels: int, groups: int, how: str, std: float) -> jax.Array:
    """`W [C,K]`: normal columns, or orthonormal ones (as far as C allows) times `std sqrt(C)`."""
    if how == "normal":
        return std * jax.random.normal(key, (channels, groups), jnp.float32)
    init = nn.initializers.orthogonal(std * math.sqrt(channels))
    return init(key, (channels, groups), jnp.float32)


class DiscriminativeFeatures(nn.Module):
    """Holds W and follows the D-features with it; see the module for `update` and `normalization`.

    Attributes:
      groups: K. momentum: share of the new direction in each update.
    """

    channels: int
    groups: int
    update: str = "moving_average"
    momentum: float = 0.1
    normalization: str = "centered"
    w_init: str = "orthogonal"
    w_std: float = 0.1

    def setup(self):
        fresh = partial(
            initial_weights,
            channels=self.channels,
            groups=self.groups,
            how=self.w_init,
            std=self.w_std,
        )
        if self.update == "gradient":
            self.W = self.param("W", fresh)
        else:
            self.state = self.variable("batch_stats", "W", lambda: fresh(self.make_rng("params")))

    def statistics(self, features: jax.Array, valid: jax.Array | None = None) -> Statistics:
        """Of frames `[B,N,h,w,C]`; `valid [B,N]`: frames that count."""
        B, N, h, w, C = features.shape
        W = self.W if self.update == "gradient" else jax.lax.stop_gradient(self.state.value)
        positions = None if valid is None else jnp.repeat(valid, h * w, axis=1)
        return score_statistics(features.reshape(B, N * h * w, C), W, positions)

    def follow(self, features: jax.Array) -> None:
        """Moves W towards the D-features `[B,K,C]` of a training batch; no gradient."""
        if self.update != "moving_average" or not self.is_mutable_collection("batch_stats"):
            return
        mean = jnp.mean(jax.lax.stop_gradient(features), axis=0)
        new = normalized_groups(mean, self.normalization).T
        self.state.value = (1.0 - self.momentum) * self.state.value + self.momentum * new


class PairwiseWeights(nn.Module):
    """Learnable weights of the two CRF kernels: positive numbers, or `[K,K]` energy matrices."""

    groups: int
    initial: tuple[float, float]
    compat: str = "potts"

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        found = []
        for name, weight in zip(("w1", "w2"), self.initial, strict=True):
            if self.compat == "matrix":
                matrix = -weight * jnp.eye(self.groups)
                found.append(self.param(f"compat_{name}", lambda _, m=matrix: m))
            else:
                raw = math.log(math.expm1(weight)) if weight > 0 else -30.0  # softplus^-1
                init = nn.initializers.constant(raw)
                found.append(nn.softplus(self.param(name, init, (), jnp.float32)))
        return tuple(found)


# ----- network --------------------------------------------------------------------------------


class Encoder(nn.Module):
    """DeepLabv3: ResNet at stride 8 and ASPP."""

    block_counts: tuple[int, ...]
    widths: tuple[int, ...]
    aspp_depth: int
    embedding: int
    aspp_rates: tuple[int, ...]
    freeze_bn: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        common = {"freeze_bn": self.freeze_bn, "dtype": self.dtype}
        *_, x = ResNet(self.block_counts, self.widths, remat=self.remat, name="resnet", **common)(
            x, train
        )
        return EmbeddingASPP(
            self.aspp_depth, self.embedding, self.aspp_rates, name="layer5", **common
        )(x, train)


class DiscriminativeNetwork(nn.Module):
    """Masks of N frames of a video. Takes normalised NHWC frames and, for the CRF, their colours.

    Attributes:
      block_counts, widths, aspp_depth, embedding, aspp_rates: of the encoder.
      groups, update, momentum, normalization, w_init, w_std: of `DiscriminativeFeatures`.
      attention: `discriminative`, or `none`: the features alone are decoded.
      crf_iterations: mean-field steps in training and at test time; 0 for none.
      crf_sdims, crf_schan, crf_smooth_sdims, crf_weights, crf_compat: see `ops.crf.grid`.
      gates: whether both branches are gated. aux: whether F has a classifier of its own.
      freeze_bn: use running statistics in training. remat: recompute the encoder's blocks.
    """

    block_counts: tuple[int, ...] = (3, 4, 23, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    aspp_depth: int = 256
    embedding: int = 256
    aspp_rates: tuple[int, ...] = (6, 12, 18)
    groups: int = 256
    update: str = "moving_average"
    momentum: float = 0.1
    normalization: str = "centered"
    w_init: str = "orthogonal"
    w_std: float = 0.1
    attention: str = "discriminative"
    crf_iterations: tuple[int, int] = (3, 5)
    crf_sdims: float = 8.0
    crf_schan: float = 13.0
    crf_smooth_sdims: float = 1.0
    crf_weights: tuple[float, float] = (4.0, 2.0)
    crf_compat: str = "potts"
    gates: bool = True
    aux: bool = True
    freeze_bn: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        self.encoder = Encoder(
            self.block_counts,
            self.widths,
            self.aspp_depth,
            self.embedding,
            self.aspp_rates,
            freeze_bn=self.freeze_bn,
            remat=self.remat,
            dtype=self.dtype,
        )
        self.reduce = Conv(self.embedding, 1, use_bias=True, dtype=self.dtype)
        if self.aux:
            self.aux_head = Conv(1, 1, use_bias=True, dtype=self.dtype)
        if self.gates:
            self.gate_feat = SpatialGate(use_bias=True, dtype=self.dtype)
        self.head = SegmentationHead(self.embedding, dtype=self.dtype)
        if self.attention == "none":
            return
        self.dfm = DiscriminativeFeatures(
            self.embedding,
            self.groups,
            self.update,
            self.momentum,
            self.normalization,
            self.w_init,
            self.w_std,
        )
        self.atm = AffinityProjection(self.embedding, dtype=self.dtype)
        if any(self.crf_iterations):
            self.crf = PairwiseWeights(self.groups, self.crf_weights, self.crf_compat)
        if self.gates:
            self.gate_new = SpatialGate(use_bias=True, dtype=self.dtype)

    def encode(self, frames: jax.Array, train: bool = False) -> jax.Array:
        """`[*B,H,W,3]` normalised to features `F [*B,h,w,C]`."""
        lead = frames.shape[:-3]
        x = self.reduce(self.encoder(frames.reshape(-1, *frames.shape[-3:]), train))
        return x.reshape(*lead, *x.shape[1:])

    def statistics(self, features: jax.Array, valid: jax.Array | None = None) -> Statistics:
        """Score statistics of frames `[B,N,h,w,C]`."""
        return self.dfm.statistics(features, valid)

    def attend(
        self, features: jax.Array, found: jax.Array, colours: jax.Array, train: bool = False
    ) -> jax.Array:
        """Smoothed mixture weights `Q [B,T,h,w,K]` of frames over D-features, float32.

        Args:
          features: `[B,T,h,w,C]`. found: D-features `[B,K,C]`.
          colours: frames 0..255 of any size, `[B,T,H,W,3]`.
        """
        B, T, h, w, _ = features.shape
        # W_att stands on the D-features' side: K products instead of hw
        keys = self.atm(found.astype(self.dtype))
        logits = jnp.einsum("bthwc,bkc->bthwk", features, keys, preferred_element_type=jnp.float32)
        steps = self.crf_iterations[0 if train else 1]
        if not steps:
            return jax.nn.softmax(logits, axis=-1)
        small = resize_area(colours.astype(jnp.float32), (h, w))
        smooth = partial(
            smooth_labels,
            iterations=steps,
            sdims=self.crf_sdims,
            schan=self.crf_schan,
            smooth_sdims=self.crf_smooth_sdims,
            dtype=self.dtype,
        )
        # recomputed in the backward pass: a frame's kernel has hw x hw entries
        every = jax.vmap(jax.checkpoint(smooth), (0, 0, None))
        Q = every(logits.reshape(B * T, h, w, -1), small.reshape(B * T, h, w, 3), self.crf())
        return Q.reshape(B, T, h, w, -1)

    def decode(
        self,
        features: jax.Array,
        found: jax.Array | None,
        colours: jax.Array,
        train: bool = False,
    ) -> jax.Array:
        """Mask logits `[B,T,h,w,1]` of features `[B,T,h,w,C]` given D-features `[B,K,C]`."""
        B, T, h, w, C = features.shape
        gated = features
        if self.gates:
            gated = self.gate_feat(features.reshape(B * T, h, w, C)).reshape(features.shape)
        joined = gated
        if self.attention != "none":
            Q = self.attend(features, found, colours, train).astype(self.dtype)
            new = jnp.einsum("bthwk,bkc->bthwc", Q, found.astype(self.dtype))
            if self.gates:
                new = self.gate_new(new.reshape(B * T, h, w, C)).reshape(new.shape)
            joined = jnp.concatenate([new, gated], axis=-1)
        flat = joined.reshape(B * T, h, w, -1)
        logits = self.head(flat, train and not self.freeze_bn)
        return logits.reshape(B, T, h, w, 1)

    def __call__(
        self,
        frames: jax.Array,
        colours: jax.Array,
        valid: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> Outputs:
        """Masks of all frames, whose D-features are common.

        Args:
          frames: `[B,N,H,W,3]` normalised. colours: the same frames, RGB 0..255.
          valid: frames that count for the D-features `[B,N]`; None for all.

        Returns:
          `logits [B,N,h,w,1]`, `embedding [B,N,h,w,C]`, `features [B,K,C]` (unless attention is
          `none`), `aux_logits [B,N,h,w,1]` (if `aux`).
        """
        features = self.encode(frames, train)
        outputs = {"embedding": features}
        found = None
        if self.attention != "none":
            outputs["features"] = found = d_features(self.statistics(features, valid))
            if train:
                self.dfm.follow(found)
        outputs["logits"] = self.decode(features, found, colours, train)
        if self.aux:
            flat = features.reshape(-1, *features.shape[2:])
            outputs["aux_logits"] = self.aux_head(flat).reshape(outputs["logits"].shape)
        return outputs


# ----- system ---------------------------------------------------------------------------------


@register("dfnet")
class DFNet(System):
    """DFNet on video: D-features of references and target, or in a stream of the whole past."""

    card = ModelCard(
        title="DFNet",
        year=2020,
        venue="ECCV",
        official_weights="none published",
        parity="formulas against NumPy; no public code",
        learned="J 0.00 to 0.19 in 150 steps",
        davis16_j=83.4,
        davis16_f=81.8,
    )
    parameter_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "encoder": (r"(^|/)encoder/",),
        "new": (r"(^|/)(reduce|aux_head|gate_feat|gate_new|head|dfm|atm|crf)/",),
    }

    def __init__(self, config: Any):
        super().__init__(config)
        for field, allowed in (
            ("attention", ATTENTIONS),
            ("w_update", UPDATES),
            ("w_normalization", NORMALIZATIONS),
            ("w_init", INITS),
            ("crf_compat", COMPATS),
            ("loss", LOSSES),
        ):
            if config[field] not in allowed:
                raise ConfigError(
                    f"config field model.{field} is {config[field]!r}: use one of {allowed}"
                )
        for field in ("groups", "clip_len", "num_references"):
            if config[field] < 1:
                raise ConfigError(
                    f"config field model.{field} must be at least 1, got {config[field]}"
                )
        if not 0.0 <= config.momentum <= 1.0:
            raise ConfigError(
                f"config field model.momentum must lie in [0, 1], got {config.momentum}"
            )
        if min(config.crf_iterations) < 0 or min(config.crf_weights) < 0:
            raise ConfigError(
                "config fields model.crf_iterations and model.crf_weights must not be negative, "
                f"got {config.crf_iterations} and {config.crf_weights}"
            )
        if min(config.crf_sdims, config.crf_schan, config.crf_smooth_sdims) <= 0:
            raise ConfigError(
                "config fields model.crf_sdims, crf_schan and crf_smooth_sdims must be positive, "
                f"got {config.crf_sdims}, {config.crf_schan} and {config.crf_smooth_sdims}"
            )
        if not config.test_scales or min(config.test_scales) <= 0:
            raise ConfigError(
                f"config field model.test_scales is {config.test_scales!r}: give at least one "
                "positive factor, such as (1.0,)"
            )
        self._attends = config.attention != "none"
        self.scales = tuple(float(s) for s in config.test_scales)
        outputs = ("logits", "embedding")
        outputs += ("features",) if self._attends else ()
        outputs += ("aux_logits",) if config.aux_weight else ()
        self.spec = ModelSpec(
            name="dfnet",
            paper="Zhen, Li, Zhou, Shang, Feng, Fang, Quan: Learning Discriminative Feature with "
            "CRF for Unsupervised Video Object Segmentation, ECCV 2020",
            temporal="global",
            clip_len=config.clip_len,
            input_size=tuple(config.input_size) or None,
            stride=8,
            normalization=config.normalization,
            outputs=outputs,
            causal=True,
            num_references=config.num_references if self._attends else 0,
        )
        self.module = DiscriminativeNetwork(
            block_counts=tuple(config.block_counts),
            widths=tuple(config.widths),
            aspp_depth=config.aspp_depth,
            embedding=config.embedding,
            aspp_rates=tuple(config.aspp_rates),
            groups=config.groups,
            update=config.w_update,
            momentum=config.momentum,
            normalization=config.w_normalization,
            w_init=config.w_init,
            w_std=config.w_std,
            attention=config.attention,
            crf_iterations=tuple(config.crf_iterations),
            crf_sdims=config.crf_sdims,
            crf_schan=config.crf_schan,
            crf_smooth_sdims=config.crf_smooth_sdims,
            crf_weights=tuple(config.crf_weights),
            crf_compat=config.crf_compat,
            gates=config.gates,
            aux=config.aux_weight > 0,
            freeze_bn=bool(config.get("freeze_bn", False)),
            remat=bool(config.get("remat", False)),
            dtype=self.compute_dtype,
        )

    def module_inputs(self, batch: Batch) -> tuple[Any, ...]:
        return self.normalize(batch["frames"]), batch["frames"], batch.get("valid")

    # ----- training -----------------------------------------------------------------------

    def loss_fn(
        self, outputs: Outputs, batch: Batch, *, step: jax.Array | int, phase: str = "default"
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean over frames of the mask loss, plus `aux_weight` times the cross entropy of F's own
        classifier. `iou`, of the batch's pixels at 0.5, is for the log only.
        """
        config = self.config
        target, weights = clips.target_and_weights(batch)
        size, T = target.shape[2:], target.shape[1]
        full = clips.upsampled(outputs["logits"], size)
        terms = clips.mask_loss(
            full,
            target,
            weights,
            kind=config.loss,
            l1_weight=config.l1_weight,
            iou_weight=config.iou_weight,
            min_ratio=config.min_positive_ratio,
        )
        terms = {name: value / T for name, value in terms.items()}
        if config.aux_weight:
            aux = clips.upsampled(outputs["aux_logits"], size)
            terms["aux"] = config.aux_weight * masks.weighted_mean(
                jax.nn.softplus(aux) - target * aux, weights
            )
        return sum(terms.values()), {**terms, "iou": clips.hard_iou(full, target, weights)}

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """Pre-training on stills (`pretrain_steps`), then sets of frames and stills in turn."""
        encoder, new = (self.parameter_groups[name][0] for name in ("encoder", "new"))
        rates = ((encoder, config.model.encoder_lr_multiplier), (new, 1.0))
        static, video = Phase("static", "static", rates), Phase("video", "video", rates)
        pretrain = int(config.model.pretrain_steps)
        phases = (video, static) if config.model.static_steps else (video,)
        stages = (Stage("stills", pretrain, (static,)),) if pretrain else ()
        rest = max(int(config.train.total_steps) - pretrain, 0)
        return (*stages, Stage("video", rest, phases, reset_optimizer=False))

    # ----- video --------------------------------------------------------------------------

    def init_state(
        self, variables: Mapping[str, Any], batch_size: int, frame_size: tuple[int, int]
    ) -> State:
        """Statistics of no frame, per scale, and `count [B]`, frames seen. `()` without attention.

        The size of the state depends on K and C alone.
        """
        if not self._attends:
            return ()
        none = no_statistics(batch_size, self.config.groups, self.config.embedding)
        return {
            "statistics": tuple(none for _ in self.scales),
            "count": jnp.zeros((batch_size,), jnp.int32),
        }

    def prepare(self, variables: Mapping[str, Any], batch: Batch) -> State:
        """Score statistics of the references, encoded one after another; see `predict`."""
        frames = batch["frames"]
        start = self.init_state(variables, frames.shape[0], frames.shape[2:4])
        if not self._attends:
            return ()

        def add(total: Any, frame: jax.Array) -> tuple[Any, None]:
            own = [s for _, s in self._encode(variables, frame[:, None])]
            return tuple(map(merge, total, own)), None

        total, _ = jax.lax.scan(add, start["statistics"], frames.swapaxes(0, 1))
        return {"statistics": total}

    def predict(
        self, variables: Mapping[str, Any], state: State, chunk: Batch
    ) -> tuple[State, jax.Array]:
        """Foreground probabilities `[B,T,H,W]` with D-features of the state's frames and the
        frame's own; only a stream's state (`init_state`) takes the frame in."""

        def one_frame(state: State, frame: jax.Array) -> tuple[State, jax.Array]:
            encoded = self._encode(variables, frame[:, None])
            merged = ()
            if self._attends:
                own = [s for _, s in encoded]
                merged = tuple(map(merge, state["statistics"], own))
            probs = self._mask(variables, encoded, merged, frame)
            if self._attends and "count" in state:
                state = {"statistics": merged, "count": state["count"] + 1}
            return state, probs

        state, probs = jax.lax.scan(one_frame, state, chunk["frames"].swapaxes(0, 1))
        return state, probs.swapaxes(0, 1)

    def _scaled(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        return tuple(max(int(n * scale), 1) for n in size)

    def _encode(self, variables: Mapping[str, Any], frames: jax.Array) -> list[tuple]:
        """(features `[B,T,h,w,C]`, their statistics) of uint8 frames `[B,T,H,W,3]`, per scale."""
        size = frames.shape[-3:-1]
        found = []
        for scale in self.scales:
            x = frames
            if scale != 1.0:
                x = resize_bilinear(frames.astype(jnp.float32), self._scaled(size, scale))
                x = jnp.clip(jnp.round(x), 0, 255).astype(jnp.uint8)
            features = self.module.apply(dict(variables), self.normalize(x), method="encode")
            statistics = ()
            if self._attends:
                statistics = self.module.apply(dict(variables), features, method="statistics")
            found.append((features, statistics))
        return found

    def _mask(self, variables, encoded, merged, frame) -> jax.Array:
        """Foreground probability `[B,H,W]` of a frame `[B,H,W,3]`, averaged over scales."""
        size = frame.shape[1:3]
        total = 0.0
        for i, scale in enumerate(self.scales):
            found = d_features(merged[i]) if merged else None
            logits = self.module.apply(
                dict(variables), encoded[i][0], found, frame[:, None], method="decode"
            )
            probs = self.probabilities(logits, self._scaled(size, scale))
            total += resize_bilinear(probs[..., None], size, align_corners=True)[:, 0, ..., 0]
        return total / len(self.scales)
