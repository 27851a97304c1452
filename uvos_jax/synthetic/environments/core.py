"""What all games share: time, history, reset, painting, and the bookkeeping of motion.

Positions are real numbers (row, column); things are painted at rounded ones, so that every motion
between two frames is a whole number of pixels and known exactly. Lengths and speeds are given for
84x84 pixels and scale with the size.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.errors import ConfigError

#: Size for which lengths and speeds are stated.
REFERENCE = 84
#: Grey level and contrast of the background's texture, and its finest wavelength in pixels, about.
GROUND, CONTRAST, GRAIN = 48.0, 10.0, 6.0
#: Digits 0 to 9, 5 rows of 3 bits.
FONT = np.asarray(
    [[int(bit) for bit in f"{rows:015b}"] for rows in (
        0b111101101101111, 0b010110010010111, 0b111001111100111, 0b111001111001111,
        0b101101111001001, 0b111100111001111, 0b111100111101111, 0b111001010010010,
        0b111101111101111, 0b111101111001111,
    )],
    np.uint8,
).reshape(10, 5, 3)  # fmt: skip


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Things:
    """What a game shows, N things that keep their number.

    Attributes:
      position: int32 `[N,2]`, (row, column) of some fixed point of each, in pixels.
      visible: bool `[N]`.
      birth: int32 `[N]`, changes when a thing is replaced or changes its looks, so that its pixels
        before and after do not belong together.
    """

    position: jax.Array
    visible: jax.Array
    birth: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Everything an environment remembers.

    Attributes:
      game: state of the game itself.
      frames: uint8 `[S,S,history]`, oldest first. ids: uint8 `[S,S]` of the newest.
      time: int32, steps in this episode. total: float32, its rewards so far.
    """

    game: Any
    frames: jax.Array
    ids: jax.Array
    time: jax.Array
    total: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Info:
    """What is known of the two newest frames; of equal ones right after a reset.

    Id 0 is the background, id i thing i - 1.

    Attributes:
      ids, previous_ids: uint8 `[S,S]`, of the newest frame and the one before.
      motion: int32 `[N+1,2]`, (dy, dx) in pixels by id; row 0 is the camera's, that is, how the
        background moved.
      tracked: bool `[N+1]`, False for what is visible in one of the frames only.
      camera: int32 `[2]`, the same as `motion[0]`.
      episode_return, episode_length: of the episode that this step belonged to, so far.
    """

    ids: jax.Array
    previous_ids: jax.Array
    motion: jax.Array
    tracked: jax.Array
    camera: jax.Array
    episode_return: jax.Array
    episode_length: jax.Array


@dataclasses.dataclass(frozen=True)
class Environment:
    """Base of the games; hashable, so that it can be a static argument.

    A game defines `begin`, `play`, `things` and `paint`, and says how many `actions` and `things`
    it has.

    Attributes:
      size: side of the square frames. history: frames in an observation.
      zoom: factor on all lengths. pace: factor on all speeds.
      max_steps: an episode ends after this many.
      texture: seed of the background.
    """

    actions: ClassVar[int] = 0
    #: What the actions do, for pictures and messages.
    action_names: ClassVar[tuple[str, ...]] = ()
    #: Whether the background moves.
    scrolls: ClassVar[bool] = False

    size: int = 84
    history: int = 2
    max_steps: int = 1000
    texture: int = 0
    zoom: float = 1.0
    pace: float = 1.0

    def __post_init__(self):
        if self.size < 32:
            raise ConfigError(f"environment: size must be at least 32 pixels, got {self.size}")
        if self.history < 1:
            raise ConfigError(f"environment: history must be at least 1, got {self.history}")

    # ----- what a game defines ------------------------------------------------------------

    @property
    def count(self) -> int:
        """Number of things."""
        raise NotImplementedError

    def begin(self, key: jax.Array) -> Any:
        """State of the game at the start of an episode."""
        raise NotImplementedError

    def play(self, key: jax.Array, game: Any, action: jax.Array) -> tuple[Any, Any, Any]:
        """Next state, reward float32, and whether the episode is over."""
        raise NotImplementedError

    def things(self, game: Any) -> Things:
        """Where everything is."""
        raise NotImplementedError

    def paint(self, game: Any, canvas: Canvas) -> None:
        """Puts things on a canvas, back to front."""
        raise NotImplementedError

    def ground_offset(self, game: Any) -> jax.Array:
        """int32 `[2]`: how far the background has moved since the start, in pixels."""
        return jnp.zeros((2,), jnp.int32)

    # ----- the environment ----------------------------------------------------------------

    def reset(self, key: jax.Array) -> tuple[State, jax.Array]:
        """The start of an episode and its observation uint8 `[S,S,history]`, frames all alike."""
        state = self.start(self.begin(key), jnp.zeros((), jnp.int32))
        return state, state.frames

    def start(self, game: Any, time: jax.Array) -> State:
        """The state that begins with `game`, whose past is not known."""
        frame, ids = self._render(game)
        frames = jnp.repeat(frame[..., None], self.history, axis=-1)
        return State(game, frames, ids, time, jnp.zeros((), jnp.float32))

    def advance(
        self, key: jax.Array, game: Any, time: jax.Array, action: jax.Array
    ) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
        """One step without painting: game, time, reward, done; a new episode if done."""
        of_play, of_reset = jax.random.split(key)
        game, reward, over = self.play(of_play, game, jnp.asarray(action))
        time = time + 1
        done = over | (time >= self.max_steps)
        fresh = self.begin(of_reset)
        game = jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, game)
        return game, jnp.where(done, 0, time), jnp.asarray(reward, jnp.float32), done

    def step(
        self, key: jax.Array, state: State, action: jax.Array
    ) -> tuple[State, jax.Array, jax.Array, jax.Array, Info]:
        """Plays `action`.

        Returns:
          the next state, the observation uint8 `[S,S,history]` (of a new episode if this one
          ended), the reward float32, whether the episode ended, and `Info`.
        """
        game, time, reward, done = self.advance(key, state.game, state.time, action)
        frame, ids = self._render(game)
        shifted = jnp.concatenate([state.frames[..., 1:], frame[..., None]], axis=-1)
        alike = jnp.broadcast_to(frame[..., None], shifted.shape)
        frames = jnp.where(done, alike, shifted)
        total = state.total + reward
        info = self._info(state, game, ids, done, total)
        new = State(game, frames, ids, time, jnp.where(done, 0.0, total))
        return new, frames, reward, done, info

    def _info(self, state: State, game: Any, ids: jax.Array, done: Any, total: Any) -> Info:
        before, after = self.things(state.game), self.things(game)
        camera = self.ground_offset(game) - self.ground_offset(state.game)
        same = before.visible & after.visible & (before.birth == after.birth)
        motion = jnp.concatenate([camera[None], after.position - before.position])
        tracked = jnp.concatenate([jnp.ones((1,), bool), same])
        motion = jnp.where(done | ~tracked[:, None], 0, motion)
        return Info(
            ids=ids,
            previous_ids=jnp.where(done, ids, state.ids),
            motion=motion,
            tracked=tracked | done,
            camera=motion[0],
            episode_return=total,
            episode_length=state.time + 1,
        )

    def _render(self, game: Any) -> tuple[jax.Array, jax.Array]:
        """Frame and ids, uint8 `[S,S]`."""
        canvas = Canvas(self, self.ground_offset(game))
        self.paint(game, canvas)
        return jnp.round(canvas.grey).astype(jnp.uint8), canvas.ids.astype(jnp.uint8)

    # ----- lengths ------------------------------------------------------------------------

    def px(self, length: float) -> int:
        """A length on 84 pixels as whole pixels of this size, at least 1."""
        return max(1, round(length * self.unit))

    @property
    def unit(self) -> float:
        """Pixels per pixel of a length on 84."""
        return self.zoom * self.size / REFERENCE

    @property
    def speed(self) -> float:
        """Pixels per pixel of a speed on 84."""
        return self.pace * self.size / REFERENCE

    @property
    def top(self) -> int:
        """First row below the score."""
        return 6 * self.digit + 2

    @property
    def digit(self) -> int:
        """Pixels per dot of a digit."""
        return max(1, self.size // 42)


class Canvas:
    """A frame being painted: `grey` float32 and `ids` int32 `[S,S]`."""

    def __init__(self, env: Environment, offset: jax.Array):
        self.env = env
        rows = jnp.arange(env.size)
        self.y, self.x = rows[:, None], rows[None]
        tile = jnp.asarray(ground(env.texture, env.size))
        if env.scrolls:
            tile = tile[(self.y - offset[0]) % env.size, (self.x - offset[1]) % env.size]
        self.grey = GROUND + CONTRAST * tile
        self.ids = jnp.zeros((env.size, env.size), jnp.int32)

    def put(self, inside: jax.Array, grey: Any, number: Any) -> None:
        """Paints pixels `inside` (bool `[S,S]`) as a part of thing `number` (its id)."""
        self.grey = jnp.where(inside, grey, self.grey)
        self.ids = jnp.where(inside, number, self.ids)

    def _pattern(self, ly: jax.Array, lx: jax.Array, level: float) -> jax.Array:
        """Two grey levels in a pattern that sticks to a thing."""
        return jnp.where((ly + 2 * lx) % 5 < 2, 0.75 * level, level)

    def box(self, corner: jax.Array, shape: tuple[int, int], level: float, number: int,
            visible: Any = True) -> None:  # fmt: skip
        """A rectangle with its upper left corner at `corner` (row, column)."""
        ly, lx = self.y - corner[0], self.x - corner[1]
        inside = (ly >= 0) & (ly < shape[0]) & (lx >= 0) & (lx < shape[1]) & visible
        self.put(inside, self._pattern(ly, lx, level), number)

    def disc(self, center: jax.Array, radius: float, level: float, number: int,
             visible: Any = True) -> None:  # fmt: skip
        """A disc about `center` (row, column)."""
        ly, lx = self.y - center[0], self.x - center[1]
        inside = (ly * ly + lx * lx <= (radius + 0.3) ** 2) & visible
        self.put(inside, self._pattern(ly, lx, level), number)

    def score(self, value: jax.Array, number: int, digits: int = 3) -> None:
        """A number in the upper left corner, fixed to the screen."""
        d = self.env.digit
        value = jnp.maximum(value, 0)
        shown = jnp.stack([value // 10**i % 10 for i in reversed(range(digits))])
        glyphs = jnp.pad(jnp.asarray(FONT)[shown], ((0, 0), (0, 0), (0, 1)))  # [digits,5,4]
        strip = jnp.moveaxis(glyphs, 0, 1).reshape(5, 4 * digits)
        strip = jnp.repeat(jnp.repeat(strip, d, axis=0), d, axis=1)
        size = self.env.size
        inside = jnp.pad(strip, ((1, size - 1 - 5 * d), (1, size - 1 - 4 * digits * d))) > 0
        self.put(inside, 150.0, number)


@lru_cache(maxsize=16)
def ground(seed: int, size: int) -> np.ndarray:
    """Periodic smooth noise float32 `[S,S]`, mean 0, unit variance."""
    noise = np.random.default_rng(seed).standard_normal((size, size))
    f = np.fft.fftfreq(size) * size
    radius = np.hypot(f[:, None], f[None])
    spectrum = np.fft.fft2(noise) * np.exp(-((radius * GRAIN / size) ** 2)) * (radius > 0)
    field = np.fft.ifft2(spectrum).real
    return np.clip(field / field.std(), -2.5, 2.5).astype(np.float32)


def rounded(position: jax.Array) -> jax.Array:
    """Real positions to pixels."""
    return jnp.round(position).astype(jnp.int32)


def stack_things(*groups: tuple[Any, Any, Any]) -> Things:
    """`Things` of groups (position `[n,2]` or `[2]`, visible, birth), each scalar or `[n]`."""
    parts = []
    for position, visible, birth in groups:
        position = jnp.asarray(position, jnp.int32).reshape(-1, 2)
        n = len(position)
        parts.append((position, jnp.broadcast_to(jnp.asarray(visible, bool), (n,)),
                      jnp.broadcast_to(jnp.asarray(birth, jnp.int32), (n,))))  # fmt: skip
    return Things(*(jnp.concatenate(column) for column in zip(*parts, strict=True)))


def bounced(
    position: jax.Array, velocity: jax.Array, low: Any, high: Any
) -> tuple[jax.Array, jax.Array]:
    """Moves by one step between two walls, at which the velocity turns."""
    moved = position + velocity
    out_low, out_high = moved < low, moved > high
    moved = jnp.where(out_low, 2 * low - moved, jnp.where(out_high, 2 * high - moved, moved))
    return jnp.clip(moved, low, high), jnp.where(out_low | out_high, -velocity, velocity)


def moving_pixels(ids: jax.Array, info: Info) -> jax.Array:
    """Ids `[S,S]` of things that move against the background; the rest becomes 0.

    Args:
      ids: `info.ids` or `info.previous_ids`.
    """
    moves = info.tracked & jnp.any(info.motion != info.camera, axis=-1)
    return jnp.where(moves[ids], ids, 0)


def flow_of(info: Info) -> tuple[jax.Array, jax.Array]:
    """Flow `[S,S,2]` (u right, v down) from the previous frame to the newest, and where it is
    known, bool `[S,S]`: not where a thing disappeared."""
    motion = info.motion[info.previous_ids]
    return motion[..., ::-1].astype(jnp.float32), info.tracked[info.previous_ids]
