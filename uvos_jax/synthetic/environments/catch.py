"""PixelCatch: a paddle catches what falls; +1 for a catch, -1 for a miss."""

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

PADDLE = (4, 14)
PADDLE_SPEED = 3.0
RADIUS = 3.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Game:
    """`paddle` (left column), `ball`, `velocity` `[n,2]`, `birth [n]`, `dropped`, `caught`."""

    paddle: jax.Array
    ball: jax.Array
    velocity: jax.Array
    birth: jax.Array
    dropped: jax.Array
    caught: jax.Array


@dataclasses.dataclass(frozen=True)
class PixelCatch(Environment):
    """Actions: stay, left, right.

    Attributes:
      balls: 1 to 3. drops: balls per episode.
    """

    actions: ClassVar[int] = 3
    action_names: ClassVar[tuple[str, ...]] = ("stay", "left", "right")

    balls: int = 1
    drops: int = 10

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.balls <= 3:
            raise ConfigError(f"environment 'catch': balls must be 1 to 3, got {self.balls}")

    @property
    def count(self) -> int:
        return self.balls + 2

    @property
    def _paddle(self) -> tuple[int, int]:
        return tuple(self.px(n) for n in PADDLE)

    @property
    def _row(self) -> int:
        """Row of the paddle."""
        return self.size - self._paddle[0] - self.px(3)

    def _ball(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        u = jax.random.uniform(key, (3,))
        margin = RADIUS * self.unit + 1
        column = margin + u[0] * (self.size - 1 - 2 * margin)
        speed = jnp.stack([1.0 + 2.0 * u[1], 2.0 * u[2] - 1.0]) * self.speed
        return jnp.stack([self.top + margin, column]), speed

    def begin(self, key: jax.Array) -> Game:
        of_paddle, of_height, *keys = jax.random.split(key, 2 + self.balls)
        balls, speeds = jax.vmap(self._ball)(jnp.stack(keys))
        height = jax.random.uniform(of_height, (self.balls,)) * 0.4 * self.size
        zero = jnp.zeros((), jnp.int32)
        return Game(
            paddle=jax.random.uniform(of_paddle) * (self.size - self._paddle[1]),
            ball=balls.at[:, 0].add(height),
            velocity=speeds,
            birth=jnp.zeros((self.balls,), jnp.int32),
            dropped=zero,
            caught=zero,
        )

    def play(self, key: jax.Array, game: Game, action: jax.Array) -> tuple[Any, Any, Any]:
        width, radius = self._paddle[1], RADIUS * self.unit
        direction = jnp.where(action == 1, -1.0, jnp.where(action == 2, 1.0, 0.0))
        paddle = game.paddle + direction * PADDLE_SPEED * self.speed
        paddle = jnp.clip(paddle, 0.0, self.size - width)
        row = game.ball[:, 0] + game.velocity[:, 0]
        column, across = bounced(
            game.ball[:, 1], game.velocity[:, 1], radius, self.size - 1 - radius
        )
        arrived = row + radius >= self._row
        near = jnp.abs(column - (paddle + (width - 1) / 2)) <= width / 2 + radius
        caught, missed = arrived & near, arrived & ~near
        fresh, speed = jax.vmap(self._ball)(jax.random.split(key, self.balls))
        again = arrived[:, None]
        dropped = game.dropped + jnp.sum(arrived)
        new = Game(
            paddle=paddle,
            ball=jnp.where(again, fresh, jnp.stack([row, column], -1)),
            velocity=jnp.where(again, speed, game.velocity.at[:, 1].set(across)),
            birth=game.birth + arrived,
            dropped=dropped,
            caught=game.caught + jnp.sum(caught),
        )
        reward = jnp.sum(caught) - jnp.sum(missed)
        return new, reward.astype(jnp.float32), dropped >= self.drops

    def things(self, game: Game) -> Things:
        return stack_things(
            (rounded(jnp.stack([jnp.float32(self._row), game.paddle])), True, 0),
            (rounded(game.ball), True, game.birth),
            ((0, 0), True, game.caught),
        )

    def paint(self, game: Game, canvas: Canvas) -> None:
        at = self.things(game).position
        canvas.score(game.caught, self.count)
        canvas.box(at[0], self._paddle, 200.0, 1)
        for i in range(self.balls):
            canvas.disc(at[1 + i], RADIUS * self.unit, 240.0 - 25.0 * i, 2 + i)
