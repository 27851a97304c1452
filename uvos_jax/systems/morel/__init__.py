"""MOREL: unsupervised video object segmentation for deep reinforcement learning (Goel, Weng,
Poupart, NeurIPS 2018).

Stage 1 (`segment`): from pairs of grey frames a small network learns K masks, one translation for
each and one for the camera, so that together they warp the newest frame onto the one before it;
the loss is structural dissimilarity, with a sparsity of masked motion that grows over time. Stage 2
(`policy`, `uvos_jax.train.rl`): its encoder is one of two paths of an actor-critic, trained by A2C
or PPO together with the loss of stage 1.

Facts follow the authors' code. Ours, as the paper never segments ordinary video: `foreground`, the
map of what moves (`speed`: an object counts as far as it is faster than `full_speed` pixels;
`flow_weighted`: masks weighted by their share of all motion, as the release's agents draw them);
`masks_in`, as masks of the release live in the previous frame (`current` carries each along with
its own motion); `pyramid`, the loss on coarser images as well, since through a window of 11 pixels
it knows shifts of a few pixels only; `camera=False`, `sparsity=0`, as ablations.

Doubtful: constants of SSIM are TensorFlow's defaults, from memory. The attention and dropout
options of the release, off in all of its settings, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from uvos_jax.errors import ConfigError, DataError
from uvos_jax.losses.masks import weighted_mean
from uvos_jax.losses.ssim import structural_dissimilarity
from uvos_jax.ops.odds import log_odds
from uvos_jax.ops.resize import resize_area
from uvos_jax.ops.warp import backward_warp
from uvos_jax.registry import register
from uvos_jax.systems.base import System
from uvos_jax.systems.morel.segment import SegmentNetwork, carried, to_grey
from uvos_jax.types import Batch, ModelCard, ModelSpec, Outputs, State, Variables

FOREGROUNDS = ("speed", "flow_weighted")
MASKS_IN = ("current", "previous")
#: Masks of at most this many pixels are no objects.
SMALLEST_AREA = 2.0
#: Objects of the list move by more than this, in pixels.
SLOWEST = 0.25


@register("morel")
class Morel(System):
    """The segmenter on clips: every frame paired with the one before it, the first with itself."""

    card = ModelCard(
        title="MOREL",
        year=2018,
        venue="NeurIPS",
        official_weights="none published; names of the release convertible",
        parity="formulas checked against slow oracles",
        learned="reconstruction to 0.48 of standing still, IoU to 0.23 in 300 steps, unlabelled",
    )
    parameter_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "encoder": (r"(^|/)encoder/",),
        "decoder": (r"(^|/)(decoder|motion)/",),
    }

    def __init__(self, config: Any):
        super().__init__(config)
        for field, allowed in (("foreground", FOREGROUNDS), ("masks_in", MASKS_IN)):
            if config[field] not in allowed:
                raise ConfigError(
                    f"config field model.{field} is {config[field]!r}: use one of {allowed}"
                )
        for field, lowest in (("objects", 1), ("pyramid", 1), ("sparsity_ramp", 0)):
            if config[field] < lowest:
                raise ConfigError(
                    f"config field model.{field} must be at least {lowest}, got {config[field]}"
                )
        self._check_size(config)
        self.spec = ModelSpec(
            name="morel",
            paper="Goel, Weng, Poupart: Unsupervised Video Object Segmentation for Deep "
            "Reinforcement Learning, NeurIPS 2018",
            temporal="pair",
            clip_len=2,
            input_size=tuple(config.input_size),
            stride=1,
            normalization="unit",
            outputs=("logits", "masks", "translations", "camera", "flow", "reconstruction"),
            causal=True,
        )
        self.module = SegmentNetwork(
            size=self.spec.input_size,
            convs=tuple(tuple(c) for c in config.convs),
            embedding=config.embedding,
            channels=config.channels,
            objects=config.objects,
            camera=config.camera,
            flow_scale=config.flow_scale,
            dtype=self.compute_dtype,
        )

    @staticmethod
    def _check_size(config: Any) -> None:
        size, need = tuple(config.input_size), 1
        for _, kernel, stride in reversed(tuple(config.convs)):
            need = (need - 1) * stride + kernel
        need = max(need, config.ssim_window * 2 ** (config.pyramid - 1))
        if len(size) != 2 or min(size) < need:
            raise ConfigError(
                f"config field model.input_size is {size}: both sides must be at least {need}, for "
                f"the encoder and for windows of {config.ssim_window} pixels on {config.pyramid} "
                "scale(s)"
            )

    # ----- network ------------------------------------------------------------------------

    def init(self, rng: jax.Array, batch_shapes: Mapping[str, Any] | None = None) -> Variables:
        pairs = (1, *self.spec.input_size, 2)
        return Variables(jax.jit(lambda key: self.module.init(key, jnp.zeros(pairs)))(rng))

    def apply(
        self,
        variables: Mapping[str, Any],
        batch: Batch,
        *,
        train: bool,
        rngs: Mapping[str, jax.Array] | None = None,
        phase: str = "default",
    ) -> tuple[Outputs, dict[str, Any]]:
        """All pairs of neighbours in a clip of T frames: P = T - 1, or 1 of a single frame.

        Returns:
          the outputs of `SegmentNetwork` with axes `[B,P]` for what belongs to pairs, `pairs
          [B,P,H,W,2]` as the network saw them, and `logits [B,T,H,W,1]`, of which frame 0 has those
          of the first pair where its masks were found.
        """
        grey = to_grey(batch["frames"]) / 255.0
        T = grey.shape[1]
        before = grey[:, : max(T - 1, 1)]
        outputs = self._pairs(variables, before, grey[:, -before.shape[1] :])
        logits = self._logits(outputs, self.config.masks_in)
        if T > 1:
            first = self._logits({k: v[:, :1] for k, v in outputs.items()}, "previous")
            logits = jnp.concatenate([first, logits], axis=1)
        outputs["logits"] = logits
        return outputs, {}

    def _pairs(self, variables: Any, before: jax.Array, frames: jax.Array) -> Outputs:
        """The network on `frames [B,P,H,W]` and those before them, in [0,1]."""
        pairs = jnp.stack([before, frames], axis=-1)
        B, P = pairs.shape[:2]
        outputs = self.module.apply(dict(variables), pairs.reshape(B * P, *pairs.shape[2:]))
        outputs = {k: v.reshape(B, P, *v.shape[1:]) for k, v in outputs.items()}
        return {**outputs, "pairs": pairs}

    def _logits(self, outputs: Outputs, masks_in: str) -> jax.Array:
        """Logits `[B,P,H,W,1]` of the foreground in the previous frame or carried to the newest."""
        odds = log_odds(self.foreground(outputs, masks_in), edge=1e-6)
        return odds[..., None].astype(self.compute_dtype)

    def speeds(self, outputs: Outputs) -> jax.Array:
        """Pixels `[B,P,K]` that every object moves on its own."""
        size = jnp.asarray(self.spec.input_size, jnp.float32)
        return jnp.linalg.norm(outputs["translations"] * self.config.flow_scale * size, axis=-1)

    def foreground(self, outputs: Outputs, masks_in: str = "previous") -> jax.Array:
        """How far a pixel `[B,P,H,W]` belongs to something that moves, in [0,1].

        `speed`: `1 - prod_k (1 - m_k min(1, |t_k| / full_speed))`; `flow_weighted`:
        `sum_k |t_k| / sum |t| m_k` over masks that cover more than two pixels.
        """
        masks, speeds = outputs["masks"], self.speeds(outputs)
        if self.config.foreground == "speed":
            weights = jnp.minimum(1.0, speeds / self.config.full_speed)
        else:
            large = jnp.sum(masks, axis=(2, 3)) > SMALLEST_AREA
            weights = jnp.where(large, speeds, 0.0)
            weights = weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-6)
        if masks_in == "current":
            flat = [x.reshape(-1, *x.shape[2:]) for x in (
                masks, outputs["translations"], outputs["camera"])]  # fmt: skip
            masks = carried(*flat, self.config.flow_scale).reshape(masks.shape)
        shares = masks * weights[:, :, None, None]
        if self.config.foreground == "speed":
            return 1.0 - jnp.prod(1.0 - shares, axis=-1)
        return jnp.clip(jnp.sum(shares, axis=-1), 0.0, 1.0)

    def moving_objects(self, outputs: Outputs) -> jax.Array:
        """Which of the K masks are objects that move, bool `[B,P,K]`."""
        area = jnp.sum(outputs["masks"], axis=(2, 3))
        return (area > SMALLEST_AREA) & (self.speeds(outputs) > SLOWEST)

    # ----- training -----------------------------------------------------------------------

    def sparsity_weight(self, step: jax.Array | int) -> jax.Array:
        """Weight of the sparsity of motion: grows linearly to `sparsity` over the ramp."""
        ramp = max(self.config.sparsity_ramp, 1)
        share = jnp.asarray(step, jnp.float32) / ramp if self.config.sparsity_ramp else 1.0
        return self.config.sparsity * jnp.clip(share, 0.0, 1.0)

    def pair_losses(self, outputs: Outputs) -> dict[str, jax.Array]:
        """`reconstruction`, `sparsity` (unweighted) and `no_transform`, each `[N]`, of N pairs.

        `no_transform` is what the reconstruction would cost if nothing were moved.

        Args:
          outputs: of `SegmentNetwork`, with `pairs [N,H,W,2]` in [0,1].
        """
        target, newest = (outputs["pairs"][..., i : i + 1].astype(jnp.float32) for i in (0, 1))
        coverage = jnp.mean(outputs["masks"], axis=(1, 2))[..., None]
        return {
            "reconstruction": self._dissimilarity(target, newest, outputs["flow"]),
            # |m t| is m |t|: masks are not negative
            "sparsity": jnp.mean(coverage * jnp.abs(outputs["translations"]), axis=(1, 2)),
            "no_transform": self._dissimilarity(target, newest, None),
        }

    def _dissimilarity(
        self, target: jax.Array, newest: jax.Array, flow: jax.Array | None
    ) -> jax.Array:
        """Mean over the scales of the pyramid."""
        total = jnp.zeros(target.shape[0], jnp.float32)
        settings = {"window": self.config.ssim_window, "sigma": self.config.ssim_sigma}
        for level in range(self.config.pyramid):
            if level:
                H, W = target.shape[1:3]
                size = (H // 2, W // 2)
                target, newest = resize_area(target, size), resize_area(newest, size)
                if flow is not None:
                    ratio = jnp.asarray([size[1] / W, size[0] / H], jnp.float32)
                    flow = resize_area(flow, size) * ratio
            warped = newest if flow is None else backward_warp(newest, flow)
            total = total + structural_dissimilarity(target, warped, **settings)
        return total / self.config.pyramid

    def loss_fn(
        self, outputs: Outputs, batch: Batch, *, step: jax.Array | int, phase: str = "default"
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean over pairs of two real frames of `reconstruction + lambda sparsity`.

        Also reported: `no_transform_loss`, what standing still would cost, and `sparsity_weight`.

        Raises:
          DataError: clips of one frame, in which nothing moves.
        """
        B, T = batch["frames"].shape[:2]
        if T < 2:
            raise DataError("morel trains on pairs of frames, got clips of 1: set data.clip_len=2")
        valid = jnp.asarray(batch.get("valid", jnp.ones((B, T), bool)))
        real = (valid[:, 1:] & valid[:, :-1]).reshape(-1).astype(jnp.float32)
        flat = {k: v.reshape(-1, *v.shape[2:]) for k, v in outputs.items() if k != "logits"}
        means = {k: weighted_mean(v, real) for k, v in self.pair_losses(flat).items()}
        weight = self.sparsity_weight(step)
        terms = {
            "reconstruction": means["reconstruction"],
            "sparsity": weight * means["sparsity"],
        }
        total = terms["reconstruction"] + terms["sparsity"]
        return total, {
            **terms,
            "no_transform_loss": means["no_transform"],
            "sparsity_weight": jnp.asarray(weight, jnp.float32),
        }

    # ----- video --------------------------------------------------------------------------

    def init_state(
        self, variables: Mapping[str, Any], batch_size: int, frame_size: tuple[int, int]
    ) -> State:
        """The previous frame, grey, and whether there is one."""
        return {
            "frame": jnp.zeros((batch_size, *frame_size), jnp.uint8),
            "seen": jnp.zeros((batch_size,), bool),
        }

    def predict(
        self, variables: Mapping[str, Any], state: State, chunk: Batch
    ) -> tuple[State, jax.Array]:
        """Probability of belonging to something that moves, `[B,T,H,W]`."""
        grey = to_grey(chunk["frames"])
        before = jnp.concatenate([state["frame"][:, None].astype(jnp.float32), grey[:, :-1]], 1)
        first = jnp.where(state["seen"][:, None, None], before[:, 0], grey[:, 0])
        before = before.at[:, 0].set(first)
        outputs = self._pairs(variables, before / 255.0, grey / 255.0)
        probs = jnp.clip(self.foreground(outputs, self.config.masks_in), 0.0, 1.0)
        frame = grey[:, -1].astype(jnp.uint8)
        return {"frame": frame, "seen": jnp.ones_like(state["seen"])}, probs
