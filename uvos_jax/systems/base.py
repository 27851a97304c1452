"""What a system is: a linen module plus the pure functions that train it and run it on video.

A subclass sets `spec` and `module` in `__init__` and overrides what differs from the defaults
here, which suit a model that looks at single frames. All methods are pure: the same arguments give
the same result, randomness enters by `rngs`, BatchNorm state leaves by the returned collections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from uvos_jax.ops.normalize import normalize_frames
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.types import (
    Adaptation,
    Batch,
    ModelCard,
    ModelSpec,
    Outputs,
    Phase,
    Stage,
    State,
    Variables,
)


class System:
    """Base class and default behaviour of every system.

    Attributes:
      spec: what engines must know to feed this system.
      module: plain linen; takes normalised NHWC float frames and can be used alone.
      config: the `model` section of the configuration this system was built from.
    """

    spec: ModelSpec
    module: nn.Module
    #: Facts for the table of systems.
    card: ClassVar[ModelCard | None] = None
    #: Regexes of parameter paths that belong to each named learning-rate group of the paper.
    parameter_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: How parameters change while a video is segmented; None: they do not.
    adaptation: Adaptation | None = None

    #: How the system can number objects, see `uvos_jax.predict.objects`: `first_mask` (it has
    #: `follow`), `instances` (it has `number_objects`).
    object_modes: tuple[str, ...] = ()

    #: Batch keys that `loss_fn` needs beyond masks and what `spec.requires` names.
    training_requires: frozenset[str] = frozenset()

    def __init__(self, config: Any):
        self.config = config

    # ----- construction -------------------------------------------------------------------

    @property
    def compute_dtype(self) -> Any:
        """Dtype of convolutions and matrix products; parameters stay float32."""
        return jnp.dtype(getattr(self.config, "compute_dtype", "float32") or "float32")

    def example_batch(self, batch_size: int = 1, size: tuple[int, int] | None = None) -> dict:
        """Shapes and dtypes of a minimal valid batch: `jax.ShapeDtypeStruct`s, no data."""
        H, W = size or self.spec.input_size or (64, 64)
        T = self.spec.clip_len
        shapes = {"frames": jax.ShapeDtypeStruct((batch_size, T, H, W, 3), jnp.uint8)}
        if "flow" in self.spec.requires:
            ways = 4 if self.spec.flow_direction == "both" else 2
            shapes["flow"] = jax.ShapeDtypeStruct((batch_size, T, H, W, ways), jnp.float32)
        return shapes

    def init(self, rng: jax.Array, batch_shapes: Mapping[str, Any] | None = None) -> Variables:
        """Fresh variables; needs shapes only (defaults to `example_batch()`)."""
        shapes = batch_shapes or self.example_batch()

        def build(key):
            batch = {k: jnp.zeros(s.shape, s.dtype) for k, s in shapes.items()}
            keys = dict(zip(("params", "dropout"), jax.random.split(key), strict=True))
            return self.module.init(keys, *self.module_inputs(batch), **self.module_kwargs(False))

        return Variables(jax.jit(build)(rng))

    # ----- network ------------------------------------------------------------------------

    def normalize(self, frames: jax.Array) -> jax.Array:
        """uint8 RGB `[...,H,W,3]` to what the network eats, in `compute_dtype`."""
        spec = self.spec
        return normalize_frames(
            frames, spec.normalization, mean=spec.channel_mean, std=spec.channel_std
        ).astype(self.compute_dtype)

    def module_inputs(self, batch: Batch) -> tuple[jax.Array, ...]:
        """Positional arguments of `module` for `batch`."""
        return (self.normalize(batch["frames"]),)

    def module_kwargs(self, train: bool, phase: str = "default") -> dict[str, Any]:
        """Keyword arguments of `module` (static under jit)."""
        return {"train": train}

    def apply(
        self,
        variables: Mapping[str, Any],
        batch: Batch,
        *,
        train: bool,
        rngs: Mapping[str, jax.Array] | None = None,
        phase: str = "default",
    ) -> tuple[Outputs, dict[str, Any]]:
        """Runs the network on a batch of the data contract.

        Returns the outputs (`logits [B,T,h,w,K]` and extras) and the updated non-parameter
        collections: the new `batch_stats` when training, else an empty dict.
        """
        arguments = self.module_inputs(batch)
        kwargs = self.module_kwargs(train, phase)
        if train:
            outputs, updates = self.module.apply(
                dict(variables), *arguments, rngs=rngs, mutable=["batch_stats"], **kwargs
            )
            return outputs, dict(updates)
        return self.module.apply(dict(variables), *arguments, rngs=rngs, **kwargs), {}

    def loss_fn(
        self, outputs: Outputs, batch: Batch, *, step: jax.Array | int, phase: str = "default"
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Scalar loss and its named terms; honours `valid`, `has_mask` and void pixels."""
        raise NotImplementedError(f"{type(self).__name__} defines no loss")

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """The training recipe; default: one stage of `config.train.total_steps` steps."""
        return (Stage("train", int(config.train.total_steps), (Phase(),)),)

    def enter_stage(self, name: str, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Variables a stage begins with, from those the one before ended with.

        Must give the same result when applied twice: a run resumed at the border does so.
        """
        return variables

    # ----- video --------------------------------------------------------------------------

    def init_state(
        self, variables: Mapping[str, Any], batch_size: int, frame_size: tuple[int, int]
    ) -> State:
        """State before the first frame of a video that arrives as a stream; `()` if none."""
        return ()

    def prepare(self, variables: Mapping[str, Any], batch: Batch) -> State:
        """State of a `global` system from `num_references` frames sampled over a whole video.

        Args:
          batch: `frames` uint8 `[B,N,H,W,3]` at the network's input size (and what `requires`
            names for the same frames).
        """
        frames = batch["frames"]
        return self.init_state(variables, frames.shape[0], frames.shape[2:4])

    def predict(
        self, variables: Mapping[str, Any], state: State, chunk: Batch
    ) -> tuple[State, jax.Array]:
        """Foreground probabilities for a chunk at the network's input size.

        Args:
          chunk: a batch with `frames` uint8 `[B,T,H,W,3]` (T fixed) and what `requires` names.

        Returns:
          the next state and probabilities float32 `[B,T,H,W]` in [0,1].
        """
        outputs, _ = self.apply(variables, chunk, train=False)
        return state, self.probabilities(outputs["logits"], chunk["frames"].shape[2:4])

    def teach(self, variables: Mapping[str, Any], batch: Batch) -> dict[str, jax.Array]:
        """Targets made from frames of a video for `adaptation_loss`, and `usable`, a bool."""
        raise NotImplementedError(f"{type(self).__name__} does not adapt")

    def adaptation_loss(
        self, variables: Mapping[str, Any], batch: Batch, targets: Mapping[str, jax.Array]
    ) -> jax.Array:
        """Scalar that the steps of `adaptation` lower on the frames that teach."""
        raise NotImplementedError(f"{type(self).__name__} does not adapt")

    def probabilities(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Foreground probability `[B,T,H,W]` of `logits [B,T,h,w,K]`; upsampled, then squashed."""
        B, T, h, w, K = logits.shape
        full = resize_bilinear(logits.astype(jnp.float32).reshape(B * T, h, w, K), size)
        if K == 1:
            probs = jax.nn.sigmoid(full[..., 0])
        else:
            probs = 1.0 - jax.nn.softmax(full, axis=-1)[..., 0]
        return probs.reshape(B, T, *size)
