"""MP-Net: learning motion patterns in videos (Tokmakov, Alahari, Schmid, CVPR 2017; "LMP").

An encoder-decoder sees nothing but a dense optical flow field, as angle and length of its vectors,
and says which pixels move independently of the camera. It learns from synthetic scenes with true
flow (FlyingThings3D; how their labels come about is in `uvos_jax.ops.motion_labels`). On real video
the flow is estimated; the result is weighted by an objectness map, how many of the best object
proposals cover a pixel, and refined by a dense CRF (preset `mpnet`).

Followed is the authors' Torch7 release. The angle is unsigned, `arccos(u / |w|)`, and mirrored
examples keep it as it is (here they are mirrored first, which is what flow does in a mirror).
`angle_mode` offers `atan2`, `sincos`, plain vectors (`raw`), and, ours, vectors beside what the
camera's motion leaves of them, which is that of a plane (`residual`), and beside what a camera in
any scene at rest leaves as well (`rigid`: `ops.flow.rigid_residual`). `eight_bit` repeats the
release's detour over 8-bit files.
`model_paper.dat` enlarges by two where `model_new.dat` enlarges to the skip connection; where 32
divides both sides the two are taken to be one network. The last frame has no flow and no result in
the release; here it gets the flow its engine supplies.

Ours, off unless configured: `flow_direction`: with `backward` a stream needs no look-ahead, with
`both` the log-odds by the flow to both neighbours are averaged, or with `joint_flow` the network
sees both at once; `temperature` divides log-odds, so
that a CRF after the network has a say; `memory`, the share of the previous frame's log-odds that is
carried along the flow and added; a soft IoU loss (`iou_weight`); `edges`, how steep the frame is
beside its mean (`ops.edges`), by which the network can end objects where the picture does and not
where blurred flow does, left out of a share of the examples (`edge_dropout`), or it relies too much
on edges that generated pictures have and real ones have not; `evidence`, whether the frame before
asks for this flow or for the camera's motion just as well (`ops.evidence`), of which a share of the
examples has none (`evidence_dropout`), how much of it log-odds need to count in full
(`evidence_full`, `evidence_doubt`), and what share of that doubt is repeated where a camera in any
scene at rest explains the flow (`evidence_rigid`). The packaged default (`configs/mpnet.py:light`)
uses them.

Doubtful: how labels of FlyingThings3D were derived in detail, and which noisy clips were left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from uvos_jax.errors import ConfigError, DataError, ShapeError
from uvos_jax.losses import masks
from uvos_jax.losses.dice import soft_iou_loss
from uvos_jax.modules.mpnet_stream import WIDTHS, MPNetStream
from uvos_jax.ops.edges import edge_contrast
from uvos_jax.ops.evidence import motion_evidence
from uvos_jax.ops.flow import (
    flow_to_angle_magnitude,
    flow_to_residual,
    planar_motion,
    rigid_residual,
    through_8_bits,
)
from uvos_jax.ops.odds import log_odds
from uvos_jax.ops.resize import resize_bilinear, resize_nearest
from uvos_jax.ops.warp import backward_warp
from uvos_jax.registry import register
from uvos_jax.systems.base import System
from uvos_jax.types import Batch, ModelCard, ModelSpec, Outputs, Phase, Stage, State

FLOW_DIRECTIONS = ("forward", "backward", "both")
ANGLE_MODES = ("acos", "atan2", "sincos", "raw", "residual", "rigid")
#: Those that begin with what the plane of `planar_motion` leaves.
RESIDUALS = ("residual", "rigid")
#: Objectness that changes nothing: `p (o + 1/2) = p`.
NEUTRAL = 0.5
#: Channels of `edge_contrast` and of `motion_evidence`, behind those of the flow in this order.
EDGES, EVIDENCE = 2, 2
#: Share of the training examples of `joint_flow` whose second field is the first one's negative.
ONE_SIDED = 0.1
#: What the loss reads, all `[B,T,...]`.
LOSS_KEYS = ("masks", "valid", "has_mask", "flow_valid")
#: Remembered log-odds are kept within these bounds.
SUREST = 6.0


def objectness(proposals: jax.Array, top: int = 100) -> jax.Array:
    """How many of the best proposals cover a pixel, `[H,W]` with maximum 1 (0 without any).

    Args:
      proposals: masks `[N,H,W]`, bool or 0/1, best first; the first `top` count.
    """
    total = jnp.sum(proposals[:top].astype(jnp.float32), axis=0)
    return total / jnp.maximum(jnp.max(total), 1.0)


def combine(probability: jax.Array, objectness: jax.Array | float) -> jax.Array:
    """`clip(p (o + 1/2), 0, 1)`."""
    return jnp.clip(probability * (objectness + 0.5), 0.0, 1.0)


class MotionPatternNetwork(nn.Module):
    """`MPNetStream` on clips.

    Attributes:
      widths, decoder, head, freeze_bn, remat: see there.
    """

    widths: tuple[int, ...] = WIDTHS
    decoder: int = 256
    head: int = 512
    freeze_bn: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, field: jax.Array, *, train: bool = False) -> Outputs:
        """Encoded flow `[B,T,H,W,C]` to `logits [B,T,h,w,1]` at half its size."""
        B, T, H, W, C = field.shape
        if min(H, W) < 32:
            raise ShapeError(f"mpnet: flow must have at least 32 pixels a side, got {(H, W)}")
        logits = MPNetStream(
            self.widths,
            self.decoder,
            self.head,
            freeze_bn=self.freeze_bn,
            remat=self.remat,
            dtype=self.dtype,
            name="stream",
        )(field.reshape(B * T, H, W, C), train)
        return {"logits": logits.reshape(B, T, *logits.shape[1:])}


@register("mpnet")
class MPNet(System):
    """MP-Net on video: every frame by its flow to the next; the frame itself is not looked at.

    At test time the field keeps its size until it is encoded (speeds count in pixels of the
    original frame), then it is resized to the network's size by picking pixels.
    """

    card = ModelCard(
        title="MP-Net",
        year=2017,
        venue="CVPR",
        official_weights="Torch7, on the authors' project page",
        parity="every formula against loops; layers in the order of the release",
        learned="J 0.00 to 0.40 in 300 steps",
        davis16_j=70.0,
        davis16_f=65.9,
    )

    def __init__(self, config: Any):
        super().__init__(config)
        if config.angle_mode not in ANGLE_MODES:
            raise ConfigError(
                f"config field model.angle_mode is {config.angle_mode!r}: use one of {ANGLE_MODES}"
            )
        factors = tuple(config.stage_factors)
        if not factors or min(factors) <= 0:
            raise ConfigError(
                "config field model.stage_factors must hold one positive factor on rate and decay "
                f"for each stage, got {factors}"
            )
        if len(config.widths) != 6:
            raise ConfigError(
                f"config field model.widths must hold 6 numbers, got {tuple(config.widths)}"
            )
        if config.flow_direction not in FLOW_DIRECTIONS:
            raise ConfigError(
                f"config field model.flow_direction is {config.flow_direction!r}: use one of "
                f"{FLOW_DIRECTIONS}"
            )
        if not config.temperature > 0:
            raise ConfigError(
                f"config field model.temperature must be positive, got {config.temperature}"
            )
        if not 0 <= config.memory < 1:
            raise ConfigError(
                f"config field model.memory must lie in [0, 1), got {config.memory}: it is the "
                "share of the previous frame's log-odds that is kept"
            )
        if config.joint_flow and config.flow_direction != "both":
            raise ConfigError(
                "config field model.joint_flow joins flow to both neighbours, but "
                f"model.flow_direction is {config.flow_direction!r}: set it to 'both'"
            )
        if config.memory and config.flow_direction == "forward":
            raise ConfigError(
                "config field model.memory follows flow to the previous frame: set "
                "model.flow_direction to 'backward' or 'both'"
            )
        for field in ("edge_dropout", "evidence_dropout"):
            if not 0 <= config[field] < 1:
                raise ConfigError(
                    f"config field model.{field} must lie in [0, 1), got {config[field]}"
                )
        if not 0 <= config.evidence_full <= 1:
            raise ConfigError(
                f"config field model.evidence_full must lie in [0, 1], got {config.evidence_full}"
            )
        if config.evidence_doubt < 0:
            raise ConfigError(
                f"config field model.evidence_doubt must be at least 0, got {config.evidence_doubt}"
            )
        if not 0 <= config.evidence_rigid <= 1:
            raise ConfigError(
                f"config field model.evidence_rigid must lie in [0, 1], got {config.evidence_rigid}"
            )
        if config.evidence_rigid and not config.evidence_full:
            raise ConfigError(
                f"config field model.evidence_rigid={config.evidence_rigid} repeats the doubt of "
                "model.evidence_full, which is 0: set that one, or leave this one at 0"
            )
        self.looks_back = bool(config.evidence or config.evidence_full)
        if self.looks_back and config.flow_direction == "forward":
            raise ConfigError(
                "config field model.evidence (or evidence_full) compares with the previous frame: "
                "set model.flow_direction to 'backward' or 'both'"
            )
        self.edges, self.joint = bool(config.edges), bool(config.joint_flow)
        self.evidence = bool(config.evidence)
        self.spec = ModelSpec(
            name="mpnet",
            paper="Tokmakov, Alahari, Schmid: Learning Motion Patterns in Videos, CVPR 2017",
            temporal="recurrent" if config.memory or self.looks_back else "frame",
            clip_len=1,
            input_size=tuple(config.input_size) or None,
            stride=2,
            normalization="unit",
            requires=frozenset({"flow"}),
            flow_direction=config.flow_direction,
        )
        self.module = MotionPatternNetwork(
            widths=tuple(config.widths),
            decoder=config.decoder,
            head=config.head,
            freeze_bn=bool(config.get("freeze_bn", False)),
            remat=bool(config.get("remat", False)),
            dtype=self.compute_dtype,
        )

    # ----- network ------------------------------------------------------------------------

    def encode(
        self,
        flow: jax.Array,
        *,
        train: bool = False,
        camera: jax.Array | None = None,
        residual: jax.Array | None = None,
    ) -> jax.Array:
        """What the network eats of flow `[...,H,W,2]`: angle (one or two channels) and length.

        With `angle_mode=residual` vectors, and what the camera's motion (`camera`, if it is known)
        leaves of them; with `rigid` what no motion of a camera leaves (`residual`), too.

        Lengths are divided by a sixth of the frame's diagonal: the field's own, or
        `train_diagonal` where training sees a part of a frame. At test time angles of vectors
        shorter than `zero_below` pixels are 0, too uncertain to mean anything.
        """
        config = self.config
        diagonal = float(np.hypot(*flow.shape[-3:-1]))
        if train and config.train_diagonal:
            diagonal = float(config.train_diagonal)
        flow = flow.astype(jnp.float32)
        if config.angle_mode in RESIDUALS:
            rigid = config.angle_mode == "rigid"
            return flow_to_residual(flow, camera, rigid=rigid, residual=residual)
        if config.angle_mode == "raw":
            return flow / (diagonal / 6)
        field = flow_to_angle_magnitude(
            flow,
            diagonal=diagonal,
            zero_below=0.0 if train else float(config.zero_below),
            mode=config.angle_mode,
        )
        return through_8_bits(field) if config.eight_bit else field

    def network_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) to which a field of (H, W) is resized at test time."""
        H, W = size
        fixed, side = tuple(self.config.network_size), int(self.config.smallest_side)
        if fixed:
            return fixed if (W >= H) == (fixed[1] >= fixed[0]) else fixed[::-1]
        if not side:
            return size
        return tuple(max(side, round(n * side / min(size))) for n in size)

    def module_inputs(self, batch: Batch) -> tuple[jax.Array, ...]:
        return (self._field(batch, train=False),)

    def _field(
        self,
        batch: Batch,
        *,
        train: bool,
        rngs: Mapping[str, jax.Array] | None = None,
        motion: Mapping[str, jax.Array] = MappingProxyType({}),
    ) -> jax.Array:
        """The network's input; `motion` holds arguments of `encode` that are known."""
        if "flow" not in batch:
            raise DataError(
                f"mpnet sees nothing but the batch key 'flow', and the batch has {sorted(batch)}: "
                "give float32 [B,T,H,W,2], pixels to the next frame"
            )
        flow = jax.lax.stop_gradient(jnp.asarray(batch["flow"]))
        ways = self.ways(flow, rngs["dropout"] if train and rngs is not None else None)
        encoded = [self.encode(way, train=train, **motion) for way in ways]
        field = jnp.concatenate(encoded, axis=-1)
        pictures = self._pictures(batch, flow, rngs if train else None)
        if pictures:
            seen = jnp.concatenate(pictures, axis=-1)
            # one picture may stand beside several fields, one after the other along time
            views = field.shape[1] // seen.shape[1]
            field = jnp.concatenate([field, jnp.tile(seen, (1, views, 1, 1, 1))], axis=-1)
        if not train:
            field = resize_nearest(field, self.network_size(field.shape[-3:-1]))
        return field.astype(self.compute_dtype)

    def _pictures(
        self, batch: Batch, flow: jax.Array, rngs: Mapping[str, jax.Array] | None
    ) -> list[jax.Array]:
        """What the network sees of the frames, `[B,T,H,W,2]` each; in training (with `rngs`) some
        examples have none."""

        def some(x: jax.Array, dropout: float, stream: int) -> jax.Array:
            if rngs is None or not dropout:
                return x
            rng = jax.random.fold_in(rngs["dropout"], stream) if stream else rngs["dropout"]
            return x * jax.random.bernoulli(rng, 1 - dropout, (*x.shape[:2], 1, 1, 1))

        frames, found = jnp.asarray(batch["frames"]), []
        if self.edges:
            found.append(some(edge_contrast(frames), float(self.config.edge_dropout), 0))
        if self.evidence:
            evidence = batch.get("evidence")
            if evidence is None:
                evidence = self._evidence(frames, flow[:, : frames.shape[1], ..., :2])
            found.append(some(evidence, float(self.config.evidence_dropout), 2))
        return found

    @staticmethod
    def _evidence(
        frames: jax.Array,
        flow: jax.Array,
        *,
        before: jax.Array | None = None,
        known: jax.Array | float = 0.0,
        camera: jax.Array | None = None,
    ) -> jax.Array:
        """`motion_evidence` of frames for flow to the previous ones, `[B,T,H,W,2]`.

        Args:
          before: the frame before the first one, `[B,1,H,W,3]`. known: whether there is one, `[B]`;
            if not, the first frame has no evidence.
        """
        before = frames[:, :1] if before is None else before
        before = jnp.concatenate([before.astype(frames.dtype), frames[:, :-1]], axis=1)
        evidence = motion_evidence(frames, before, flow, camera)
        known = jnp.broadcast_to(jnp.asarray(known, jnp.float32), frames.shape[:1])
        return evidence.at[:, 0].multiply(known[:, None, None, None])

    def ways(self, flow: jax.Array, rng: jax.Array | None) -> list[jax.Array]:
        """The fields `[B,T,H,W,2]` that the network sees at once.

        With `joint_flow` training runs every other example backwards (with `rng`), and a few have
        but one field and its negative, as frames have at either end of a video.

        Raises:
          ShapeError: `joint_flow` needs four channels.
        """
        if not self.joint:
            return [flow[..., :2]]
        if flow.shape[-1] != 4:
            raise ShapeError(
                "mpnet: model.joint_flow needs flow to the previous and to the next frame, "
                f"[B,T,H,W,4], got {flow.shape}: give sources flow_direction='both' and two folders"
            )
        first, second = flow[..., :2], flow[..., 2:]
        if rng is not None:
            order, sides = jax.random.split(jax.random.fold_in(rng, 1))
            swap = jax.random.bernoulli(order, 0.5, (*flow.shape[:2], 1, 1, 1))
            first, second = jnp.where(swap, second, first), jnp.where(swap, first, second)
            alone = jax.random.bernoulli(sides, ONE_SIDED, swap.shape)
            second = jnp.where(alone, -first, second)
        return [first, second]

    def apply(self, variables, batch, *, train, rngs=None, phase="default"):
        field = self._field(batch, train=train, rngs=rngs)
        if train and self.evidence:
            if field.shape[1] < 2:
                raise DataError(
                    "mpnet: model.evidence compares with the previous frame, and the clips have "
                    "one frame only: set data.clip_len to at least 2"
                )
            field = field[:, 1:]  # the first frame has no previous one
        if not train:
            return self.module.apply(dict(variables), field), {}
        outputs, updates = self.module.apply(
            dict(variables), field, train=True, rngs=rngs, mutable=["batch_stats"]
        )
        return outputs, dict(updates)

    # ----- training -----------------------------------------------------------------------

    def loss_fn(
        self, outputs: Outputs, batch: Batch, *, step: jax.Array | int, phase: str = "default"
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean cross entropy at the network's resolution, classes as they are, and `iou_weight`
        times a soft IoU loss. With `evidence` the first frame of each clip does not count.

        Returns:
          the loss and its terms; `iou`, of the pixels that count, is for the log only.
        """
        logits = outputs["logits"][..., 0].astype(jnp.float32)
        batch = {k: v[:, -logits.shape[1] :] for k, v in batch.items() if k in LOSS_KEYS}
        labels = resize_nearest(jnp.asarray(batch["masks"])[..., None], logits.shape[2:4])[..., 0]
        flags = {k: jnp.asarray(batch[k]) for k in ("valid", "has_mask") if k in batch}
        if "flow_valid" in batch:
            flags["valid"] = flags.get("valid", True) & jnp.asarray(batch["flow_valid"])
        target, weights = masks.binary_target(labels), masks.pixel_weights(labels, **flags)
        entropy = target * jax.nn.softplus(-logits) + (1.0 - target) * jax.nn.softplus(logits)
        loss = entropy_loss = masks.weighted_mean(entropy, weights)
        if self.config.iou_weight:
            loss = loss + self.config.iou_weight * soft_iou_loss(
                *(x.reshape(-1, *x.shape[2:]) for x in (logits, target, weights))
            )
        predicted = (logits > 0).astype(jnp.float32)
        union = jnp.sum(jnp.maximum(predicted, target) * weights)
        overlap = jnp.sum(predicted * target * weights)
        return loss, {"cross_entropy": entropy_loss, "iou": overlap / jnp.maximum(union, 1.0)}

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """Equal parts; rate and weight decay fall from each to the next (`stage_factors`)."""
        factors = tuple(config.model.stage_factors)
        total, count = int(config.train.total_steps), len(factors)
        ends = [round(total * (i + 1) / count) for i in range(count)]
        stages = []
        for i, (factor, start, end) in enumerate(
            zip(factors, [0, *ends[:-1]], ends, strict=True), start=1
        ):
            optim = (
                ("lr", float(config.optim.lr * factor)),
                ("weight_decay", float(config.optim.weight_decay * factor)),
            )
            stages.append(
                Stage(f"part_{i}", end - start, (Phase(),), optim=optim, reset_optimizer=False)
            )
        return tuple(stages)

    # ----- video --------------------------------------------------------------------------

    def init_state(
        self, variables: Mapping[str, Any], batch_size: int, frame_size: tuple[int, int]
    ) -> State:
        """What is remembered: log-odds `[B,H,W,1]` of the previous frame, 0 where nothing is known,
        with `memory`; that frame itself and whether there was one, for evidence."""
        odds = ()
        if self.config.memory:
            odds = jnp.zeros((batch_size, *frame_size, 1), jnp.float32)
        if not self.looks_back:
            return odds
        frame = jnp.zeros((batch_size, 1, *frame_size, 3), jnp.uint8)
        return {"odds": odds, "frame": frame, "known": jnp.zeros(batch_size, jnp.float32)}

    def predict(
        self, variables: Mapping[str, Any], state: State, chunk: Batch
    ) -> tuple[State, jax.Array]:
        """Probabilities `[B,T,H,W]`, weighted by `objectness [B,T,H,W]` in 0..1 if it is there.

        With flow in both directions log-odds are averaged: flow spills over the edges of an object
        on one side in one direction, on the other side in the other. Where training left edges out
        at times (`edge_dropout`), so are those with and without them; of flow in both directions
        that to the previous frame is seen with edges, that to the next without them.
        """
        flow = jnp.asarray(chunk["flow"])
        ways = [flow] if self.joint else jnp.split(flow, flow.shape[-1] // 2, axis=-1)
        # one after the other along time: the network is compiled once
        joined = jnp.concatenate(ways, axis=1).astype(jnp.float32)
        odds, motion = state, {}
        if not self.joint:
            if self.config.angle_mode in RESIDUALS:
                motion["camera"] = planar_motion(joined)
            if self.config.angle_mode == "rigid":
                motion["residual"] = rigid_residual(joined)
        if self.looks_back:
            odds, frames = state["odds"], jnp.asarray(chunk["frames"])
            back = flow[..., :2].astype(jnp.float32)
            seen = {k: v[:, : flow.shape[1]] for k, v in motion.items()}
            against = partial(
                self._evidence, frames, back, before=state["frame"], known=state["known"]
            )
            evidence = against(camera=seen.get("camera"))
            if self.config.evidence_rigid:
                residual = seen["residual"] if "residual" in seen else rigid_residual(back)
                rigid_evidence = against(camera=back - residual)
            chunk = {**chunk, "evidence": evidence}
            state = {"frame": frames[:, -1:], "known": jnp.ones_like(state["known"])}
        field = self._field({**chunk, "flow": joined}, train=False, motion=motion)
        if self.edges and self.config.edge_dropout:
            if len(ways) == 1:
                field = jnp.concatenate([field, field], axis=1)
            end = field.shape[-1] - EVIDENCE * self.evidence
            field = field.at[:, field.shape[1] // 2 :, ..., end - EDGES : end].set(0.0)
        views = field.shape[1] // flow.shape[1]
        outputs = self.module.apply(dict(variables), field)
        logits = sum(jnp.split(outputs["logits"], views, axis=1)) / views
        probs = self.probabilities(logits, flow.shape[2:4])
        if self.config.evidence_full:
            probs = self.doubted(probs, evidence)
            if self.config.evidence_rigid:
                probs = self.doubted(probs, rigid_evidence, float(self.config.evidence_rigid))
        if self.config.memory:
            odds, probs = self.remember(odds, probs, flow[..., :2])
        state = {**state, "odds": odds} if self.looks_back else odds
        return state, combine(probs, chunk.get("objectness", NEUTRAL))

    def doubted(self, probs: jax.Array, evidence: jax.Array, weight: float = 1.0) -> jax.Array:
        """Probabilities `[B,T,H,W]`, lowered where there is no evidence of motion.

        Up to `evidence_full` log-odds in favour count in proportion to the evidence, and what lacks
        to it takes `evidence_doubt` off all; where nothing is known of it (`ops.evidence`),
        everything stays. `weight`, 0 to 1, is how much of that is done.
        """
        share = jnp.clip(evidence[..., 0] / float(self.config.evidence_full), 0.0, 1.0)
        lacking = weight * (1.0 - share) * evidence[..., 1]
        odds = log_odds(probs)
        odds -= lacking * (jnp.maximum(odds, 0.0) + float(self.config.evidence_doubt))
        return jax.nn.sigmoid(odds)

    def remember(
        self, state: jax.Array, probs: jax.Array, flow: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Adds to each frame's log-odds `memory` times those of the frame before, moved by `flow`.

        Args:
          state: `[B,H,W,1]`. probs: `[B,T,H,W]`. flow: `[B,T,H,W,2]` to the previous frame.
        """
        share = float(self.config.memory)

        def step(before: jax.Array, frame: tuple[jax.Array, jax.Array]):
            p, field = frame
            odds = log_odds(p)[..., None] + share * backward_warp(before, field)
            odds = jnp.clip(odds, -SUREST, SUREST)
            return odds, jax.nn.sigmoid(odds)[..., 0]

        time_first = (jnp.moveaxis(probs, 1, 0), jnp.moveaxis(flow.astype(jnp.float32), 1, 0))
        state, filtered = jax.lax.scan(step, state, time_first)
        return state, jnp.moveaxis(filtered, 0, 1)

    def probabilities(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Probability `[B,T,H,W]` of `logits [B,T,h,w,1]`: squashed, then enlarged, corners
        aligned, as Torch's image package does."""
        probs = jax.nn.sigmoid(logits.astype(jnp.float32) / float(self.config.temperature))
        return resize_bilinear(probs, size, align_corners=True)[..., 0]
