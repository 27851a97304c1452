"""What a step costs: where its time goes, its FLOPs, its memory."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax

from uvos_jax.train import mesh as meshes

#: Laps that the estimate of the remaining time looks back on.
RECENT = 20
PARTS = ("input", "compute", "compile", "save", "evaluate")


class StepClock:
    """Splits the time between two logging steps.

    `input`: waiting for a batch and placing it. `compute`: dispatching steps and waiting for the
    devices. `compile` (and whatever else happens once), `save` (what of it blocks) and `evaluate`
    are told apart because they do not belong to a step. `other` is the rest: logging, Python.
    """

    def __init__(self):
        self.laps: list[tuple[float, int]] = []  # seconds of training proper, steps
        self._restart()

    def _restart(self) -> None:
        self.since = time.monotonic()
        self.parts = dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Counts the time inside as `part`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.parts[part] += time.monotonic() - began

    def lap(self, steps: int) -> dict[str, float]:
        """Seconds per step of each part over the last `steps` steps; starts a new lap.

        Returns:
          `step_seconds` and its parts `input_seconds`, `compute_seconds`, `other_seconds`;
          `compile_seconds`, `save_seconds`, `evaluate_seconds` in all, where there were any.
        """
        total = time.monotonic() - self.since
        aside = sum(self.parts[k] for k in ("compile", "save", "evaluate"))
        training = max(total - aside, 1e-9)
        count = max(steps, 1)
        other = max(training - self.parts["input"] - self.parts["compute"], 0.0)
        values = {
            "step_seconds": training / count,
            "input_seconds": self.parts["input"] / count,
            "compute_seconds": self.parts["compute"] / count,
            "other_seconds": other / count,
        }
        for key in ("compile", "save", "evaluate"):
            if self.parts[key]:
                values[f"{key}_seconds"] = self.parts[key]
        if steps:
            self.laps = [*self.laps[-RECENT:], (training, steps)]
        self._restart()
        return values

    @property
    def seconds_per_step(self) -> float:
        """Mean of the last laps; compiling, saving, evaluating and the first lap left out."""
        laps = self.laps[1:] or self.laps or [(0.0, 1)]
        return sum(seconds for seconds, _ in laps) / sum(steps for _, steps in laps)


def flops_of(compiled: Any, accumulate: int = 1) -> float | None:
    """Floating-point operations of a compiled step on one device, or None if unknown.

    XLA counts the body of a loop once. The loop over the parts of an accumulated batch is accounted
    for here; attention in blocks is another such loop, so the number is a lower bound.
    """
    try:
        analysis = compiled.cost_analysis()
    except Exception:  # a backend without cost analysis
        return None
    analysis = analysis[0] if isinstance(analysis, (list, tuple)) and analysis else analysis
    flops = float((analysis or {}).get("flops", 0.0)) * accumulate
    return flops if flops > 0 else None


def utilization(flops: float | None, seconds: float, compute_dtype: str) -> float | None:
    """Model FLOPs utilisation: share of the device's peak, or None if either is unknown."""
    peak = meshes.peak_flops(compute_dtype)
    if flops is None or peak is None:
        return None
    return flops / seconds / peak


def memory() -> dict[str, float]:
    """Peak memory in GiB: `device_memory_gib` where the device tells, and `host_memory_gib`."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    values = {"host_memory_gib": peak * unit / 2**30}
    stats = [s for d in jax.local_devices() if (s := d.memory_stats())]
    if stats:
        values["device_memory_gib"] = max(s.get("peak_bytes_in_use", 0) for s in stats) / 2**30
    return values
