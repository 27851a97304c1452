"""Optimisers from configuration: schedules, learning-rate groups and frozen parts by path."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from uvos_jax.errors import ConfigError
from uvos_jax.types import Phase

SCHEDULES = ("constant", "poly", "cosine", "step")
OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop")

Schedule = Callable[[jax.Array | int], jax.Array]


def make_schedule(optim: Any, total_steps: int) -> Schedule:
    """Learning rate at the steps 0, 1, ... of a stage of `total_steps` steps.

    `constant`; `poly`: `lr (1 - t/T)^power`; `cosine`; both end at `lr * end_factor`; `step`: the
    rate is multiplied by `factors[i]` from step `boundaries[i]` on. A `factors`/`boundaries` pair
    applies to every kind. Over the first `warmup_steps` W the rate rises as `lr (t + 1) / W`.

    A schedule that runs through several stages names its length and where a stage enters it:
    `schedule.total_steps` (0: the stage's own length) and `schedule.start_step`.

    Raises:
      ConfigError: unknown name, `step` without boundaries, or not one factor per boundary.
    """
    settings = optim.schedule
    name, lr, end = settings.name, float(optim.lr), float(settings.get("end_factor", 0.0))
    warmup = int(settings.get("warmup_steps", 0))
    total_steps = int(settings.get("total_steps", 0)) or total_steps
    start = int(settings.get("start_step", 0))
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
    if len(boundaries) != len(factors) or (name == "step" and not boundaries):
        raise ConfigError(
            f"optim.schedule has {len(boundaries)} boundaries and {len(factors)} factors: "
            "give one factor for each boundary"
        )

    def schedule(step: jax.Array | int) -> jax.Array:
        step = step + start
        value = jnp.asarray(main(jnp.maximum(step - warmup, 0)), jnp.float32)
        for boundary, factor in zip(boundaries, factors, strict=True):
            value = jnp.where(step >= boundary, value * factor, value)
        if warmup:
            value = jnp.where(step < warmup, lr * (step + 1) / warmup, value)
        return value

    return schedule


def path_tree(params: Any) -> Any:
    """Tree of parameter paths such as `encoder/conv1/kernel`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params
    )


def multiplier_tree(
    params: Any, multipliers: Sequence[tuple[str, float]], frozen: Sequence[str]
) -> Any:
    """Factor on the learning rate of every parameter: 0 if frozen, else the first match, else 1.

    Raises:
      ConfigError: a regex is malformed, or matches no parameter (most likely a typo).
    """
    paths = jax.tree.leaves(path_tree(params))
    for pattern in (*frozen, *(p for p, _ in multipliers)):
        try:
            matches = any(re.search(pattern, path) for path in paths)
        except re.error as error:
            raise ConfigError(f"{pattern!r} is no regular expression: {error}") from None
        if not matches:
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


def _hold_frozen(inner: optax.GradientTransformation, factors: Any) -> optax.GradientTransformation:
    """Leaves the moments of parameters with factor 0 as they are.

    A parameter that rests in one phase and moves in the next must not lose its momentum meanwhile.
    """
    structure = jax.tree.structure(factors)
    if all(jax.tree.leaves(factors)):
        return inner

    def mirrors(node: Any) -> bool:
        return jax.tree.structure(node) == structure

    def hold(new: Any, old: Any) -> Any:
        if not mirrors(new):
            return new
        return jax.tree.map(lambda n, o, f: o if f == 0.0 else n, new, old, factors)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, new = inner.update(grads, state, params)
        return updates, jax.tree.map(hold, new, state, is_leaf=mirrors)

    return optax.GradientTransformation(inner.init, update)


def make_optimizer(
    optim: Any, params: Any, phase: Phase | None = None
) -> optax.GradientTransformation:
    """The optimiser of one phase; its updates still lack the learning rate: `p - lr * update`.

    All phases of a stage share one form of state: they differ in stateless factors only. A frozen
    parameter gets neither gradient nor weight decay, does not count for clipping and does not
    move; its moments stay. Weight decay is added to the gradient for `sgd`, `adam` and
    `rmsprop` (as in torch), decoupled and restricted to arrays of rank 2 and more for `adamw`.

    Args:
      optim: the `optim` section of a configuration; `clip_value`, which it may have, bounds every
        single gradient before `clip_norm` does.
      params: arrays or shapes; the paths decide on factors.

    Raises:
      ConfigError: unknown optimiser, or a path regex that matches nothing.
    """
    phase = phase or Phase()
    multipliers = (*phase.lr_multipliers, *(tuple(m) for m in optim.lr_multipliers))
    factors = multiplier_tree(params, multipliers, (*phase.frozen, *optim.frozen))
    moves = jax.tree.map(lambda f: 0.0 if f == 0.0 else 1.0, factors)
    parts = [_scale_by_tree(moves)]
    if optim.get("clip_value", 0.0):
        parts.append(optax.clip(float(optim.clip_value)))
    if optim.clip_norm:
        parts.append(optax.clip_by_global_norm(float(optim.clip_norm)))
    decay = float(optim.weight_decay)
    if decay and optim.name in ("sgd", "adam", "rmsprop"):
        parts += [optax.add_decayed_weights(decay), _scale_by_tree(moves)]
    if optim.name == "sgd":
        parts.append(optax.trace(decay=float(optim.momentum)))
    elif optim.name in ("adam", "adamw"):
        parts.append(optax.scale_by_adam())
    elif optim.name == "rmsprop":
        parts.append(optax.scale_by_rms(decay=0.99, eps=1e-8, eps_in_sqrt=False))
    else:
        raise ConfigError(f"optim.name {optim.name!r} is unknown: use one of {OPTIMIZERS}")
    if decay and optim.name == "adamw":
        kernels = jax.tree.map(lambda p: p.ndim > 1, params)
        parts.append(optax.add_decayed_weights(decay, mask=kernels))
    return _hold_frozen(optax.chain(*parts, _scale_by_tree(factors)), factors)
