"""Counting what a system costs, from shapes alone."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp


def parameter_count(shapes: Any) -> int:
    """Number of trainable scalars of an `init` tree or its shapes."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes["params"]))


def gflop_per_frame(system: Any, shapes: Any) -> float:
    """GFLOP (2 per multiply-add) of `predict` per frame, references already encoded.

    Counted by XLA on the lowered program of one chunk; nothing is compiled or run.
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
    cost = jax.jit(system.predict).lower(shapes, state, chunk).cost_analysis()
    return cost["flops"] / 1e9 / length
