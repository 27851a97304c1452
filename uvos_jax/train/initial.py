"""Starting from weights instead of from fresh parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from uvos_jax.errors import CheckpointError
from uvos_jax.train.logging import log
from uvos_jax.train.state import TrainState


def check_initial(config: Any) -> None:
    """Raises `CheckpointError` before any device work if `model.init_from` is not there."""
    path = config.model.init_from
    if path and not Path(path).exists():
        raise CheckpointError(
            f"model.init_from={str(path)!r} does not exist: give a .npz or .safetensors file, a "
            "run's folder or one of its checkpoints, or leave it empty to start anew"
        )


def load_initial(state: TrainState, config: Any) -> TrainState:
    """Replaces fresh parameters by those of `model.init_from`, checked name by name.

    Raises:
      CheckpointError: the weights do not fit (with `model.init_strict`), or nothing fits.
    """
    from uvos_jax.convert.variables import load_variables, merge_strict

    loaded = load_variables(config.model.init_from)
    fresh = state.variables()
    merged, report = merge_strict(fresh, loaded, strict=config.model.init_strict)
    for kind, names in report.items():
        if names:
            log.warning("init_from: %d arrays %s, such as %s", len(names), kind, names[0])
    # Shapes are equal, so the fresh values say where the loaded ones belong.
    placed = jax.tree.map(lambda old, new: jax.device_put(new, old.sharding), fresh, merged)
    state = state.replace(params=placed["params"], batch_stats=placed.get("batch_stats", {}))
    if state.ema is not None:
        state = state.replace(ema=jax.tree.map(jnp.copy, state.params))
    return state
