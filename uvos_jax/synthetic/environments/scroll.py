"""PixelScroll: the world scrolls by; collect discs (+1), avoid boxes (-1)."""

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
RADIUS = 3.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Game:
    """`player` (row), `ground` (columns scrolled), `scroll` (per step), `item`, `velocity` `[n,2]`
    (centres), `birth [n]`, `score`."""

    player: jax.Array
    ground: jax.Array
    scroll: jax.Array
    item: jax.Array
    velocity: jax.Array
    birth: jax.Array
    score: jax.Array


@dataclasses.dataclass(frozen=True)
class PixelScroll(Environment):
    """Actions: stay, up, down. The background moves to the left by 1 to 2 pixels a step.

    Attributes:
      items: even ones are to be collected, odd ones to be avoided.
    """

    actions: ClassVar[int] = 3
    action_names: ClassVar[tuple[str, ...]] = ("stay", "up", "down")
    scrolls: ClassVar[bool] = True

    max_steps: int = 300
    items: int = 4

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.items <= 8:
            raise ConfigError(f"environment 'scroll': items must be 1 to 8, got {self.items}")

    @property
    def count(self) -> int:
        return self.items + 2

    @property
    def _column(self) -> int:
        """Column of the player."""
        return self.size // 6

    def _item(self, key: jax.Array, scroll: jax.Array) -> tuple[jax.Array, jax.Array]:
        u = jax.random.uniform(key, (4,))
        margin = RADIUS * self.unit + 1
        row = self.top + margin + u[0] * (self.size - 1 - self.top - 2 * margin)
        column = self.size + margin + 0.5 * self.size * u[1]
        speed = jnp.stack([u[2] - 0.5, -(0.5 + u[3])]) * self.speed
        return jnp.stack([row, column]), speed.at[1].add(-scroll)

    def begin(self, key: jax.Array) -> Game:
        of_scroll, of_spread, *keys = jax.random.split(key, 2 + self.items)
        scroll = (1.0 + jax.random.uniform(of_scroll)) * self.speed
        item, velocity = jax.vmap(self._item, (0, None))(jnp.stack(keys), scroll)
        spread = jax.random.uniform(of_spread, (self.items,)) * 0.6 * self.size
        return Game(
            player=jnp.asarray(self.size / 2, jnp.float32),
            ground=jnp.zeros((), jnp.float32),
            scroll=scroll,
            item=item.at[:, 1].add(-spread),
            velocity=velocity,
            birth=jnp.zeros((self.items,), jnp.int32),
            score=jnp.zeros((), jnp.int32),
        )

    def play(self, key: jax.Array, game: Game, action: jax.Array) -> tuple[Any, Any, Any]:
        side, radius = self.px(PLAYER), RADIUS * self.unit
        direction = jnp.where(action == 1, -1.0, jnp.where(action == 2, 1.0, 0.0))
        player = game.player + direction * PLAYER_SPEED * self.speed
        player = jnp.clip(player, self.top, self.size - side)
        row, vertical = bounced(
            game.item[:, 0], game.velocity[:, 0], self.top + radius, self.size - 1 - radius
        )
        column = game.item[:, 1] + game.velocity[:, 1]
        half = (side - 1) / 2
        touched = (jnp.abs(row - (player + half)) <= half + radius) & (
            jnp.abs(column - (self._column + half)) <= half + radius
        )
        gone = touched | (column < -radius - 1)
        fresh, speed = jax.vmap(self._item, (0, None))(
            jax.random.split(key, self.items), game.scroll
        )
        worth = jnp.where(jnp.arange(self.items) % 2 == 0, 1, -1)
        gain = jnp.sum(jnp.where(touched, worth, 0))
        new = Game(
            player=player,
            ground=game.ground + game.scroll,
            scroll=game.scroll,
            item=jnp.where(gone[:, None], fresh, jnp.stack([row, column], -1)),
            velocity=jnp.where(gone[:, None], speed, game.velocity.at[:, 0].set(vertical)),
            birth=game.birth + gone,
            score=game.score + gain,
        )
        return new, gain.astype(jnp.float32), jnp.zeros((), bool)

    def ground_offset(self, game: Game) -> jax.Array:
        return rounded(jnp.stack([jnp.zeros(()), -game.ground]))

    def things(self, game: Game) -> Things:
        player = rounded(jnp.stack([game.player, jnp.float32(self._column)]))
        return stack_things(
            (player, True, 0), (rounded(game.item), True, game.birth), ((0, 0), True, game.score)
        )

    def paint(self, game: Game, canvas: Canvas) -> None:
        at = self.things(game).position
        side, radius = self.px(PLAYER), self.px(RADIUS)
        for i in range(self.items):
            if i % 2 == 0:
                canvas.disc(at[1 + i], RADIUS * self.unit, 240.0, 2 + i)
            else:
                corner = at[1 + i] - radius
                canvas.box(corner, (2 * radius + 1, 2 * radius + 1), 15.0, 2 + i)
        canvas.box(at[0], (side, side), 190.0, 1)
        canvas.score(game.score, self.count)
