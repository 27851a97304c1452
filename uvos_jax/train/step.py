"""The training step: a pure function of state and batch, compiled once per phase."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from uvos_jax.train import mesh as meshes
from uvos_jax.train.optimizer import Schedule
from uvos_jax.train.state import TrainState
from uvos_jax.types import Phase


def init_state(
    system: Any,
    seed: int,
    optimizer_of: Callable[[Any], optax.GradientTransformation],
    *,
    ema: bool = False,
) -> TrainState:
    """A fresh state; jittable, so that it can be created where it will live.

    Args:
      optimizer_of: the optimiser for given parameters.
      ema: keep averaged parameters as well.
    """
    rng = jax.random.key(seed)
    init_key, train_key = jax.random.split(rng)
    variables = system.init(init_key)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer_of(params).init(params),
        rng=train_key,
        ema=jax.tree.map(jnp.copy, params) if ema else None,
    )


def make_train_step(
    system: Any,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    phase: Phase,
    accumulate: int = 1,
    ema: float = 0.0,
    stage_start: int = 0,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds `step(state, batch) -> (state, metrics)`.

    Metrics: `loss`, the system's terms, `grad_norm`, `lr`, `finite`. If loss or gradients are not
    finite, the state is returned unchanged but for its step count, and `finite` is False.

    Args:
      optimizer: from `make_optimizer`; the schedule's rate is applied here.
      accumulate: the batch is worked through in this many equal parts, gradients averaged.
      ema: decay of the averaged parameters, if the state has any; 0 keeps them equal to the
        parameters.
      stage_start: global step at which the stage began; the schedule counts from there.
    """

    def loss_and_aux(params, batch_stats, batch, rng, step):
        variables = {"params": params}
        if batch_stats:
            variables["batch_stats"] = batch_stats
        outputs, updates = system.apply(
            variables, batch, train=True, rngs={"dropout": rng}, phase=phase.name
        )
        loss, terms = system.loss_fn(outputs, batch, step=step, phase=phase.name)
        return loss, (terms, updates.get("batch_stats", batch_stats))

    gradient = jax.value_and_grad(loss_and_aux, has_aux=True)

    def accumulated(state: TrainState, batch: Any, rng: jax.Array):
        if accumulate == 1:
            return gradient(state.params, state.batch_stats, batch, rng, state.step)
        # Every part takes rows from every device, so that none has to travel.
        parts = jax.tree.map(
            lambda x: x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1),
            batch,
        )

        def one(carry, inputs):
            total, batch_stats = carry
            part, key = inputs
            (loss, (terms, batch_stats)), grads = gradient(
                state.params, batch_stats, part, key, state.step
            )
            total = jax.tree.map(jnp.add, total, grads)
            return (total, batch_stats), (loss, terms)

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (total, batch_stats), (losses, terms) = jax.lax.scan(
            one, (zeros, state.batch_stats), (parts, jax.random.split(rng, accumulate))
        )
        grads = jax.tree.map(lambda g: g / accumulate, total)
        terms = jax.tree.map(lambda x: x.mean(0), terms)
        return (losses.mean(), (terms, batch_stats)), grads

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        rng = jax.random.fold_in(state.rng, state.step)
        (loss, (terms, batch_stats)), grads = accumulated(state, batch, rng)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        rate = schedule(state.step - stage_start)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - (rate * u).astype(p.dtype), state.params, updates)
        averaged = state.ema
        if averaged is not None:
            # Early on the average follows faster, or it would remember the initial values.
            count = (state.step + 1).astype(jnp.float32)
            decay = jnp.minimum(ema, (1 + count) / (10 + count))
            averaged = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, averaged, params)
        new = (params, batch_stats, opt_state, averaged)
        old = (state.params, state.batch_stats, state.opt_state, state.ema)
        params, batch_stats, opt_state, averaged = jax.tree.map(
            lambda a, b: jnp.where(finite, a, b), new, old
        )
        metrics = {
            "loss": loss,
            **terms,
            "grad_norm": norm,
            "lr": rate,
            "finite": finite,
        }
        new_state = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=averaged,
        )
        return new_state, metrics

    return step


def compile_step(step: Callable, mesh: Mesh, state_shardings: Any) -> Callable:
    """Jits a step over the mesh; the old state's memory is reused."""
    return jax.jit(
        step,
        in_shardings=(state_shardings, meshes.batch_sharding(mesh)),
        out_shardings=(state_shardings, meshes.replicated(mesh)),
        donate_argnums=0,
    )
