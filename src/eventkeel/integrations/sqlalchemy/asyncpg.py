"""Runs what an outbox appends on a user's asyncpg connection, one statement after another."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from eventkeel.ports.store import Kind, Reply, Statement
from eventkeel.stores.postgres import arrays

_READERS: dict[int, Callable[[bytes], Any]] = {
    arrays.BYTEA: bytes,
    arrays.INT8: lambda raw: int.from_bytes(raw, "big", signed=True),
    arrays.INT4: lambda raw: int.from_bytes(raw, "big", signed=True),
    arrays.TEXT: bytes.decode,
    arrays.FLOAT8: lambda raw: struct.unpack(">d", raw)[0],
    arrays.UUID: lambda raw: UUID(bytes=raw),
}


class AsyncpgSide:
    """See ``ports.store.AsyncConnection``. asyncpg takes Python's values where psycopg's libpq takes bytes."""

    def __init__(self, native: Any) -> None:
        self._native = native

    @property
    def alive(self) -> bool:
        return bool(self._native.is_in_transaction())

    async def run(self, statement: Statement) -> Reply:
        if statement.kind is Kind.PIPELINE:
            for each in statement.params:
                await self.run(each)
            return Reply([], 0)
        rows = await self._native.fetch(statement.sql, *[_value(param) for param in statement.params])
        return Reply([tuple(row) for row in rows], len(rows))


def _value(param: bytes | None) -> Any:
    """Columns are arrays in binary form, and the only single value of an append is its time."""
    if param is None:
        return None
    return _array(param) if isinstance(param, arrays.Binary) else float(param)


def _array(raw: bytes) -> Sequence[Any]:
    dimensions, _, kind = struct.unpack_from(">III", raw)
    if not dimensions:
        return []
    read, place = _READERS[kind], 20
    values: list[Any] = []
    while place < len(raw):
        (size,) = struct.unpack_from(">i", raw, place)
        place += 4
        if size < 0:
            values.append(None)
        else:
            values.append(read(raw[place : place + size]))
            place += size
    return values
