"""SfM-Net: structure and motion from video (Vijayanarasimhan, Ricco, Schmid, Sukthankar,
Fragkiadaki, arXiv 1704.07804, 2017).

A structure network predicts the depth of a frame, a motion network predicts from two frames the
camera's motion and K object masks, each with a rigid motion. The depth makes a cloud of points; the
masked object motions, then the camera's, move it; its projection is the optical flow, which warps
the second frame onto the first. All of it is differentiable, so the masks of what moves can be
learned from colour alone, from camera poses, from depth, or from any of them together.

There is no official code, and no training settings or weights of losses are published: they are
ours (`configs/sfmnet.py`). From memory of the paper: BatchNorm after every convolution, the form
of the supervised terms, pivots as the mean of a softmax over a grid, the bound of the depth.
Choices of ours and how to get the paper's: `depth_activation="sigmoid"` (`relu_clip`),
`pivot_add_back=True` (False: zero motion then needs t = p), `pixel_offset=0.5` (0),
`rotation="tanh"` (`clip`; also `tanh_pi`), `up="depth_to_space"` (`deconv` as in
reimplementations), the colour loss over pixels that stay inside, zero-initialised motion heads.
The mask of a video is ours too: an object counts as far as its own flow is faster than `speed`
pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from uvos_jax.errors import ConfigError, DataError
from uvos_jax.losses import geometry as losses
from uvos_jax.losses.masks import pixel_weights, weighted_mean
from uvos_jax.modules.layers import Conv, batch_norm
from uvos_jax.ops import geometry as geo
from uvos_jax.ops.odds import log_odds
from uvos_jax.ops.warp import backward_warp, pixel_grid
from uvos_jax.registry import register
from uvos_jax.systems.base import System
from uvos_jax.types import Batch, ModelCard, ModelSpec, Outputs, Phase, Stage, State, Variables

NORMS = ("bn", "gn", "none")
UPS = ("depth_to_space", "deconv")
DEPTH_ACTIVATIONS = ("sigmoid", "relu_clip")
ROTATIONS = ("tanh", "clip", "tanh_pi")
#: Terms of the loss and the batch keys they need beyond frames.
TERMS: dict[str, tuple[str, ...]] = {
    "color": (),
    "forward_backward": (),
    "smooth_flow": (),
    "smooth_motion": (),
    "smooth_depth": (),
    "small_motion": (),
    "camera_translation": ("camera",),
    "camera_rotation": ("camera",),
    "depth": ("depth",),
    "flow": ("flow",),
    "masks": ("masks",),
}
#: Depths are divided by this where they meet other terms.
DEPTH_UNIT = 100.0


class ConvDeconv(nn.Module):
    """Encoder of six stages and decoder of five with skip connections (figure 2 of the paper).

    Attributes:
      widths: channels per stage; stages after the first halve the size.
      norm: `bn`, `gn` (8 groups) or `none`.
      up: how maps grow: a convolution to four times the channels and a pixel shuffle, or a
        transposed convolution; then the skip is joined and convolved.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    norm: str = "bn"
    up: str = "depth_to_space"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """`[B,H,W,C]` to a map `[B,H,W,widths[0]]` and the embedding `[B,H/32,W/32,widths[-1]]`."""

        def block(x: jax.Array, features: int, stride: int, name: str) -> jax.Array:
            bias = self.norm == "none"
            x = Conv(features, 3, stride, use_bias=bias, dtype=self.dtype, name=f"{name}_conv")(x)
            if self.norm == "bn":
                x = batch_norm(train=train, dtype=self.dtype, name=f"{name}_norm")(x)
            elif self.norm == "gn":
                groups = 8 if features % 8 == 0 else 1
                x = nn.GroupNorm(groups, dtype=self.dtype, name=f"{name}_norm")(x)
            return nn.relu(x)

        skips = []
        for i, width in enumerate(self.widths, start=1):
            if i > 1:
                skips.append(x)
                x = block(x, width, 2, f"e{i}_1")
            x = block(x, width, 1, f"e{i}")
        embedding = x
        for i in range(len(self.widths) - 1, 0, -1):
            width, skip = self.widths[i - 1], skips[i - 1]
            if self.up == "depth_to_space":
                x = block(x, 4 * width, 1, f"up{i}")
                B, h, w, _ = x.shape
                x = x.reshape(B, h, w, 2, 2, width).swapaxes(2, 3).reshape(B, 2 * h, 2 * w, width)
            else:
                x = nn.ConvTranspose(width, (3, 3), (2, 2), dtype=self.dtype, name=f"up{i}_deconv")(
                    x
                )
                x = nn.relu(x)
            x = block(jnp.concatenate([x, skip], axis=-1), width, 1, f"d{i}")
        return x, embedding


class StructureNetwork(nn.Module):
    """A frame `[B,H,W,3]` to its depth `[B,H,W]`, float32 between 1 and `depth_limit`."""

    trunk: Mapping[str, Any]
    activation: str = "sigmoid"
    depth_limit: float = 100.0
    first_depth: float = 10.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, frames: jax.Array, train: bool) -> jax.Array:
        x, _ = ConvDeconv(**self.trunk, dtype=self.dtype, name="trunk")(frames, train)
        x = Conv(1, 1, use_bias=True, dtype=self.dtype, name="depth")(x)
        x = x[..., 0].astype(jnp.float32)
        if self.activation == "relu_clip":
            return jnp.minimum(nn.relu(x) + 1.0, self.depth_limit)
        share = (self.first_depth - 1.0) / (self.depth_limit - 1.0)
        start = jnp.log(share / (1.0 - share))  # depth of a silent network: first_depth
        return 1.0 + (self.depth_limit - 1.0) * nn.sigmoid(x + start)


class MotionNetwork(nn.Module):
    """Two frames `[B,H,W,6]` to mask logits and motions, float32.

    Attributes:
      objects: K. hidden: width of the two dense layers.
      rotation: how outputs become sines of Euler angles: a tenth's tanh, a clip to [-1,1], or
        angles `pi tanh`.
      pivot_grid, pivot_range: cells (rows, columns) over [-x, x] and [-y, y], at Z = 1.
      mask_bias: start of the mask logits.
    """

    trunk: Mapping[str, Any]
    objects: int = 3
    hidden: int = 512
    rotation: str = "tanh"
    pivot_grid: tuple[int, int] = (20, 30)
    pivot_range: tuple[float, float] = (30.0, 20.0)
    mask_bias: float = -2.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pairs: jax.Array, train: bool) -> Outputs:
        """`mask_logits [B,H,W,K]`, and for `camera` and `object`: `_R [B(,K),3,3]`, `_t`, `_p`."""
        K, rows, columns = self.objects, *self.pivot_grid
        x, embedding = ConvDeconv(**self.trunk, dtype=self.dtype, name="trunk")(pairs, train)
        mask = Conv(K, 1, use_bias=True, dtype=self.dtype, name="mask")(x).astype(jnp.float32)
        hidden = embedding.reshape(embedding.shape[0], -1)
        for i in (1, 2):
            hidden = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name=f"fc{i}")(hidden))
        hidden = hidden.astype(jnp.float32)

        def head(width: int, name: str) -> jax.Array:
            zeros = nn.initializers.zeros
            return nn.Dense(width, kernel_init=zeros, bias_init=zeros, name=name)(hidden)

        grid = jnp.stack(
            [
                *jnp.meshgrid(
                    jnp.linspace(-self.pivot_range[0], self.pivot_range[0], columns),
                    jnp.linspace(-self.pivot_range[1], self.pivot_range[1], rows),
                ),
                jnp.ones((rows, columns)),
            ],
            axis=-1,
        ).reshape(-1, 3)
        outputs = {"mask_logits": mask + self.mask_bias}
        for name, count in (("camera", 1), ("object", K)):
            shape = (-1, count, 3)
            heat = head(count * rows * columns, f"{name}_p").reshape(-1, count, rows * columns)
            motion = {
                "R": self.rotations(head(3 * count, f"{name}_r").reshape(shape)),
                "t": head(3 * count, f"{name}_t").reshape(shape),
                "p": jnp.einsum("bkg,gd->bkd", nn.softmax(heat), grid, precision="highest"),
            }
            for key, value in motion.items():
                outputs[f"{name}_{key}"] = value[:, 0] if name == "camera" else value
        return outputs

    def rotations(self, x: jax.Array) -> jax.Array:
        """Rotation matrices of raw outputs `[...,3]`."""
        if self.rotation == "tanh_pi":
            angles = jnp.pi * jnp.tanh(x)
            return geo.euler_rotation(jnp.sin(angles), jnp.cos(angles))
        return geo.euler_rotation(
            jnp.tanh(0.1 * x) if self.rotation == "tanh" else jnp.clip(x, -1.0, 1.0)
        )


class SfMNetwork(nn.Module):
    """Both networks and the composition of what they see.

    Takes frames in [0,1] and can be used alone: `network(frame0, frame1, intrinsics)`.

    Attributes:
      pivot_add_back: `R (x - p) + p + t`; False leaves out `+ p`, as the paper writes it.
      pixel_offset: of pixel positions, see `uvos_jax.ops.geometry`.
    """

    structure: Mapping[str, Any]
    motion: Mapping[str, Any]
    pivot_add_back: bool = True
    pixel_offset: float = 0.5
    dtype: Any = jnp.float32

    def setup(self):
        self.structure_network = StructureNetwork(**self.structure, dtype=self.dtype)
        self.motion_network = MotionNetwork(**self.motion, dtype=self.dtype)

    def __call__(
        self,
        frame0: jax.Array,
        frame1: jax.Array,
        intrinsics: jax.Array,
        *,
        train: bool = False,
        sharpness: jax.Array | float = 1.0,
    ) -> Outputs:
        """From `frame0 [B,H,W,3]` to `frame1`.

        Args:
          intrinsics: `[B,4]`.
          sharpness: factor on mask logits.

        Returns:
          `depth [B,H,W]`, `points [B,H,W,3]`, `object_masks [B,H,W,K]`, `mask_logits` (sharpened),
          `object_R [B,K,3,3]`, `object_t [B,K,3]` and `camera [B,3,4]` with pivots folded in,
          `displacements [B,H,W,K,3]`, `moved [B,H,W,3]`, `flow [B,H,W,2]` in pixels; all float32.
        """
        depth = self.structure_network(frame0, train)
        found = self.motion_network(jnp.concatenate([frame0, frame1], axis=-1), train)
        points = geo.back_project(depth, intrinsics, self.pixel_offset)
        logits = sharpness * found["mask_logits"]
        object_masks = nn.sigmoid(logits)
        fold = {"add_back": self.pivot_add_back}
        object_t = geo.fold_pivot(found["object_R"], found["object_t"], found["object_p"], **fold)
        camera_t = geo.fold_pivot(found["camera_R"], found["camera_t"], found["camera_p"], **fold)
        displacements = geo.object_displacements(points, object_masks, found["object_R"], object_t)
        moved = points + jnp.sum(displacements, axis=3)
        moved = geo.rotate(found["camera_R"][:, None, None], moved) + camera_t[:, None, None]
        return {
            "depth": depth,
            "points": points,
            "mask_logits": logits,
            "object_masks": object_masks,
            "object_R": found["object_R"],
            "object_t": object_t,
            "camera": jnp.concatenate([found["camera_R"], camera_t[..., None]], axis=-1),
            "displacements": displacements,
            "moved": moved,
            "flow": geo.flow_of_points(moved, intrinsics, self.pixel_offset),
        }


@register("sfmnet")
class SfMNet(System):
    """SfM-Net on clips: every frame paired with the next one, the last with the one before it.

    With `causal=True` a frame is paired with its predecessor instead (the first with itself, in
    which nothing moves), so that streams work; flow and camera then lead to the past.
    """

    card = ModelCard(
        title="SfM-Net",
        year=2017,
        venue="arXiv",
        official_weights="none published",
        parity="formulas checked against slow oracles; no official code exists",
        learned="J 0.00 to 0.41, flow error to 0.40 of a guess in 4000 steps",
    )
    parameter_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "structure": (r"(^|/)structure_network/",),
        "motion": (r"(^|/)motion_network/",),
    }
    extras: ClassVar[tuple[str, ...]] = ("depth", "flow", "object_masks", "camera")

    def __init__(self, config: Any):
        super().__init__(config)
        for field, allowed in (
            ("norm", NORMS),
            ("up", UPS),
            ("depth_activation", DEPTH_ACTIVATIONS),
            ("rotation", ROTATIONS),
        ):
            if config[field] not in allowed:
                raise ConfigError(
                    f"config field model.{field} is {config[field]!r}: use one of {allowed}"
                )
        if not 1 <= config.objects <= 4:
            raise ConfigError(f"config field model.objects must be 1 to 4, got {config.objects}")
        weights = dict(config.term_weights) | dict(config.get("loss_weights", {}) or {})
        unknown = sorted(set(weights) - set(TERMS))
        if unknown:
            raise ConfigError(
                f"config field model.term_weights has {unknown}: the terms are {tuple(TERMS)}"
            )
        self.weights = {name: float(weights.get(name, 0.0)) for name in TERMS}
        self._check_size(config)
        self.spec = ModelSpec(
            name="sfmnet",
            paper="Vijayanarasimhan, Ricco, Schmid, Sukthankar, Fragkiadaki: SfM-Net: Learning of "
            "Structure and Motion from Video, arXiv 1704.07804, 2017",
            temporal="pair",
            clip_len=2,
            input_size=tuple(config.input_size),
            stride=1,
            normalization="unit",
            outputs=("logits", "depth", "flow", "camera", "object_masks"),
            causal=bool(config.causal),
        )
        trunk = {"widths": tuple(config.widths), "norm": config.norm, "up": config.up}
        self.module = SfMNetwork(
            structure={
                "trunk": trunk,
                "activation": config.depth_activation,
                "depth_limit": config.depth_limit,
                "first_depth": config.first_depth,
            },
            motion={
                "trunk": trunk,
                "objects": config.objects,
                "hidden": config.hidden,
                "rotation": config.rotation,
                "pivot_grid": tuple(config.pivot_grid),
                "pivot_range": tuple(config.pivot_range),
                "mask_bias": config.mask_bias,
            },
            pivot_add_back=config.pivot_add_back,
            pixel_offset=config.pixel_offset,
            dtype=self.compute_dtype,
        )

    @staticmethod
    def _check_size(config: Any) -> None:
        unit = 2 ** (len(config.widths) - 1)
        size = tuple(config.input_size)
        if len(size) != 2 or any(n % unit for n in size):
            raise ConfigError(
                f"config field model.input_size is {size}: both sides must be multiples of {unit}"
            )

    def example_batch(self, batch_size: int = 1, size: tuple[int, int] | None = None) -> dict:
        shapes = super().example_batch(batch_size, size)
        B, T, H, W, _ = shapes["frames"].shape
        extra = {
            "flow": ((B, T, H, W, 2), jnp.float32),
            "flow_valid": ((B, T), jnp.bool_),
            "depth": ((B, T, H, W), jnp.float32),
            "camera": ((B, T, 3, 4), jnp.float32),
            "camera_valid": ((B, T), jnp.bool_),
        }
        return shapes | {k: jax.ShapeDtypeStruct(*v) for k, v in extra.items()}

    # ----- network ------------------------------------------------------------------------

    def init(self, rng: jax.Array, batch_shapes: Mapping[str, Any] | None = None) -> Variables:
        shape = (1, *self.spec.input_size, 3)

        def build(key: jax.Array) -> Any:
            frame = jnp.zeros(shape, self.compute_dtype)
            return self.module.init(key, frame, frame, geo.default_intrinsics(1), train=False)

        return Variables(jax.jit(build)(rng))

    def apply(
        self,
        variables: Mapping[str, Any],
        batch: Batch,
        *,
        train: bool,
        rngs: Mapping[str, jax.Array] | None = None,
        phase: str = "default",
    ) -> tuple[Outputs, dict[str, Any]]:
        """Every frame of the clip with its partner: the next one, for the last the one before.

        In a pair the two directions pass the networks as one batch.

        Returns:
          outputs of `SfMNetwork` with a time axis, and `logits [B,T,H,W,1]`.
        """
        frames = self.normalize(batch["frames"])
        T = frames.shape[1]
        partner = [min(t + 1, T - 1) for t in range(T)]
        partner[-1] = max(T - 2, 0)
        return self._run(variables, frames, frames[:, jnp.asarray(partner)], batch, train)

    def _run(
        self, variables: Any, first: jax.Array, second: jax.Array, batch: Batch, train: bool
    ) -> tuple[Outputs, dict[str, Any]]:
        B, T, H, W, _ = first.shape
        intrinsics = batch.get("intrinsics")
        if intrinsics is None:
            intrinsics = jnp.tile(jnp.asarray(self.config.intrinsics, jnp.float32), (B, 1))
        intrinsics = jnp.repeat(jnp.asarray(intrinsics), T, axis=0)
        train = train and not self.config.get("freeze_bn", False)
        arguments = (
            dict(variables), first.reshape(B * T, H, W, 3), second.reshape(B * T, H, W, 3),
            intrinsics,
        )  # fmt: skip
        options = {"train": train, "sharpness": self.config.sharpness}
        collections: dict[str, Any] = {}
        if train:
            outputs, updates = self.module.apply(*arguments, mutable=["batch_stats"], **options)
            collections = dict(updates)
        else:
            outputs = self.module.apply(*arguments, **options)
        probs = self.moving_probability(outputs, intrinsics)
        outputs["logits"] = log_odds(probs, edge=1e-4)[..., None].astype(self.compute_dtype)
        outputs = {k: v.reshape(B, T, *v.shape[1:]) for k, v in outputs.items()}
        return {**outputs, "intrinsics": intrinsics.reshape(B, T, 4)}, collections

    def moving_probability(self, outputs: Outputs, intrinsics: jax.Array) -> jax.Array:
        """`1 - prod_k (1 - m_k min(1, s_k / speed))`, `[N,H,W]`.

        `s_k` is the mean length, over pixels with `m_k > 1/2`, of the flow that object k's motion
        makes on its own, in pixels.
        """
        offset = self.config.pixel_offset
        masks, keep = outputs["object_masks"], jnp.ones(outputs["depth"].shape, jnp.float32)
        for k in range(self.config.objects):
            moved = outputs["points"] + outputs["displacements"][..., k, :]
            speed = geo.safe_norm(geo.flow_of_points(moved, intrinsics, offset))
            chosen = (masks[..., k] > 0.5).astype(jnp.float32)
            mean = weighted_mean(speed, chosen, axis=(1, 2))
            share = jnp.minimum(1.0, mean / self.config.speed)[:, None, None]
            keep = keep * (1.0 - masks[..., k] * share)
        return 1.0 - keep

    # ----- training -----------------------------------------------------------------------

    def loss_fn(
        self, outputs: Outputs, batch: Batch, *, step: jax.Array | int, phase: str = "default"
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Weighted terms over both directions of a pair; see `TERMS` and `model.term_weights`.

        Supervised terms of flow and camera count in the direction of time only, that of depth
        wherever depth is known (> 0), that of masks where there is an annotation.

        Raises:
          DataError: a term has a weight and the batch lacks what it needs.
        """
        active = {name: weight for name, weight in self.weights.items() if weight}
        for name in active:
            for key in TERMS[name]:
                if key not in batch:
                    raise DataError(
                        f"sfmnet's loss term {name!r} needs {key!r} and the batch has "
                        f"{sorted(batch)}: use a source that gives it (raycast does), or set "
                        f"model.term_weights.{name}=0"
                    )
        B, T = outputs["depth"].shape[:2]
        if T != 2:
            raise DataError(f"sfmnet trains on pairs of frames, got clips of {T}: set clip_len=2")
        flat = {k: v.reshape(B * T, *v.shape[2:]) for k, v in outputs.items()}
        valid = jnp.asarray(batch.get("valid", jnp.ones((B, T), bool)))
        terms = {}
        for name in active:
            terms[name] = getattr(self, f"_{name}")(outputs, flat, batch, valid)
        terms = {name: self.weights[name] * value for name, value in terms.items()}
        return sum(terms.values(), jnp.zeros((), jnp.float32)), terms

    def _inside(self, flow: jax.Array, valid: jax.Array) -> jax.Array:
        """1 where `flow [N,H,W,2]` ends in the image (or less than 1/100 px beside it, so that
        rounding decides nothing where nothing moves) of a real pair."""
        H, W = flow.shape[1:3]
        target = pixel_grid(H, W) + flow
        limit = jnp.asarray([W - 1, H - 1], jnp.float32)
        inside = jnp.all((target >= -0.01) & (target <= limit + 0.01), axis=-1)
        pairs = jnp.repeat(jnp.all(valid, axis=1), 2)
        return (inside & pairs[:, None, None]).astype(jnp.float32)

    def _color(self, outputs, flat, batch, valid):
        frames = jnp.asarray(batch["frames"]).astype(jnp.float32) / 255.0
        image = frames.reshape(-1, *frames.shape[2:])
        other = frames[:, ::-1].reshape(image.shape)
        warped = backward_warp(other, flat["flow"])
        inside = self._inside(flat["flow"], valid)
        loss = losses.photometric_l1(image, warped, inside)
        share = self.config.dissimilarity
        if not share:
            return 2.0 * loss  # the sum over both directions
        structure = weighted_mean(losses.dissimilarity(image, warped), inside)
        return 2.0 * ((1.0 - share) * loss + share * structure)

    def _forward_backward(self, outputs, flat, batch, valid):
        """`|Z'' - d'(x + U, y + V)|`: the depth a point moves to is the depth found there."""
        other = outputs["depth"][:, ::-1].reshape(flat["depth"].shape)
        found = backward_warp(other[..., None], flat["flow"])[..., 0]
        gap = jnp.abs(flat["moved"][..., 2] - found) / DEPTH_UNIT
        return 2.0 * weighted_mean(gap, self._inside(flat["flow"], valid))

    def _smooth_flow(self, outputs, flat, batch, valid):
        return 2.0 * losses.first_order_smoothness(flat["flow"] / flat["flow"].shape[2])

    def _smooth_motion(self, outputs, flat, batch, valid):
        return 2.0 * losses.first_order_smoothness(flat["displacements"])

    def _smooth_depth(self, outputs, flat, batch, valid):
        return 2.0 * losses.second_order_smoothness(flat["depth"] / DEPTH_UNIT)

    def _small_motion(self, outputs, flat, batch, valid):
        """Prefers the camera as an explanation."""
        return 2.0 * jnp.mean(jnp.sum(jnp.abs(flat["displacements"]), axis=-1))

    def _camera_errors(self, outputs, batch, valid):
        camera = jnp.asarray(batch["camera"])
        counts = jnp.asarray(batch.get("camera_valid", jnp.ones(camera.shape[:2], bool)))[:, 0]
        counts = (counts & jnp.all(valid, axis=1)).astype(jnp.float32)
        # an unknown pose, which may be all zeros, must not reach the formulas
        known = counts[:, None, None] > 0
        true = jnp.where(known, camera[:, 0], jnp.eye(3, 4))
        own = outputs["camera"][:, 0]
        shift, angle = losses.pose_errors(own[..., :3], own[..., 3], true[..., :3], true[..., 3])
        return weighted_mean(shift, counts), weighted_mean(angle, counts)

    def _camera_translation(self, outputs, flat, batch, valid):
        return self._camera_errors(outputs, batch, valid)[0]

    def _camera_rotation(self, outputs, flat, batch, valid):
        return self._camera_errors(outputs, batch, valid)[1]

    def _depth(self, outputs, flat, batch, valid):
        depth = jnp.asarray(batch["depth"])
        known = ((depth > 0) & valid[..., None, None]).astype(jnp.float32)
        gap = jnp.abs(outputs["depth"] - depth)
        if self.config.log_depth_loss:
            gap = jnp.abs(jnp.log(outputs["depth"]) - jnp.log(jnp.maximum(depth, 1e-3)))
        return 2.0 * weighted_mean(gap, known)

    def _flow(self, outputs, flat, batch, valid):
        flow = jnp.asarray(batch["flow"])
        counts = jnp.asarray(batch.get("flow_valid", jnp.ones(flow.shape[:2], bool)))[:, 0]
        counts = (counts & jnp.all(valid, axis=1))[:, None, None]
        gap = jnp.sum(jnp.abs(outputs["flow"][:, 0] - flow[:, 0]), axis=-1)
        # flow of points beside or behind the camera has no bound
        gap = jnp.minimum(gap, float(flow.shape[3]))
        return weighted_mean(gap, jnp.broadcast_to(counts, gap.shape).astype(jnp.float32))

    def _masks(self, outputs, flat, batch, valid):
        labels = jnp.asarray(batch["masks"])
        has_mask = jnp.asarray(batch.get("has_mask", jnp.ones(labels.shape[:2], bool)))
        weights = pixel_weights(labels, valid, has_mask)
        return 2.0 * losses.unordered_mask_loss(
            flat["mask_logits"],
            labels.reshape(-1, *labels.shape[2:]).astype(jnp.float32),
            weights.reshape(-1, *labels.shape[2:]),
        )

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """One stage; its terms are `model.term_weights`."""
        return (Stage("train", int(config.train.total_steps), (Phase(),)),)

    # ----- video --------------------------------------------------------------------------

    def init_state(
        self, variables: Mapping[str, Any], batch_size: int, frame_size: tuple[int, int]
    ) -> State:
        """The previous frame and whether there is one, if `causal`; else `()`."""
        if not self.config.causal:
            return ()
        return {
            "frame": jnp.zeros((batch_size, *frame_size, 3), jnp.uint8),
            "seen": jnp.zeros((batch_size,), bool),
        }

    def predict(
        self, variables: Mapping[str, Any], state: State, chunk: Batch
    ) -> tuple[State, jax.Array]:
        """Probability of moving on its own, `[B,T,H,W]`."""
        state, probs, _ = self.predict_with_extras(variables, state, chunk)
        return state, probs

    def predict_with_extras(
        self, variables: Mapping[str, Any], state: State, chunk: Batch
    ) -> tuple[State, jax.Array, dict[str, jax.Array]]:
        """As `predict`, and `depth [B,T,H,W]`, `flow [B,T,H,W,2]`, `object_masks [B,T,H,W,K]`,
        `camera [B,T,3,4]` to the frame's partner."""
        if not self.config.causal:
            outputs, _ = self.apply(variables, chunk, train=False)
        else:
            frames = jnp.asarray(chunk["frames"])
            before = jnp.concatenate([state["frame"][:, None], frames[:, :-1]], axis=1)
            first = jnp.where(state["seen"][:, None, None, None], before[:, 0], frames[:, 0])
            before = before.at[:, 0].set(first)
            outputs, _ = self._run(
                variables, self.normalize(frames), self.normalize(before), chunk, False
            )
            state = {"frame": frames[:, -1], "seen": jnp.ones_like(state["seen"])}
        probs = jax.nn.sigmoid(outputs["logits"].astype(jnp.float32)[..., 0])
        return state, probs, {name: outputs[name] for name in self.extras}
