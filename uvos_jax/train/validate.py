"""Scoring a system on clips while it trains: mean J and F at the configured threshold."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from uvos_jax.errors import DataError
from uvos_jax.metrics.davis import j_and_f
from uvos_jax.ops.resize import resize_bilinear
from uvos_jax.viz.overlay import contact_sheet, overlay, side_by_side

#: Frames per call of systems without a clip length of their own.
CHUNK = 1


def _at_input_size(system: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Frames and flow `[1,T,H,W,C]` of a clip at the size the network wants."""
    source = batch["frames"].shape[2:4]
    size = tuple(system.spec.input_size or source)
    kept = {k: v for k, v in batch.items() if k == "frames" or k in system.spec.requires}
    if size == source:
        return kept
    frames = resize_bilinear(batch["frames"].astype(jnp.float32), size)
    kept["frames"] = jnp.round(frames).astype(jnp.uint8)
    if "flow" in kept:
        scale = jnp.asarray([size[1] / source[1], size[0] / source[0]], jnp.float32)
        kept["flow"] = resize_bilinear(kept["flow"], size) * scale
    return kept


@partial(jax.jit, static_argnums=0)
def clip_probabilities(system: Any, variables: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Foreground probabilities `[T,H,W]` of one clip `[1,T,...]` at the clip's own size."""
    source = batch["frames"].shape[2:4]
    batch = _at_input_size(system, batch)
    frames = batch["frames"]
    T, size = frames.shape[1], frames.shape[2:4]
    count = system.spec.num_references
    if count:  # the middles of equal parts, as the predictor takes them
        index = np.minimum(((np.arange(count) + 0.5) * T / count).astype(int), T - 1)
        state = system.prepare(variables, {k: v[:, index] for k, v in batch.items()})
    else:
        state = system.init_state(variables, 1, size)
    whole = system.spec.temporal == "clip" or not system.spec.causal
    length = max(system.spec.clip_len, 1) if whole else CHUNK
    probs = []
    for start in range(0, T, length):
        index = np.minimum(np.arange(start, start + length), T - 1)
        state, p = system.predict(variables, state, {k: v[:, index] for k, v in batch.items()})
        probs.append(p[:, : min(length, T - start)])
    joined = jnp.concatenate(probs, axis=1)[0]
    return resize_bilinear(joined[..., None], source)[..., 0]


def evaluate(
    system: Any,
    variables: Any,
    clips: Iterable[dict[str, Any]],
    *,
    threshold: float = 0.5,
    pictures: int = 0,
) -> tuple[dict[str, float], list[np.ndarray]]:
    """Means over clips of the mean J and F over their annotated frames, first and last included.

    The processes of a run share the clips and agree on the means.

    Args:
      variables: on the host, or on devices of this process.
      clips: examples of the data contract (`frames [T,H,W,3]`, `masks [T,H,W]`, ...).
      pictures: how many clips to draw.

    Returns:
      `{"J", "F"}` and, per drawn clip, frame, truth and prediction of its middle side by side.

    Raises:
      DataError: no clip has an annotated frame.
    """
    totals, drawn = np.zeros(3), []
    for number, clip in enumerate(clips):
        if number % jax.process_count() != jax.process_index():
            continue
        batch = {k: np.asarray(v)[None] for k, v in clip.items() if np.ndim(v) > 0}
        masks = np.asarray(clip["masks"])
        probs = clip_probabilities(system, variables, batch)
        j, f = j_and_f(probs > threshold, (masks > 0) & (masks < 255), masks == 255)
        use = np.asarray(clip.get("valid", np.ones(len(masks), bool)))
        use = use & np.asarray(clip.get("has_mask", np.ones(len(masks), bool)))
        if use.any():
            totals += float(np.mean(np.asarray(j)[use])), float(np.mean(np.asarray(f)[use])), 1.0
        if len(drawn) < pictures:
            middle = len(masks) // 2
            predicted = np.asarray(probs[middle] > threshold)
            drawn.append(draw(clip["frames"][middle], masks[middle], predicted))
    if jax.process_count() > 1:
        totals = np.asarray(multihost_utils.process_allgather(totals.astype(np.float32))).sum(0)
    if not totals[2]:
        raise DataError("data.eval has no annotated frame: nothing to score while training")
    return {"J": float(totals[0] / totals[2]), "F": float(totals[1] / totals[2])}, drawn


def draw(frame: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Frame, annotation and prediction side by side, uint8 `[H,W',3]`."""
    frame = np.asarray(frame)
    annotated = ((truth > 0) & (truth < 255)).astype(np.uint8) * 2
    return side_by_side(
        frame, overlay(frame, annotated), overlay(frame, np.asarray(predicted).astype(np.uint8))
    )


def sheet(pictures: list[np.ndarray]) -> np.ndarray:
    """The pictures in two columns."""
    return contact_sheet(pictures, columns=min(2, len(pictures)))
