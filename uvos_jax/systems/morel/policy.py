"""The actor-critic of stage 2: one path from the segmenter, one that learns what stands still.

`h1 = encoder(x)`, transferred from stage 1; `h2 = static_encoder(x)`, of the same form and fresh;
`h = ReLU(W [h1, h2])`; from `h` come the logits of the actions and the value. The decoder and the
heads of motion look at `h1` alone and serve the joint loss only; acting does not need them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from uvos_jax.errors import CheckpointError, ConfigError
from uvos_jax.systems.morel.segment import Encoder, MaskDecoder, MotionHeads, decode, dense
from uvos_jax.types import Outputs

#: Parts that a segmenter and a policy share, under the same names.
SHARED = ("encoder", "decoder", "motion")


class ActorCritic(nn.Module):
    """Grey pairs `[B,H,W,2]` in [0,1] to action logits and value.

    Attributes:
      actions: number of actions.
      extra_path: False leaves out the static path: `h = h1`, as in a plain actor-critic.
      segments: whether the decoder and the heads of motion exist.
    """

    actions: int
    size: tuple[int, int]
    convs: tuple[tuple[int, int, int], ...] = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
    embedding: int = 512
    channels: int = 24
    objects: int = 20
    camera: bool = True
    flow_scale: float = 0.01
    extra_path: bool = True
    segments: bool = True
    dtype: Any = jnp.float32

    def setup(self):
        self.encoder = Encoder(self.convs, self.embedding, self.dtype)
        if self.segments:
            self.decoder = MaskDecoder(self.size, self.objects, self.channels, self.dtype)
            self.motion = MotionHeads(self.objects, self.camera)
        if self.extra_path:
            self.static_encoder = Encoder(self.convs, self.embedding, self.dtype)
            self.extra_path_fc = dense(self.embedding, np.sqrt(2), self.dtype, None)
        self.pi = dense(self.actions, 0.01, jnp.float32, None)
        self.v = dense(1, 1.0, jnp.float32, None)

    def __call__(
        self, pairs: jax.Array, *, with_segments: bool = False
    ) -> tuple[jax.Array, jax.Array, Outputs]:
        """Action logits `[B,A]`, values `[B]`, both float32, and what the segmenter sees.

        Args:
          with_segments: also decode masks and motion (`segment.decode`); else an empty dict.

        Raises:
          ConfigError: masks were asked for and the network has no decoder.
        """
        if with_segments and not self.segments:
            raise ConfigError(
                "this policy has no mask decoder: build it with segments=True, or leave the joint "
                "loss out (rl.joint_weight=0)"
            )
        h1 = h = self.encoder(pairs)
        if self.extra_path:
            both = jnp.concatenate([h1, self.static_encoder(pairs)], axis=-1)
            h = nn.relu(self.extra_path_fc(both))
        h = h.astype(jnp.float32)
        logits, value = self.pi(h), self.v(h)[..., 0]
        if not with_segments:
            return logits, value, {}
        return logits, value, decode(self.decoder, self.motion, h1, pairs, self.flow_scale)


def make_policy(
    config: Any, actions: int, *, extra_path: bool = True, segments: bool = True
) -> ActorCritic:
    """The actor-critic that fits a segmenter built from the `model` section `config`."""
    return ActorCritic(
        actions=actions,
        size=tuple(config.input_size),
        convs=tuple(tuple(c) for c in config.convs),
        embedding=config.embedding,
        channels=config.channels,
        objects=config.objects,
        camera=config.camera,
        flow_scale=config.flow_scale,
        extra_path=extra_path,
        segments=segments,
        dtype=jnp.dtype(config.get("compute_dtype", "float32") or "float32"),
    )


def init_policy(policy: ActorCritic, rng: jax.Array) -> dict[str, Any]:
    """Fresh parameters."""
    pairs = jnp.zeros((1, *policy.size, 2), jnp.float32)
    return policy.init(rng, pairs, with_segments=policy.segments)["params"]


def transfer(policy: Mapping[str, Any], segmenter: Mapping[str, Any]) -> dict[str, Any]:
    """A policy's parameters with encoder, decoder and heads of motion from a segmenter's.

    Raises:
      CheckpointError: a part is missing, or was made for other sizes.
    """
    moved = dict(policy)
    for part in SHARED:
        if part not in policy:
            continue
        ours = policy[part]
        theirs = segmenter.get(part)
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (ours, theirs)]
        if theirs is None or shapes[0] != shapes[1]:
            raise CheckpointError(
                f"the segmenter's {part} does not fit the policy's: expected {shapes[0]}, got "
                f"{shapes[1]}; train both with the same model section"
            )
        moved[part] = jax.tree.map(jnp.asarray, theirs)
    return moved


def segmenter_of(policy: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a policy that make a segmenter.

    Raises:
      CheckpointError: the policy has no decoder.
    """
    missing = [part for part in SHARED if part not in policy]
    if missing:
        raise CheckpointError(
            f"the policy has no {', '.join(missing)}: only one trained with the joint loss sees "
            "masks"
        )
    return {part: policy[part] for part in SHARED}
