"""A bounded memory of past frames for systems that compare a frame with others of its video.

The state is a dict with `embedding`, a tree of arrays `[B,R,...]` (what is kept of a frame, R
slots); `time [B,R]` int32, when each was seen (-1: empty slot; filled slots come first, in order of
time); `count [B]` int32, frames seen. When the memory is full, the frame whose neighbours in memory
are nearest in time is forgotten, never the first nor the newest, so that what is kept stays spread
over the whole past.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def empty(shapes: Any, slots: int) -> dict[str, Any]:
    """A memory without frames; `shapes` are those of one frame's tree, `[B,...]`, with dtypes."""
    batch = jax.tree.leaves(shapes)[0].shape[0]
    return {
        "embedding": jax.tree.map(
            lambda x: jnp.zeros((x.shape[0], slots, *x.shape[1:]), x.dtype), shapes
        ),
        "time": jnp.full((batch, slots), -1, jnp.int32),
        "count": jnp.zeros((batch,), jnp.int32),
    }


def visible(state: Mapping[str, Any], query: Any) -> tuple[Any, jax.Array]:
    """References `[B,R,...]` and which of them count `[B,R]`; the very first frame sees itself."""
    first_slot = jnp.arange(state["time"].shape[1]) == 0
    itself = (state["count"] == 0)[:, None] & first_slot

    def of(kept: jax.Array, now: jax.Array) -> jax.Array:
        mark = itself.reshape(*itself.shape, *(1,) * (kept.ndim - 2))
        return jnp.where(mark, now[:, None], kept)

    references = jax.tree.map(of, state["embedding"], query)
    return references, itself | (state["time"] >= 0)


def cycled(state: Mapping[str, Any], query: Any) -> Any:
    """References `[B,R,...]` with empty slots filled by repeating the filled ones in turn."""
    references, valid = visible(state, query)
    filled = jnp.sum(valid, axis=1, keepdims=True)
    slot = jnp.arange(valid.shape[1]) % filled
    return jax.tree.map(lambda x: _take(x, slot), references)


def remember(state: Mapping[str, Any], embedding: Any) -> dict[str, Any]:
    """The memory after one more frame; see the module for what is forgotten when it is full."""
    time, count = state["time"], state["count"]
    R = time.shape[1]
    times = jnp.concatenate([time, count[:, None]], axis=1)
    slots = jnp.arange(R)
    filled = jnp.sum(time >= 0, axis=1)[:, None]
    if R > 1:
        gaps = times[:, 2:] - times[:, :-2]  # between the neighbours of slots 1 .. R-1
        forgotten = 1 + jnp.argmin(gaps, axis=1)[:, None]
    else:
        forgotten = jnp.zeros_like(filled)
    when_full = slots + (slots >= forgotten)
    source = jnp.where(filled < R, jnp.where(slots == filled, R, slots), when_full)
    return {
        "embedding": jax.tree.map(
            lambda kept, now: _take(jnp.concatenate([kept, now[:, None]], axis=1), source),
            state["embedding"],
            embedding,
        ),
        "time": jnp.take_along_axis(times, source, axis=1),
        "count": count + 1,
    }


def _take(x: jax.Array, slots: jax.Array) -> jax.Array:
    """Slots `[B,R]` of `[B,S,...]`."""
    return jnp.take_along_axis(x, slots.reshape(*slots.shape, *(1,) * (x.ndim - 2)), axis=1)
