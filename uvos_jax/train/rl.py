"""A2C and PPO as pure functions, with the joint loss of MOREL, compiled as a whole.

    agent = make_agent(system, env, config.rl)
    state = agent.init(key)
    state, metrics = jax.jit(agent.run, static_argnums=1)(state, 100)

An update plays `rollout` steps in all environments (a scan), then learns from them (A2C: one step
on all of it; PPO: epochs of minibatches, scans again); `run` scans over updates, so that nothing
but metrics leaves the device. The axis of environments may be spread over devices.

Faithful to the authors' code, which builds on OpenAI's baselines, except where a field says so:
`joint_mask="inside"` applies PPO's joint loss where nothing is clipped, as the code's comment says;
`"release"` where the clipped branch wins in both losses, which is what the code does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from uvos_jax.errors import ConfigError
from uvos_jax.synthetic.environments import Environment
from uvos_jax.systems.morel.policy import ActorCritic, init_policy, make_policy, transfer

ALGORITHMS = ("a2c", "ppo")
JOINT_MASKS = ("inside", "release", "none")
OPTIMIZERS = ("rmsprop", "adam")
SCHEDULES = ("constant", "linear")


@struct.dataclass
class AgentState:
    """What an update changes.

    Attributes:
      update: int32, updates so far. params: of the policy. opt_state: of the optimiser.
      envs: states of E environments, stacked; None if they live on the host.
      rng: typed key, never changed; the update's number is folded in.
    """

    update: jax.Array
    params: Any
    opt_state: Any
    envs: Any
    rng: jax.Array


@struct.dataclass
class Rollout:
    """T steps of E environments, as they were played.

    Attributes:
      pairs: uint8 `[T,E,H,W,2]`, what the policy saw. actions: int32 `[T,E]`, what it did.
      log_probs, values: float32 `[T,E]`, of the policy that played.
      rewards: float32 `[T,E]`. dones: bool `[T,E]`, the episode ended with this step.
      last_value: float32 `[E]`, of what came after the last step.
    """

    pairs: jax.Array
    actions: jax.Array
    log_probs: jax.Array
    values: jax.Array
    rewards: jax.Array
    dones: jax.Array
    last_value: jax.Array


# ----- formulas -------------------------------------------------------------------------------


def generalized_advantages(
    rewards: jax.Array,
    values: jax.Array,
    dones: jax.Array,
    last_value: jax.Array,
    *,
    gamma: float,
    gae_lambda: float,
) -> jax.Array:
    """Advantages `[T,...]`: `A_t = d_t + gamma lambda (1 - done_t) A_{t+1}`.

    `d_t = r_t + gamma (1 - done_t) v_{t+1} - v_t` (Schulman et al., 2016). With `gae_lambda=1` that
    is the return over the steps played, continued by `last_value`, minus the value.
    """
    following = jnp.concatenate([values[1:], last_value[None]])
    goes_on = 1.0 - dones.astype(jnp.float32)
    deltas = rewards + gamma * goes_on * following - values

    def back(carry: jax.Array, step: Any) -> tuple[jax.Array, jax.Array]:
        delta, on = step
        carry = delta + gamma * gae_lambda * on * carry
        return carry, carry

    zeros = jnp.zeros_like(last_value)
    return jax.lax.scan(back, zeros, (deltas, goes_on), reverse=True)[1]


def entropy_of(logits: jax.Array) -> jax.Array:
    """Entropy in nats of softmax distributions `[...,A]`."""
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def log_prob_of(logits: jax.Array, actions: jax.Array) -> jax.Array:
    """Log-probability `[...]` of actions `[...]`."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), actions[..., None], axis=-1)[..., 0]


def a2c_terms(
    log_probs: jax.Array, values: jax.Array, advantages: jax.Array, returns: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Losses of policy and value `[N]`: `-A log pi` and `(v - R)^2 / 2`."""
    return -advantages * log_probs, 0.5 * jnp.square(values - returns)


def ppo_terms(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    values: jax.Array,
    old_values: jax.Array,
    advantages: jax.Array,
    returns: jax.Array,
    clip: jax.Array | float,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Clipped losses of policy and value `[N]`, and both branches of each.

    Both take the larger (worse) of the plain and the clipped branch; the clipped value stays within
    `clip` of the old one.
    """
    ratio = jnp.exp(log_probs - old_log_probs)
    near = old_values + jnp.clip(values - old_values, -clip, clip)
    branches = {
        "policy": -advantages * ratio,
        "policy_clipped": -advantages * jnp.clip(ratio, 1.0 - clip, 1.0 + clip),
        "value": jnp.square(values - returns),
        "value_clipped": jnp.square(near - returns),
    }
    policy = jnp.maximum(branches["policy"], branches["policy_clipped"])
    value = 0.5 * jnp.maximum(branches["value"], branches["value_clipped"])
    return policy, value, branches


def joint_mask(branches: Mapping[str, jax.Array], kind: str) -> jax.Array:
    """Which samples take part in the joint loss of PPO, float32 `[N]`.

    `release`: those whose clipped branch is the larger one in both losses, so that neither gives a
    gradient. `inside`: those where it is so in none. `none`: no mask, all take part.
    """
    value = branches["value"] < branches["value_clipped"]
    policy = branches["policy"] < branches["policy_clipped"]
    if kind == "release":
        return (value & policy).astype(jnp.float32)
    if kind == "inside":
        return (~value & ~policy).astype(jnp.float32)
    return jnp.ones_like(branches["value"])


# ----- the agent ------------------------------------------------------------------------------


def check_settings(rl: Any) -> None:
    """Raises `ConfigError` for values of the `rl` section that cannot be."""
    for field, allowed in (
        ("algorithm", ALGORITHMS),
        ("joint_mask", JOINT_MASKS),
        ("optimizer", OPTIMIZERS),
        ("schedule", SCHEDULES),
        ("pretrain", ("stage1", "weights", "random")),
    ):
        if rl[field] not in allowed:
            raise ConfigError(f"config field rl.{field} is {rl[field]!r}: use one of {allowed}")
    for field in (
        "envs", "rollout", "epochs", "minibatches", "total_steps", "log_every", "joint_stride",
    ):  # fmt: skip
        if rl[field] < 1:
            raise ConfigError(f"config field rl.{field} must be at least 1, got {rl[field]}")
    if rl.envs * rl.rollout % rl.minibatches:
        raise ConfigError(
            f"rl.envs x rl.rollout = {rl.envs} x {rl.rollout} must be a multiple of "
            f"rl.minibatches={rl.minibatches}"
        )
    if rl.total_steps < rl.envs * rl.rollout:
        raise ConfigError(
            f"rl.total_steps={rl.total_steps} is less than one update, rl.envs x rl.rollout = "
            f"{rl.envs * rl.rollout}"
        )


def make_optimizer(rl: Any) -> optax.GradientTransformation:
    """Clipping and scaling; the learning rate is applied by the update.

    RMSProp is TensorFlow's: the mean square starts at 1 and epsilon stands inside the root.
    """
    if rl.optimizer == "rmsprop":
        scale = optax.scale_by_rms(rl.decay, rl.epsilon, initial_scale=1.0, eps_in_sqrt=True)
    else:
        scale = optax.scale_by_adam(eps=rl.epsilon)
    clip = [optax.clip_by_global_norm(rl.clip_norm)] if rl.clip_norm else []
    return optax.chain(*clip, scale)


@dataclasses.dataclass(frozen=True, eq=False)
class Agent:
    """A policy, what it plays and how it learns; built by `make_agent`.

    Attributes:
      env: an environment in JAX, or None if it lives on the host.
      pair_losses: `System.pair_losses` of the segmenter. sparsity: its weight in the joint loss.
    """

    policy: ActorCritic
    env: Environment | None
    rl: Any
    pair_losses: Callable[[Any], dict[str, jax.Array]]
    sparsity: float

    @property
    def steps_per_update(self) -> int:
        """Environment steps of one update."""
        return self.rl.envs * self.rl.rollout

    @property
    def total_updates(self) -> int:
        """Updates of the whole run."""
        return self.rl.total_steps // self.steps_per_update

    def init(self, rng: jax.Array, segmenter: Any = None) -> AgentState:
        """A fresh state.

        Args:
          segmenter: parameters of a trained segmenter, which replace the first path's.
        """
        of_policy, of_envs, of_run = jax.random.split(rng, 3)
        params = init_policy(self.policy, of_policy)
        if segmenter is not None:
            params = transfer(params, segmenter)
        envs = None
        if self.env is not None:
            envs, _ = jax.vmap(self.env.reset)(jax.random.split(of_envs, self.rl.envs))
        zero = jnp.zeros((), jnp.int32)
        return AgentState(zero, params, make_optimizer(self.rl).init(params), envs, of_run)

    def act(self, params: Any, pairs: jax.Array, key: jax.Array, *, greedy: bool = False) -> Any:
        """Actions, their log-probabilities and values `[E]` for uint8 `pairs [E,H,W,2]`."""
        logits, values, _ = self.policy.apply({"params": params}, _unit(pairs))
        actions = jnp.argmax(logits, -1) if greedy else jax.random.categorical(key, logits)
        return actions.astype(jnp.int32), log_prob_of(logits, actions), values

    # ----- playing ------------------------------------------------------------------------

    def play(self, params: Any, envs: Any, key: jax.Array) -> tuple[Any, Rollout, dict]:
        """One rollout: next states of the environments, what was played, and sums over the
        episodes that ended: `episodes`, `return_sum`, `length_sum`."""

        def step(envs: Any, key: jax.Array) -> Any:
            of_action, of_step = jax.random.split(key)
            pairs = envs.frames[..., -2:]
            actions, log_probs, values = self.act(params, pairs, of_action)
            keys = jax.random.split(of_step, self.rl.envs)
            envs, _, rewards, dones, info = jax.vmap(self.env.step)(keys, envs, actions)
            played = (pairs, actions, log_probs, values, rewards, dones)
            ended = {
                "episodes": jnp.sum(dones.astype(jnp.float32)),
                "return_sum": jnp.sum(jnp.where(dones, info.episode_return, 0.0)),
                "length_sum": jnp.sum(jnp.where(dones, info.episode_length, 0)),
            }
            return envs, (played, ended)

        envs, (played, ended) = jax.lax.scan(step, envs, jax.random.split(key, self.rl.rollout))
        last = self.policy.apply({"params": params}, _unit(envs.frames[..., -2:]))[1]
        return envs, Rollout(*played, last), jax.tree.map(jnp.sum, ended)

    # ----- learning -----------------------------------------------------------------------

    def loss(
        self, params: Any, batch: Mapping[str, jax.Array], clip: Any, weight: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss of a batch of samples `[N,...]` and its terms.

        Args:
          batch: `pairs`, `actions`, `log_probs`, `values`, `advantages`, `returns`.
          clip: range of PPO. weight: of the joint loss.
        """
        rl, pairs = self.rl, _unit(batch["pairs"])
        joint = rl.joint_weight > 0
        logits, values, seen = self.policy.apply(
            {"params": params}, pairs, with_segments=joint and rl.joint_stride == 1
        )
        log_probs = log_prob_of(logits, batch["actions"])
        advantages, mask = batch["advantages"], 1.0
        if rl.algorithm == "ppo":
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            policy, value, branches = ppo_terms(
                log_probs, batch["log_probs"], values, batch["values"], advantages,
                batch["returns"], clip,
            )  # fmt: skip
            mask = joint_mask(jax.lax.stop_gradient(branches), rl.joint_mask)
        else:
            policy, value = a2c_terms(log_probs, values, advantages, batch["returns"])
        terms = {
            "policy_loss": policy.mean(),
            "value_loss": value.mean(),
            "entropy": entropy_of(logits).mean(),
        }
        total = terms["policy_loss"] - rl.entropy * terms["entropy"]
        total = total + rl.value * terms["value_loss"]
        if joint:
            chosen = pairs[:: rl.joint_stride]
            if not seen:
                seen = self.policy.apply({"params": params}, chosen, with_segments=True)[2]
            losses = self.pair_losses({**seen, "pairs": chosen})
            each = losses["reconstruction"] + self.sparsity * losses["sparsity"]
            mask = jnp.broadcast_to(mask, pairs.shape[:1])[:: rl.joint_stride]
            terms["joint_loss"] = jnp.mean(mask * each)
            terms["joint_share"] = jnp.mean(mask)
            terms["reconstruction"] = losses["reconstruction"].mean()
            terms["no_transform_loss"] = losses["no_transform"].mean()
            total = total + weight * terms["joint_loss"]
        return total, terms

    def learn(self, state: AgentState, rollout: Rollout) -> tuple[AgentState, dict]:
        """Learns from a rollout; counts the update."""
        rl, optimizer = self.rl, make_optimizer(self.rl)
        left = 1.0 - state.update / self.total_updates if rl.schedule == "linear" else 1.0
        weight = jnp.float32(rl.joint_weight)
        if rl.joint_decay_steps:
            share = state.update * self.steps_per_update / rl.joint_decay_steps
            weight = weight * jnp.maximum(1.0 - share, 0.0)
        advantages = generalized_advantages(
            rollout.rewards, rollout.values, rollout.dones, rollout.last_value,
            gamma=rl.gamma, gae_lambda=rl.gae_lambda,
        )  # fmt: skip
        samples = {
            "pairs": rollout.pairs,
            "actions": rollout.actions,
            "log_probs": rollout.log_probs,
            "values": rollout.values,
            "advantages": advantages,
            "returns": advantages + rollout.values,
        }
        # the axis of environments first: it may be spread over devices
        samples = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), samples)
        gradient = jax.value_and_grad(self.loss, has_aux=True)

        def descend(carry: Any, batch: Any) -> Any:
            params, opt_state = carry
            (loss, terms), grads = gradient(params, batch, rl.clip_range * left, weight)
            norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = jax.tree.map(lambda p, u: p - rl.lr * left * u, params, updates)
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            return (params, opt_state), {**terms, "loss": loss, "grad_norm": norm, "finite": finite}

        def minibatch(carry: Any, chosen: jax.Array) -> Any:
            return descend(carry, jax.tree.map(lambda x: x[chosen], samples))

        carry = (state.params, state.opt_state)
        if rl.epochs * rl.minibatches == 1:
            carry, metrics = descend(carry, samples)
        else:
            key = jax.random.fold_in(jax.random.fold_in(state.rng, state.update), 1)
            count = self.steps_per_update
            order = jax.vmap(lambda k: jax.random.permutation(k, count))(
                jax.random.split(key, rl.epochs)
            ).reshape(rl.epochs * rl.minibatches, -1)
            carry, metrics = jax.lax.scan(minibatch, carry, order)
            finite = jnp.all(metrics.pop("finite"))
            metrics = jax.tree.map(jnp.mean, metrics) | {"finite": finite}
        metrics["lr"] = jnp.float32(rl.lr * left)
        params, opt_state = carry
        state = state.replace(update=state.update + 1, params=params, opt_state=opt_state)
        return state, metrics

    def update(self, state: AgentState) -> tuple[AgentState, dict[str, jax.Array]]:
        """Plays and learns once; metrics are scalars."""
        key = jax.random.fold_in(jax.random.fold_in(state.rng, state.update), 0)
        envs, rollout, ended = self.play(state.params, state.envs, key)
        state, metrics = self.learn(state.replace(envs=envs), rollout)
        return state, metrics | ended

    def run(self, state: AgentState, updates: int) -> tuple[AgentState, dict[str, jax.Array]]:
        """Several updates in one program; metrics get an axis `[updates]`."""
        return jax.lax.scan(lambda s, _: self.update(s), state, None, length=updates)


def make_agent(system: Any, env: Environment | None, rl: Any, actions: int = 0) -> Agent:
    """An agent whose first path, decoder and heads of motion are those of `system`.

    Args:
      system: a segmenter (`morel`). env: a pixel environment of its input size; None for one on the
        host, which has `actions`.
      rl: the `rl` section of a configuration.

    Raises:
      ConfigError: impossible settings, or frames of another size.
    """
    check_settings(rl)
    size = tuple(system.spec.input_size)
    if env is not None and size != (env.size, env.size):
        raise ConfigError(
            f"the policy reads frames of {size}, the environment paints {env.size}x{env.size}: "
            "set model.input_size and the environment's size alike"
        )
    policy = make_policy(
        system.config,
        env.actions if env is not None else actions,
        extra_path=rl.extra_path,
        segments=rl.joint_weight > 0,
    )
    return Agent(policy, env, rl, system.pair_losses, float(system.config.sparsity))


def _unit(pairs: jax.Array) -> jax.Array:
    return pairs.astype(jnp.float32) / 255.0


# ----- judging --------------------------------------------------------------------------------


def episode_returns(
    env: Environment,
    key: jax.Array,
    episodes: int,
    act: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Returns `[episodes]` of one whole episode in each of as many environments.

    Args:
      act: actions `[episodes]` for uint8 `pairs` and a key; None plays at random.
    """
    of_start, of_play = jax.random.split(key)
    envs, _ = jax.vmap(env.reset)(jax.random.split(of_start, episodes))

    def random(pairs: jax.Array, key: jax.Array) -> jax.Array:
        return jax.random.randint(key, (episodes,), 0, env.actions)

    def step(carry: Any) -> Any:
        time, envs, returns, ended = carry
        of_action, of_step = jax.random.split(jax.random.fold_in(of_play, time))
        actions = (act or random)(envs.frames[..., -2:], of_action)
        keys = jax.random.split(of_step, episodes)
        envs, _, _, dones, info = jax.vmap(env.step)(keys, envs, actions)
        returns = jnp.where(dones & ~ended, info.episode_return, returns)
        return time + 1, envs, returns, ended | dones

    start = (jnp.zeros((), jnp.int32), envs, jnp.zeros((episodes,)), jnp.zeros((episodes,), bool))
    return jax.lax.while_loop(lambda c: ~jnp.all(c[3]) & (c[0] <= env.max_steps), step, start)[2]


def agent_returns(
    agent: Agent, params: Any, key: jax.Array, episodes: int, *, greedy: bool = False
) -> jax.Array:
    """`episode_returns` of an agent that samples its actions, or takes the likeliest."""

    def act(pairs: jax.Array, key: jax.Array) -> jax.Array:
        return agent.act(params, pairs, key, greedy=greedy)[0]

    return episode_returns(agent.env, key, episodes, act)


def look(
    agent: Agent, system: Any, params: Any, pairs: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
    """What an agent sees and does in one environment, of its last two frames `[1,S,S,2]`.

    Returns:
      `frames` uint8 `[S,S]`, `actions`, `values` `[]`, and, if the agent has a decoder, `moving`
      float32 `[S,S]`, how far a pixel of the frame belongs to what moves.
    """
    logits, values, seen = agent.policy.apply(
        {"params": params}, _unit(pairs), with_segments=agent.policy.segments
    )
    actions = jax.random.categorical(key, logits)
    kept = {"frames": pairs[0, ..., 1], "actions": actions[0], "values": values[0]}
    if seen:
        seen = {k: v[:, None] for k, v in seen.items()}
        kept["moving"] = system.foreground(seen, "current")[0, 0]
    return kept


def watch(agent: Agent, system: Any, params: Any, key: jax.Array, steps: int) -> dict[str, Any]:
    """Plays one environment and keeps what an onlooker wants to see.

    Returns:
      what `look` returns of each of N steps, and `rewards`, `dones` `[N]`.
    """
    of_start, of_play = jax.random.split(key)
    envs, _ = jax.vmap(agent.env.reset)(of_start[None])

    def step(envs: Any, key: jax.Array) -> Any:
        of_action, of_step = jax.random.split(key)
        kept = look(agent, system, params, envs.frames[..., -2:], of_action)
        actions = kept["actions"][None]
        envs, _, rewards, dones, _ = jax.vmap(agent.env.step)(of_step[None], envs, actions)
        return envs, kept | {"rewards": rewards[0], "dones": dones[0]}

    return jax.lax.scan(step, envs, jax.random.split(of_play, steps))[1]
