"""Scoring a system on clips while it trains: mean J at the configured threshold."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@partial(jax.jit, static_argnums=(0, 3))
def _clip_scores(system: Any, variables: Any, batch: dict[str, jax.Array], threshold: float):
    """J per frame of one clip `[1,T,...]`, at the resolution of the clip."""
    frames = batch["frames"]
    T = frames.shape[1]
    count = system.spec.num_references
    if count:
        index = np.linspace(0, T - 1, count).round().astype(int)
        state = system.prepare(variables, {**batch, "frames": frames[:, index]})
    else:
        state = system.init_state(variables, 1, frames.shape[2:4])
    length = max(system.spec.clip_len, 1) if system.spec.temporal == "clip" else 1
    probs = []
    for start in range(0, T, length):
        index = np.minimum(np.arange(start, start + length), T - 1)
        chunk = {k: v[:, index] for k, v in batch.items() if k in ("frames", "flow")}
        state, p = system.predict(variables, state, chunk)
        probs.append(p[:, : min(length, T - start)])
    predicted = jnp.concatenate(probs, axis=1) > threshold
    masks = batch["masks"]
    truth, void = (masks > 0) & (masks < 255), masks == 255
    union = ((predicted | truth) & ~void).sum((2, 3))
    overlap = (predicted & truth & ~void).sum((2, 3))
    return jnp.where(union > 0, overlap / jnp.maximum(union, 1), 1.0)[0]


def mean_j(system: Any, variables: Any, clips: Iterable[dict], *, threshold: float = 0.5) -> float:
    """Mean over clips of the mean J over their annotated frames.

    Args:
      clips: examples of the data contract (`frames [T,H,W,3]`, `masks [T,H,W]`, ...), resized to
        the system's input size.
    """
    scores = []
    for clip in clips:
        batch = {k: jnp.asarray(v)[None] for k, v in clip.items() if np.ndim(v) > 0}
        j = np.asarray(_clip_scores(system, variables, batch, threshold))
        use = np.asarray(clip.get("valid", np.ones(len(j), bool)))
        use = use & np.asarray(clip.get("has_mask", np.ones(len(j), bool)))
        if use.any():
            scores.append(float(j[use].mean()))
    return float(np.mean(scores)) if scores else float("nan")
