"""Which sequences of DAVIS count for temporal stability."""

from __future__ import annotations

from uvos_jax.data.splits.davis import DAVIS16, DAVIS17_VAL_EXTRA, TEMPORALLY_STABLE

__all__ = ["DAVIS16", "DAVIS17_VAL_EXTRA", "TEMPORALLY_STABLE", "counts_for_stability"]


def counts_for_stability(name: str) -> bool:
    """Whether T of this sequence enters the mean; sequences foreign to DAVIS-2016 do."""
    known = name in DAVIS16["val"] or name in DAVIS16["train"]
    return not known or name in TEMPORALLY_STABLE
