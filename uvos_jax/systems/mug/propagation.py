"""What one embedding is good for besides saliency: carrying labels along, telling objects apart.

One-shot: the first frame's labels travel to every later frame over the affinity of features, each
position taking the labels of its most similar positions in the first and the previous frame.
Objects: proposals of every frame that the foreground supports are kept and linked over time by
their mean features.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.errors import ShapeError


def propagate(
    features: jax.Array, first: jax.Array, *, neighbours: int = 5, scale: float = 1.0
) -> jax.Array:
    """Label distributions of all frames from those of the first.

    `y_t[i] = sum_k w_k y[k]` over the `neighbours` positions of frames 0 and t-1 with the largest
    affinity `softmax_k(scale x_k . x_t[i])`, w normalised over those that are kept.

    Args:
      features: `[T,h,w,C]`. first: `[h,w,L]`, sums to 1 over the L labels.

    Returns:
      `[T,h,w,L]`; frame 0 as given.
    """
    T, h, w, C = features.shape
    L = first.shape[-1]
    x = features.reshape(T, h * w, C).astype(jnp.float32)
    y0 = first.reshape(h * w, L).astype(jnp.float32)

    def one(previous: tuple[jax.Array, jax.Array], now: jax.Array):
        keys = jnp.concatenate([x[0], previous[0]])
        labels = jnp.concatenate([y0, previous[1]])
        scores = scale * now @ keys.T
        best, index = jax.lax.top_k(scores, min(neighbours, 2 * h * w))
        weights = jax.nn.softmax(best, axis=-1)
        y = jnp.einsum("nk,nkl->nl", weights, labels[index])
        return (now, y), y

    _, rest = jax.lax.scan(one, (x[0], y0), x[1:])
    return jnp.concatenate([y0[None], rest]).reshape(T, h, w, L)


def components(mask: np.ndarray, *, least: int = 1) -> np.ndarray:
    """The 4-connected parts of a mask `[H,W]` with at least `least` pixels, `[N,H,W]` bool."""
    H, W = mask.shape
    padded = np.zeros((H + 2, W + 2), np.int64)
    padded[1:-1, 1:-1] = np.where(mask, np.arange(1, H * W + 1).reshape(H, W), 0)
    inside = padded > 0
    while True:  # every pixel takes the largest number in its part
        new = padded.copy()
        for axis in (0, 1):
            for shift in (-1, 1):
                new = np.maximum(new, np.roll(padded, shift, axis))
        new = np.where(inside, new, 0)
        if np.array_equal(new, padded):
            break
        padded = new
    parts = padded[1:-1, 1:-1]
    numbers, counts = np.unique(parts[parts > 0], return_counts=True)
    kept = [n for n, c in zip(numbers, counts, strict=True) if c >= least]
    return np.stack([parts == n for n in kept]) if kept else np.zeros((0, H, W), bool)


def link_objects(
    proposals: Sequence[np.ndarray],
    probabilities: np.ndarray,
    features: np.ndarray,
    *,
    support: float = 0.5,
    similarity: float = 0.5,
    most: int = 20,
) -> np.ndarray:
    """Objects with ids over time: the end of instance-level segmentation (DAVIS-2017).

    A proposal counts if its mean foreground probability reaches `support`. From frame to frame
    objects keep their id by the cosine similarity of mean features, best pairs first; what matches
    no known object with at least `similarity` is a new one, up to `most`. Pixels of several
    proposals go to the one with the most support.

    Args:
      proposals: per frame `[N,H,W]` bool, N may differ and be 0.
      probabilities: `[T,H,W]`. features: `[T,h,w,C]`, resized to the proposals by nearest cells.

    Returns:
      ids `[T,H,W]` uint8, 0 background.

    Raises:
      ShapeError: the three do not belong together.
    """
    T, H, W = probabilities.shape
    if len(proposals) != T or len(features) != T:
        raise ShapeError(
            f"link_objects: {T} maps of probabilities need as many sets of proposals and features, "
            f"got {len(proposals)} and {len(features)}"
        )
    h, w = features.shape[1:3]
    rows, cols = (np.arange(H) * h) // H, (np.arange(W) * w) // W
    known = np.zeros((0, features.shape[-1]))
    ids = np.zeros((T, H, W), np.uint8)
    for t, masks in enumerate(proposals):
        if masks.shape[1:] != (H, W):
            raise ShapeError(
                f"link_objects: proposals of frame {t} have the shape {masks.shape}, expected "
                f"[N,{H},{W}]"
            )
        scores = np.asarray([probabilities[t][m].mean() if m.any() else 0.0 for m in masks])
        order = [n for n in np.argsort(-scores, kind="stable") if scores[n] >= support]
        if not order:
            continue
        x = np.asarray(features[t], np.float64)[rows[:, None], cols[None]]
        means = np.stack([_unit(x[masks[n]].mean(0)) for n in order])
        number = np.full(len(order), -1)
        cosine = means @ known.T
        while cosine.size and cosine.max() >= similarity:
            a, b = np.unravel_index(np.argmax(cosine), cosine.shape)
            number[a] = b
            cosine[a, :] = cosine[:, b] = -2.0
        for a in range(len(order)):
            if number[a] < 0 and len(known) < most:
                number[a] = len(known)
                known = np.concatenate([known, means[a : a + 1]])
            elif number[a] >= 0:
                known[number[a]] = _unit(known[number[a]] + means[a])
        for a in reversed(range(len(order))):  # the best supported on top
            if number[a] >= 0:
                ids[t][masks[order[a]]] = number[a] + 1
    return ids


def _unit(x: np.ndarray) -> np.ndarray:
    return x / max(float(np.linalg.norm(x)), 1e-12)
