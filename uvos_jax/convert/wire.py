"""The wire format of protocol buffers: fields of a message, with nothing known of its type."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

#: Wire types.
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number that starts at `at`, and where it ends.

    Raises:
      ValueError: it does not end within ten bytes.
      IndexError: the data end before it does.
    """
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), at
    raise ValueError("a number longer than ten bytes")


def fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yields (field number, wire type, value): a number, or the bytes of the field.

    Raises:
      ValueError: the data are no message.
    """
    at = 0
    while at < len(data):
        try:
            tag, at = varint(data, at)
            number, kind = tag >> 3, tag & 7
            if kind == VARINT:
                value, at = varint(data, at)
                yield number, kind, value
                continue
            if kind == BYTES:
                length, at = varint(data, at)
            elif kind in (FIXED64, FIXED32):
                length = 8 if kind == FIXED64 else 4
            else:
                raise ValueError(f"wire type {kind}")
        except IndexError:
            raise ValueError("a field is cut off") from None
        if number == 0 or length > len(data) - at:
            raise ValueError("a field reaches beyond its message")
        yield number, kind, data[at : at + length]
        at += length


def varints(value: int | memoryview) -> list[int]:
    """The numbers of a repeated field, packed or one by one."""
    if isinstance(value, int):
        return [value]
    numbers, at = [], 0
    while at < len(value):
        try:
            number, at = varint(value, at)
        except IndexError:
            raise ValueError("a list of numbers is cut off") from None
        numbers.append(number)
    return numbers


def integers(pieces: list[int | memoryview]) -> np.ndarray:
    """Signed numbers of a repeated field as int64, without a Python object for each of them."""

    def signed():
        for piece in pieces:
            if isinstance(piece, int):
                yield piece - 2**64 if piece >= 2**63 else piece
                continue
            at = 0
            while at < len(piece):
                try:
                    number, at = varint(piece, at)
                except IndexError:
                    raise ValueError("a list of numbers is cut off") from None
                yield number - 2**64 if number >= 2**63 else number

    return np.fromiter(signed(), np.int64)


def text(value: int | memoryview) -> str:
    """A string field."""
    if isinstance(value, int):
        raise ValueError("a number where a name is expected")
    return bytes(value).decode("utf-8")


def elements(parts: list[memoryview], dtype: str) -> np.ndarray:
    """Numbers of a repeated fixed-size field whose pieces may be packed or single."""
    itemsize = np.dtype(dtype).itemsize
    if any(isinstance(p, int) or len(p) % itemsize for p in parts):
        raise ValueError(f"a list of {dtype} with a broken element")
    if len(parts) == 1:
        return np.frombuffer(parts[0], dtype)
    return np.frombuffer(b"".join(parts), dtype)
