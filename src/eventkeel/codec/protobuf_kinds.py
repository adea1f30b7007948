"""One field: how a value of an event class lies in a field of a Protobuf message, and how it comes back.

A table of pairs, (kind of the Protobuf field, kind of the class's field). What is not in it is refused at
start-up, so that no value is ever bent to fit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from msgspec import inspect

from eventkeel.codec import protobuf_wire as wire

Convert = Callable[[Any], Any]
Pair = tuple[Convert, Convert]
"""From the message to what ``msgspec.convert`` takes, and from the event to the message."""

WRAPPERS = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST = 400
"""Digits of an amount that are written out; beyond, it has an exponent."""


def same(value: Any) -> Any:
    """As it is."""
    return value


def _builtin(value: Any) -> Any:
    return msgspec.to_builtins(value)


def _decimal_of_text(text: str) -> Decimal:
    if not _NUMBER.fullmatch(text) or math.isinf(float(text)):
        raise ValueError(f"{text[:40]!r} is no number")
    return Decimal(text)


def _text_of_decimal(value: Decimal) -> str:
    if not value.is_finite():
        raise ValueError(f"{value} is no number that others can read")
    return f"{value:f}" if abs(value.adjusted()) < _LONGEST else str(value)


def _decimal_of_double(value: float) -> Decimal:
    if not math.isfinite(value):
        raise ValueError(f"{value} is no amount")
    return Decimal(repr(value))


def _double_of_decimal(value: Decimal) -> float:
    double = float(value)
    if not math.isfinite(double) or Decimal(repr(double)) != value:
        raise ValueError(f"{value} has more digits than a double keeps; make the field a string")
    return double


def _whole(value: Decimal) -> int:
    if not value.is_finite() or value != value.to_integral_value():
        raise ValueError(f"{value} is not whole, and the field is")
    return int(value)


def _time_of(message: Any) -> datetime:
    if not 0 <= message.nanos < 1_000_000_000:
        raise ValueError(f"{message.nanos} nanoseconds")
    return _EPOCH + timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)


def _seconds_of(time: datetime) -> tuple[int, int]:
    if time.tzinfo is None:
        raise ValueError("a time without zone")
    since = time - _EPOCH
    return since.days * 86_400 + since.seconds, since.microseconds * 1000


def _duration_of(message: Any) -> timedelta:
    if abs(message.nanos) >= 1_000_000_000 or message.seconds * message.nanos < 0:
        raise ValueError(f"{message.seconds} seconds and {message.nanos} nanoseconds")
    micros = message.nanos // 1000 if message.nanos >= 0 else -(-message.nanos // 1000)
    return timedelta(seconds=message.seconds, microseconds=micros)


def _parts_of(duration: timedelta) -> tuple[int, int]:
    micros = abs(duration) // timedelta(microseconds=1)
    sign = -1 if duration < timedelta(0) else 1
    return sign * (micros // 1_000_000), sign * (micros % 1_000_000) * 1000


def _written(descriptor: Any, parts: Callable[[Any], tuple[int, int]]) -> Convert:
    cls = descriptor.message_type._concrete_class

    def write(value: Any) -> bytes:
        seconds, nanos = parts(value)
        return cls(seconds=seconds, nanos=nanos).SerializeToString()  # type: ignore[no-any-return]

    return write


def bare(node: inspect.Type) -> tuple[inspect.Type, bool]:
    """A type without its constraints and without None; and whether None was one of its values."""
    if isinstance(node, inspect.Metadata):
        return bare(node.type)
    if isinstance(node, inspect.UnionType):
        rest = [each for each in node.types if not isinstance(each, inspect.NoneType)]
        if len(rest) == 1 and len(rest) < len(node.types):
            return bare(rest[0])[0], True
    return node, False


_TEXTS = (inspect.UUIDType, inspect.DateTimeType, inspect.DateType, inspect.TimeType, inspect.TimeDeltaType)
_KINDS: Mapping[int, str] = {
    **dict.fromkeys((wire.INT64, wire.UINT64, wire.INT32, wire.UINT32, wire.SINT32, wire.SINT64), "int"),
    **dict.fromkeys((wire.FIXED_32, wire.FIXED_64, wire.SFIXED_32, wire.SFIXED_64), "int"),
    wire.DOUBLE: "double",
    wire.FLOAT: "float",
    wire.BOOL: "bool",
    wire.STRING: "string",
    wire.BINARY: "bytes",
    wire.ENUM: "enum",
}
_ALIKE: Mapping[str, type[inspect.Type]] = {
    "int": inspect.IntType,
    "double": inspect.FloatType,
    "float": inspect.FloatType,
    "bool": inspect.BoolType,
    "string": inspect.StrType,
    "bytes": inspect.BytesType,
}


def scalar(descriptor: Any, node: inspect.Type) -> Pair | None:
    """The two ways between a field that is no message and a class's field; None where there is none."""
    kind = _KINDS.get(descriptor.type)
    if kind is None:
        return None
    if kind == "enum":
        return _enum(descriptor, node)
    if isinstance(node, inspect.AnyType | _ALIKE[kind]):
        return same, same
    if isinstance(node, inspect.DecimalType):
        pairs: dict[str, Pair] = {
            "string": (_decimal_of_text, _text_of_decimal),
            "double": (_decimal_of_double, _double_of_decimal),
            "int": (Decimal, _whole),
        }
        return pairs.get(kind)
    if kind == "bytes" and isinstance(node, inspect.UUIDType):
        return (lambda value: UUID(bytes=value)), (lambda value: value.bytes)
    if kind == "string" and (isinstance(node, _TEXTS) or _choices(node, str)):
        return same, _builtin
    if kind == "int" and _choices(node, int):
        return same, _builtin
    return None


def message(descriptor: Any, node: inspect.Type) -> Pair | None:
    """The same for the messages that stand for one value; the second way makes their bytes."""
    name = descriptor.message_type.full_name
    if name == "google.protobuf.Timestamp" and isinstance(node, inspect.DateTimeType):
        return _time_of, _written(descriptor, _seconds_of)
    if name == "google.protobuf.Duration" and isinstance(node, inspect.TimeDeltaType):
        return _duration_of, _written(descriptor, _parts_of)
    if name in WRAPPERS or (name == "google.type.Decimal" and isinstance(node, inspect.DecimalType)):
        inner = scalar(descriptor.message_type.fields_by_name["value"], node)
        if inner is None:
            return None
        read, write = inner
        cls = descriptor.message_type._concrete_class
        return (lambda value: read(value.value)), (lambda value: cls(value=write(value)).SerializeToString())
    return None


def _choices(node: inspect.Type, kind: type) -> tuple[Any, ...]:
    """The values of an enum or a Literal, where all are of one kind."""
    if isinstance(node, inspect.EnumType):
        values = tuple(each.value for each in node.cls)
    elif isinstance(node, inspect.LiteralType):
        values = node.values
    else:
        return ()
    return values if all(type(each) is kind for each in values) else ()


def _enum(descriptor: Any, node: inspect.Type) -> Pair | None:
    """By name where the class's field is text, by number where it is a whole number."""
    by_name, by_number = descriptor.enum_type.values_by_name, descriptor.enum_type.values_by_number
    if isinstance(node, inspect.IntType) or {*_choices(node, int)} & {*by_number}:
        return same, _builtin
    named = _choices(node, str)
    if not isinstance(node, inspect.StrType) and not (named and {*named} <= {*by_name}):
        return None

    def number(value: Any) -> int:
        name = _builtin(value)
        if name not in by_name:
            raise ValueError(f"{name!r} is no value of {descriptor.enum_type.name}")
        return by_name[name].number  # type: ignore[no-any-return]

    return (lambda value: by_number[value].name), number
