"""Reads PyTorch weight files with numpy alone, in the zip and in the pre-1.6 stream layout.

Both hold a pickle. Unpickling can run any code, so this reader resolves only a short list of names,
and each of them to a stand-in of its own that stores what it is given: nothing from the file is
ever executed, and torch need not be installed.

Zip: `<root>/data.pkl`, `<root>/data/<key>` (raw storages), `<root>/byteorder`. Stream: pickles of a
magic number, the protocol, the machine's facts, the object and the list of storage keys, then for
each key its number of elements (int64) and the raw elements.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

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
#: Keys under which training scripts put the state dict, in order of preference.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")


class _RefusedError(Exception):
    """A name the reader does not resolve."""


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
        self.storage, self.offset = storage, int(offset)
        self.size, self.stride = tuple(map(int, size)), tuple(map(int, stride))

    def array(self) -> np.ndarray:
        """A contiguous copy.

        Raises:
          ValueError: the view reaches outside the storage.
        """
        elements = self.storage.elements
        if elements is None or len(self.size) != len(self.stride):
            raise ValueError("a tensor whose storage is not in the file")
        if 0 in self.size:
            return np.zeros(self.size, elements.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        if min((*self.size, *self.stride, self.offset), default=0) < 0 or last >= elements.size:
            raise ValueError("a tensor reaches outside its storage")
        strides = tuple(s * elements.itemsize for s in self.stride)
        view = np.lib.stride_tricks.as_strided(elements[self.offset :], self.size, strides)
        return view.copy()


class _Inert:
    """Takes any arguments and state and does nothing with them."""

    def __init__(self, *args: Any, **kwargs: Any):
        del args, kwargs

    def __setstate__(self, state: Any) -> None:
        del state


class _NumpyDtype:
    def __init__(self, code: str, *_: Any):
        self.dtype = np.dtype(str(code))
        if self.dtype.hasobject:
            raise ValueError("an array of Python objects")

    def __setstate__(self, state: tuple) -> None:
        if len(state) > 1 and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _NumpyArray:
    def __init__(self, *_: Any):
        self.value = np.zeros(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        array = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if fortran else "C")
        self.value = array.copy()


def _numpy_scalar(kind: _NumpyDtype, raw: bytes | str = b"") -> np.ndarray:
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    return np.frombuffer(raw, kind.dtype)[0]


def _latin1(text: str, encoding: str) -> bytes:
    """Python 2 pickles write bytes as `codecs.encode(text, "latin1")`."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in encoding {encoding!r}")
    return text.encode("latin1")


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


class _Unpickler(pickle.Unpickler):
    """Resolves `ALLOWED` names only, and storages through `storage(key, dtype)`."""

    def __init__(self, file: BinaryIO, storage: Callable[[str, np.dtype], _Storage] | None = None):
        super().__init__(file, encoding="latin1")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module
        if (module, name) not in ALLOWED:
            raise _RefusedError(f"{module}.{name}")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if self._storage is None or not isinstance(pid, tuple) or len(pid) < 5:
            raise ValueError("a reference to something that is not a storage")
        if pid[0] == "module":
            raise _RefusedError("a whole network object")
        kind, storage_type, key = pid[:3]
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise ValueError(f"a reference to {kind!r}")
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("a storage that is a part of another (PyTorch before 0.4)")
        return self._storage(str(key), storage_type.dtype)


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
    try:
        with open(path, "rb") as file:
            start = file.read(len(STREAM_PREFIX))
            file.seek(0)
            if start[:4] == b"PK\x03\x04":
                return _resolve(_read_zip(file))
            if start == STREAM_PREFIX:
                return _resolve(_read_stream(file))
    except OSError as error:
        raise CheckpointError(f"cannot read weights {path}: {error.strerror or error}") from error
    except _RefusedError as error:
        raise CheckpointError(
            f"{path} refers to {error}, which this reader does not resolve because a weight file "
            "has no need of it and loading it could run code; load the file where you trust it and "
            "save it again as torch.save(model.state_dict(), file)"
        ) from None
    except CheckpointError:
        raise
    # a damaged pickle can fail in any way inside the unpickler
    except Exception as error:
        raise CheckpointError(
            f"weights {path} are damaged or truncated ({type(error).__name__}: {error}); "
            "download them again and compare the size"
        ) from error
    raise CheckpointError(
        f"{path} is no PyTorch file: it begins with {start[:8]!r}, neither a zip archive nor a "
        "torch stream; pass the file the authors published"
    )


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        pickles = [n for n in names if n == "data.pkl" or n.endswith("/data.pkl")]
        if not pickles or any(n.endswith("/constants.pkl") for n in names):
            raise CheckpointError(
                f"{file.name} is a zip archive but no PyTorch weight file (a compiled TorchScript "
                "program or something else); pass the file with the state dict"
            )
        root = pickles[0][: -len("data.pkl")]
        order = "little"
        if f"{root}byteorder" in names:
            order = archive.read(f"{root}byteorder").decode()
        storages: dict[str, _Storage] = {}

        def storage(key: str, dtype: np.dtype) -> _Storage:
            if key not in storages:
                storages[key] = _Storage(dtype)
                raw = archive.read(f"{root}data/{key}")
                storages[key].elements = _elements(raw, dtype, order)
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(pickles[0])), storage).load()


def _read_stream(file: BinaryIO) -> Any:
    _Unpickler(file).load()  # the magic number
    protocol = _Unpickler(file).load()
    if protocol != PROTOCOL:
        raise ValueError(f"protocol {protocol}, expected {PROTOCOL}")
    machine = _Unpickler(file).load()
    storages: dict[str, _Storage] = {}

    def storage(key: str, dtype: np.dtype) -> _Storage:
        return storages.setdefault(key, _Storage(dtype))

    loaded = _Unpickler(file, storage).load()
    order = "little" if machine.get("little_endian", True) else "big"
    for key in _Unpickler(file).load():
        entry = storages[str(key)]
        (count,) = struct.unpack("<q" if order == "little" else ">q", file.read(8))
        raw = file.read(count * entry.dtype.itemsize)
        if count < 0 or len(raw) != count * entry.dtype.itemsize:
            raise EOFError("the file ends inside a storage")
        entry.elements = _elements(raw, entry.dtype, order)
    return loaded


def _elements(raw: bytes, dtype: np.dtype, order: str) -> np.ndarray:
    elements = np.frombuffer(raw, dtype)
    return elements.byteswap() if order == "big" and dtype.itemsize > 1 else elements


def _resolve(value: Any) -> Any:
    """Replaces stand-ins by arrays, through containers."""
    if isinstance(value, _Tensor):
        return value.array()
    if isinstance(value, _NumpyArray):
        return value.value
    if isinstance(value, Mapping):
        return {k: _resolve(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_resolve(v) for v in value]
    return value


def without_common_prefix(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drops the `module.` that DataParallel puts before every name."""
    while arrays and all(name.startswith("module.") for name in arrays):
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
