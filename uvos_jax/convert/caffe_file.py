"""Reads `.caffemodel` files with numpy alone: the current layout and the older one (V1).

A caffemodel is a `NetParameter` message; its fields are known from Caffe's public schema
(caffe.proto): `layer` = 100 (name 1, blobs 7) or, in V1, `layers` = 2 (name 4, blobs 6). A blob has
a `shape` (7), or the older num, channels, height and width (1 to 4), and `data` (5) or
`double_data` (8). Everything else is skipped. Memory: the file is mapped, arrays are copied once.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from uvos_jax.convert import wire
from uvos_jax.convert.bounds import checked_name
from uvos_jax.errors import CheckpointError

#: Field of a network -> (field of its name, field of its blobs) in a layer.
LAYOUTS = {100: (1, 7), 2: (4, 6)}
#: More than any layer of Caffe has.
MAX_BLOBS = 64


def read_caffe(path: str | Path) -> dict[str, np.ndarray]:
    """Blobs of a caffemodel by `layer:index`, for example `conv1:0` (weights), `conv1:1` (bias).

    Shapes are those of the file: a V1 bias is `(1,1,1,N)`. Layers without blobs are left out.

    Raises:
      CheckpointError: the file is missing, truncated or of another format, or two layers of one
        name hold different blobs.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            if not path.stat().st_size:
                raise ValueError("the file is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                data = memoryview(mapped)
                try:
                    return _network(data)
                finally:
                    data.release()
    except OSError as error:
        raise CheckpointError(f"cannot read weights {path}: {error.strerror or error}") from error
    except (ValueError, OverflowError, MemoryError) as error:
        raise CheckpointError(
            f"{path} is no complete Caffe network ({error}): pass the .caffemodel file the authors "
            "published, or download it again and compare the size"
        ) from None


def _network(data: memoryview) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    layers = 0
    with _Views() as views:
        for number, kind, value in wire.fields(data):
            views.keep(value)
            if number not in LAYOUTS or kind != wire.BYTES:
                continue
            layers += 1
            name, blobs = _layer(value, *LAYOUTS[number], views)
            for index, blob in enumerate(blobs):
                key = f"{name}:{index}"
                if key in arrays and not np.array_equal(arrays[key], blob):
                    raise ValueError(f"two layers are called {name!r} and hold different blobs")
                arrays[key] = blob
    if not layers:
        raise ValueError("it has no layers")
    if not arrays:
        raise ValueError(f"none of its {layers} layers has blobs")
    return arrays


class _Views:
    """Releases the views of a mapped file, without which it cannot be closed."""

    def __enter__(self) -> _Views:
        self._kept: list[memoryview] = []
        return self

    def keep(self, value: int | memoryview) -> None:
        if isinstance(value, memoryview):
            self._kept.append(value)

    def __exit__(self, *_: object) -> None:
        for view in reversed(self._kept):
            view.release()


def _layer(data: memoryview, name_field: int, blob_field: int, views: _Views):
    name, blobs = "", []
    for number, kind, value in wire.fields(data):
        views.keep(value)
        if number == name_field and kind == wire.BYTES:
            name = checked_name(wire.text(value))
        elif number == blob_field and kind == wire.BYTES:
            blobs.append(_blob(value, views))
            if len(blobs) > MAX_BLOBS:
                raise ValueError(f"a layer of more than {MAX_BLOBS} blobs")
    return name, blobs


def _blob(data: memoryview, views: _Views) -> np.ndarray:
    shape: list[int] | None = None
    older = {1: 1, 2: 1, 3: 1, 4: 1}
    parts: dict[int, list] = {5: [], 8: []}
    for number, kind, value in wire.fields(data):
        views.keep(value)
        if number == 7 and kind == wire.BYTES:
            shape = []
            for inner, _, dims in wire.fields(value):
                views.keep(dims)
                shape += wire.varints(dims) if inner == 1 else []
        elif number in older and kind == wire.VARINT:
            older[number] = int(value)
        elif number in parts:
            parts[number].append(value)
    dtype, pieces = ("<f8", parts[8]) if parts[8] else ("<f4", parts[5])
    values = wire.elements(pieces, dtype).astype(np.float32) if pieces else np.zeros(0, np.float32)
    shape = list(older.values()) if shape is None else shape
    count = 1
    for n in shape:
        count *= n
    if count != values.size:
        raise ValueError(f"a blob of shape {tuple(shape)} has {values.size} values")
    return values.reshape(shape)
