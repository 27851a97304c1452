"""MuG's embedding at work on a video that arrives piece by piece: one-shot masks and object ids.

Both remember a fixed amount, however long the video is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.errors import ShapeError
from uvos_jax.ops.resize import resize_bilinear, resize_nearest
from uvos_jax.systems.mug.propagation import ObjectLinker, components, propagate


def _small(frames: np.ndarray, size: tuple[int, int]) -> jax.Array:
    """Frames uint8 `[T,H,W,3]` at the network's input size, rounded as image libraries do."""
    resized = resize_bilinear(jnp.asarray(frames, jnp.float32), size)
    return jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)


class FirstMaskFollower:
    """Carries the labels of frame 0 through a video (one-shot segmentation).

    Args:
      system: a MuG. variables: its weights.
      first_mask: ids `[H,W]` of frame 0, 0 background.

    Raises:
      ShapeError: the mask is no map.
    """

    def __init__(self, system: Any, variables: Mapping[str, Any], first_mask: Any):
        self._mask = np.asarray(first_mask)
        if self._mask.ndim != 2:
            raise ShapeError(f"the first mask must be ids [H,W], got the shape {self._mask.shape}")
        ids = np.unique(self._mask)
        self._ids = np.concatenate([[0], ids[ids > 0]]).astype(np.uint8)
        self._system, self._variables = system, variables
        self._first: jax.Array | None = None  # label shares of frame 0 on the grid
        self._past: tuple[jax.Array, ...] | None = None
        self._features = jax.jit(system.matching_features)
        self._propagate = jax.jit(
            lambda x, first, past: propagate(
                x,
                first,
                past=past,
                neighbours=system.config.neighbours,
                scale=system.matching_scale,
            )
        )

    def step(self, frames: Any) -> tuple[np.ndarray, np.ndarray]:
        """The next frames of the video, the first time those that begin with frame 0.

        Args:
          frames: uint8 `[T,H,W,3]` RGB, T > 0.

        Returns:
          ids uint8 `[T,H,W]`, frame 0 as given, and the share of all objects `[T,H,W]` float32.

        Raises:
          ShapeError: no frames, or of another size than the mask.
        """
        frames = np.asarray(frames)
        if frames.ndim != 4 or frames.shape[1:3] != self._mask.shape or frames.dtype != np.uint8:
            raise ShapeError(
                f"propagate_masks: expected frames uint8 [T,H,W,3] and a mask [H,W], got "
                f"{frames.dtype} {frames.shape} and {self._mask.shape}"
            )
        source, begins = frames.shape[1:3], self._past is None
        features = self._features(self._variables, _small(frames, self._system.spec.input_size))
        if begins:
            self._first = self._shares(features.shape[1:3])
        soft = self._propagate(features, self._first, self._past)
        start = features[0] if begins else self._past[0]
        self._past = (start, features[-1], soft[-1])
        full = resize_bilinear(soft, source)
        labels = self._ids[np.asarray(jnp.argmax(full, axis=-1))]
        share = np.array(1.0 - full[..., 0])
        if begins:
            labels[0], share[0] = self._mask, self._mask > 0
        return labels, share

    def _shares(self, grid: tuple[int, int]) -> jax.Array:
        """The share of every label in the cells of a grid: enlarged to a multiple, averaged."""
        onehot = jnp.asarray(self._mask[..., None] == self._ids, jnp.float32)
        fine = tuple(n * -(-m // n) for n, m in zip(grid, self._mask.shape, strict=True))
        cells = resize_nearest(onehot, fine).reshape(
            grid[0], fine[0] // grid[0], grid[1], fine[1] // grid[1], -1
        )
        return cells.mean(axis=(1, 3))


class ObjectNumbers:
    """Ids of the objects of a video, as DAVIS-2017's unsupervised task wants them.

    Attributes:
      needs_flow: whether `step` takes optical flow.
    """

    needs_flow = False

    def __init__(self, system: Any, variables: Mapping[str, Any], **options: float):
        self._system, self._variables = system, variables
        self._linker = ObjectLinker(**options)
        self._features = jax.jit(system.matching_features)

    def step(
        self,
        frame: np.ndarray,
        prob: np.ndarray,
        proposals: Any = None,
        scores: np.ndarray | None = None,
        flow: np.ndarray | None = None,
    ) -> np.ndarray:
        """Ids uint8 `[H,W]` of the next frame.

        Args:
          frame: uint8 `[H,W,3]`. prob: of the foreground, `[H,W]`.
          proposals: masks `[N,H,W]` bool; None takes the connected parts of the foreground of at
            least a thousandth of the frame.
          scores, flow: are not looked at.

        Raises:
          ShapeError: the proposals are not of the frame's size.
        """
        if proposals is None:
            proposals = components(prob > 0.5, least=max(1, prob.size // 1000))
        small = _small(frame[None], self._system.spec.input_size)
        features = np.asarray(self._features(self._variables, small))[0]
        return self._linker.step(np.asarray(proposals, bool), prob, features)
