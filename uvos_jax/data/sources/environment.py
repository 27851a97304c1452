"""Random play of a pixel environment as a source of clips."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.errors import DataError
from uvos_jax.synthetic.environments import Environment, make_environment, moving_pixels


class EnvironmentSource:
    """Clips of consecutive frames of a random policy; clip i is the same everywhere.

    A clip begins at a random step of an episode. Grey frames appear as RGB; `masks` holds the ids
    of what moves against the background. If the episode ends within a clip, its last frame is
    repeated and `valid` is False there.

    Args:
      env: name of an environment of `uvos_jax.synthetic.environments`.
      size: (H, W), equal. clip_len: frames.
      warmup: a clip begins after 0 to this many steps.
      length: number of different clips.
      env_fields: further fields of the environment.

    Raises:
      ConfigError: no such environment or field. DataError: frames are not square.
    """

    ACCEPTS: ClassVar[frozenset[str]] = frozenset({"clip_len", "size"})

    def __init__(
        self,
        *,
        env: str = "catch",
        size: tuple[int, int] = (84, 84),
        clip_len: int = 2,
        warmup: int = 100,
        length: int = 100_000,
        seed: int = 0,
        env_fields: Any = (),
    ):
        if size[0] != size[1]:
            raise DataError(
                f"environments have square frames, data.size is {tuple(size)}: give equal sides"
            )
        self.env = make_environment(env, size=size[0], **dict(env_fields))
        self.clip_len, self.warmup = clip_len, warmup
        self.length, self.seed = length, seed

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Clip `index`; nothing else is random."""
        return self[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -self.length <= index < self.length:
            raise IndexError(f"clip {index} of {self.length} of an environment")
        first = np.int32(index % self.length)
        return {k: v[0] for k, v in jax.device_get(self.render(self.seed, first, 1)).items()}

    def render(self, seed: int, first: int, batch_size: int) -> dict[str, jax.Array]:
        """Clips `first`, ... of the set `seed` in one compiled call; there are `length` of them."""
        return _render(
            np.uint32(seed), np.int32(first), batch_size, self.env, self.clip_len, self.warmup,
            self.length,
        )  # fmt: skip


@partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def _render(
    seed: jax.Array, first: jax.Array, batch_size: int, env: Environment, clip_len: int,
    warmup: int, length: int,
) -> dict[str, jax.Array]:  # fmt: skip
    indices = (first + jnp.arange(batch_size)) % length
    key = jax.random.key(seed)
    clips = jax.vmap(lambda i: _clip(jax.random.fold_in(key, i), env, clip_len, warmup))(indices)
    return {**clips, "example_id": indices.astype(jnp.int32)}


def _clip(key: jax.Array, env: Environment, clip_len: int, warmup: int) -> dict[str, jax.Array]:
    of_start, of_length, of_play, of_clip = jax.random.split(key, 4)

    def random_action(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        of_action, of_step = jax.random.split(key)
        return jax.random.randint(of_action, (), 0, env.actions), of_step

    def play(i: jax.Array, carry: Any) -> Any:
        action, key = random_action(jax.random.fold_in(of_play, i))
        return env.advance(key, *carry, action)[:2]

    steps = jax.random.randint(of_length, (), 0, warmup + 1)
    start = env.begin(of_start), jnp.zeros((), jnp.int32)
    game, time = jax.lax.fori_loop(0, steps, play, start)
    state = env.start(game, time)

    def step(carry: Any, key: jax.Array) -> Any:
        state, ended = carry
        action, key = random_action(key)
        new, _, _, done, info = env.step(key, state, action)
        ended = ended | done
        state = jax.tree.map(lambda a, b: jnp.where(ended, a, b), state, new)
        # of an episode that has ended, the ids and motions of the new one mean nothing
        masks = [jnp.where(ended, 0, moving_pixels(ids, info)) for ids in
                 (info.previous_ids, info.ids)]  # fmt: skip
        return (state, ended), (state.frames[..., -1], ended, *masks)

    keys = jax.random.split(of_clip, max(clip_len - 1, 1))
    _, (frames, ended, before, after) = jax.lax.scan(step, (state, jnp.zeros((), bool)), keys)
    frames = jnp.concatenate([state.frames[None, ..., -1], frames])[:clip_len]
    masks = jnp.concatenate([before[:1], after])[:clip_len]
    valid = jnp.concatenate([jnp.ones((1,), bool), ~ended])[:clip_len]
    return {
        "frames": jnp.broadcast_to(frames[..., None], (*frames.shape, 3)),
        "masks": masks.astype(jnp.uint8),
        "valid": valid,
        "has_mask": jnp.ones((clip_len,), bool),
    }
