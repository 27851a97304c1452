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
from scipy import ndimage

from uvos_jax.errors import ShapeError


def propagate(
    features: jax.Array,
    first: jax.Array,
    *,
    past: tuple[jax.Array, ...] | None = None,
    neighbours: int = 5,
    scale: float = 1.0,
) -> jax.Array:
    """Label distributions of all frames from those of the first.

    `y_t[i] = sum_k w_k y[k]` over the `neighbours` positions of frames 0 and t-1 with the largest
    affinity `softmax_k(scale x_k . x_t[i])`, w normalised over those that are kept.

    Args:
      features: `[T,h,w,C]`. first: `[h,w,L]`, sums to 1 over the L labels.
      past: for frames that continue a video, features of its frame 0 and of the frame before
        these, and the labels of the latter, `([h,w,C], [h,w,C], [h,w,L])`; `first` stays that of
        frame 0. None: the features begin with frame 0.

    Returns:
      `[T,h,w,L]`; frame 0 as given.
    """
    T, h, w, C = features.shape
    L = first.shape[-1]
    x = features.reshape(T, h * w, C).astype(jnp.float32)
    y0 = first.reshape(h * w, L).astype(jnp.float32)
    if past is None:
        x0, before, x = x[0], (x[0], y0), x[1:]
    else:
        x0, *before = (a.reshape(h * w, -1).astype(jnp.float32) for a in past)

    def one(previous: tuple[jax.Array, jax.Array], now: jax.Array):
        keys = jnp.concatenate([x0, previous[0]])
        labels = jnp.concatenate([y0, previous[1]])
        scores = scale * now @ keys.T
        best, index = jax.lax.top_k(scores, min(neighbours, 2 * h * w))
        weights = jax.nn.softmax(best, axis=-1)
        y = jnp.einsum("nk,nkl->nl", weights, labels[index])
        return (now, y), y

    _, rest = jax.lax.scan(one, tuple(before), x)
    found = rest if past is not None else jnp.concatenate([y0[None], rest])
    return found.reshape(T, h, w, L)


def components(mask: np.ndarray, *, least: int = 1) -> np.ndarray:
    """The 4-connected parts of a mask `[H,W]` with at least `least` pixels, `[N,H,W]` bool."""
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.reshape(-1), minlength=count + 1)
    kept = [n for n in range(1, count + 1) if sizes[n] >= least]
    return np.stack([labels == n for n in kept]) if kept else np.zeros((0, *mask.shape), bool)


class ObjectLinker:
    """Gives proposals ids, frame after frame: the end of instance-level segmentation (DAVIS-2017).

    A proposal counts if its mean foreground probability reaches `support`. From frame to frame
    objects keep their id by the cosine similarity of mean features, best pairs first; what matches
    no known object with at least `similarity` is a new one, up to `most`. Pixels of several
    proposals go to the one with the most support.
    """

    def __init__(self, *, support: float = 0.5, similarity: float = 0.5, most: int = 20):
        self.support, self.similarity, self.most = support, similarity, most
        self._known: np.ndarray | None = None
        self._count = 0

    def step(
        self, masks: np.ndarray, probabilities: np.ndarray, features: np.ndarray
    ) -> np.ndarray:
        """Ids uint8 `[H,W]` of the next frame.

        Args:
          masks: `[N,H,W]` bool, N may be 0. probabilities: `[H,W]`. features: `[h,w,C]`, resized
            to the masks by nearest cells.

        Raises:
          ShapeError: the masks are not of the size of the probabilities.
        """
        H, W = probabilities.shape
        if masks.ndim != 3 or masks.shape[1:] != (H, W):
            raise ShapeError(
                f"proposals of frame {self._count} have the shape {masks.shape}, expected "
                f"[N,{H},{W}]"
            )
        self._count += 1
        h, w, C = features.shape
        known = np.zeros((0, C)) if self._known is None else self._known
        ids = np.zeros((H, W), np.uint8)
        scores = np.asarray([probabilities[m].mean() if m.any() else 0.0 for m in masks])
        order = [n for n in np.argsort(-scores, kind="stable") if scores[n] >= self.support]
        if not order:
            return ids
        rows, cols = (np.arange(H) * h) // H, (np.arange(W) * w) // W
        x = np.asarray(features, np.float64)[rows[:, None], cols[None]]
        means = np.stack([_unit(x[masks[n]].mean(0)) for n in order])
        number = np.full(len(order), -1)
        cosine = means @ known.T
        while cosine.size and cosine.max() >= self.similarity:
            a, b = np.unravel_index(np.argmax(cosine), cosine.shape)
            number[a] = b
            cosine[a, :] = cosine[:, b] = -2.0
        for a in range(len(order)):
            if number[a] < 0 and len(known) < self.most:
                number[a] = len(known)
                known = np.concatenate([known, means[a : a + 1]])
            elif number[a] >= 0:
                known[number[a]] = _unit(known[number[a]] + means[a])
        for a in reversed(range(len(order))):  # the best supported on top
            if number[a] >= 0:
                ids[masks[order[a]]] = number[a] + 1
        self._known = known
        return ids


def link_objects(
    proposals: Sequence[np.ndarray],
    probabilities: np.ndarray,
    features: np.ndarray,
    **options: float,
) -> np.ndarray:
    """Objects with ids over time.

    Args:
      proposals: per frame `[N,H,W]` bool, N may differ and be 0.
      probabilities: `[T,H,W]`. features: `[T,h,w,C]`.
      options: of `ObjectLinker`.

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
    linker = ObjectLinker(**options)
    ids = np.zeros((T, H, W), np.uint8)
    for t, masks in enumerate(proposals):
        ids[t] = linker.step(masks, probabilities[t], features[t])
    return ids


def _unit(x: np.ndarray) -> np.ndarray:
    return x / max(float(np.linalg.norm(x)), 1e-12)
