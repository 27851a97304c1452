"""Reads TensorFlow 1 checkpoints with numpy alone, in both layouts.

V2 is an index (`NAME.index`) and data files (`NAME.data-00000-of-00001`), V1 a single file. Index
and V1 file are tables in LevelDB's format: a 48-byte footer points at an index block, that at data
blocks of prefix-compressed entries. Their values are protocol-buffer messages, whose fields are
known from TensorFlow's public schema. Checksums of V2 data are verified. Memory: the index and a
copy of each array, within `convert/bounds.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from uvos_jax.convert import wire
from uvos_jax.convert.bounds import MAX_NAME, Budget
from uvos_jax.errors import CheckpointError

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
#: TensorFlow's number of a type -> numpy's.
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?",
          14: ml_dtypes.bfloat16, 19: "<f2"}  # fmt: skip
#: Field of the values in a TensorProto, by type (V1).
VALUES = {1: 5, 2: 6, 3: 7, 4: 7, 5: 7, 6: 7, 9: 10}


def is_tensorflow(path: str | Path) -> bool:
    """Whether a path names a checkpoint: its index, its prefix, or a V1 file."""
    path = Path(path)
    if _index_of(path).is_file():
        return True
    try:
        with open(path, "rb") as file:
            file.seek(-8, 2)
            return int.from_bytes(file.read(8), "little") == MAGIC
    except OSError:
        return False


def read_tensorflow(path: str | Path) -> dict[str, np.ndarray]:
    """Variables of a checkpoint by name, optimiser slots included.

    Args:
      path: `NAME`, `NAME.index` or `NAME.data-...` of a V2 checkpoint, or a V1 file.

    Raises:
      CheckpointError: files are missing, truncated, of another format, or fail their checksum.
    """
    path = Path(path)
    index = _index_of(path)
    try:
        if index.is_file():
            return _read_v2(index)
        return _read_v1(path.read_bytes())
    except OSError as error:
        name = error.filename or path
        raise CheckpointError(f"cannot read weights {name}: {error.strerror or error}") from error
    except (ValueError, IndexError, OverflowError, MemoryError) as error:
        raise CheckpointError(
            f"{path} is no complete TensorFlow checkpoint ({error}): give NAME.index with its data "
            "files beside it, or a V1 file, as the authors published them"
        ) from None


def _index_of(path: Path) -> Path:
    name = path.name
    if name.endswith(".index"):
        return path
    return path.with_name(name.partition(".data-")[0] + ".index")


# ----- tables ---------------------------------------------------------------------------------


def _entries(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """(key, value) of a table."""
    if len(data) < FOOTER or int.from_bytes(data[-8:], "little") != MAGIC:
        raise ValueError("its last bytes are not those of a checkpoint")
    footer = data[-FOOTER:]
    at = 0
    for _ in range(2):  # position and size of the meta index, which is not needed
        _, at = wire.varint(footer, at)
    start, at = wire.varint(footer, at)
    size, at = wire.varint(footer, at)
    left, names = len(data), Budget(len(data))
    for _, handle in _block(data, start, size):
        first, at = wire.varint(handle, 0)
        length, _ = wire.varint(handle, at)
        left -= length
        if left < 0:
            raise ValueError("its blocks overlap")
        for key, value in _block(data, first, length):
            names.draw(len(key))
            yield key, value


def _block(data: memoryview, start: int, size: int) -> Iterator[tuple[bytes, memoryview]]:
    if start + size + 5 > len(data) or size < 4:
        raise ValueError("a block reaches beyond the file")
    if data[start + size] != 0:
        raise ValueError("its blocks are compressed")
    block = data[start : start + size]
    restarts = int.from_bytes(block[-4:], "little")
    end = size - 4 - 4 * restarts
    if end < 0:
        raise ValueError("a block is damaged")
    at, key = 0, b""
    while at < end:
        shared, at = wire.varint(block, at)
        own, at = wire.varint(block, at)
        length, at = wire.varint(block, at)
        if shared > len(key) or at + own + length > end:
            raise ValueError("an entry reaches beyond its block")
        if shared + own > MAX_NAME:
            raise ValueError(f"a name of {shared + own} bytes")
        key = key[:shared] + bytes(block[at : at + own])
        at += own
        yield key, block[at : at + length]
        at += length


# ----- V2 -------------------------------------------------------------------------------------


def _read_v2(index: Path) -> dict[str, np.ndarray]:
    prefix = str(index)[: -len(".index")]
    data = memoryview(index.read_bytes())
    shards, found = 1, {}
    for key, value in _entries(data):
        if key:
            found[key.decode("utf-8")] = _bundle_entry(value)
            continue
        for number, _, field in wire.fields(value):
            if number == 1:
                shards = int(field)
            elif number == 2 and field:
                raise ValueError("it is big-endian")
    if not 1 <= shards <= 10_000:
        raise ValueError(f"it has {shards} data files")
    files: dict[int, np.memmap | bytes] = {}
    arrays = {}
    left: dict[int, int] = {}
    for name, (dtype, shape, shard, offset, size, checksum) in found.items():
        if dtype not in DTYPES:
            raise ValueError(f"{name} is of type {dtype}, which holds no weights")
        if not 0 <= shard < shards:
            raise ValueError(f"{name} lies in data file {shard} of {shards}")
        if shard not in files:
            path = Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}")
            files[shard] = np.memmap(path, np.uint8, "r") if path.stat().st_size else b""
            left[shard] = len(files[shard])
        kind = np.dtype(DTYPES[dtype])
        if size != math.prod(shape) * kind.itemsize or offset + size > len(files[shard]):
            raise ValueError(f"{name} reaches beyond its data file, which may be cut short")
        left[shard] -= size
        if left[shard] < 0:
            raise ValueError(f"the values of {name} overlap others")
        raw = bytes(files[shard][offset : offset + size])
        if checksum is not None and _masked_crc(raw) != checksum:
            raise ValueError(f"the values of {name} fail their checksum")
        arrays[name] = np.frombuffer(raw, kind).reshape(shape)
    if not arrays:
        raise ValueError("it holds no variables")
    return arrays


def _bundle_entry(value: memoryview):
    dtype, shape, shard, offset, size, checksum = 0, (), 0, 0, 0, None
    for number, kind, field in wire.fields(value):
        if number == 2 and kind == wire.BYTES:
            shape = _shape(field)
        elif number == 6 and kind == wire.FIXED32:
            checksum = int.from_bytes(field, "little")
        elif isinstance(field, int):
            dtype = field if number == 1 else dtype
            shard = field if number == 3 else shard
            offset = field if number == 4 else offset
            size = field if number == 5 else size
        elif number == 7:
            raise ValueError("a variable is stored in slices")
    return dtype, shape, shard, offset, size, checksum


def _shape(value: memoryview) -> tuple[int, ...]:
    shape = []
    for number, kind, dim in wire.fields(value):
        if number == 2 and kind == wire.BYTES:
            sizes = [v for n, k, v in wire.fields(dim) if n == 1 and k == wire.VARINT]
            shape.append(int(sizes[-1]) if sizes else 0)
    if len(shape) > 32 or any(n >= 2**40 for n in shape):
        raise ValueError(f"an impossible shape {tuple(shape)}")
    return tuple(shape)


# ----- V1 -------------------------------------------------------------------------------------


def _read_v1(raw: bytes) -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[tuple[int, ...], int]] = {}
    parts: dict[str, memoryview] = {}
    for key, value in _entries(memoryview(raw)):
        for number, kind, field in wire.fields(value):
            if kind != wire.BYTES:
                continue
            if not key and number == 1:
                for inner, _, tensor in wire.fields(field):
                    if inner == 1:
                        name, shape, dtype = _slice_meta(tensor)
                        shapes[name] = shape, dtype
            elif key and number == 2:
                inner = {n: v for n, k, v in wire.fields(field) if k == wire.BYTES}
                if 1 not in inner or 3 not in inner:
                    raise ValueError("a variable without name or values")
                name = wire.text(inner[1])
                if name in parts:
                    raise ValueError(f"{name} is stored in slices")
                parts[name] = inner[3]
    arrays = {}
    for name, (shape, dtype) in shapes.items():
        if name not in parts:
            raise ValueError(f"the values of {name} are missing")
        arrays[name] = _tensor_values(name, parts[name], shape, dtype)
    if not arrays:
        raise ValueError("it holds no variables")
    return arrays


def _slice_meta(value: memoryview) -> tuple[str, tuple[int, ...], int]:
    name, shape, dtype = "", (), 0
    for number, kind, field in wire.fields(value):
        if number == 1 and kind == wire.BYTES:
            name = wire.text(field)
        elif number == 2 and kind == wire.BYTES:
            shape = _shape(field)
        elif number == 3 and kind == wire.VARINT:
            dtype = int(field)
    return name, shape, dtype


def _tensor_values(name: str, proto: memoryview, shape: tuple, dtype: int) -> np.ndarray:
    if dtype not in VALUES:
        raise ValueError(f"{name} is of type {dtype}, which holds no weights")
    kind, pieces = np.dtype(DTYPES[dtype]), []
    for number, _, field in wire.fields(proto):
        if number == VALUES[dtype]:
            pieces.append(field)
    if dtype in (1, 2):
        values = wire.elements(pieces, DTYPES[dtype]) if pieces else np.zeros(0, kind)
    else:
        values = wire.integers(pieces).astype(kind)
    if values.size != math.prod(shape):
        raise ValueError(f"{name} of shape {shape} has {values.size} values")
    return values.reshape(shape).copy()


# ----- checksum -------------------------------------------------------------------------------


def _crc_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table


_TABLE = _crc_table()


def _advance(crc: np.ndarray, zeros: int) -> np.ndarray:
    """CRCs after `zeros` zero bytes (a linear map, by squaring its matrix over GF(2))."""
    # columns of the operator "one zero byte"
    column = np.uint32(1) << np.arange(32, dtype=np.uint32)
    operator = _TABLE[column & 0xFF] ^ (column >> 8)
    while zeros:
        if zeros & 1:
            crc = _apply(operator, crc)
        operator = _apply(operator, operator)
        zeros >>= 1
    return crc


def _apply(operator: np.ndarray, values: np.ndarray) -> np.ndarray:
    out = np.zeros_like(values)
    for bit in range(32):
        out ^= np.where((values >> np.uint32(bit)) & 1, operator[bit], np.uint32(0))
    return out


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of bytes; long inputs in columns that are joined afterwards."""
    raw = np.frombuffer(data, np.uint8)
    columns = max(1, min(4096, raw.size // 64))
    rows = raw.size // columns
    crc = np.full(1, 0xFFFFFFFF, np.uint32)
    if rows:
        body = raw[: rows * columns].reshape(rows, columns)
        state = np.zeros(rows, np.uint32)
        state[0] = crc[0]
        for k in range(columns):
            state = _TABLE[(state ^ body[:, k]) & 0xFF] ^ (state >> 8)
        length = columns
        while state.size > 1:  # join neighbours: the left one is followed by `length` bytes
            if state.size % 2:
                state = np.concatenate([np.zeros(1, np.uint32), state])
            state = _advance(state[::2], length) ^ state[1::2]
            length *= 2
        crc = state
    for byte in raw[rows * columns :]:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return int(crc[0]) ^ 0xFFFFFFFF


def _masked_crc(data: bytes) -> int:
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
