"""PixelDodge: stay clear of what flies about; +0.1 for every step, the end when hit."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from uvos_jax.errors import ConfigError
from uvos_jax.synthetic.environments.core import (
    Canvas,
    Environment,
    Things,
    bounced,
    rounded,
    stack_things,
)

PLAYER = 7.0
PLAYER_SPEED = 2.0
SIDES = (5.0, 9.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Game:
    """`player [2]`, `mover`, `velocity` `[n,2]` (upper left corners), `survived`."""

    player: jax.Array
    mover: jax.Array
    velocity: jax.Array
    survived: jax.Array


@dataclasses.dataclass(frozen=True)
class PixelDodge(Environment):
    """Actions: stay, up, down, left, right.

    Attributes:
      movers: 4 to 8, of sides 5 to 9.
    """

    actions: ClassVar[int] = 5
    action_names: ClassVar[tuple[str, ...]] = ("stay", "up", "down", "left", "right")

    max_steps: int = 500
    movers: int = 4

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.movers <= 8:
            raise ConfigError(f"environment 'dodge': movers must be 1 to 8, got {self.movers}")

    @property
    def count(self) -> int:
        return self.movers + 2

    @property
    def _sides(self) -> tuple[int, ...]:
        low, high = SIDES
        return tuple(self.px(low + (3 * i) % (high - low + 1)) for i in range(self.movers))

    def begin(self, key: jax.Array) -> Game:
        u = jax.random.uniform(key, (4, self.movers))
        # on a ring about the player, so that no episode ends as it starts
        angle = 2 * jnp.pi * u[0]
        ring = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        middle = (self.size - self.px(PLAYER)) / 2
        mover = middle + (0.33 + 0.1 * u[1][:, None]) * self.size * ring
        heading = 2 * jnp.pi * u[2]
        speed = (1.0 + 1.5 * u[3]) * self.speed
        return Game(
            player=jnp.full((2,), middle),
            mover=jnp.maximum(mover, jnp.asarray([self.top, 0.0])),
            velocity=speed[:, None] * jnp.stack([jnp.sin(heading), jnp.cos(heading)], axis=-1),
            survived=jnp.zeros((), jnp.int32),
        )

    def play(self, key: jax.Array, game: Game, action: jax.Array) -> tuple[Any, Any, Any]:
        side = self.px(PLAYER)
        moves = jnp.asarray([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], jnp.float32)
        low = jnp.asarray([self.top, 0.0], jnp.float32)
        player = game.player + moves[action] * PLAYER_SPEED * self.speed
        player = jnp.clip(player, low, self.size - side)
        sides = jnp.asarray(self._sides, jnp.float32)[:, None]
        mover, velocity = bounced(game.mover, game.velocity, low, self.size - sides)
        gap = jnp.maximum(mover - (player + side), player - (mover + sides))
        hit = jnp.any(jnp.all(gap < 0, axis=-1))
        new = Game(player, mover, velocity, game.survived + 1)
        return new, jnp.float32(0.1), hit

    def things(self, game: Game) -> Things:
        return stack_things(
            (rounded(game.player), True, 0),
            (rounded(game.mover), True, 0),
            ((0, 0), True, game.survived // 10),
        )

    def paint(self, game: Game, canvas: Canvas) -> None:
        at = self.things(game).position
        canvas.score(game.survived // 10, self.count)
        for i, side in enumerate(self._sides):
            canvas.box(at[1 + i], (side, side), 130.0 + 12.0 * i, 2 + i)
        side = self.px(PLAYER)
        canvas.box(at[0], (side, side), 250.0, 1)
