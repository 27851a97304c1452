"""Atari games on the host: preprocessing, halves, and what is said where the emulator is absent."""

import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax.data import atari
from uvos_jax.data.sources import make_source
from uvos_jax.errors import ConfigError, UnsupportedError
from uvos_jax.ops.resize import resize_area
from uvos_jax.train import rl
from uvos_jax.train.atari import HostEnvironments

GAME = "ALE/Breakout-v5"


def test_without_the_emulator_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'uvos_jax\[rl\]'.*rl\.env=catch"):
        atari.AtariGame(GAME)


def test_area_means_equal_those_of_the_library(rng):
    image = rng.random((210, 160)).astype(np.float32)
    got = atari.area_matrix(210, 84) @ image @ atari.area_matrix(160, 84).T
    expected = resize_area(jnp.asarray(image)[None, ..., None], (84, 84))[0, ..., 0]
    np.testing.assert_allclose(got, expected, atol=1e-5)


class Script:
    """Stands in for the emulator: a list of (frame, reward, lives, terminal)."""

    def __init__(self, steps, lives=3):
        self.steps, self.at, self.lives_left = steps, 0, lives
        self.unwrapped = SimpleNamespace(ale=SimpleNamespace(lives=lambda: self.lives_left))
        self.asked = []

    def step(self, action):
        self.asked.append(action)
        frame, reward, self.lives_left, terminal = self.steps[self.at]
        self.at += 1
        return np.full((210, 160), frame, np.uint8), reward, terminal, False, {}

    def reset(self, **_):
        return np.zeros((210, 160), np.uint8), {}


def scripted(steps, **fields):
    game = object.__new__(atari.AtariGame)
    game.game = Script(steps)
    game.ale = game.game.unwrapped.ale
    game.skip, game.life_ends, game.sign = 4, True, True
    game.rows, game.columns = atari.area_matrix(210, 84), atari.area_matrix(160, 84).T
    game.over, game.total, game.length, game.lives, game.fire = False, 0.0, 0, 3, 1
    game.rng, game.no_ops, game._seed = np.random.default_rng(0), 5, None
    for key, value in fields.items():
        setattr(game, key, value)
    return game


def test_actions_repeat_and_the_last_two_frames_are_joined_by_their_maximum():
    game = scripted([(200, 1.0, 3, False), (10, 0.0, 3, False), (90, 7.0, 3, False),
                     (50, 0.0, 3, False)])  # fmt: skip
    frame, reward, done, score = game.step(2)
    assert game.game.asked == [2] * 4
    assert frame.shape == (84, 84)
    assert np.all(frame == 90)
    assert (reward, done, score) == (1.0, False, None)  # the sign
    assert game.total == 8.0


def test_a_lost_life_ends_the_episode_but_not_the_game():
    game = scripted([(0, 0.0, 2, False)] * 4 + [(7, 0.0, 2, False)] * 4 + [(0, -1.0, 0, True)])
    assert game.step(0)[1:] == (0.0, True, None)
    assert np.all(game.reset() == 7)  # one step of nothing, then FIRE
    assert game.game.asked[4:] == [0, 1]
    game.game.at = 8
    _, reward, done, score = game.step(3)
    assert (reward, done, score) == (-1.0, True, -1.0)
    assert game.game.asked[6:] == [3]  # no repetition beyond the end


@pytest.fixture
def emulator():
    pytest.importorskip("ale_py")
    pytest.importorskip("gymnasium")


def test_random_play_of_a_game_is_a_source(emulator):
    source = make_source("atari", env=GAME, frames=60, size=(42, 42))
    example = source.sample(len(source) - 1, np.random.default_rng(0))
    assert example["frames"].shape == (2, 42, 42, 3)
    assert example["frames"].dtype == np.uint8
    assert not example["has_mask"].any()
    assert example["frames"].std() > 5


def test_unknown_games_and_odd_numbers_are_refused(emulator):
    with pytest.raises(ConfigError, match=r"no game of this emulator.*ALE/Breakout-v5"):
        atari.AtariGame("ALE/Breakaut-v5")
    with pytest.raises(ConfigError, match=r"rl\.envs=3 must be even"):
        HostEnvironments(GAME, 3)


def test_an_agent_plays_and_learns_from_halves(emulator):
    config = uvos.load_config("morel:tiny,env=ALE/Breakout-v5,algorithm=a2c")
    config.model.update({"embedding": 16, "channels": 4, "objects": 2})
    config.rl.update({"envs": 4, "rollout": 3, "total_steps": 24})
    host = HostEnvironments(GAME, 4, size=42)
    agent = rl.make_agent(uvos.build(config), None, config.rl, host.actions)
    assert agent.policy.actions == 4
    state = agent.init(jax.random.key(0))
    first = host.pairs.copy()
    rollout, ended = host.play(agent, state)
    assert rollout.pairs.shape == (3, 4, 42, 42, 2)
    assert rollout.last_value.shape == (4,)
    assert ended["episodes"] == 0
    np.testing.assert_array_equal(rollout.pairs[0], first)
    # frames move on: the newest of one step is the older one of the next
    going_on = ~np.asarray(rollout.dones)[:-1]
    older, newest = np.asarray(rollout.pairs[1:, ..., 0]), np.asarray(rollout.pairs[:-1, ..., 1])
    np.testing.assert_array_equal(older[going_on], newest[going_on])
    new, metrics = host.learn(agent, state, rollout)
    host.close()
    assert metrics["finite"]
    assert new.update == 1
    assert any(
        np.any(a != b)
        for a, b in zip(*map(jax.tree.leaves, (new.params, state.params)), strict=True)
    )


def test_a_trained_agent_is_watched_and_scored_on_the_host(emulator):
    config = uvos.load_config("morel:tiny,env=ALE/Breakout-v5,algorithm=a2c")
    config.model.update({"embedding": 16, "channels": 4, "objects": 2})
    config.rl.update({"envs": 2, "rollout": 3, "total_steps": 24})
    host = HostEnvironments(GAME, 2, size=42)
    system = uvos.build(config)
    agent = rl.make_agent(system, None, config.rl, host.actions)
    params = agent.init(jax.random.key(0)).params
    seen = host.watch(agent, system, params, jax.random.key(1), 5)
    assert seen["frames"].shape == (5, 42, 42)
    assert seen["moving"].shape == (5, 42, 42)
    assert seen["actions"].max() < host.actions
    assert seen["rewards"].shape == seen["dones"].shape == (5,)
    host.games[0].total = 99.0  # points of a game that was going on do not count
    scores = host.episode_scores(agent, None, jax.random.key(2), longest=60)
    assert scores.shape == (2,)
    assert np.all(scores >= 0)  # Breakout takes no points away
    assert np.all(scores < 99)
    assert host.games[0].total < 99
    host.close()
