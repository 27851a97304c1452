"""The pixel games: what they say of motion is what their frames show."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.errors import ConfigError
from uvos_jax.synthetic.environments import (
    ENVIRONMENTS,
    flow_of,
    make_environment,
    moving_pixels,
)

GAMES = tuple(ENVIRONMENTS)
every_game = pytest.mark.parametrize("name", GAMES)
STEPS, BATCH = 150, 2


@cache
def played(name, size=42):
    """Random play of a batch: first frames and, per step, frames, rewards, dones, actions, info;
    arrays `[T,B,...]`."""
    env = make_environment(name, size=size)

    @jax.jit
    def run(key):
        state, first = jax.vmap(env.reset)(jax.random.split(key, BATCH))

        def step(state, key):
            of_action, of_step = jax.random.split(key)
            actions = jax.random.randint(of_action, (BATCH,), 0, env.actions)
            state, frames, reward, done, info = jax.vmap(env.step)(
                jax.random.split(of_step, BATCH), state, actions
            )
            fetch, known = jax.vmap(flow_of)(info)
            moving = jax.vmap(moving_pixels)(info.ids, info)
            return state, (frames, reward, done, actions, info, fetch, known, moving)

        return first, jax.lax.scan(step, state, jax.random.split(key, STEPS))[1]

    return env, jax.device_get(run(jax.random.key(3)))


@pytest.mark.parametrize("name,size", [*((name, 42) for name in GAMES), ("scroll", 84)])
def test_motions_carry_the_previous_frame_to_the_newest(name, size):
    env, (_, (frames, _, _, _, info, fetch, known, _)) = played(name, size)
    checked = 0
    for t, b in np.ndindex(STEPS, BATCH):
        previous, newest = frames[t, b, ..., 0], frames[t, b, ..., 1]
        y, x = np.mgrid[:size, :size]
        to_y = y + fetch[t, b, ..., 1].astype(int)
        to_x = x + fetch[t, b, ..., 0].astype(int)
        inside = (to_y >= 0) & (to_y < size) & (to_x >= 0) & (to_x < size) & known[t, b]
        ids, arrived = info.previous_ids[t, b], np.full((size, size), -1)
        arrived[inside] = info.ids[t, b][to_y[inside], to_x[inside]]
        visible = inside & (arrived == ids)  # not covered by something else
        assert visible.mean() > 0.7
        np.testing.assert_array_equal(
            newest[to_y[visible], to_x[visible]], previous[visible], err_msg=f"{t} {b}"
        )
        checked += np.any(fetch[t, b] != 0)
    assert checked > 0.7 * STEPS * BATCH
    assert info.motion.shape[2] == env.count + 1


@every_game
def test_frames_are_a_history_and_start_anew_after_an_episode(name):
    _, (first, (frames, _, done, _, info, _, _, _)) = played(name)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(first[..., 0], first[..., 1])
    before = np.concatenate([first[None], frames[:-1]])
    for t, b in np.ndindex(STEPS, BATCH):
        older, newest = frames[t, b, ..., 0], frames[t, b, ..., 1]
        np.testing.assert_array_equal(older, newest if done[t, b] else before[t, b, ..., 1])
        if done[t, b]:
            assert not info.motion[t, b].any()


@every_game
def test_objects_move_and_the_background_only_where_the_camera_does(name):
    _, (_, (_, _, done, _, info, _, _, moving)) = played(name)
    share = (moving > 0).mean()
    assert 0.001 < share < 0.2
    camera = info.camera[~done]
    assert camera.any() == (name == "scroll")
    if name == "scroll":
        assert set(np.unique(camera[:, 1])) <= {-1, 0}  # half as fast as on 84 pixels
        assert not camera[:, 0].any()


@pytest.mark.parametrize(
    "name,rewards", [("catch", {-1, 0, 1}), ("breakout", {0, 1}), ("dodge", {0.1}),
                     ("scroll", {-1, 0, 1})],
)  # fmt: skip
def test_rewards_are_those_of_the_game_and_add_up(name, rewards):
    _, (_, (_, reward, done, _, info, _, _, _)) = played(name)
    assert {round(float(r), 3) for r in np.unique(reward)} <= rewards
    assert reward.any()
    total, length = np.zeros(BATCH), np.zeros(BATCH, int)
    for t in range(STEPS):
        total, length = total + reward[t], length + 1
        np.testing.assert_allclose(info.episode_return[t], total, atol=1e-4)
        np.testing.assert_array_equal(info.episode_length[t], length)
        total, length = np.where(done[t], 0, total), np.where(done[t], 0, length)


def test_an_episode_of_catch_has_ten_balls():
    env = make_environment("catch", size=42)

    @jax.jit
    def run(key):
        state, _ = env.reset(key)

        def step(state, key):
            state, _, reward, done, _ = env.step(key, state, 0)
            return state, (reward, done)

        return jax.lax.scan(step, state, jax.random.split(key, 900))[1]

    reward, done = map(np.asarray, run(jax.random.key(0)))
    ends = np.flatnonzero(done)
    assert len(ends) >= 2
    for start, end in zip([0, *(ends[:-1] + 1)], ends, strict=True):
        assert np.abs(reward[start : end + 1]).sum() == 10


@pytest.mark.parametrize("name", ["catch", "scroll"])
def test_the_same_keys_give_the_same_play_under_jit_and_vmap(name):
    env = make_environment(name, size=42)
    keys = jax.random.split(jax.random.key(1), 2)
    state, _ = jax.jit(jax.vmap(env.reset))(keys)
    actions = jnp.asarray([1, 2])
    many, one = jax.jit(jax.vmap(env.step)), jax.jit(env.step)
    together, again = (many(keys, state, actions) for _ in range(2))
    alone = [
        one(keys[i], jax.tree.map(lambda x: x[i], state), actions[i])  # noqa: B023
        for i in range(2)
    ]
    alone = jax.tree.map(lambda *x: jnp.stack(x), *alone)
    jax.tree.map(np.testing.assert_array_equal, together, again)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), together, alone)


@pytest.mark.parametrize("name", ["dodge"])
def test_an_episode_ends_at_the_limit_of_steps(name):
    env = make_environment(name, size=42, max_steps=3)
    state, _ = jax.jit(env.reset)(jax.random.key(0))
    step = jax.jit(env.step)
    ends = []
    for i in range(6):
        state, _, _, done, _ = step(jax.random.key(i), state, 0)
        ends.append(bool(done))
    assert ends == [False, False, True] * 2


@pytest.mark.parametrize(
    "name,fields,message",
    [
        ("catsh", {}, "did you mean 'catch'"),
        ("catch", {"bals": 2}, r"no field 'bals': it has .*'balls'"),
        ("catch", {"balls": 4}, "balls must be 1 to 3, got 4"),
        ("dodge", {"movers": 0}, "movers must be 1 to 8, got 0"),
        ("scroll", {"items": 9}, "items must be 1 to 8, got 9"),
        ("breakout", {"size": 8}, "at least 32 pixels, got 8"),
    ],
)
def test_wrong_settings_are_refused_by_name(name, fields, message):
    with pytest.raises(ConfigError, match=message):
        make_environment(name, **fields)
