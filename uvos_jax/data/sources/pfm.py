"""Portable float maps, the format of FlyingThings3D's flow.

A header of three lines, `PF` (three channels) or `Pf` (one), `width height`, and a scale whose
sign tells the byte order (negative: little endian); then float32 rows from bottom to top.
"""

from __future__ import annotations

import os

import numpy as np

from uvos_jax.errors import DataError


def read_pfm(path: str | os.PathLike) -> np.ndarray:
    """Reads a float map, float32 `[H,W,3]` or `[H,W,1]`, first row on top.

    Raises:
      DataError: the file is missing, no PFM, or shorter than its header says.
    """
    try:
        with open(path, "rb") as file:
            kind = file.readline().strip()
            size, scale = file.readline().split(), file.readline().strip()
            data = file.read()
    except FileNotFoundError:
        raise DataError(f"float map {path} does not exist") from None
    except OSError as error:
        raise DataError(f"float map {path} cannot be read: {error}") from error
    channels = {b"PF": 3, b"Pf": 1}.get(kind)
    try:
        width, height = (int(n) for n in size)
        order = "<f4" if float(scale) < 0 else ">f4"
    except ValueError:
        channels = None
    if channels is None:
        raise DataError(f"float map {path} is damaged: its header is no PFM header; replace it")
    expected = 4 * width * height * channels
    if len(data) != expected:
        raise DataError(
            f"float map {path} holds {len(data)} bytes for {width}x{height}x{channels}: expected "
            f"{expected}; replace the file"
        )
    values = np.frombuffer(data, order).reshape(height, width, channels)
    return values[::-1].astype(np.float32)
