"""Parameters that are whole columns: arrays in PostgreSQL's binary form, made with as little as possible per value.

The form is that of ``array_send`` (src/backend/utils/adt/arrayfuncs.c): dimensions, whether there are
nulls, the element type, length and lower bound, then each value with its length before it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

BYTEA, INT8, INT4, TEXT, FLOAT8, UUID = 17, 20, 23, 25, 701, 2950

_HEAD = struct.Struct(">IIIII")
_EMPTY = struct.Struct(">III")
_LENGTH = struct.Struct(">i")
_NULL = b"\xff\xff\xff\xff"


class Binary(bytes):
    """A parameter in binary form; any other bytes are text."""

    __slots__ = ()


def _array(kind: int, count: int, values: bytes, nulls: int = 0) -> Binary:
    if not count:
        return Binary(_EMPTY.pack(0, 0, kind))
    return Binary(_HEAD.pack(1, nulls, kind, count, 1) + values)


def uuids(values: Sequence[bytes]) -> Binary:
    return _array(UUID, len(values), b"".join([b"\0\0\0\x10" + value for value in values]))


def int8s(values: Sequence[int]) -> Binary:
    count = len(values)
    flat = [part for value in values for part in (8, value)]
    return _array(INT8, count, struct.pack(">" + "iq" * count, *flat))


def int4s(values: Sequence[int]) -> Binary:
    count = len(values)
    flat = [part for value in values for part in (4, value)]
    return _array(INT4, count, struct.pack(">" + "ii" * count, *flat))


def byteas(values: Sequence[bytes | None]) -> Binary:
    pack = _LENGTH.pack
    parts: list[bytes] = []
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts += (pack(len(value)), value)
    return _array(BYTEA, len(values), b"".join(parts), int(None in values))


def float8s(values: Sequence[float]) -> Binary:
    count = len(values)
    flat = [part for value in values for part in (8, value)]
    return _array(FLOAT8, count, struct.pack(">" + "id" * count, *flat))


def texts(values: Sequence[str]) -> Binary:
    pack = _LENGTH.pack
    parts: list[bytes] = []
    for value in values:
        encoded = value.encode()
        parts += (pack(len(encoded)), encoded)
    return _array(TEXT, len(values), b"".join(parts))
