"""Errors a user can cause, each message naming what was wrong and how to mend it.

A message gives the value seen, what was expected and the fix.

The command line prints a `UvosError` as one line and exits with status 2; any other exception is a
defect of the library and keeps its traceback.
"""

from __future__ import annotations


class UvosError(Exception):
    """Base of every error that a wrong input, file or configuration causes."""


class ConfigError(UvosError, ValueError):
    """A configuration names something unknown or contradicts itself."""


class DataError(UvosError, ValueError):
    """A video, frame, mask or data set cannot be read or breaks its contract."""


class CheckpointError(UvosError, ValueError):
    """Weights are missing, damaged, foreign, or do not fit the system."""


class ShapeError(UvosError, ValueError):
    """An array has the wrong rank, size or dtype."""


class UnsupportedError(UvosError, ValueError):
    """A valid request that this system, platform or installation cannot serve."""
