"""Atari games on the host, stepped while the device thinks about the other half of them.

Environments come in two halves. While one half is stepped in threads on the host, the actions of
the other are computed from frames already sent to the device.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.data.atari import AtariGame
from uvos_jax.errors import ConfigError
from uvos_jax.train import rl


class HostEnvironments:
    """E games in two halves, with the interface that `rl.Agent` needs of a rollout.

    Args:
      count: even number of games. Further ones: of `AtariGame`.

    Raises:
      UnsupportedError: no emulator. ConfigError: no such game, or an odd count.
    """

    def __init__(self, name: str, count: int, *, size: int = 84, seed: int = 0, **fields: Any):
        if count % 2:
            raise ConfigError(f"rl.envs={count} must be even: games are stepped in two halves")
        self.count, self.size = count, size
        self.games = [AtariGame(name, size=size, seed=seed + i, **fields) for i in range(count)]
        self.actions = self.games[0].actions
        self.pool = ThreadPoolExecutor(max_workers=min(count // 2, 16))
        self.pairs = np.zeros((count, size, size, 2), np.uint8)
        self._reset()
        half = count // 2
        self.halves = (slice(0, half), slice(half, count))
        self._act = jax.jit(self._acted, static_argnums=0)
        self._learn = jax.jit(rl.Agent.learn, static_argnums=0)

    @staticmethod
    def _acted(agent: rl.Agent, params: Any, pairs: jax.Array, key: jax.Array) -> Any:
        return agent.act(params, pairs, key)

    def _reset(self) -> None:
        """A new game in every environment, wherever the one before stands."""
        for i, frame in enumerate(self.pool.map(AtariGame.restart, self.games)):
            self.pairs[i] = frame[..., None]

    def _step(self, part: slice, actions: np.ndarray) -> list[tuple]:
        """Steps some of the games in threads; episodes that end start anew. `pairs` moves on."""

        def one(game: AtariGame, action: int) -> tuple:
            frame, reward, done, score = game.step(action)
            length = game.length
            return (game.reset() if done else frame), reward, done, score, length

        rows = list(self.pool.map(one, self.games[part], actions))
        for pair, (frame, _, done, _, _) in zip(self.pairs[part], rows, strict=True):
            pair[..., 0] = frame if done else pair[..., 1]
            pair[..., 1] = frame
        return rows

    def play(self, agent: rl.Agent, state: rl.AgentState) -> tuple[rl.Rollout, dict[str, Any]]:
        """A rollout of `agent.rl.rollout` steps, and sums over the games that ended."""
        T, half = agent.rl.rollout, self.count // 2
        key = jax.random.fold_in(jax.random.fold_in(state.rng, state.update), 0)
        kept: list[list[Any]] = [[], []]
        ended = {"episodes": 0.0, "return_sum": 0.0, "length_sum": 0.0}

        def think(h: int, t: int) -> Any:
            """Sends the frames of a half and asks for its actions; returns at once."""
            pairs = jax.device_put(self.pairs[self.halves[h]].copy())
            return pairs, self._act(agent, state.params, pairs, jax.random.fold_in(key, 2 * t + h))

        thoughts = [think(0, 0), think(1, 0)]
        for t in range(T):
            for h in (0, 1):
                pairs, (actions, log_probs, values) = thoughts[h]
                rows = self._step(self.halves[h], np.asarray(actions))
                rewards, dones = np.zeros(half, np.float32), np.zeros(half, bool)
                for i, (_, reward, done, score, length) in enumerate(rows):
                    rewards[i], dones[i] = reward, done
                    if score is not None:
                        ended["episodes"] += 1
                        ended["return_sum"] += score
                        ended["length_sum"] += length
                kept[h].append((pairs, actions, log_probs, values, rewards, dones))
                thoughts[h] = think(h, t + 1)  # of the last step only the values are used
        halves = [
            [jnp.stack([jnp.asarray(row[i]) for row in kept[h]]) for i in range(6)] for h in (0, 1)
        ]
        joined = [jnp.concatenate(both, axis=1) for both in zip(*halves, strict=True)]
        last = jnp.concatenate([thoughts[h][1][2] for h in (0, 1)])
        return rl.Rollout(*joined, last), ended

    def learn(
        self, agent: rl.Agent, state: rl.AgentState, rollout: rl.Rollout
    ) -> tuple[rl.AgentState, dict[str, Any]]:
        """`Agent.learn`, compiled."""
        return self._learn(agent, state, rollout)

    def watch(
        self, agent: rl.Agent, system: Any, params: Any, key: jax.Array, steps: int
    ) -> dict[str, np.ndarray]:
        """As `rl.watch`: the first of the games from a new start, played for so many steps."""
        look = jax.jit(rl.look, static_argnums=(0, 1))
        game, rows = self.games[0], []
        pair = np.repeat(game.restart()[..., None], 2, axis=-1)
        for t in range(steps):
            pairs = pair[None].copy()
            kept = jax.device_get(look(agent, system, params, pairs, jax.random.fold_in(key, t)))
            frame, reward, done, _ = game.step(int(kept["actions"]))
            if done:
                pair[...] = game.reset()[..., None]
            else:
                pair = np.stack([pair[..., 1], frame], axis=-1)
            rows.append(kept | {"rewards": np.float32(reward), "dones": np.bool_(done)})
        return {k: np.stack([row[k] for row in rows]) for k in rows[0]}

    def episode_scores(
        self, agent: rl.Agent, params: Any, key: jax.Array, *, longest: int = 5000
    ) -> np.ndarray:
        """Scores of one whole game in each environment; `params` None plays at random.

        A game that is not over after `longest` steps counts with the rewards it has brought so far.
        """
        self._reset()
        scores = np.full(self.count, np.nan)
        so_far = np.zeros(self.count)
        rng = np.random.default_rng(0)
        for t in range(longest):
            if params is None:
                actions = rng.integers(0, self.actions, self.count)
            else:
                pairs = jnp.asarray(self.pairs)
                chosen, _, _ = self._act(agent, params, pairs, jax.random.fold_in(key, t))
                actions = np.asarray(chosen)
            rows = self._step(slice(0, self.count), actions)
            for i, (_, reward, _, score, _) in enumerate(rows):
                so_far[i] += reward
                if score is not None and np.isnan(scores[i]):
                    scores[i] = score
            if not np.isnan(scores).any():
                break
        return np.where(np.isnan(scores), so_far, scores)

    def close(self) -> None:
        """Ends threads and emulators."""
        self.pool.shutdown()
        for game in self.games:
            game.close()
