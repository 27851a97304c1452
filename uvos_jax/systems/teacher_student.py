"""Teacher-student adaptation for human-robot interaction (HRI; Siam et al., ICRA 2019).

A person shows an object to a robot by moving it. A *teacher* that sees a frame and its optical flow
segments what moves; its confident pixels fine-tune a *student* that sees frames only, on the first
frame(s) of the video, so that the student finds that object later whether it moves or not. Both
are wide ResNets; the teacher has a second trunk for the flow picture, joined to the first by the
product of the rectified features (a class called "concat" in the release multiplies).

Networks, losses and the tables of adaptation settings follow the released code
(MSiam/motion_adaptation@4f31dbe), whose continuous mode cannot run (it reads a mask that only the
discrete branch makes): here it uses the normalised probability as soft target. Flow pictures are
Middlebury colours of the given flow, saturated at each frame's maximum (`flow_color_max` fixes
another speed); a mirrored flow is coloured anew, where the release mirrors the picture and keeps
its hues. Where the release stores the teacher's outputs on disk, the teacher runs here.

Doubtful: the teacher's number of epochs; whether scale and bias of BatchNorm move during adaptation
(they do here, statistics do not); the interpolation to full size (pixel centres here); the optical
flow of the authors (FlowNet2 by the look of their tables). Not from the paper: `interval`, which
teaches again every so many frames; `camera_motion="subtracted"`, which colours what the camera's
motion leaves of the flow, for cameras that do not stand still as the paper's robot does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from uvos_jax.errors import ConfigError, DataError
from uvos_jax.losses import masks
from uvos_jax.losses.bootstrapped import bootstrapped_cross_entropy
from uvos_jax.modules.backbones.wide_resnet import WideResNetHead, WideResNetTrunk
from uvos_jax.ops.distance import distance_to, erode
from uvos_jax.ops.flow import flow_to_color, planar_motion
from uvos_jax.ops.resize import resize_bilinear, resize_nearest
from uvos_jax.registry import register
from uvos_jax.systems.base import System
from uvos_jax.types import (
    Adaptation,
    Batch,
    ModelCard,
    ModelSpec,
    Outputs,
    Phase,
    Stage,
    Variables,
)

#: Whether flow pictures show the motion of the camera's plane.
CAMERA_MOTIONS = ("kept", "subtracted")
#: How a video teaches the student: not at all, confident pixels, soft labels, or the student's own
#: confident pixels (what OnAVOS does between annotated frames).
MODES = ("baseline", "teach", "teachcont", "self")


class Student(nn.Module):
    """One stream: `[B,H,W,3]` normalised frames to logits `[B,h,w,2]`."""

    trunk: Mapping[str, Any]
    head: Mapping[str, Any]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, frames: jax.Array, train: bool = False) -> jax.Array:
        x = WideResNetTrunk(**self.trunk, dtype=self.dtype, name="trunk")(frames, train)
        return WideResNetHead(**self.head, dtype=self.dtype, name="head")(x, train)


class Teacher(nn.Module):
    """Two streams: normalised frames and flow pictures in [0,1], each `[B,H,W,3]`."""

    trunk: Mapping[str, Any]
    head: Mapping[str, Any]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, frames: jax.Array, flow: jax.Array, train: bool = False) -> jax.Array:
        a = WideResNetTrunk(**self.trunk, dtype=self.dtype, name="appearance")(frames, train)
        m = WideResNetTrunk(**self.trunk, dtype=self.dtype, name="motion")(flow, train)
        joined = nn.relu(a) * nn.relu(m)
        return WideResNetHead(**self.head, dtype=self.dtype, name="head")(joined, train)


class TeacherStudentNetwork(nn.Module):
    """Both networks; `part` says which one runs."""

    trunk: Mapping[str, Any]
    head: Mapping[str, Any]
    dtype: Any = jnp.float32

    def setup(self):
        settings = {"trunk": self.trunk, "head": self.head, "dtype": self.dtype}
        self.student = Student(**settings)
        self.teacher = Teacher(**settings)

    def __call__(
        self,
        frames: jax.Array,
        flow: jax.Array | None = None,
        *,
        train: bool = False,
        part: str = "student",
    ) -> jax.Array:
        """Logits `[B,h,w,2]` of `frames [B,H,W,3]` (and flow pictures of that shape)."""
        if self.is_initializing():
            self.teacher(frames, flow, train)
        return (
            self.teacher(frames, flow, train) if part == "teacher" else self.student(frames, train)
        )


@register("teacher_student")
class TeacherStudent(System):
    """The student segments, the teacher teaches it at the start of every video.

    `predict` runs the student alone, frame by frame. `teach` and `adaptation_loss` are what the
    predictor needs to adapt it (`uvos_jax.predict.adapt`): every video starts from the trained
    student, with fresh optimiser moments.
    """

    card = ModelCard(
        title="HRI teacher-student",
        year=2019,
        venue="ICRA",
        official_weights="TensorFlow 1, link in github.com/MSiam/motion_adaptation (not reachable)",
        parity="official networks, masks within 1e-4",
        learned="teacher's J 0.15 to 0.36 in 400 steps, student's 0.03, adapted 0.18",
        davis16_j=77.2,
        davis16_f=77.4,
    )
    parameter_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "student": (r"^student/",),
        "teacher": (r"^teacher/",),
    }

    def __init__(self, config: Any):
        super().__init__(config)
        if config.mode not in MODES:
            raise ConfigError(f"config field model.mode is {config.mode!r}: use one of {MODES}")
        if config.camera_motion not in CAMERA_MOTIONS:
            raise ConfigError(
                f"config field model.camera_motion is {config.camera_motion!r}: use one of "
                f"{CAMERA_MOTIONS}"
            )
        for field in ("adapt_steps", "adapt_frames", "erosion"):
            if config[field] < 1:
                raise ConfigError(
                    f"config field model.{field} must be at least 1, got {config[field]}"
                )
        if config.interval == 1 or config.interval < 0:
            raise ConfigError(
                f"config field model.interval is {config.interval}: use 0 (teach at the start "
                "only) or at least 2 frames"
            )
        for field in ("hard_fraction", "adapt_threshold"):
            if not 0.0 < config[field] <= 1.0:
                raise ConfigError(
                    f"config field model.{field} must lie in (0, 1], got {config[field]}"
                )
        self.spec = ModelSpec(
            name="teacher_student",
            paper="Siam, Jiang, Lu, Petrich, Gamal, Elhoseiny, Jagersand: Video Object "
            "Segmentation using Teacher-Student Adaptation in a Human Robot Interaction (HRI) "
            "Setting, ICRA 2019",
            temporal="frame",
            clip_len=1,
            input_size=tuple(config.input_size) or None,
            stride=8,
            num_classes=2,
            normalization="imagenet",
            outputs=("logits",),
        )
        self.module = TeacherStudentNetwork(
            trunk={
                "stem": config.stem,
                "widths": tuple(config.widths),
                "units": tuple(config.units),
            },
            head={
                "first_unit": sum(config.units),
                "middle": config.middle,
                "context": config.context,
                "context_units": config.context_units,
                "bottlenecks": tuple(tuple(b) for b in config.bottlenecks),
                "hidden": config.hidden,
                "dilations": tuple(config.dilations),
            },
            dtype=self.compute_dtype,
        )
        if config.mode != "baseline":
            self.adaptation = Adaptation(
                part="student",
                steps=config.adapt_steps,
                lr=config.adapt_lr,
                frames=config.adapt_frames,
                interval=config.interval,
                requires=frozenset() if config.mode == "self" else frozenset({"flow"}),
            )

    # ----- networks -----------------------------------------------------------------------

    def example_batch(self, batch_size: int = 1, size: tuple[int, int] | None = None) -> dict:
        shapes = super().example_batch(batch_size, size)
        frames = shapes["frames"].shape
        return {**shapes, "flow": jax.ShapeDtypeStruct((*frames[:-1], 2), jnp.float32)}

    def flow_pictures(self, flow: jax.Array) -> jax.Array:
        """Colour-coded flow in [0,1], `[...,H,W,3]`, of flow `[...,H,W,2]` in pixels."""
        if self.config.camera_motion == "subtracted":
            flow = flow - planar_motion(flow)
        limit = self.config.flow_color_max or None
        return (flow_to_color(flow, limit) / 255.0).astype(self.compute_dtype)

    def module_inputs(self, batch: Batch) -> tuple[jax.Array, ...]:
        frames = self.normalize(batch["frames"])
        inputs = [frames.reshape(-1, *frames.shape[2:])]
        if "flow" in batch:
            pictures = self.flow_pictures(batch["flow"])
            inputs.append(pictures.reshape(-1, *pictures.shape[2:]))
        return tuple(inputs)

    def module_kwargs(self, train: bool, phase: str = "default") -> dict[str, Any]:
        return {
            "train": train and not self.config.get("freeze_bn", False),
            "part": "teacher" if phase == "teacher" else "student",
        }

    def apply(
        self,
        variables: Mapping[str, Any],
        batch: Batch,
        *,
        train: bool,
        rngs: Mapping[str, jax.Array] | None = None,
        phase: str = "default",
    ) -> tuple[Outputs, dict[str, Any]]:
        """Logits `[B,T,h,w,2]` of the student, or of the teacher in the phase `teacher`.

        Training brightens and darkens frames by a random gamma and adds `weight_penalty`, half the
        squared norm of the network's kernels.

        Raises:
          DataError: the teacher gets no flow.
        """
        part = self.module_kwargs(train, phase)["part"]
        if part == "teacher" and "flow" not in batch:
            raise DataError(
                "the teacher of teacher_student needs optical flow and the batch has none: use a "
                "source with flow (for example {'name': 'synthetic', 'flow': True})"
            )
        B, T = batch["frames"].shape[:2]
        if train and self.config.gamma and rngs:
            key = jax.random.fold_in(rngs["dropout"], 0)
            batch = {**batch, "frames": random_gamma(key, batch["frames"], self.config.gamma)}
        logits, collections = super().apply(variables, batch, train=train, rngs=rngs, phase=phase)
        outputs = {"logits": logits.reshape(B, T, *logits.shape[1:])}
        if train:
            outputs["weight_penalty"] = kernel_penalty(variables["params"][part])
        return outputs, collections

    # ----- training -----------------------------------------------------------------------

    def loss_fn(
        self, outputs: Outputs, batch: Batch, *, step: jax.Array | int, phase: str = "default"
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross entropy of the hardest quarter of pixels, summed over images, plus weight decay.

        Targets are reduced to the logits' size by nearest neighbour.
        """
        labels = jnp.asarray(batch["masks"])
        flags = {k: jnp.asarray(batch[k]) for k in ("valid", "has_mask") if k in batch}
        target, weights = masks.binary_target(labels), masks.pixel_weights(labels, **flags)
        if phase == "teacher" and "flow_valid" in batch:
            weights = weights * jnp.asarray(batch["flow_valid"])[..., None, None]
        cross_entropy = self._cross_entropy(outputs["logits"], target, weights)
        terms = {"cross_entropy": cross_entropy}
        if "weight_penalty" in outputs:
            terms["weight_decay"] = self.config.weight_penalty * outputs["weight_penalty"]
        return sum(terms.values()), terms

    def _cross_entropy(self, logits: jax.Array, target: jax.Array, weights: jax.Array) -> jax.Array:
        """Summed over the images of `logits [B,T,h,w,2]`, `target` and `weights [B,T,H,W]`."""
        size = logits.shape[2:4]
        small = resize_nearest(jnp.stack([target, weights], axis=-1), size)
        per_image = bootstrapped_cross_entropy(
            logits.reshape(-1, *logits.shape[2:]),
            small[..., 0].reshape(-1, *size),
            small[..., 1].reshape(-1, *size),
            fraction=self.config.hard_fraction,
        )
        return jnp.sum(per_image)

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """First the student, then the teacher, whose streams both start as the student's trunk."""
        student, teacher = (self.parameter_groups[name] for name in ("student", "teacher"))
        return (
            Stage(
                "student",
                int(config.model.student_steps),
                (Phase("student", "default", frozen=teacher),),
            ),
            Stage(
                "teacher",
                int(config.model.teacher_steps),
                (Phase("teacher", "flow", frozen=student),),
                optim=tuple((k, v) for k, v in (("lr", float(config.model.teacher_lr)),) if v),
            ),
        )

    def enter_stage(self, name: str, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Before the teacher's stage its streams become copies of the student's trunk."""
        if name != "teacher" or not self.config.teacher_from_student:
            return variables
        return teacher_from_student(variables)

    # ----- video --------------------------------------------------------------------------

    def probabilities(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Foreground probability `[B,T,H,W]`: squashed at the logits' size, then enlarged."""
        probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)[..., 1:]
        return resize_bilinear(probs, size)[..., 0]

    def teacher_probability(
        self, variables: Mapping[str, Any], batch: Batch, phase: str = "teacher"
    ) -> jax.Array:
        """What the teacher holds for the moving object, `[B,T,H,W]`."""
        outputs, _ = self.apply(variables, batch, train=False, phase=phase)
        return self.probabilities(outputs["logits"], batch["frames"].shape[2:4])

    def teach(self, variables: Mapping[str, Any], batch: Batch) -> dict[str, jax.Array]:
        """Pseudo-labels of the frames a video teaches with.

        Args:
          variables: those of the video, in the mode `self` with the adapted student.
          batch: `frames [B,T,H,W,3]` and, but for the mode `self`, `flow [B,T,H,W,2]`.

        Returns:
          `target` and `weights` `[B,T,H,W]`, and `usable`, whether there is any object in them.
        """
        config = self.config
        phase = "student" if config.mode == "self" else "teacher"
        q = stretch(self.teacher_probability(variables, batch, phase))
        if config.mode == "teachcont":
            return {"target": q, "weights": jnp.ones_like(q), "usable": jnp.any(q > 0)}
        label, usable = confident_labels(
            q,
            threshold=config.adapt_threshold,
            erosion=config.erosion,
            negative_distance=config.negative_distance,
        )
        flat = label.reshape(-1, *label.shape[2:])
        weights = masks.pixel_weights(flat).reshape(label.shape) * usable[..., None, None]
        return {
            "target": (label == 1).astype(jnp.float32),
            "weights": weights,
            "usable": jnp.any(usable),
        }

    def adaptation_loss(
        self, variables: Mapping[str, Any], batch: Batch, targets: Mapping[str, jax.Array]
    ) -> jax.Array:
        """Loss of the student on its pseudo-labels; BatchNorm keeps its statistics."""
        outputs, _ = self.apply(
            variables, {"frames": batch["frames"]}, train=False, phase="student"
        )
        loss = self._cross_entropy(outputs["logits"], targets["target"], targets["weights"])
        decay = self.config.weight_penalty * kernel_penalty(variables["params"]["student"])
        return self.config.adapt_loss_scale * (loss + decay)


# ----- pseudo-labels --------------------------------------------------------------------------


def stretch(q: jax.Array) -> jax.Array:
    """Probabilities `[...,H,W]` stretched to [0,1] frame by frame; a constant frame becomes 0."""
    low, high = q.min(axis=(-2, -1), keepdims=True), q.max(axis=(-2, -1), keepdims=True)
    return (q - low) / jnp.where(high > low, high - low, 1.0)


def confident_labels(
    q: jax.Array, *, threshold: float = 0.8, erosion: int = 15, negative_distance: float = 220.0
) -> tuple[jax.Array, jax.Array]:
    """Foreground, far background, and void between them.

    Foreground is where `q` exceeds the threshold. Background is what lies further than
    `negative_distance` pixels from the eroded foreground (erosion matters nowhere else).

    Args:
      q: `[...,H,W]` in [0,1].
      erosion: side of the window in pixels.

    Returns:
      labels uint8 `[...,H,W]` (1, 0, 255), and whether anything was left by the erosion, `[...]`;
      where nothing was, the frame must not teach.
    """
    confident = q > threshold
    core = erode(confident, erosion)
    far = distance_to(core) > negative_distance
    label = jnp.where(confident, 1, jnp.where(far, 0, 255)).astype(jnp.uint8)
    return label, jnp.any(core, axis=(-2, -1))


# ----- weights and augmentation ---------------------------------------------------------------


def kernel_penalty(params: Any) -> jax.Array:
    """`sum of ||W||^2 / 2` over convolution kernels; neither biases nor BatchNorm."""
    kernels = [x for x in jax.tree.leaves(params) if x.ndim > 1]
    return 0.5 * sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in kernels)


def teacher_from_student(variables: Mapping[str, Any]) -> Variables:
    """Both streams and the head of the teacher as copies of the student's."""
    new = {}
    for collection, tree in variables.items():
        student = tree["student"]
        teacher = {
            "appearance": student["trunk"],
            "motion": student["trunk"],
            "head": student["head"],
        }
        new[collection] = {**tree, "teacher": jax.tree.map(jnp.copy, teacher)}
    return Variables(new, meta=getattr(variables, "meta", {}))


def random_gamma(key: jax.Array, frames: jax.Array, amount: float) -> jax.Array:
    """Frames `[B,T,H,W,3]` 0..255 to a random power per clip; float32.

    `gamma = log(1/2 + u/sqrt 2) / log(1/2 - u/sqrt 2)` with u uniform in [-amount, amount].
    """
    u = jax.random.uniform(key, (frames.shape[0],), minval=-amount, maxval=amount) / jnp.sqrt(2.0)
    gamma = jnp.log(0.5 + u) / jnp.log(0.5 - u)
    scaled = jnp.maximum(frames.astype(jnp.float32) / 255.0, 1e-6)
    brighter = 255.0 * scaled ** gamma[:, None, None, None, None]
    return jnp.where(frames > 0, brighter, 0.0)
