"""Counting what a system costs, from shapes alone."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core


def parameter_count(shapes: Any) -> int:
    """Number of trainable scalars of an `init` tree or its shapes."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes["params"]))


def gflop_per_frame(system: Any, shapes: Any) -> float:
    """GFLOP (2 per multiply-add) of `predict` per frame, references already encoded.

    Counted by XLA on the lowered program of one chunk; nothing is compiled or run. Loops of known
    length (`lax.scan`, `lax.map`) count with all their turns, others with one.
    """
    example = system.example_batch(1)
    length = system.spec.clip_len if system.spec.temporal == "clip" else 1
    chunk = {
        k: jax.ShapeDtypeStruct((1, length, *v.shape[2:]), v.dtype)
        for k, v in example.items()
        if k == "frames" or k in system.spec.requires
    }
    size = chunk["frames"].shape[2:]
    if system.spec.num_references:
        references = {
            "frames": jax.ShapeDtypeStruct((1, system.spec.num_references, *size), jnp.uint8)
        }
        state = jax.eval_shape(system.prepare, shapes, references)
    else:
        state = jax.eval_shape(lambda v: system.init_state(v, 1, size[:2]), shapes)
    return flops(system.predict, shapes, state, chunk) / 1e9 / length


def flops(function: Any, *shapes: Any) -> float:
    """Floating-point operations of one call, every turn of its loops of known length included."""
    closed = jax.make_jaxpr(function)(*shapes)
    return _one_turn(closed) + _further_turns(closed.jaxpr)


def _one_turn(closed: Any) -> float:
    """What XLA counts: the body of a loop once."""
    arguments = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    cost = jax.jit(core.jaxpr_as_fun(closed)).lower(*arguments).cost_analysis()
    return float((cost or {}).get("flops", 0.0))


def _further_turns(jaxpr: Any) -> float:
    """What `_one_turn` misses of a program: the other turns of its loops, nested ones too."""
    total = 0.0
    for equation in jaxpr.eqns:
        for body in core.jaxprs_in_params(equation.params):
            inner = _further_turns(body)
            if equation.primitive.name == "scan":
                once = _one_turn(equation.params["jaxpr"])
                inner = equation.params["length"] * (once + inner) - once
            total += inner
    return total
