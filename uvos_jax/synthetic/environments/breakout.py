"""PixelBreakout: a ball breaks a wall of bricks, +1 each; a lost ball costs a life.

The bricks stand still, so masks of what moves say nothing of them: an agent needs the static path.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from uvos_jax.synthetic.environments.core import (
    Canvas,
    Environment,
    Things,
    bounced,
    rounded,
    stack_things,
)

PADDLE = (3, 14)
PADDLE_SPEED = 3.0
RADIUS = 2.0
ROWS, COLUMNS = 6, 12
BRICK_HEIGHT = 3.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Game:
    """`paddle` (left column), `ball`, `velocity` `[2]`, `birth`, `bricks [6,12]`, `lives`,
    `score`."""

    paddle: jax.Array
    ball: jax.Array
    velocity: jax.Array
    birth: jax.Array
    bricks: jax.Array
    lives: jax.Array
    score: jax.Array


@dataclasses.dataclass(frozen=True)
class PixelBreakout(Environment):
    """Actions: stay, left, right.

    Attributes:
      lives: balls per episode.
    """

    actions: ClassVar[int] = 3
    action_names: ClassVar[tuple[str, ...]] = ("stay", "left", "right")

    lives: int = 3

    @property
    def count(self) -> int:
        return 3 + ROWS * COLUMNS

    @property
    def _paddle(self) -> tuple[int, int]:
        return tuple(self.px(n) for n in PADDLE)

    @property
    def _row(self) -> int:
        return self.size - self._paddle[0] - self.px(3)

    @property
    def _brick(self) -> tuple[int, int]:
        return self.px(BRICK_HEIGHT), max(1, self.size // COLUMNS)

    @property
    def _wall(self) -> tuple[int, int]:
        """Upper left corner of the bricks."""
        return self.top + self.px(4), (self.size - COLUMNS * self._brick[1]) // 2

    def _ball(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        u = jax.random.uniform(key, (3,))
        position = jnp.stack([0.6 * self.size, (0.2 + 0.6 * u[0]) * self.size])
        down = 1.6 + 0.8 * u[1]
        return position, jnp.stack([down, 3.0 * u[2] - 1.5]) * self.speed

    def begin(self, key: jax.Array) -> Game:
        of_paddle, of_ball = jax.random.split(key)
        ball, velocity = self._ball(of_ball)
        return Game(
            paddle=jax.random.uniform(of_paddle) * (self.size - self._paddle[1]),
            ball=ball,
            velocity=velocity,
            birth=jnp.zeros((), jnp.int32),
            bricks=jnp.ones((ROWS, COLUMNS), bool),
            lives=jnp.asarray(self.lives, jnp.int32),
            score=jnp.zeros((), jnp.int32),
        )

    def play(self, key: jax.Array, game: Game, action: jax.Array) -> tuple[Any, Any, Any]:
        width, radius = self._paddle[1], RADIUS * self.unit
        direction = jnp.where(action == 1, -1.0, jnp.where(action == 2, 1.0, 0.0))
        paddle = game.paddle + direction * PADDLE_SPEED * self.speed
        paddle = jnp.clip(paddle, 0.0, self.size - width)
        x, vx = bounced(game.ball[1], game.velocity[1], radius, self.size - 1 - radius)
        y, vy = game.ball[0] + game.velocity[0], game.velocity[0]
        ceiling = y < self.top + radius
        y = jnp.where(ceiling, 2 * (self.top + radius) - y, y)
        vy = jnp.where(ceiling, -vy, vy)
        # the brick that the ball's front is in
        height, length = self._brick
        row = jnp.floor((y + jnp.sign(vy) * radius - self._wall[0]) / height).astype(jnp.int32)
        column = jnp.floor((x - self._wall[1]) / length).astype(jnp.int32)
        grid_row, grid_column = jnp.arange(ROWS)[:, None], jnp.arange(COLUMNS)
        hit = game.bricks & (grid_row == row) & (grid_column == column)
        broken = jnp.any(hit)
        bricks = game.bricks & ~hit
        bricks = bricks | ~jnp.any(bricks)  # a new wall when all are gone
        vy = jnp.where(broken, -vy, vy)
        # the paddle sends the ball away from its middle
        offset = x - (paddle + (width - 1) / 2)
        arrived = (vy > 0) & (y + radius >= self._row)
        returned = arrived & (jnp.abs(offset) <= width / 2 + radius)
        vy = jnp.where(returned, -vy, vy)
        vx = jnp.where(returned, vx + 0.15 * offset, vx)
        vx = jnp.clip(vx, -2.0 * self.speed, 2.0 * self.speed)
        y = jnp.where(returned, self._row - radius, y)
        lost = arrived & ~returned
        fresh, speed = self._ball(key)
        lives = game.lives - lost
        new = Game(
            paddle=paddle,
            ball=jnp.where(lost, fresh, jnp.stack([y, x])),
            velocity=jnp.where(lost, speed, jnp.stack([vy, vx])),
            birth=game.birth + lost,
            bricks=bricks,
            lives=lives,
            score=game.score + broken,
        )
        return new, broken.astype(jnp.float32), lives <= 0

    def things(self, game: Game) -> Things:
        height, length = self._brick
        rows = self._wall[0] + height * jnp.arange(ROWS)
        columns = self._wall[1] + length * jnp.arange(COLUMNS)
        corners = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)
        return stack_things(
            (rounded(jnp.stack([jnp.float32(self._row), game.paddle])), True, 0),
            (rounded(game.ball), True, game.birth),
            ((0, 0), True, game.score),
            (corners, game.bricks.reshape(-1), 0),
        )

    def paint(self, game: Game, canvas: Canvas) -> None:
        at = self.things(game).position
        canvas.score(game.score, 3)
        (top, left), (height, length) = self._wall, self._brick
        # bricks do not move: their grid is known, only which ones are left is not
        size = self.size
        row, column = (jnp.arange(size) - top) // height, (jnp.arange(size) - left) // length
        in_row, in_column = (row >= 0) & (row < ROWS), (column >= 0) & (column < COLUMNS)
        row, column = jnp.clip(row, 0, ROWS - 1), jnp.clip(column, 0, COLUMNS - 1)
        alive = game.bricks[row][:, column] & in_row[:, None] & in_column
        seam = (jnp.arange(size) - left) % length == length - 1
        level = jnp.where(seam, 70.0, 90.0 + 15.0 * row[:, None])
        canvas.put(alive, level, 4 + row[:, None] * COLUMNS + column)
        canvas.box(at[0], self._paddle, 200.0, 1)
        canvas.disc(at[1], RADIUS * self.unit, 240.0, 2)
