"""What belongs to the frames of a video and is needed again, kept on disk."""

from __future__ import annotations

import tempfile

import numpy as np

__all__ = ["Spool"]


class Spool:
    """Arrays of one shape for the frames of a video, float16, in a file without a name."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="uvos_")  # noqa: SIM115
        self._shape: tuple[int, ...] = ()
        self.count = 0

    @property
    def _bytes(self) -> int:
        return int(np.prod(self._shape)) * 2

    def append(self, value: np.ndarray) -> None:
        """Adds the next frame's array."""
        self._shape = value.shape
        self._file.seek(self.count * self._bytes)
        self._file.write(np.ascontiguousarray(value, np.float16).tobytes())
        self.count += 1

    def write(self, start: int, values: np.ndarray) -> None:
        """Puts other arrays in the place of those of frames `start` and after."""
        self._file.seek(start * self._bytes)
        self._file.write(np.ascontiguousarray(values, np.float16).tobytes())

    def read(self, start: int, count: int) -> np.ndarray:
        """float32 `[count,...]`; the last frame is repeated where there are no more."""
        self._file.seek(start * self._bytes)
        data = self._file.read(count * self._bytes)
        found = np.frombuffer(data, np.float16).reshape(-1, *self._shape).astype(np.float32)
        return np.concatenate([found, np.repeat(found[-1:], count - len(found), axis=0)])

    def close(self) -> None:
        """Gives the space back."""
        self._file.close()
