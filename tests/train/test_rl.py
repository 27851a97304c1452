"""A2C, PPO and the joint loss against slow oracles; what learns what; resume."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import uvos_jax as uvos
from uvos_jax.data.video_io import open_video
from uvos_jax.errors import CheckpointError, ConfigError
from uvos_jax.synthetic.environments import make_environment
from uvos_jax.train import agent as agents
from uvos_jax.train import rl
from uvos_jax.train.loop import train

T, E = 7, 3


def settings(variant="tiny_catch", **changes):
    """A configuration with a policy that compiles fast."""
    config = uvos.load_config(f"morel:{variant}")
    config.model.update({"embedding": 16, "channels": 4, "objects": 2})
    config.model.convs = ((4, 4, 2), (4, 3, 2), (4, 3, 1))
    config.rl.update({"envs": 8, "rollout": 4, "total_steps": 8 * 4 * 6, "joint_stride": 1})
    config.rl.update(changes)
    return config


@cache
def built(**changes):
    config = settings(**changes)
    system = uvos.build(config)
    env = make_environment(config.rl.env, size=42)
    return rl.make_agent(system, env, config.rl), system


@cache
def environments():
    env = make_environment("catch", size=42)
    return jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 8))[0]


def start(agent):
    """A fresh state; parameters are drawn on the host, compiling `init` takes longer."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if path[-1].key == "kernel" else 0.0
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)

    shapes = jax.eval_shape(agent.init, jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(draw, shapes.params)
    moments = rl.make_optimizer(agent.rl).init(params)
    return rl.AgentState(jnp.int32(0), params, moments, environments(), jax.random.key(1))


@cache
def compiled(**changes):
    """Loss with its gradient, and an update, of an agent; one program each for all tests."""
    agent, _ = built(**changes)
    return jax.jit(jax.value_and_grad(agent.loss, has_aux=True)), jax.jit(agent.update)


def samples(agent, count=32, seed=0):
    rng = np.random.default_rng(seed)
    draw = {
        "pairs": jnp.asarray(rng.integers(0, 256, (count, 42, 42, 2)), jnp.uint8),
        "actions": jnp.asarray(rng.integers(0, 3, count)),
    }
    for name in ("log_probs", "values", "advantages", "returns"):
        draw[name] = jnp.asarray(rng.standard_normal(count), jnp.float32)
    draw["log_probs"] = draw["log_probs"] * 0.2 - 1.1
    return draw


# ----- formulas -------------------------------------------------------------------------------


def played(rng):
    rewards, values = rng.standard_normal((2, T, E))
    return rewards, values, rng.random((T, E)) < 0.3, rng.standard_normal(E)


@pytest.mark.parametrize("lam", [1.0, 0.95, 0.0])
def test_advantages_equal_a_sum_over_all_later_steps(rng, lam):
    rewards, values, dones, last = played(rng)
    gamma = 0.9
    following = np.concatenate([values[1:], last[None]])
    expected = np.zeros((T, E))
    for t, e in np.ndindex(T, E):
        weight = 1.0
        for s in range(t, T):
            delta = rewards[s, e] + gamma * (not dones[s, e]) * following[s, e] - values[s, e]
            expected[t, e] += weight * delta
            weight *= gamma * lam
            if dones[s, e]:
                break
    got = rl.generalized_advantages(
        *map(jnp.asarray, (rewards, values, dones, last)), gamma=gamma, gae_lambda=lam
    )
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_with_lambda_one_returns_are_discounted_sums_that_end_with_the_episode(rng):
    rewards, values, dones, last = played(rng)
    returns = last.copy()
    for t in reversed(range(T)):
        returns = rewards[t] + 0.99 * returns * ~dones[t]
        got = rl.generalized_advantages(
            *map(jnp.asarray, (rewards, values, dones, last)), gamma=0.99, gae_lambda=1.0
        )
        np.testing.assert_allclose(got[t] + values[t], returns, atol=1e-5)


def test_entropy_and_log_probabilities(rng):
    logits = rng.standard_normal((5, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(rl.entropy_of(jnp.asarray(logits)), -(p * np.log(p)).sum(1),
                               rtol=1e-5)  # fmt: skip
    actions = np.asarray([0, 3, 1, 1, 2])
    got = rl.log_prob_of(jnp.asarray(logits), jnp.asarray(actions))
    np.testing.assert_allclose(got, np.log(p[np.arange(5), actions]), rtol=1e-5)


def test_ppo_equals_a_loop_and_its_masks_are_where_they_say(rng):
    new, old, values, old_values, advantages, returns = rng.standard_normal((6, 200))
    old = new + 0.2 * old
    old_values = values + 0.2 * old_values
    clip = 0.1
    policy, value, branches = rl.ppo_terms(
        *map(jnp.asarray, (new, old, values, old_values, advantages, returns)), clip
    )
    inside, release = (rl.joint_mask(branches, kind) for kind in ("inside", "release"))
    kinds = set()
    for i in range(200):
        ratio = np.exp(new[i] - old[i])
        plain = -advantages[i] * ratio
        clipped = -advantages[i] * min(max(ratio, 1 - clip), 1 + clip)
        near = old_values[i] + min(max(values[i] - old_values[i], -clip), clip)
        v_plain, v_clipped = (values[i] - returns[i]) ** 2, (near - returns[i]) ** 2
        np.testing.assert_allclose(policy[i], max(plain, clipped), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(value[i], 0.5 * max(v_plain, v_clipped), rtol=1e-4, atol=1e-6)
        cut = (plain < clipped, v_plain < v_clipped)
        kinds.add(cut)
        assert inside[i] == (not any(cut)), i
        assert release[i] == all(cut), i
    assert len(kinds) == 4
    np.testing.assert_array_equal(rl.joint_mask(branches, "none"), 1.0)


def test_the_mask_of_the_release_marks_samples_without_a_gradient(rng):
    """What the code does, against its own comment."""
    old, old_values, advantages, returns = (jnp.asarray(x) for x in rng.standard_normal((4, 200)))

    def total(x):
        policy, value, branches = rl.ppo_terms(
            old + x[0], old, old_values + x[1], old_values, advantages, returns, 0.1
        )
        return jnp.sum(policy + value), branches

    at = jnp.asarray(0.3 * rng.standard_normal((2, 200)))
    gradient, branches = jax.grad(total, has_aux=True)(at)
    silent = np.all(np.asarray(gradient) == 0, axis=0)
    np.testing.assert_array_equal(rl.joint_mask(branches, "release"), silent)
    assert 0 < silent.sum() < 200


def test_a2c_terms(rng):
    log_probs, values, advantages, returns = rng.standard_normal((4, 9))
    policy, value = rl.a2c_terms(*map(jnp.asarray, (log_probs, values, advantages, returns)))
    np.testing.assert_allclose(policy, -advantages * log_probs, rtol=1e-6)
    np.testing.assert_allclose(value, (values - returns) ** 2 / 2, rtol=1e-5)


def test_rmsprop_is_tensorflows(rng):
    """The mean square starts at 1, epsilon stands inside the root, gradients are clipped first."""
    config = settings()
    optimizer = rl.make_optimizer(config.rl)
    params = {"w": jnp.zeros(5)}
    state, square = optimizer.init(params), np.ones(5)
    for _ in range(3):
        grads = 3 * rng.standard_normal(5)
        updates, state = optimizer.update({"w": jnp.asarray(grads)}, state, params)
        clipped = grads * min(1.0, 0.5 / np.linalg.norm(grads))
        square = 0.99 * square + 0.01 * clipped**2
        np.testing.assert_allclose(updates["w"], clipped / np.sqrt(square + 1e-5), rtol=1e-4)


# ----- the loss -------------------------------------------------------------------------------


def test_the_loss_is_the_sum_of_its_terms():
    agent, _ = built()
    params = start(agent).params
    batch = samples(agent)
    (total, terms), _ = compiled()[0](params, batch, 0.1, 0.7)
    expected = (
        terms["policy_loss"] - 0.01 * terms["entropy"] + 0.5 * terms["value_loss"]
        + 0.7 * terms["joint_loss"]
    )  # fmt: skip
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_the_joint_loss_reaches_the_transferred_path_and_not_the_static_one():
    agent, _ = built()
    params = start(agent).params
    batch = samples(agent)

    def gradient(params, weight):
        return compiled()[0](params, batch, 0.1, weight)[1]

    def change(part):
        difference = jax.tree.map(
            lambda a, b: np.abs(a - b).max(),
            gradient(params, 1.0)[part],
            gradient(params, 0.0)[part],
        )
        return max(jax.tree.leaves(difference))

    for part in ("encoder", "decoder", "motion"):
        assert change(part) > 1e-6, part
    for part in ("static_encoder", "extra_path_fc", "pi", "v"):
        assert change(part) == 0, part
    alone = gradient(params, 0.0)
    for part in ("decoder", "motion"):  # the policy's own loss does not see them
        assert not any(np.any(x) for x in jax.tree.leaves(alone[part]))
    for part in ("encoder", "static_encoder"):
        assert any(np.any(x) for x in jax.tree.leaves(alone[part]))


def test_ppo_weighs_the_joint_loss_sample_by_sample():
    agent, system = built(algorithm="ppo", minibatches=1, joint_stride=2)
    params, batch = start(agent).params, samples(agent)
    _, terms = jax.jit(agent.loss)(params, batch, 0.1, 1.0)

    @jax.jit
    def by_hand(params):
        pairs = batch["pairs"] / 255.0
        logits, values, seen = agent.policy.apply({"params": params}, pairs, with_segments=True)
        each = system.pair_losses({**seen, "pairs": pairs})
        advantages = (batch["advantages"] - batch["advantages"].mean()) / batch["advantages"].std()
        branches = rl.ppo_terms(
            rl.log_prob_of(logits, batch["actions"]), batch["log_probs"], values, batch["values"],
            advantages, batch["returns"], 0.1,
        )[2]  # fmt: skip
        return each["reconstruction"] + each["sparsity"], rl.joint_mask(branches, "inside")

    each, mask = (x[::2] for x in by_hand(params))
    np.testing.assert_allclose(terms["joint_loss"], jnp.mean(mask * each), rtol=1e-4)
    np.testing.assert_allclose(terms["joint_share"], mask.mean())
    assert 0 < float(mask.mean()) < 1


# ----- updates --------------------------------------------------------------------------------


def test_an_a2c_update_is_one_step_on_what_was_played():
    agent, _ = built()
    state = start(agent)
    key = jax.random.fold_in(jax.random.fold_in(state.rng, 0), 0)
    _, rollout, _ = jax.jit(agent.play)(state.params, state.envs, key)
    assert rollout.pairs.shape == (4, 8, 42, 42, 2)
    np.testing.assert_array_equal(rollout.pairs[0], state.envs.frames)
    new, metrics = compiled()[1](state)
    assert new.update == 1
    # by hand
    advantages = np.asarray(rl.generalized_advantages(
        rollout.rewards, rollout.values, rollout.dones, rollout.last_value, gamma=0.99,
        gae_lambda=1.0,
    ))  # fmt: skip
    flat = {
        "pairs": rollout.pairs.reshape(-1, 42, 42, 2), "actions": rollout.actions.reshape(-1),
        "advantages": advantages.reshape(-1),
        "returns": (advantages + np.asarray(rollout.values)).reshape(-1),
        "log_probs": rollout.log_probs.reshape(-1), "values": rollout.values.reshape(-1),
    }  # fmt: skip
    (loss, _), grads = compiled()[0](state.params, flat, 0.1, 1.0)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4)
    norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(grads)))
    for path in (("pi", "kernel"), ("encoder", "c1"), ("static_encoder", "fc1")):
        g, old, after = grads, state.params, new.params
        for name in path:
            g, old, after = g[name], old[name], after[name]
        for x, a, b in zip(*map(jax.tree.leaves, (g, old, after)), strict=True):
            x = x * jnp.minimum(1.0, 0.5 / norm)
            step = 7e-4 * x / jnp.sqrt(0.99 + 0.01 * x**2 + 1e-5)
            np.testing.assert_allclose(a - b, step, atol=2e-7)


def test_environments_spread_over_devices_give_the_same_updates():
    agent, _ = built()
    state = start(agent)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = NamedSharding(mesh, P("data"))
    everywhere = NamedSharding(mesh, P())
    placed = jax.device_put(state, everywhere)
    placed = placed.replace(envs=jax.device_put(state.envs, spread))
    update = compiled()[1]
    (one, metrics), (many, same) = update(state), update(placed)
    np.testing.assert_array_equal(one.envs.frames, many.envs.frames)
    np.testing.assert_allclose(metrics["loss"], same["loss"], rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one.params, many.params)


def test_ppo_falls_to_zero_uses_every_sample_once_an_epoch_and_the_joint_weight_decays():
    agent, _ = built(
        algorithm="ppo", schedule="linear", epochs=2, minibatches=4, optimizer="adam", lr=1e-3,
        joint_decay_steps=64,  # two updates
    )  # fmt: skip
    state, metrics = jax.jit(agent.run, static_argnums=1)(start(agent), 6)
    np.testing.assert_allclose(metrics["lr"], 1e-3 * (1 - np.arange(6) / 6), rtol=1e-5)
    assert state.opt_state[1].count == 6 * 2 * 4
    assert np.all(metrics["finite"])
    rest = metrics["policy_loss"] - 0.01 * metrics["entropy"] + 0.5 * metrics["value_loss"]
    weights = (metrics["loss"] - rest) / metrics["joint_loss"]
    np.testing.assert_allclose(weights, [1.0, 0.5, 0.0, 0.0, 0.0, 0.0], atol=1e-3)


# ----- runs -----------------------------------------------------------------------------------


def run_of(folder, **changes):
    config = settings(
        total_steps=8 * 4 * 6, log_every=2, checkpoint_every=3, eval_episodes=4, video_steps=6,
        **changes,
    )  # fmt: skip
    config.train.total_steps = 2
    config.rl.env_fields = {"drops": 1}
    return config, train(config, folder, progress=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, *run_of(folder)


def test_a_run_trains_segmenter_and_agent_and_leaves_what_others_need(finished):
    folder, _, summary = finished
    assert summary["finished"]
    assert summary["step"] == 192
    assert -1 <= summary["random_returns"] <= 1
    for name in ("segmenter/weights.npz", "agent.npz", "agent/agent.mp4", "agent/curves.png"):
        assert (folder / name).is_file(), name
    rows = [json.loads(x) for x in (folder / "agent/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows[:-1]] == [64, 128, 192]
    assert all(r["reconstruction"] > 0 for r in rows[:-1])
    video = open_video(folder / "agent/agent.mp4")
    assert video.num_frames == 6
    masks = uvos.Predictor.load(folder / "weights.npz", "morel").predict(
        np.zeros((2, 50, 61, 3), np.uint8)
    )
    assert masks.probs.shape == (2, 50, 61)
    agent, _, params = agents.load_agent(folder / "agent.npz")
    returns = rl.agent_returns(agent, params, jax.random.key(0), 4, greedy=True)
    assert returns.shape == (4,)


def test_the_agent_starts_from_the_segmenter(finished, tmp_path):
    folder, config, _ = finished
    trainer = agents.AgentTrainer(config, tmp_path, progress=False)
    trainer.checkpoints = agents.Checkpoints(tmp_path / "c", keep_latest=1, keep_best=("J", 0))
    trainer.stored = {}
    state, restored = trainer.start(folder / "segmenter/weights.npz")
    trainer.checkpoints.close()
    assert not restored
    weights = uvos.load_variables(folder / "segmenter/weights.npz")["params"]
    jax.tree.map(np.testing.assert_array_equal, state.params["encoder"], weights["encoder"])
    assert np.any(
        state.params["static_encoder"]["fc1"]["kernel"] != weights["encoder"]["fc1"]["kernel"]
    )


def test_a_stopped_agent_goes_on_as_if_it_had_not_stopped(finished, tmp_path, monkeypatch):
    folder, _, _ = finished

    class StopAfterFirst(agents.StopRequest):
        def at(self, step):
            return step >= 3

    with monkeypatch.context() as patch:
        patch.setattr(agents, "StopRequest", StopAfterFirst)
        _, summary = run_of(tmp_path)
    assert not summary["finished"]
    assert 3 * 32 <= summary["step"] < 192
    run_of(tmp_path)
    ours, theirs = (uvos.load_variables(f / "agent.npz") for f in (folder, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, dict(ours), dict(theirs))
    with pytest.raises(ConfigError, match=r"agent\.rl\.gamma was 0\.99, is 0\.5"):
        run_of(tmp_path, gamma=0.5)


def test_an_agent_without_segments_has_one_plain_path(tmp_path):
    config = settings(pretrain="random", joint_weight=0.0, extra_path=False)
    trainer = agents.AgentTrainer(config, tmp_path, progress=False)
    shapes = jax.eval_shape(trainer.agent.init, jax.random.key(0))
    assert set(shapes.params) == {"encoder", "pi", "v"}
    path = trainer._export(start(trainer.agent).params, 0)
    assert path.name == "agent.npz"
    assert not (tmp_path / "weights.npz").exists()


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"algorithm": "dqn"}, r"rl\.algorithm is 'dqn'.*a2c"),
        ({"joint_mask": "outside"}, r"rl\.joint_mask is 'outside'"),
        ({"minibatches": 5}, r"8 x 4 must be a multiple of rl\.minibatches=5"),
        ({"total_steps": 10}, r"rl\.total_steps=10 is less than one update"),
        ({"envs": 12, "rollout": 2}, r"rl\.envs=12 must be a multiple of the 8 devices"),
        ({"env": "pong"}, "environment 'pong' is unknown"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train(settings(**changes), tmp_path, progress=False)
    assert not (tmp_path / "segmenter").exists()


def test_weights_must_be_given_if_they_are_asked_for(tmp_path, finished):
    with pytest.raises(CheckpointError, match="give --init-from FILE"):
        train(settings(pretrain="weights"), tmp_path, progress=False)
    with pytest.raises(CheckpointError, match="holds a segmenter only"):
        agents.load_agent(finished[0] / "weights.npz")


def test_an_environment_of_another_size_is_refused():
    config = settings()
    with pytest.raises(ConfigError, match=r"frames of \(42, 42\), the environment paints 84x84"):
        rl.make_agent(uvos.build(config), make_environment("catch"), config.rl)
