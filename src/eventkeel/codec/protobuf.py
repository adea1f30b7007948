"""Events as Protobuf: one ``ProtobufFormat`` for each event class with ``protobuf=``, and for each generated class.

Bytes are looked at before they are parsed (``protobuf_wire``): the parser would take a message of another
schema for one with an amount of 0. This module and its neighbours are imported when the first such class is
used, and nothing of Protobuf before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from eventkeel.codec import limits, numbers
from eventkeel.codec import protobuf_wire as wire
from eventkeel.codec.json import malformed, members, refuse_nul
from eventkeel.codec.protobuf_plan import Plan, plan_of
from eventkeel.errors import ConfigurationError, MalformedMessage, PublishError
from eventkeel.event import POSITION, EventSpec

try:
    from google.protobuf import json_format
    from google.protobuf.message import DecodeError
except ImportError as error:
    raise ConfigurationError(
        "events with Protobuf bodies need a package that is not installed: pip install 'eventkeel[protobuf]'"
    ) from error

_UNFIT = {wire.DOUBLE, wire.FLOAT, wire.BOOL, wire.BINARY, wire.MESSAGE, wire.GROUPED}


class _Parsed(msgspec.Struct, frozen=True, gc=False):
    """One body, and what was in it."""

    body: bytes
    seen: wire.Seen
    message: Any
    values: dict[str, Any] | None = None
    """Under the names of the event class; None for a generated one."""


class ProtobufFormat:
    """Reads and writes the Protobuf bodies of one event class.

    Raises ConfigurationError when it is made, where class and message do not fit together.
    """

    __slots__ = ("_compares", "_last", "_message", "_noughts", "_plan", "_shape", "_spec", "_to_event")

    def __init__(self, spec: EventSpec) -> None:
        assert spec.protobuf is not None
        self._spec = spec
        self._message: Any = spec.protobuf
        self._plan: Plan | None = None
        self._noughts: Mapping[str, bytes] = {}
        self._to_event: Callable[[Any], Any] = _itself
        self._last: _Parsed | None = None
        self._compares = vars(object)["__eq__"] is not getattr(spec.cls, "__eq__", None)
        if spec.generated:
            self._shape = wire.shape_of(self._message.DESCRIPTOR, {})
            self._require()
        else:
            try:
                self._plan = plan_of(spec.where, spec.cls, self._message)
            except (TypeError, NameError, AttributeError) as error:
                raise ConfigurationError(
                    f"event {spec.where} has a field that Protobuf cannot hold: {error}"
                ) from error
            self._shape = self._plan.shape
            self._to_event = _converter(spec.cls)

    def _require(self) -> None:
        """Key, identity and what the class said: these fields have to be there."""
        descriptor, spec = self._message.DESCRIPTOR, self._spec
        for name in _naming(spec):
            field = descriptor.fields_by_name[name]
            if field.is_repeated or field.type in _UNFIT:
                raise ConfigurationError(
                    f"event {spec.where}: {name} is key or identity and has values with no one spelling; "
                    "use a field of string, a whole number or an enum"
                )
        names = _naming(spec) | {*spec.required}
        self._shape.required = tuple(
            field.number for field in descriptor.fields if field.name in names or field.is_required
        )
        self._noughts = {
            field.name: wire.nought(self._shape.fields[field.number], field.number)
            for field in descriptor.fields
            if field.name in names and not field.has_presence and not field.is_repeated
        }

    def encode(self, event: Any) -> bytes:
        """The body, after making sure that a consumer can read it: it is decoded once.

        Raises PublishError for values that the message cannot hold without loss, for fields that are missing,
        NUL characters, and what goes beyond the limits.
        """
        try:
            if self._plan is None:
                body = self._generated(event)
                self.decode(body)
            else:
                body = self._plan.body(event)
                if self.decode(body) != event and self._compares:
                    raise ValueError("a field is not the same any more after it was written as Protobuf and read again")
        except Exception as error:
            detail = error.detail if isinstance(error, MalformedMessage) else str(error)
            raise PublishError(f"event {self._spec.where} cannot be published: {detail}") from error
        return body

    def _generated(self, event: Any) -> bytes:
        body: bytes = event.SerializeToString(deterministic=True)
        absent = [more for name, more in self._noughts.items() if wire.left_out(getattr(event, name))]
        return body + b"".join(absent)

    def decode(self, body: bytes) -> Any:
        """The event, complete. Raises MalformedMessage, with the words of ``protobuf_wire.check``; nothing else."""
        parsed = self._last = self._parse(body)
        try:
            return self._to_event(parsed.message if parsed.values is None else parsed.values)
        except Exception as error:
            raise malformed(error) from error

    def members(self, body: bytes) -> Mapping[str, Any]:
        """The fields that are present in a body, also those that the class does not know: what a fingerprint is
        taken of. Raises MalformedMessage."""
        parsed, self._last = self._last, None  # the body that was decoded last, nearly always
        if parsed is None or parsed.body is not body:
            parsed = self._parse(body)
        found: dict[str, Any] = {f"#{number}": b"".join(raw).hex() for number, raw in parsed.seen.unknown.items()}
        values = parsed.values or {}
        names = {} if self._plan is None else self._plan.names
        fields = self._shape.fields
        for number in parsed.seen.present:
            field = fields[number].name
            name = names.get(field)
            value = getattr(parsed.message, field) if name is None else values[name]
            found[field] = value if type(value) is str else _comparable(value)
        return found

    def _parse(self, body: bytes) -> _Parsed:
        inner = wire.unframed(body)
        seen = wire.check(inner, self._shape)
        try:
            message = self._message.FromString(inner)
        except DecodeError as error:
            raise MalformedMessage("not-protobuf", str(error)[:300]) from error
        if self._plan is None:
            return _Parsed(body, seen, message)
        try:
            return _Parsed(body, seen, message, self._plan.values(message))
        except Exception as error:
            raise malformed(error) from error


class GeneratedJson:
    """Reads JSON bodies into a generated class, as Protobuf's own mapping says; unknown members are passed over."""

    __slots__ = ("_message", "_needed")

    def __init__(self, spec: EventSpec) -> None:
        assert spec.protobuf is not None
        self._message: Any = spec.protobuf
        fields = self._message.DESCRIPTOR.fields_by_name
        self._needed = [(name, fields[name].json_name) for name in sorted(_naming(spec) | {*spec.required})]

    def decode(self, body: bytes) -> Any:
        """Raises MalformedMessage, as ``JsonFormat`` does."""
        limits.check_body(body)
        refuse_nul(body)
        try:
            found = msgspec.json.decode(body, type=dict[str, Any])
            for name, other in self._needed:
                if found.get(name) is None and found.get(other) is None:
                    raise MalformedMessage("wrong-fields", f"an object without {name}")
            return json_format.ParseDict(found, self._message(), ignore_unknown_fields=True)
        except Exception as error:
            raise malformed(error) from error

    def members(self, body: bytes) -> Mapping[str, Any]:
        """What is present in a body. Raises MalformedMessage."""
        return members(body)


def _naming(spec: EventSpec) -> set[str]:
    """The fields that are key and identity."""
    return {name for name in (spec.key, spec.identity) if name is not None and name != POSITION}


def _itself(value: Any) -> Any:
    return value


def _converter(cls: Any) -> Callable[[Any], Any]:
    if numbers.is_model(cls):
        return cls.model_validate  # type: ignore[no-any-return]
    return lambda values: msgspec.convert(values, cls)


def _comparable(value: Any) -> Any:
    """A value in what a fingerprint takes: the same for the same fact."""
    if value is None or isinstance(value, str | bool | int | float | Decimal):
        return value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime | UUID):
        return str(value)
    if isinstance(value, timedelta):
        return value // timedelta(microseconds=1)
    if hasattr(value, "ListFields"):
        return {field.name: _comparable(inner) for field, inner in value.ListFields()}
    if hasattr(value, "items"):
        return {str(name): _comparable(value[name]) for name in value}
    return [_comparable(each) for each in value]
