"""The one table of types, as PostgreSQL keeps them.

Python              written as                       read back, by the column's type
Decimal             text of a number                 numeric -> Decimal
UUID                text                             uuid -> UUID
datetime (aware)    text, UTC                        timestamptz, timestamp -> datetime in UTC
bool                true, false                      boolean -> bool
bytes               binary                           bytea -> bytes
str, int, float     text                             as psycopg reads the column's type
None                null                             None

The database infers each parameter's type from where it stands, as it does for a literal in quotes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from psycopg import adapters
from psycopg.adapt import AdaptersMap, Buffer, Loader

from eventkeel.errors import TransactionError
from eventkeel.stores.postgres.arrays import Binary


def _text(value: str) -> bytes:
    try:
        encoded = value.encode()
    except UnicodeEncodeError as error:
        raise TransactionError(f"text that is no Unicode has no place in a column: {error.reason}") from error
    if b"\0" in encoded:
        raise TransactionError("text with a NUL character has no place in a PostgreSQL column")
    return encoded


def _int(value: int) -> bytes:
    return b"%d" % value


def _float(value: float) -> bytes:
    if value != value:
        raise TransactionError("not-a-number has no place in a column: other stores would write null for it")
    return repr(value).encode()


def _decimal(value: Decimal) -> bytes:
    if not value.is_finite():
        raise TransactionError(f"{value} is no amount that a database could keep")
    return str(value).encode()


def _datetime(value: datetime) -> bytes:
    if value.tzinfo is None:
        raise TransactionError(f"{value!r} has no time zone; stores keep UTC: use datetime.now(UTC)")
    return value.astimezone(UTC).isoformat().encode()


_WRITERS: dict[type, Callable[[Any], bytes | None]] = {
    str: _text,
    int: _int,
    type(None): lambda value: None,
    bytes: Binary,
    Decimal: _decimal,
    bool: lambda value: b"true" if value else b"false",
    float: _float,
    UUID: lambda value: str(value).encode(),
    datetime: _datetime,
    bytearray: Binary,  # as it is now: a queued write is sent later
    memoryview: Binary,
}


def bind(value: Any) -> bytes | None:
    """A Python value as a parameter. Raises TransactionError for what a store could not give back."""
    write = _WRITERS.get(value.__class__)
    return write(value) if write is not None else _bind_other(value)


def _bind_other(value: Any) -> bytes | None:
    if isinstance(value, enum.Enum):
        return bind(value.value)
    for kind in (str, int, float, Decimal, datetime, bytes, UUID):
        if isinstance(value, kind):
            return _WRITERS[kind](value)
    raise TransactionError(
        f"a parameter of type {type(value).__name__} has no place in a column; the table of types has str, int, "
        "float, bytes, bool, Decimal, UUID, datetime and None"
    )


class _Time(Loader):
    """Times of both kinds as UTC, whatever zone a transaction has set for itself."""

    def load(self, data: Buffer) -> datetime:
        text = bytes(data).decode()
        try:
            made = datetime.fromisoformat(text)
        except ValueError as error:
            raise TransactionError(f"the time {text!r} is none that a datetime could hold; read it as text") from error
        return made.replace(tzinfo=UTC) if made.tzinfo is None else made.astimezone(UTC)


def readers() -> AdaptersMap:
    """How columns are read: psycopg's own way, and times in UTC."""
    made = AdaptersMap(adapters)
    made.register_loader("timestamptz", _Time)
    made.register_loader("timestamp", _Time)
    return made
