"""Reads PyTorch weight files with numpy alone, in the zip and in the pre-1.6 stream layout.

Both hold a pickle. Unpickling can run any code, so the reader has a pickle machine of its own
(`convert/pickles.py`) and resolves only a short list of names, each to a stand-in that stores what
it is given: nothing from the file is ever executed, and torch need not be installed. Memory: the
file is mapped, and tensors are read-only views of the map; beside them a file can make the reader
allocate at most what `convert/bounds.py` says.

Zip: `<root>/data.pkl`, `<root>/data/<key>` (raw storages), `<root>/byteorder`. Stream: pickles of a
magic number, the protocol, the machine's facts, the object and the list of storage keys, then for
each key its number of elements (int64) and the raw elements.
"""

from __future__ import annotations

import io
import math
import mmap
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from uvos_jax.convert import pickles
from uvos_jax.convert.bounds import Budget
from uvos_jax.convert.pickles import RefusedError
from uvos_jax.errors import CheckpointError

MAGIC = 0x1950A86A20F9469CFC6C
#: A pickle of `MAGIC` in protocol 2: how a stream file begins.
STREAM_PREFIX = b"\x80\x02\x8a\n" + MAGIC.to_bytes(10, "little")
PROTOCOL = 1001
STORAGES = {
    "BFloat16Storage": ml_dtypes.bfloat16,
    "BoolStorage": np.bool_,
    "ByteStorage": np.uint8,
    "CharStorage": np.int8,
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
    "ShortStorage": np.int16,
}
#: Dimensions a tensor may have, and elements one may have that repeats those of its storage.
MAX_RANK, EXPANDED = 64, 2**20
#: Keys under which training scripts put the state dict, in order of preference.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")


class _StorageType:
    def __init__(self, dtype: Any):
        self.dtype = np.dtype(dtype)


class _Storage:
    """Elements of a storage, filled in once they have been read."""

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype
        self.elements: np.ndarray | None = None


class _Tensor:
    """A view of a storage; offset, size and strides count elements."""

    def __init__(self, storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any):
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor without a storage")
        if len(size) != len(stride) or len(size) > MAX_RANK:
            raise ValueError(f"a tensor of {len(size)} dimensions and {len(stride)} strides")
        self.storage, self.offset = storage, int(offset)
        self.size, self.stride = tuple(map(int, size)), tuple(map(int, stride))

    def array(self) -> np.ndarray:
        """A read-only view.

        Raises:
          ValueError: the view reaches outside the storage, or repeats its elements.
        """
        elements = self.storage.elements
        if elements is None:
            raise ValueError("a tensor whose storage is not in the file")
        if 0 in self.size:
            return np.zeros([n if n <= 2**31 else 0 for n in self.size], elements.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        if min((*self.size, *self.stride, self.offset), default=0) < 0 or last >= elements.size:
            raise ValueError("a tensor reaches outside its storage")
        if math.prod(self.size) > max(elements.size, EXPANDED):
            raise ValueError("a tensor repeats the elements of its storage")
        strides = tuple(s * elements.itemsize for s in self.stride)
        view = np.lib.stride_tricks.as_strided(elements[self.offset :], self.size, strides)
        view.flags.writeable = False
        return view


class _Inert:
    """Takes any arguments and state and does nothing with them."""

    def __init__(self, *args: Any, **kwargs: Any):
        del args, kwargs

    def __setstate__(self, state: Any) -> None:
        del state


class _NumpyDtype:
    def __init__(self, code: str, *_: Any):
        if not re.fullmatch(r"[<>|=]?[?biufc]\d{0,2}", str(code)):
            raise ValueError("an array of something else than numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if len(state) > 1 and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _NumpyArray:
    def __init__(self, *_: Any):
        self.value = np.zeros(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        flat = np.frombuffer(raw, kind.dtype)
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def _numpy_scalar(kind: _NumpyDtype, raw: bytes | str = b"") -> np.ndarray:
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    return np.frombuffer(raw, kind.dtype)[0]


def _latin1(text: str, encoding: str) -> bytes:
    """Python 2 pickles write bytes as `codecs.encode(text, "latin1")`."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in encoding {encoding!r}")
    return text.encode("latin1")


_UNFINISHED = object()

#: (module, name) of the pickle -> stand-in. Nothing else is resolved.
ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): _latin1,
    ("argparse", "Namespace"): _Inert,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch", "device"): _Inert,
    ("torch._utils", "_rebuild_tensor"): _Tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch.nn.parameter", "Parameter"): lambda data=None, *_: data,
}
ALLOWED |= {("torch", name): _StorageType(dtype) for name, dtype in STORAGES.items()}
ALLOWED |= {("torch.cuda", name): _StorageType(dtype) for name, dtype in STORAGES.items()}
for _core in ("numpy.core.multiarray", "numpy._core.multiarray"):
    ALLOWED[_core, "scalar"] = _numpy_scalar
    ALLOWED[_core, "_reconstruct"] = _NumpyArray
ALLOWED["numpy", "dtype"] = _NumpyDtype
ALLOWED["numpy", "ndarray"] = _Inert


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """The state dict of a `.pth`, `.pt` or `.tar` file: official name to array.

    A dict wrapped by a training script (`{"state_dict": ...}`, `{"model": ...}`) is unwrapped and a
    `module.` prefix that all names share is dropped. bfloat16 arrays keep their dtype.

    Raises:
      CheckpointError: the file is missing, truncated, of another format, asks for code to be run,
        or holds no state dict.
    """
    return state_dict(read_object(path), str(path))


def read_object(path: str | Path) -> Any:
    """The whole pickled object of a torch file, tensors as numpy arrays.

    Raises:
      CheckpointError: as `read_torch`, except for the content.
    """
    path = Path(path)
    start = b""
    try:
        with open(path, "rb") as file:
            start = file.read(len(STREAM_PREFIX))
            if start[:4] == b"PK\x03\x04" or start == STREAM_PREFIX:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                read = _read_stream if start == STREAM_PREFIX else _read_zip
                return _resolve(read(mapped, Budget(len(mapped)), path), {})
    except OSError as error:
        raise CheckpointError(f"cannot read weights {path}: {error.strerror or error}") from error
    except RefusedError as error:
        raise CheckpointError(
            f"{path} refers to {error}, which this reader does not resolve because a weight file "
            "has no need of it and loading it could run code; load the file where you trust it and "
            "save it again as torch.save(model.state_dict(), file)"
        ) from None
    except CheckpointError:
        raise
    # a damaged pickle can fail in any way inside the machine
    except Exception as error:
        raise CheckpointError(
            f"weights {path} are damaged or truncated ({type(error).__name__}: "
            f"{str(error)[:200]}); download them again and compare the size"
        ) from None
    raise CheckpointError(
        f"{path} is no PyTorch file: it begins with {start[:8]!r}, neither a zip archive nor a "
        "torch stream; pass the file the authors published"
    )


def _references(storage: Callable[[str, np.dtype], _Storage]) -> Callable[[Any], _Storage]:
    """Persistent ids are references to storages."""

    def resolve(pid: Any) -> _Storage:
        if isinstance(pid, tuple) and pid[:1] == ("module",):
            raise RefusedError("a whole network object")
        if not isinstance(pid, tuple) or len(pid) < 5:
            raise ValueError("a reference to something that is not a storage")
        kind, storage_type, key = pid[:3]
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise ValueError("a reference to something that is not a storage")
        if not isinstance(key, (str, int)):
            raise ValueError("a storage without a name")
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("a storage that is a part of another (PyTorch before 0.4)")
        return storage(str(key), storage_type.dtype)

    return resolve


def _read_zip(mapped: mmap.mmap, budget: Budget, path: Path) -> Any:
    with zipfile.ZipFile(mapped) as archive:
        names = set(archive.namelist())
        found = [n for n in archive.namelist() if n == "data.pkl" or n.endswith("/data.pkl")]
        if not found or any(n.endswith("/constants.pkl") for n in names):
            raise CheckpointError(
                f"{path} is a zip archive but no PyTorch weight file (a compiled TorchScript "
                "program or something else); pass the file with the state dict"
            )
        root = found[0][: -len("data.pkl")]

        def member(name: str) -> memoryview:
            return _member(mapped, archive, archive.getinfo(f"{root}{name}"), budget)

        order = bytes(member("byteorder")).decode() if f"{root}byteorder" in names else "little"
        storages: dict[str, _Storage] = {}

        def storage(key: str, dtype: np.dtype) -> _Storage:
            if key not in storages:
                storages[key] = _Storage(dtype)
                storages[key].elements = _elements(member(f"data/{key}"), dtype, order, budget)
            return storages[key]

        pickle = io.BytesIO(member("data.pkl"))
        return pickles.load(pickle, ALLOWED, budget, _references(storage))


def _member(
    mapped: mmap.mmap, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, budget: Budget
) -> memoryview:
    """Content of an archive's file, its checksum compared: a view of the map where it is stored."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        budget.draw(entry.file_size)
        return memoryview(archive.read(entry))
    at = entry.header_offset
    if mapped[at : at + 4] != b"PK\x03\x04":
        raise ValueError("an archive whose table of contents is wrong")
    name, extra = struct.unpack("<HH", mapped[at + 26 : at + 30])
    at += 30 + name + extra
    content = memoryview(mapped)[at : at + entry.file_size]
    if len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
        raise ValueError(f"{entry.filename[:80]} fails its checksum")
    return content


def _read_stream(mapped: mmap.mmap, budget: Budget, path: Path) -> Any:
    del path
    pickles.load(mapped, {}, budget)  # the magic number
    protocol = pickles.load(mapped, {}, budget)
    if protocol != PROTOCOL:
        raise ValueError(f"protocol {protocol}, expected {PROTOCOL}")
    machine = pickles.load(mapped, {}, budget)
    storages: dict[str, _Storage] = {}

    def storage(key: str, dtype: np.dtype) -> _Storage:
        return storages.setdefault(key, _Storage(dtype))

    loaded = pickles.load(mapped, ALLOWED, budget, _references(storage))
    order = "little" if machine.get("little_endian", True) else "big"
    for key in pickles.load(mapped, {}, budget):
        entry = storages[str(key)]
        (count,) = struct.unpack("<q" if order == "little" else ">q", mapped.read(8))
        at = mapped.tell()
        if not 0 <= count * entry.dtype.itemsize <= len(mapped) - at:
            raise EOFError("the file ends inside a storage")
        raw = memoryview(mapped)[at : at + count * entry.dtype.itemsize]
        mapped.seek(at + len(raw))
        entry.elements = _elements(raw, entry.dtype, order, budget)
    return loaded


def _elements(raw: memoryview, dtype: np.dtype, order: str, budget: Budget) -> np.ndarray:
    elements = np.frombuffer(raw, dtype) if len(raw) else np.zeros(0, dtype)
    if order == "big" and dtype.itemsize > 1:
        budget.draw(len(raw))
        return elements.byteswap()
    return elements


def _resolve(value: Any, done: dict[int, Any]) -> Any:
    """Replaces stand-ins by arrays, through containers; what is shared is replaced once.

    Raises:
      ValueError: a container that holds itself.
    """
    if not isinstance(value, (_Tensor, _NumpyArray, Mapping, list, tuple)):
        return value
    key = id(value)  # of objects the pickle's result keeps alive
    if key not in done:
        done[key] = _UNFINISHED
        if isinstance(value, _Tensor):
            done[key] = value.array()
        elif isinstance(value, _NumpyArray):
            done[key] = value.value
        elif isinstance(value, Mapping):
            done[key] = {k: _resolve(v, done) for k, v in value.items()}
        else:
            done[key] = [_resolve(v, done) for v in value]
    if done[key] is _UNFINISHED:
        raise ValueError("a container that holds itself")
    return done[key]


def without_common_prefix(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drops the `module.` that DataParallel puts before every name."""
    for _ in range(4):  # wrapped in one another
        if not arrays or not all(name.startswith("module.") for name in arrays):
            break
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    return arrays


def state_dict(loaded: Any, source: str) -> dict[str, np.ndarray]:
    """Finds the state dict in what a file holds and drops a common `module.` prefix.

    Raises:
      CheckpointError: there is none.
    """
    for _ in range(3):  # wrapped twice at most
        if not isinstance(loaded, Mapping):
            break
        arrays = {str(k): v for k, v in loaded.items() if isinstance(v, np.ndarray)}
        inner = [k for k in WRAPPERS if isinstance(loaded.get(k), Mapping)]
        if inner:
            loaded = loaded[inner[0]]
            continue
        if arrays:
            return without_common_prefix(arrays)
        break
    found = f"a dict with the keys {list(loaded)[:6]}" if isinstance(loaded, Mapping) else "no dict"
    raise CheckpointError(
        f"{source} holds no state dict (found {found}); save it as "
        "torch.save(model.state_dict(), file)"
    )
