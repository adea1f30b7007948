"""The one table of types, as SQLite keeps them.

Python              written as                          read back, by the column's declared type
Decimal             text (a numeric column makes it     numeric, decimal -> Decimal
                    a number; 15 digits at most)
UUID                text                                uuid -> UUID
datetime (aware)    text, UTC, 2026-11-23T20:00:00.000000Z   timestamp, timestamptz, datetime -> datetime
bool                0 or 1                              boolean, bool -> bool
bytes               blob                                as SQLite gives it
str, int, float, None   themselves                      as SQLite gives them
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from eventkeel.errors import TransactionError

DIGITS = 15
"""What SQLite's numbers keep of a decimal, exactly (sqlite.org/floatingpoint.html)."""

SMALLEST, LARGEST = -290, 307
"""Powers of ten between which they keep that many."""

_PLAIN = frozenset({str, int, bytes, type(None)})


def bind(value: Any) -> Any:
    """A Python value as a parameter. Raises TransactionError for what a store could not give back."""
    if value.__class__ in _PLAIN:
        return value
    if value.__class__ is float:
        return _float(value)
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, Decimal):
        return _decimal(value)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise TransactionError(f"{value!r} has no time zone; stores keep UTC: use datetime.now(UTC)")
        return value.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
    if isinstance(value, enum.Enum):
        return bind(value.value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, str | int | bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)  # as it is now: a queued write is sent later
    raise TransactionError(
        f"a parameter of type {type(value).__name__} has no place in a column; the table of types has str, int, "
        "float, bytes, bool, Decimal, UUID, datetime and None"
    )


def _float(value: float) -> float:
    if value != value:
        raise TransactionError("not-a-number has no place in a column: SQLite would write null for it")
    return value


def _decimal(value: Decimal) -> str:
    text = str(value)
    if len(text) <= DIGITS and text.isascii() and text.replace(".", "", 1).isdigit():
        return text  # nearly all of them
    if not value.is_finite():
        raise TransactionError(f"{value} is no amount that a database could keep")
    _, digits, exponent = value.as_tuple()
    significant = "".join(map(str, digits)).strip("0")
    if len(significant) > DIGITS:
        raise TransactionError(
            f"{value} has {len(significant)} significant digits; SQLite's numeric columns keep {DIGITS}. Declare the "
            "column as text and write str(value)"
        )
    assert isinstance(exponent, int)
    if value and not SMALLEST <= value.adjusted() <= LARGEST:
        raise TransactionError(
            f"{value} is beyond what SQLite's numbers can hold. Declare the column as text and write str(value)"
        )
    return format(value, "f") if -20 <= exponent <= 20 else str(value)


def _to_decimal(value: Any) -> Any:
    return Decimal(repr(value)) if isinstance(value, float) else Decimal(value)


def _to_datetime(value: Any) -> Any:
    if isinstance(value, str):
        made = datetime.fromisoformat(value)
        return made.replace(tzinfo=UTC) if made.tzinfo is None else made.astimezone(UTC)
    return datetime.fromtimestamp(value, UTC)


def _to_uuid(value: Any) -> Any:
    return UUID(bytes=value) if isinstance(value, bytes) else UUID(value)


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "numeric": _to_decimal,
    "decimal": _to_decimal,
    "boolean": bool,
    "bool": bool,
    "uuid": _to_uuid,
    "timestamp": _to_datetime,
    "timestamptz": _to_datetime,
    "datetime": _to_datetime,
}


def reader(declared: str | None) -> Callable[[Any], Any] | None:
    """How to read a column of this declared type; None: as it is."""
    if not declared:
        return None
    word = declared.lower().split("(")[0].split()
    return _READERS.get(word[0]) if word else None


def read(rows: list[tuple[Any, ...]], readers: tuple[Callable[[Any], Any] | None, ...]) -> list[tuple[Any, ...]]:
    return [
        tuple(value if make is None or value is None else make(value) for value, make in zip(row, readers, strict=True))
        for row in rows
    ]
