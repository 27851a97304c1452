"""Ids of objects over time from embeddings, as DAVIS-2017's unsupervised task wants them.

Not in the paper, which segments one foreground; the embeddings tell instances apart anyway. Per
frame the foreground falls into clusters of positions that are more alike than `similarity`, and
clusters are matched to the objects of earlier frames by the same measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from uvos_jax.errors import ShapeError
from uvos_jax.ops.resize import resize_bilinear

MAX_OBJECTS = 20
#: Native frames get both sides rounded up to this multiple.
SIZE_MULTIPLE = 8


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`|a_i - b_j|^2`, `[N,M]` of `[N,E]` and `[M,E]`."""
    product = 2 * a @ b.T
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - product, 0.0)


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """R of all pairs, in (0,1]."""
    return 2.0 / (1.0 + np.exp(np.minimum(distances(a, b), 80.0)))


def clusters(points: np.ndarray, *, alike: float, least: int, limit: int) -> np.ndarray:
    """Centres `[K,E]` of clusters of `points [N,E]`, largest first.

    The point with most others more similar than `alike` opens a cluster of them, whose mean is the
    centre; so on with the rest, while a cluster holds `least` points.
    """
    rest, centres = points, []
    while len(rest) >= least and len(centres) < limit:
        near = similarity(rest, rest) > alike
        members = near[np.argmax(near.sum(1))]
        if members.sum() < least:
            break
        centres.append(rest[members].mean(0))
        rest = rest[~members]
    return np.array(centres).reshape(-1, points.shape[1])


class EmbeddingNumbers:
    """Instance ids of a video that arrives frame by frame.

    Args:
      system: an IET. variables: its weights.
      alike: similarity above which positions belong together, and clusters to an object.
      share: clusters below this share of the frame are no objects of their own.

    Attributes:
      needs_flow: whether `step` takes optical flow.
    """

    needs_flow = False

    def __init__(
        self, system: Any, variables: Mapping[str, Any], *, alike: float = 0.5, share: float = 0.003
    ):
        self._system, self._variables = system, variables
        self._alike, self._share = alike, share
        self._known = np.zeros((0, system.config.embedding), np.float32)  # of objects 1, 2, ...
        self._encode = jax.jit(lambda v, frame: system.encode(v, frame[None])[0][0])

    def step(
        self,
        frame: np.ndarray,
        prob: np.ndarray,
        proposals: Any = None,
        scores: np.ndarray | None = None,
        flow: np.ndarray | None = None,
    ) -> np.ndarray:
        """Ids uint8 `[H,W]` of the next frame, 0 to 20.

        Args:
          frame: uint8 `[H,W,3]`. prob: of the foreground, `[H,W]`.
          proposals: masks `[N,H,W]` bool that each hold one object; None takes the clusters.
          scores, flow: are not looked at.

        Raises:
          ShapeError: the proposals are not of the frame's size.
        """
        if proposals is not None and np.shape(proposals)[1:] != prob.shape:
            raise ShapeError(
                f"expected proposals [N,{prob.shape[0]},{prob.shape[1]}], got {np.shape(proposals)}"
            )
        f = np.asarray(self._encode(self._variables, self._small(frame)))
        h, w, E = f.shape
        grid = f.reshape(-1, E)
        if proposals is None:
            inside = _resized(prob, (h, w)).reshape(-1) > 0.5
            least = max(1, round(self._share * h * w))
            centres = clusters(grid[inside], alike=self._alike, least=least, limit=MAX_OBJECTS)
        else:
            weights = _resized(np.moveaxis(np.asarray(proposals, np.float32), 0, -1), (h, w))
            weights = weights.reshape(h * w, -1)
            weights = weights[:, weights.sum(0) > 0][:, :MAX_OBJECTS]
            centres = (weights / weights.sum(0)).T @ grid
        if not len(centres):
            return np.zeros(prob.shape, np.uint8)
        ids = self._match(centres)
        distance = distances(grid, centres).reshape(h, w, -1)
        nearest = np.argmin(_resized(distance, prob.shape), axis=-1)
        return np.where(prob > 0.5, ids[nearest], 0).astype(np.uint8)

    def _match(self, centres: np.ndarray) -> np.ndarray:
        """The id of every centre; those unlike all known objects become new ones, if 20 allow."""
        score = similarity(centres, self._known)
        ids = np.zeros(len(centres), np.uint8)
        for i, k in zip(*linear_sum_assignment(-score), strict=True):
            if score[i, k] > self._alike:
                ids[i] = k + 1
                self._known[k] = centres[i]
        for i in np.flatnonzero(ids == 0):
            if len(self._known) < MAX_OBJECTS:
                self._known = np.concatenate([self._known, centres[i : i + 1]])
                ids[i] = len(self._known)
        return ids

    def _small(self, frame: np.ndarray) -> jax.Array:
        """The frame at the network's input size, uint8."""
        size = self._system.spec.input_size or tuple(
            -(-n // SIZE_MULTIPLE) * SIZE_MULTIPLE for n in frame.shape[:2]
        )
        resized = resize_bilinear(jnp.asarray(frame, jnp.float32)[None], size)[0]
        return jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)


def _resized(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map `[H,W]` or maps `[H,W,K]` at another size."""
    maps = jnp.asarray(x, jnp.float32)
    maps = maps[..., None] if maps.ndim == 2 else maps
    full = np.asarray(resize_bilinear(maps[None], size)[0])
    return full[..., 0] if np.ndim(x) == 2 else full
