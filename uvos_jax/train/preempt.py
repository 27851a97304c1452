"""Leaving in time: SIGTERM asks for a checkpoint and an orderly end."""

from __future__ import annotations

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Whether the run was asked to stop; all processes answer the same at the same step.

    A single process catches SIGTERM itself. In a job of several processes the signals come at
    different moments, or to one process only; there JAX's coordination service catches them and
    names a step that nobody has passed yet.
    """

    def __init__(self):
        self._noted = False
        self._previous: Any = None

    def __enter__(self) -> StopRequest:
        main_thread = threading.current_thread() is threading.main_thread()
        if jax.process_count() == 1 and main_thread:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, *_: Any) -> None:
        self._noted = True

    def at(self, step: int) -> bool:
        """To be asked once before every step, by every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noted

    def __exit__(self, *_: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
