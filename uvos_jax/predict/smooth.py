"""Masks that know what comes: log-odds carried back in time along the flow to the next frame.

A network that remembers (or has no memory at all) knows nothing of what follows a frame. Where a
whole video is at hand, its probabilities are filtered from the last frame to the first: each
frame's log-odds become a mean of its own and of those that the next frame has where flow leads.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.ops.flow import resize_flow
from uvos_jax.ops.odds import log_odds
from uvos_jax.ops.warp import backward_warp
from uvos_jax.predict.spool import Spool

__all__ = ["SHRINK", "smooth"]

#: Flow is kept this many times smaller than the network sees.
SHRINK = 2


@partial(jax.jit, static_argnames="share")
def _carried_back(
    after: jax.Array, probs: jax.Array, flow: jax.Array, has_next: jax.Array, *, share: float
) -> tuple[jax.Array, jax.Array]:
    """Filters one window.

    Args:
      after: log-odds `[h,w]` of the frame after the window. probs: `[T,h,w]`.
      flow: `[T,y,x,2]` to the next frame, in pixels of its own size.
      has_next: bool `[T]`.

    Returns:
      log-odds of the window's first frame and probabilities `[T,h,w]`.
    """
    flow = resize_flow(flow, probs.shape[1:])

    def step(after: jax.Array, frame: tuple) -> tuple[jax.Array, jax.Array]:
        own, field, follows = frame
        moved = backward_warp(after[None, ..., None], field[None])[0, ..., 0]
        odds = jnp.where(follows, own + share * (moved - own), own)
        return odds, odds

    after, odds = jax.lax.scan(step, after, (log_odds(probs), flow, has_next), reverse=True)
    return after, jax.nn.sigmoid(odds)


def smooth(probs: Spool, flows: Spool, share: float, window: int) -> None:
    """Filters the probabilities of a video in place.

    Args:
      probs: `[h,w]` of each frame. flows: `[y,x,2]` of each frame, to the next one.
      share: 0 to 1, of the next frame's log-odds. window: frames that are read at once.
    """
    after = None
    for start in reversed(range(0, probs.count, window)):
        own = probs.read(start, window)
        count = min(window, probs.count - start)
        has_next = np.arange(start, start + window) < probs.count - 1
        after = jnp.zeros(own.shape[1:]) if after is None else after
        after, found = _carried_back(after, own, flows.read(start, window), has_next, share=share)
        probs.write(start, np.asarray(found)[:count])
