"""Protobuf's bytes, looked at before they are parsed: is this the message that it claims to be?

Protobuf's own parsers do not ask. A field with another wire type is an unknown field to them, one that is
missing is nought, a number that does not fit is cut, and bytes of an unrelated message are an empty one.
Here each of these is malformed, so that a handler never sees an amount of 0 that nobody sent.
Depth and number of fields are bounded on the way.
"""

from __future__ import annotations

from typing import Any, NoReturn

import msgspec

from eventkeel.codec import limits
from eventkeel.errors import LimitExceeded, MalformedMessage

VARINT, FIXED64, BYTES, GROUP, END_GROUP, FIXED32 = 0, 1, 2, 3, 4, 5

DOUBLE, FLOAT, UINT32, STRING, GROUPED, MESSAGE, BINARY, ENUM = 1, 2, 13, 9, 10, 11, 12, 14
INT64, UINT64, INT32, FIXED_64, FIXED_32, BOOL, SFIXED_32, SFIXED_64, SINT32, SINT64 = 3, 4, 5, 6, 7, 8, 15, 16, 17, 18

_WIRES = {
    DOUBLE: FIXED64,
    FIXED_64: FIXED64,
    SFIXED_64: FIXED64,
    FLOAT: FIXED32,
    FIXED_32: FIXED32,
    SFIXED_32: FIXED32,
    STRING: BYTES,
    MESSAGE: BYTES,
    BINARY: BYTES,
    GROUPED: GROUP,
}
_BITS = {INT32: 32, UINT32: 32, SINT32: 32, BOOL: 1}
_WIDTH = {FIXED64: 8, FIXED32: 4}
_TOP = (1 << 29) - 1
_VARINT_BYTES = 10


class Field(msgspec.Struct, frozen=True):
    """What the bytes of one field of a message may be."""

    name: str
    kind: int
    wire: int
    repeated: bool
    slot: int
    """Two fields of one slot exclude each other: the number, or, below nought, the oneof."""
    inner: Shape | None = None
    values: frozenset[int] | None = None
    """Of an enum."""


class Shape:
    """What the bytes of one message may be. ``required``: numbers of the fields that have to be there. ``closed``: it
    has no unknown fields; of a map's entries, because parsers pass over one that has some, with key and value."""

    __slots__ = ("closed", "fields", "name", "required")

    def __init__(self, name: str, *, closed: bool = False) -> None:
        self.name = name
        self.closed = closed
        self.fields: dict[int, Field] = {}
        self.required: tuple[int, ...] = ()


class Seen(msgspec.Struct):
    """What was found in the outermost message."""

    present: set[int] = msgspec.field(default_factory=set)
    unknown: dict[int, list[bytes]] = msgspec.field(default_factory=dict)


def field_of(descriptor: Any, inner: Shape | None) -> Field:
    """A field as its descriptor says."""
    oneof = descriptor.containing_oneof
    return Field(
        name=descriptor.name,
        kind=descriptor.type,
        wire=_WIRES.get(descriptor.type, VARINT),
        repeated=descriptor.is_repeated,
        slot=descriptor.number if oneof is None else -1 - oneof.index,
        inner=inner,
        values=frozenset(descriptor.enum_type.values_by_number) if descriptor.type == ENUM else None,
    )


def shape_of(descriptor: Any, known: dict[str, Shape]) -> Shape:
    """A message as its descriptor says, which requires fields in proto2 only; ``known`` keeps those made on the way."""
    shape = known.get(descriptor.full_name)
    if shape is None:
        closed = descriptor.GetOptions().map_entry
        shape = known[descriptor.full_name] = Shape(descriptor.name, closed=closed)
        for field in descriptor.fields:
            inner = None if field.message_type is None else shape_of(field.message_type, known)
            shape.fields[field.number] = field_of(field, inner)
        shape.required = tuple(field.number for field in descriptor.fields if field.is_required)
    return shape


def check(body: bytes, shape: Shape) -> Seen:
    """Raises MalformedMessage: ``not-protobuf`` (no message at all, or cut), ``wrong-schema`` (another message),
    ``wrong-fields`` (one is missing or does not fit), ``unknown-enum``, ``not-utf8``, ``nul-character``; and
    LimitExceeded: ``too-large``, ``too-deep``, ``too-many-fields``."""
    if len(body) > limits.MAX_BODY:
        raise LimitExceeded("too-large", f"a body of {len(body)} bytes; at most {limits.MAX_BODY}")
    seen = Seen()
    _Look(body).message(0, len(body), shape, seen)
    if not seen.present and seen.unknown:
        _only_unknown(shape)
    return seen


class _Look:
    """One way through one body."""

    __slots__ = ("_body", "_count", "_depth")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._count = 0
        self._depth = 0

    def message(self, at: int, end: int, shape: Shape | None, seen: Seen, group: int = 0) -> int:
        """Looks at a message from ``at`` on; where it is a group, to its end tag. Where it ended."""
        self._depth += 1
        if self._depth > limits.MAX_DEPTH:
            raise LimitExceeded("too-deep", f"nested deeper than {limits.MAX_DEPTH}")
        body, fields = self._body, {} if shape is None else shape.fields
        slots: set[int] = set()
        while at < end:
            start = at
            tag = body[at]
            if tag < 0x80:  # nearly all of them
                at += 1
            else:
                tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            if wire == END_GROUP and group and number == group:
                break
            self._count_one()
            if not 0 < number <= _TOP or wire not in (VARINT, FIXED64, BYTES, GROUP, FIXED32):
                _no_protobuf(f"no field can start with {tag:#x}")
            field = fields.get(number)
            if field is None:
                if shape is not None and shape.closed:
                    raise MalformedMessage("wrong-schema", f"an entry of a map has a field {number}")
                at = self._skip(at, end, number, wire)
                seen.unknown.setdefault(number, []).append(body[start:at])
                continue
            seen.present.add(number)
            if not field.repeated:
                if field.slot in slots:
                    raise MalformedMessage("wrong-schema", f"its {field.name} stands there twice")
                slots.add(field.slot)
            at = self._field(at, end, field, number, wire)
        else:
            if group:
                _no_protobuf("a group does not end")
        self._depth -= 1
        missing = [] if shape is None else [fields[each].name for each in shape.required if each not in seen.present]
        if shape is not None and missing:
            if seen.unknown and not seen.present:
                _only_unknown(shape)
            raise MalformedMessage("wrong-fields", f"a {shape.name} without {' and without '.join(missing)}")
        return at

    def _field(self, at: int, end: int, field: Field, number: int, wire: int) -> int:
        """Looks at the value of a known field. Where it ended."""
        if wire != field.wire:
            if not (field.repeated and wire == BYTES and field.wire in (VARINT, FIXED64, FIXED32)):
                raise MalformedMessage(
                    "wrong-schema", f"its {field.name} has wire type {wire}, where {field.wire} belongs"
                )
            return self._packed(at, end, field)
        if wire == VARINT:
            value, at = self._varint(at, end)
            _fits(field, value)
            return at
        if wire == BYTES:
            at, stop = self._length(at, end)
            if field.inner is not None:
                self.message(at, stop, field.inner, Seen())
            elif field.kind == STRING:
                _check_text(field, self._body[at:stop])
            return stop
        if wire == GROUP:
            return self.message(at, end, field.inner, Seen(), number)
        return self._forward(at, end, _WIDTH[wire])

    def _packed(self, at: int, end: int, field: Field) -> int:
        at, stop = self._length(at, end)
        if field.wire in _WIDTH:
            if (stop - at) % _WIDTH[field.wire]:
                _no_protobuf(f"its {field.name} is cut")
        elif field.values is not None or field.kind in _BITS:
            while at < stop:
                self._count_one()
                value, at = self._varint(at, stop)
                _fits(field, value)
        return stop

    def _skip(self, at: int, end: int, number: int, wire: int) -> int:
        if wire == VARINT:
            return self._varint(at, end)[1]
        if wire == BYTES:
            return self._length(at, end)[1]
        if wire == GROUP:
            return self.message(at, end, None, Seen(), number)
        return self._forward(at, end, _WIDTH[wire])

    def _length(self, at: int, end: int) -> tuple[int, int]:
        length, at = self._varint(at, end)
        return at, self._forward(at, end, length)

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        if at < end and self._body[at] < 0x80:
            return self._body[at], at + 1
        value = shift = 0
        for place in range(at, min(end, at + _VARINT_BYTES)):
            byte = self._body[place]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> 64:
                    _no_protobuf("a number has more than 64 bits")
                return value, place + 1
            shift += 7
        return _no_protobuf("it is cut inside a number, or the number has no end")

    def signed(self, at: int) -> tuple[int, int]:
        """A number in zigzag form, and where it ended."""
        value, at = self._varint(at, len(self._body))
        return value >> 1 ^ -(value & 1), at

    def _forward(self, at: int, end: int, length: int) -> int:
        if length > end - at:
            _no_protobuf(f"it is cut: a field needs {length} bytes, and {end - at} are left")
        return at + length

    def _count_one(self) -> None:
        self._count += 1
        if self._count > limits.MAX_FIELDS:
            raise LimitExceeded("too-many-fields", f"more than {limits.MAX_FIELDS} fields")


def _no_protobuf(detail: str) -> NoReturn:
    raise MalformedMessage("not-protobuf", detail)


def _only_unknown(shape: Shape) -> NoReturn:
    raise MalformedMessage("wrong-schema", f"it has no field of {shape.name}, only unknown ones")


def _fits(field: Field, value: int) -> None:
    if field.values is not None:
        number = value - (1 << 64) if value >> 63 else value
        if number not in field.values:
            raise MalformedMessage("unknown-enum", f"its {field.name} is {number}, which the enum has not")
        return
    bits = _BITS.get(field.kind)
    if bits is None or not value >> bits:
        if field.kind != INT32 or value < 1 << 31:
            return
    elif field.kind == INT32 and value >= (1 << 64) - (1 << 31):
        return
    raise MalformedMessage("wrong-fields", f"its {field.name} is {value}, which does not fit into it")


def _check_text(field: Field, text: bytes) -> None:
    if text.isascii() and 0 not in text:
        return
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise MalformedMessage("not-utf8", f"its {field.name} is not UTF-8: {error}"[:300]) from error
    if 0 in text:
        raise MalformedMessage("nul-character", f"its {field.name} has a NUL character, which databases refuse")


# ------------------------------------------------------------------ writing


def varint(value: int) -> bytes:
    """A number from nought to 2^64 - 1."""
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def prefixed(number: int, content: bytes) -> bytes:
    """Field ``number``, with bytes, a text or a message in it."""
    return varint(number << 3 | BYTES) + varint(len(content)) + content


def key_of_entry(kind: int, key: str | int) -> bytes:
    """Field 1 of a map's entry."""
    if isinstance(key, str):
        return prefixed(1, key.encode())
    wire = _WIRES.get(kind, VARINT)
    if wire in _WIDTH:
        return varint(8 | wire) + (key & (1 << 8 * _WIDTH[wire]) - 1).to_bytes(_WIDTH[wire], "little")
    zigzag = key << 1 if key >= 0 else ~(key << 1)
    return varint(8 | wire) + varint(zigzag if kind in (SINT32, SINT64) else key & (1 << 64) - 1)


def left_out(value: Any) -> bool:
    """Serializers do not write this value, where a field does not say ``optional``. They write -0.0."""
    return not value and str(value) != "-0.0"


def nought(field: Field, number: int) -> bytes:
    """Field ``number``, there, and empty: parsers leave it at nought, and a reader sees that it was said."""
    return varint(number << 3 | field.wire) + b"\0" * _WIDTH.get(field.wire, 1)


# ------------------------------------------------------------------ what stands around some bodies


def unframed(body: bytes) -> bytes:
    """A body without the frame of Confluent's serializers: a nought, the schema's id in 4 bytes, and which of the
    schema's messages it is. No field has number nought, so no body without the frame begins like that."""
    if body[:1] != b"\0":
        return body
    look = _Look(body)
    count, at = look.signed(5)
    for _ in range(count):
        _, at = look.signed(at)
    return body[at:]
