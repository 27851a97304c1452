"""A trace of a few steps for TensorBoard's profiler or Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from uvos_jax.train.logging import log

#: Steps left alone first: compiling and warming up would fill the trace.
SKIP = 3


class StepTrace:
    """Traces `count` steps of a run after its first `SKIP` ones; does nothing if `count` is 0."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count
        self.begin: int | None = None
        self.running = False

    def before(self, step: int) -> None:
        """To be called before every step."""
        if not self.count:
            return
        if self.begin is None:
            self.begin = step + SKIP
        if step == self.begin and not self.running:
            jax.profiler.start_trace(str(self.folder))
            self.running = True

    def after(self, step: int, results: Any) -> None:
        """To be called after every step, with what it computes."""
        if self.running and step >= self.begin + self.count:
            jax.block_until_ready(results)
            self.stop()

    def stop(self) -> None:
        """Writes the trace, if one is being taken."""
        if self.running:
            jax.profiler.stop_trace()
            self.running, self.count = False, 0
            log.info("trace of the steps from %d on written to %s", self.begin, self.folder)
