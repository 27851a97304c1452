"""Atari games of ALE, preprocessed, one frame at a time on the host.

`pip install 'uvos_jax[rl]'` brings the emulator with its games. Preprocessing as in MOREL's code:
up to 30 steps of doing nothing after a reset, every action four times, the maximum of the last two
of these frames, grey, resized to a square by area, rewards reduced to their sign, a lost life ends
an episode of training (not the game), FIRE after a reset where the game waits for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from uvos_jax.errors import ConfigError, UnsupportedError


def _gymnasium() -> Any:
    """Imports the emulator.

    Raises:
      UnsupportedError: it is not installed.
    """
    try:
        import ale_py
        import gymnasium
    except ImportError as error:
        raise UnsupportedError(
            f"Atari games need the emulator, and {error.name} is not installed: pip install "
            "'uvos_jax[rl]', or use one of the pixel environments (rl.env=catch)"
        ) from None
    gymnasium.register_envs(ale_py)
    return gymnasium


def area_matrix(n_in: int, n_out: int) -> np.ndarray:
    """`[n_out, n_in]`: means over the area of each output pixel."""
    edges = np.arange(n_out + 1) * (n_in / n_out)
    cell = np.arange(n_in)[None]
    overlap = np.minimum(edges[1:, None], cell + 1) - np.maximum(edges[:-1, None], cell)
    overlap = np.clip(overlap, 0, None)
    return (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)


class AtariGame:
    """One preprocessed game.

    Args:
      name: such as `ALE/Breakout-v5`. size: side of the frames.
      seed: of the steps of doing nothing and of the emulator.
      skip: times an action is repeated. no_ops: most steps of doing nothing.
      life_ends: whether a lost life ends an episode. sign: whether rewards become their sign.

    Raises:
      UnsupportedError: no emulator. ConfigError: no such game.
    """

    def __init__(
        self, name: str, *, size: int = 84, seed: int = 0, skip: int = 4, no_ops: int = 30,
        life_ends: bool = True, sign: bool = True,
    ):  # fmt: skip
        gymnasium = _gymnasium()
        try:
            self.game = gymnasium.make(
                name, frameskip=1, repeat_action_probability=0.0, obs_type="grayscale",
                max_episode_steps=108_000,
            )  # fmt: skip
        except gymnasium.error.Error as error:
            raise ConfigError(
                f"rl.env={name!r} is no game of this emulator ({error}): names look like "
                "'ALE/Breakout-v5'"
            ) from None
        self.actions = int(self.game.action_space.n)
        self.ale = self.game.unwrapped.ale
        self.skip, self.no_ops, self.life_ends, self.sign = skip, no_ops, life_ends, sign
        self.rng = np.random.default_rng(seed)
        meanings = self.game.unwrapped.get_action_meanings()
        self.fire = meanings.index("FIRE") if "FIRE" in meanings[1:2] else 0
        height, width = self.game.observation_space.shape
        self.rows, self.columns = area_matrix(height, size), area_matrix(width, size).T
        self.over, self.total, self.length = True, 0.0, 0
        self._seed: int | None = seed

    def _shrink(self, frame: np.ndarray) -> np.ndarray:
        return np.rint(self.rows @ frame.astype(np.float32) @ self.columns).astype(np.uint8)

    def _wait(self, action: int, times: int) -> np.ndarray:
        for _ in range(times):
            frame, _, ended, cut, _ = self.game.step(action)
            if ended or cut:
                frame, _ = self.game.reset()
        return frame

    def reset(self) -> np.ndarray:
        """A new episode: of a new game, or of the same one after a lost life; uint8 `[S,S]`."""
        if self.over:
            frame, _ = self.game.reset(seed=self._seed)
            self._seed = None
            self.total, self.length = 0.0, 0
            if self.no_ops:
                frame = self._wait(0, int(self.rng.integers(1, self.no_ops + 1)))
        else:
            frame = self._wait(0, 1)
        if self.fire:
            frame = self._wait(self.fire, 1)
        self.over, self.lives = False, self.ale.lives()
        return self._shrink(frame)

    def restart(self) -> np.ndarray:
        """A new game, wherever the one before stands; uint8 `[S,S]`."""
        self.over = True
        return self.reset()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, float | None]:
        """Frame, reward, whether the episode ended, and the game's score if that ended, too."""
        frames, reward, ended = [], 0.0, False
        for _ in range(self.skip):
            frame, gain, terminal, cut, _ = self.game.step(int(action))
            frames = [*frames[-1:], frame]
            reward += float(gain)
            ended = terminal or cut
            if ended:
                break
        self.over, self.total, self.length = ended, self.total + reward, self.length + 1
        lost = self.life_ends and 0 < self.ale.lives() < self.lives
        self.lives = self.ale.lives()
        frame = self._shrink(np.max(frames, axis=0))
        gain = float(np.sign(reward)) if self.sign else reward
        return frame, gain, ended or lost, self.total if ended else None

    def close(self) -> None:
        """Ends the emulator."""
        self.game.close()


def random_frames(
    name: str, frames: int, *, size: int = 84, seed: int = 0, **fields: Any
) -> list[np.ndarray]:
    """Episodes of random play, each uint8 `[T,S,S]`, together at least `frames` frames."""
    game, rng = AtariGame(name, size=size, seed=seed, **fields), np.random.default_rng(seed)
    episodes, count = [], 0
    while count < frames:
        shown, done = [game.reset()], False
        while not done and count + len(shown) < frames:
            frame, _, done, _ = game.step(rng.integers(game.actions))
            shown.append(frame)
        episodes.append(np.stack(shown))
        count += len(shown)
    game.close()
    return episodes
