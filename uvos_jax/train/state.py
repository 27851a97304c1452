"""Everything a training step changes, as one pytree."""

from __future__ import annotations

from typing import Any

import jax
from flax import struct


@struct.dataclass
class TrainState:
    """Attributes: step (int32), params, batch_stats, opt_state, rng (typed key), ema or None."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    rng: jax.Array
    ema: Any = None

    def variables(self, *, averaged: bool = False) -> dict[str, Any]:
        """Collections for `System.apply`; `averaged` takes the moving average if there is one."""
        params = self.ema if averaged and self.ema is not None else self.params
        collections = {"params": params}
        if self.batch_stats:
            collections["batch_stats"] = self.batch_stats
        return collections
