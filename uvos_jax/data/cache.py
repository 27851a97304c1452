"""Decoded files kept in memory, so that a small data set is decoded once and not every epoch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from uvos_jax.errors import ConfigError


class DecodedFiles:
    """Read-only arrays by key, up to a number of bytes; what comes later is decoded every time.

    Nothing is ever thrown out: under shuffling every file is as likely as any other to be next, so
    replacing one by another would only cost time. Shared by the threads of a process; a copy sent
    to a worker process starts empty and fills on its own.

    Args:
      limit: bytes of arrays to keep; 0 keeps nothing.

    Raises:
      ConfigError: a negative limit.
    """

    def __init__(self, limit: float = 0):
        if limit < 0:
            raise ConfigError(f"data.cache_gb must not be negative, got {limit / 1e9:g}")
        self.limit, self.size = int(limit), 0
        self._arrays: dict[Hashable, np.ndarray] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._arrays)

    def get(self, key: Hashable, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The array under `key`, made by `decode` unless it is kept."""
        array = self._arrays.get(key)
        if array is not None:
            return array
        array = decode()
        with self._lock:
            if key not in self._arrays and self.size + array.nbytes <= self.limit:
                array.flags.writeable = False
                self._arrays[key] = array
                self.size += array.nbytes
        return array

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["limit"])
