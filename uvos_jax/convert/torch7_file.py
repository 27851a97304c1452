"""Reads Torch7 files (`.t7`, `.dat`, binary) with numpy alone; functions in them are skipped.

An object is an int32 tag and its content: 0 nil, 1 number (float64), 2 string, 3 table, 4 torch
object (version, class, content), 5 boolean, 6 to 8 functions. Tables, torch objects and functions
carry an index; one seen before refers back to it. A tensor has sizes, strides, an offset from 1
and a storage. `long_size=4` is for files of 32-bit systems. Memory: the file and a copy of its
storages, of which tensors are read-only views (`convert/bounds.py`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from uvos_jax.convert.bounds import checked_name
from uvos_jax.errors import CheckpointError

TYPES = {
    "Byte": "u1", "Char": "i1", "Short": "<i2", "Int": "<i4", "Long": "<i8", "Half": "<f2",
    "Float": "<f4", "Double": "<f8",
}  # fmt: skip
#: Nested deeper than any network is.
MAX_DEPTH = 400
#: Fields of modules that hold no weights: buffers and gradients.
BUFFERS = frozenset(
    {"gradWeight", "gradBias", "gradInput", "output", "finput", "fgradInput", "save_mean",
     "save_std", "_input", "_gradOutput", "indices", "noise", "buffer", "_buffer"}
)  # fmt: skip


@dataclasses.dataclass
class TorchObject:
    """An object of a class that is neither tensor nor storage, with its fields."""

    name: str
    fields: dict[Any, Any] = dataclasses.field(default_factory=dict)


def read_torch7(path: str | Path) -> dict[str, np.ndarray]:
    """Weights of a network by the path to them: `modules.1.weight` (tables count from 1).

    Every object is listed once, under the first path that leads to it; buffers and gradients are
    left out. In an nngraph the modules come in the order in which they run, under `forwardnodes`.

    Raises:
      CheckpointError: as `read_torch7_object`, or there are no tensors.
    """
    try:
        arrays = dict(_arrays(read_torch7_object(path), "", set()))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no Torch7 network: {error}") from None
    if not arrays:
        raise CheckpointError(
            f"{path} holds no tensors: pass the file with the network the authors published"
        )
    return arrays


def modules(root: Any) -> list[TorchObject]:
    """Modules with a `weight` in the order in which they run (that of `read_torch7`'s paths)."""
    return list(_modules(root, set()))


def read_torch7_object(path: str | Path, *, long_size: int = 8) -> Any:
    """The object of a file: tables as dicts, tensors as arrays, others as `TorchObject`.

    Raises:
      CheckpointError: the file is missing, truncated or of another format.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read weights {path}: {error.strerror or error}") from error
    try:
        reader = _Reader(data, long_size)
        found = reader.object()
        if reader.at != len(data):
            raise ValueError(f"{len(data) - reader.at} bytes are left over")
        return found
    except (ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise CheckpointError(
            f"{path} is no complete Torch7 file ({error}): pass the binary .t7 or .dat file the "
            "authors published, or download it again and compare the size"
        ) from None


class _Reader:
    def __init__(self, data: bytes, long_size: int):
        self.data, self.at, self.depth = data, 0, 0
        self.long = f"<i{long_size}"
        self.known: dict[int, Any] = {}

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.at:
            raise ValueError("it ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, kind: str) -> Any:
        return np.frombuffer(self.take(np.dtype(kind).itemsize), kind)[0].item()

    def numbers(self, count: int) -> list[int]:
        size = np.dtype(self.long).itemsize
        if not 0 <= count <= 64:
            raise ValueError(f"a tensor of {count} dimensions")
        return np.frombuffer(self.take(count * size), self.long).tolist()

    def text(self) -> str:
        return self.take(self.number("<i4")).decode("latin1")

    def object(self) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        try:
            return self._object(self.number("<i4"))
        finally:
            self.depth -= 1

    def _object(self, tag: int) -> Any:
        if tag == 0:
            return None
        if tag == 1:
            value = self.number("<f8")
            return int(value) if math.isfinite(value) and value == int(value) else value
        if tag == 2:
            return self.text()
        if tag == 5:
            return bool(self.number("<i4"))
        if tag not in (3, 4, 6, 7, 8):
            raise ValueError(f"an object of kind {tag}")
        index = self.number("<i4")
        if index in self.known:
            return self.known[index]
        if tag == 3:
            return self._table(index)
        if tag == 4:
            return self._torch(index)
        self.known[index] = None
        self.take(self.number("<i4"))  # bytecode, which is not looked at
        self.object()  # and the values it refers to
        return None

    def _table(self, index: int | None, into: dict | None = None) -> dict:
        table = {} if into is None else into
        if index is not None:
            self.known[index] = table
        count = self.number("<i4")
        if count < 0:
            raise ValueError(f"a table of {count} entries")
        for _ in range(count):
            key, value = self.object(), self.object()
            if not isinstance(key, (str, int, float)):
                continue  # a table used as a key: no names for its values
            table[key] = value
        return table

    def _torch(self, index: int) -> Any:
        name = self.text()
        if name.startswith("V "):
            name = self.text()
        prefix, _, kind = name.partition(".")
        for ending, read in (("Tensor", self._tensor), ("Storage", self._storage)):
            plain = kind.removesuffix(ending).removeprefix("Cuda") or "Float"
            if prefix == "torch" and kind.endswith(ending) and plain in TYPES:
                self.known[index] = None
                self.known[index] = read(TYPES[plain])
                return self.known[index]
        made = TorchObject(name)
        self.known[index] = made
        content = self.object()
        if isinstance(content, dict):
            made.fields = content
        return made

    def _storage(self, dtype: str) -> np.ndarray:
        count = self.number(self.long)
        if count < 0:
            raise ValueError(f"a storage of {count} elements")
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype)

    def _tensor(self, dtype: str) -> np.ndarray:
        rank = self.number("<i4")
        size, stride = self.numbers(rank), self.numbers(rank)
        offset = self.number(self.long) - 1
        storage = self.object()
        if storage is None or rank == 0:
            return np.zeros(0 if rank == 0 else size if 0 in size else (0,), dtype)
        if not isinstance(storage, np.ndarray) or storage.ndim != 1:
            raise ValueError("a tensor without a storage")
        if min(*size, *stride, offset) < 0:
            raise ValueError("a tensor reaches outside its storage")
        if 0 in size:
            return np.zeros(size, storage.dtype)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if last >= storage.size or math.prod(size) > storage.size:
            raise ValueError("a tensor reaches outside its storage")
        strides = tuple(s * storage.itemsize for s in stride)
        view = np.lib.stride_tricks.as_strided(storage[offset:], size, strides)
        view.flags.writeable = False
        return view


def _children(value: Any) -> Iterator[tuple[Any, Any]]:
    """Named parts of an object; those of a graph in running order first."""
    found = value.fields if isinstance(value, TorchObject) else value
    if isinstance(found, dict):
        keys = sorted(found, key=lambda k: (k != "forwardnodes", k != "modules"))
        yield from ((k, found[k]) for k in keys if k not in BUFFERS)


def _arrays(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, np.ndarray):
        yield path, value
    elif isinstance(value, (dict, TorchObject)) and id(value) not in seen:
        seen.add(id(value))
        for key, child in _children(value):
            below = checked_name(f"{path}.{key}" if path else str(key))
            yield from _arrays(child, below, seen)


def _modules(value: Any, seen: set[int]) -> Iterator[TorchObject]:
    if not isinstance(value, (dict, TorchObject)) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, TorchObject) and isinstance(value.fields.get("weight"), np.ndarray):
        yield value
    for _, child in _children(value):
        yield from _modules(child, seen)
