"""Optimisers from configuration: schedules, learning-rate groups and frozen parts by path."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from uvos_jax.errors import ConfigError
from uvos_jax.types import Phase

SCHEDULES = ("constant", "poly", "cosine", "step")
OPTIMIZERS = ("sgd", "adam", "adamw")


def make_schedule(optim: Any, total_steps: int) -> optax.Schedule:
    """Learning rate over the steps of a stage.

    `constant`; `poly`: lr (1 - t/T)^power; `cosine`; `step`: times `factors[i]` from
    `boundaries[i]` on. A `factors`/`boundaries` pair applies to every kind. Linear warm-up from 0
    over `warmup_steps`.

    Raises:
      ConfigError: unknown name, or as many factors as boundaries are not given.
    """
    settings = optim.schedule
    name, lr, end = settings.name, float(optim.lr), float(settings.get("end_factor", 0.0))
    warmup = int(settings.get("warmup_steps", 0))
    steps = max(total_steps - warmup, 1)
    if name in ("constant", "step"):
        main = optax.constant_schedule(lr)
    elif name == "poly":
        main = optax.polynomial_schedule(lr, lr * end, float(settings.power), steps)
    elif name == "cosine":
        main = optax.cosine_decay_schedule(lr, steps, end)
    else:
        raise ConfigError(f"optim.schedule.name {name!r} is unknown: use one of {SCHEDULES}")
    boundaries = tuple(settings.get("boundaries", ()) or ())
    factors = tuple(settings.get("factors", ()) or ())
    if len(boundaries) != len(factors):
        raise ConfigError(
            f"optim.schedule has {len(boundaries)} boundaries and {len(factors)} factors: "
            "give one factor for each boundary"
        )

    def schedule(step: jax.Array) -> jax.Array:
        value = main(jnp.maximum(step - warmup, 0))
        for boundary, factor in zip(boundaries, factors, strict=True):
            value = jnp.where(step >= boundary, value * factor, value)
        if warmup:
            value = jnp.where(step < warmup, lr * (step + 1) / warmup, value)
        return value

    return schedule


def path_tree(params: Any) -> Any:
    """The tree of parameter paths (`encoder/conv1/kernel`)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params
    )


def multiplier_tree(
    params: Any, multipliers: Sequence[tuple[str, float]], frozen: Sequence[str]
) -> Any:
    """Factor on the learning rate of every parameter: 0 if frozen, else the first match, else 1.

    Raises:
      ConfigError: a regex matches no parameter (most likely a typo).
    """
    paths = jax.tree.leaves(path_tree(params))
    for pattern in (*frozen, *(p for p, _ in multipliers)):
        if not any(re.search(pattern, path) for path in paths):
            raise ConfigError(
                f"no parameter path matches {pattern!r}; paths look like {paths[0]!r}, "
                f"{paths[len(paths) // 2]!r}, {paths[-1]!r}"
            )

    def factor(path: str) -> float:
        if any(re.search(p, path) for p in frozen):
            return 0.0
        return next((float(f) for p, f in multipliers if re.search(p, path)), 1.0)

    return jax.tree.map(factor, path_tree(params))


def _scale_by_tree(factors: Any) -> optax.GradientTransformation:
    """Stateless: multiplies every leaf by its own constant."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(
            lambda u, f: jnp.zeros_like(u) if f == 0.0 else u * f, updates, factors
        )
    )


def make_optimizer(
    optim: Any, params: Any, total_steps: int, phase: Phase | None = None
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser of one phase, and its schedule.

    All phases of a stage share one state: they differ in stateless factors only. A frozen
    parameter gets neither gradient nor weight decay and does not move.

    Raises:
      ConfigError: unknown optimiser or schedule, or a path regex that matches nothing.
    """
    phase = phase or Phase()
    multipliers = (*phase.lr_multipliers, *(tuple(m) for m in optim.lr_multipliers))
    factors = multiplier_tree(params, multipliers, (*phase.frozen, *optim.frozen))
    moves = jax.tree.map(lambda f: 0.0 if f == 0.0 else 1.0, factors)
    schedule = make_schedule(optim, total_steps)
    parts = [_scale_by_tree(moves)]
    if optim.clip_norm:
        parts.append(optax.clip_by_global_norm(float(optim.clip_norm)))
    decay = float(optim.weight_decay)
    # Coupled decay (added to the gradient) for SGD and Adam, decoupled for AdamW.
    if decay and optim.name in ("sgd", "adam"):
        parts += [optax.add_decayed_weights(decay), _scale_by_tree(moves)]
    if optim.name == "sgd":
        parts.append(optax.trace(decay=float(optim.momentum)))
    elif optim.name in ("adam", "adamw"):
        parts.append(optax.scale_by_adam())
    else:
        raise ConfigError(f"optim.name {optim.name!r} is unknown: use one of {OPTIMIZERS}")
    if decay and optim.name == "adamw":
        kernels = jax.tree.map(lambda p: p.ndim > 1, params)
        parts.append(optax.add_decayed_weights(decay, mask=kernels))
    parts += [_scale_by_tree(factors), optax.scale_by_learning_rate(schedule)]
    return optax.chain(*parts), schedule
