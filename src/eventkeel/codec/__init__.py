"""Bytes <-> typed events. Two functions: ``encode`` in the author's call, ``decode`` for each delivery.

Whatever is wrong with an event is said at publish, in the author's own call (PublishError); whatever is
wrong with a message ends in one of three errors (MalformedMessage, its LimitExceeded, UnknownType), never
in another one, so that a neighbour on the same partition is never harmed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, get_type_hints

import msgspec

from eventkeel.codec import cloudevents, identity, limits
from eventkeel.codec.cloudevents import JSON, PROTOBUF
from eventkeel.codec.json import JsonFormat, malformed
from eventkeel.errors import ConfigurationError, MalformedMessage, PublishError, UnknownType
from eventkeel.event import POSITION, EventSpec, declared, spec_of
from eventkeel.fingerprint import compute
from eventkeel.message import Delivery
from eventkeel.ports.store import Record

__all__ = ["Decoded", "decode", "encode", "prepare", "read_json"]


class Decoded(msgspec.Struct, frozen=True, gc=False):
    """A message that was understood."""

    spec: EventSpec
    event: Any
    id: bytes
    """16 bytes: a UUID."""
    fingerprint: bytes | None
    """Of the members present in the message; None for a type without identity: nothing to compare."""
    key: bytes
    """The message's key, or, where it came without one, the event's own."""
    type: str
    correlation: str | None = None
    """As its producer said, in whatever spelling of the header."""


class _Reads(Protocol):
    """What reads bodies of one kind."""

    def decode(self, body: bytes) -> Any: ...
    def members(self, body: bytes) -> Mapping[str, Any]: ...


class _Format(_Reads, Protocol):
    """What also writes them."""

    def encode(self, event: Any) -> bytes: ...


class _Wire:
    """Everything about one event class that does not change from event to event."""

    __slots__ = ("by_field", "fact_id", "format", "json", "media", "protobuf", "spec", "writers")

    json: _Reads
    protobuf: _Format | None
    format: _Format
    """The one in which it is written."""

    def __init__(self, spec: EventSpec) -> None:
        self.spec = spec
        self.media = PROTOBUF if spec.content == "protobuf" else JSON
        if spec.protobuf is None:
            self.json = self.format = JsonFormat(spec)
            self.protobuf = None
        else:
            self.json, self.protobuf, self.format = _with_protobuf(spec)
        self.by_field = spec.identity if spec.identity != POSITION else None
        self.fact_id = identity.identity_hash(spec.topic, spec.type)
        self.writers: dict[str, Callable[[bytes, float, bytes, str | None, str | None], bytes]] = {}

    def writer(self, source: str) -> Callable[[bytes, float, bytes, str | None, str | None], bytes]:
        write = self.writers.get(source)
        if write is None:
            write = self.writers[source] = cloudevents.writer(self.spec.type, self.spec.version, source, self.media)
        return write


def _with_protobuf(spec: EventSpec) -> tuple[_Reads, _Format, _Format]:
    """What reads JSON, what reads and writes Protobuf, and which of them writes. Only such events import Protobuf."""
    from eventkeel.codec.protobuf import GeneratedJson, ProtobufFormat

    protobuf = ProtobufFormat(spec)
    if spec.generated:
        return GeneratedJson(spec), protobuf, protobuf
    json = JsonFormat(spec)
    return json, protobuf, json if spec.content == "json" else protobuf


_wires: dict[EventSpec, _Wire] = {}


def prepare(spec: EventSpec) -> None:
    """Make what encoding and decoding of a class need. Raises ConfigurationError where a field cannot be
    JSON, or where key or identity have a type whose values can be written in several ways; call it at
    start-up, so that this is not found with the first message."""
    _wire(spec)
    hints = get_type_hints(spec.cls)
    for option, field in (("key", spec.key), ("identity", spec.identity)):
        unfit = identity.unfit(hints.get(field)) if field is not None else None
        if unfit is not None:
            raise ConfigurationError(
                f"event {spec.where}: {option}={field!r} is a {unfit}, and its values have no one spelling; "
                "use a field of str, int, UUID, an enum or a date"
            )


def encode(
    event: object,
    *,
    new_id: Callable[[], bytes],
    source: str,
    now: float,
    correlation: str | None = None,
    causation: str | None = None,
) -> Record:
    """An event as it shall lie in the outbox and on the broker: CloudEvents in binary mode.

    ``new_id`` makes the id (16 bytes) of an event without identity; with one the id is computed, so that two
    publishes of the same fact are one event. ``now`` in Unix seconds, ``source`` a URI reference such as ``/payments``.
    Raises PublishError: no event class, no key, a key over 1 KB, a body over 1 MB, not encodable.
    """
    try:
        spec = spec_of(event)
        wire = _wire(spec)
    except ConfigurationError as error:
        raise PublishError(str(error)) from error
    key = _own_key(spec, event)
    body = wire.format.encode(event)
    id = new_id() if wire.by_field is None else _fact_id(wire, event)
    headers = wire.writer(source)(id, now, key, correlation, causation)
    return Record(id, spec.topic, key, headers, body)


def decode(delivery: Delivery) -> Decoded:
    """What a message says. Raises MalformedMessage (final), LimitExceeded (the same, before it was parsed)
    and UnknownType (its key waits); never anything else.

    No envelope: on a topic whose event says ``accept="plain"`` the message is of that type, elsewhere it is
    malformed (``no-type``).
    """
    try:
        return _decode(delivery)
    except (MalformedMessage, UnknownType):
        raise
    except Exception as error:
        raise malformed(error) from error


def read_json(spec: EventSpec, body: bytes) -> Any:
    """An event from JSON, as a person writes it, whatever its bodies are.

    Raises MalformedMessage and ConfigurationError."""
    return _wire(spec).json.decode(body)


def _decode(delivery: Delivery) -> Decoded:
    limits.check_key(delivery.key)
    body = delivery.body
    if not body:
        raise MalformedMessage("no-body", "a message without a body is no event" + (" (a tombstone)" * (body is None)))
    if len(body) > limits.MAX_BODY:
        limits.check_body(body)
    envelope = cloudevents.read(delivery.headers, body)
    wire = _wire_for(delivery.slice.topic, envelope)
    if not envelope.body:
        raise MalformedMessage("no-body", "its data is missing")
    reader = _reader(wire, envelope)
    event = reader.decode(envelope.body)
    own_key = _key_of(wire.spec, event)
    id, fingerprint = _identify(wire, reader, event, envelope, delivery)
    return Decoded(wire.spec, event, id, fingerprint, delivery.key or own_key, wire.spec.type, envelope.correlation)


def _wire_for(topic: str, envelope: cloudevents.Envelope) -> _Wire:
    types = declared(topic)
    if envelope.type is None:
        for spec in types.values():
            if spec.plain:
                return _usable(spec)
        raise MalformedMessage("no-type", f"no envelope says its type, and topic {topic!r} accepts no plain messages")
    known = types.get(envelope.type)
    if known is None:
        raise UnknownType(topic, envelope.type)
    if envelope.version > known.version:
        raise _newer(topic, known, envelope.version)
    return _usable(known)


def _reader(wire: _Wire, envelope: cloudevents.Envelope) -> _Reads:
    """What reads a message's body: as its content type says, or, where it says nothing, as it would be written."""
    if not envelope.media:
        return wire.format
    if envelope.media != PROTOBUF:
        return wire.json
    if wire.protobuf is not None:
        return wire.protobuf
    text = f"its body is Protobuf, and {wire.spec.where} says no protobuf=, the generated class that reads it"
    if envelope.type is None:
        raise MalformedMessage("protobuf-not-supported", text)
    unknown = UnknownType(wire.spec.topic, wire.spec.type)  # a deploy order: the producers were switched first
    unknown.args = (f"{wire.spec.type!r} on topic {wire.spec.topic!r}: {text}; its key waits until one does",)
    raise unknown


def _usable(spec: EventSpec) -> _Wire:
    wire = _wires.get(spec)
    if wire is not None:
        return wire
    try:
        return _wire(spec)
    except ConfigurationError as error:  # the class is broken, not the message: it waits for a mended version
        unknown = UnknownType(spec.topic, spec.type)
        unknown.args = (str(error),)
        raise unknown from error


def _newer(topic: str, spec: EventSpec, version: int) -> UnknownType:
    unknown = UnknownType(topic, spec.type)
    text = (
        f"type {spec.type!r} on topic {topic!r} came in version {version}, and {spec.where} is version {spec.version}"
    )
    unknown.args = (f"{text}; its key waits until the newer class is deployed",)
    return unknown


def _identify(
    wire: _Wire, reader: _Reads, event: object, envelope: cloudevents.Envelope, delivery: Delivery
) -> tuple[bytes, bytes | None]:
    if wire.by_field is not None:
        found = reader.members(envelope.body)
        fingerprint = compute(found, version=envelope.version, content_type=envelope.media or wire.media)
        return _fact_id_of(wire, event), fingerprint
    if envelope.type is None:
        return identity.position_id(delivery, wire.spec.type), None
    return identity.foreign_id(envelope.source, envelope.id), None


# ------------------------------------------------------------------ keys and identities


def _key_of(spec: EventSpec, event: object) -> bytes:
    """The event's own key. Raises MalformedMessage(no-key)."""
    try:
        key = identity.plain_text(getattr(event, spec.key)).encode()
    except TypeError as error:
        raise MalformedMessage("no-key", f"its key {spec.key} is {error}") from error
    if not key:
        raise MalformedMessage("no-key", f"its key {spec.key} is empty")
    limits.check_key(key)
    return key


def _own_key(spec: EventSpec, event: object) -> bytes:
    try:
        return _key_of(spec, event)
    except (MalformedMessage, UnicodeError) as error:
        detail = error.detail if isinstance(error, MalformedMessage) else f"its key {spec.key}: {error}"
        raise PublishError(f"event {spec.where} cannot be published: {detail}") from error


def _fact_id_of(wire: _Wire, event: object) -> bytes:
    """The computed id. Raises MalformedMessage(no-identity)."""
    assert wire.by_field is not None
    try:
        value = identity.plain_text(getattr(event, wire.by_field))
    except TypeError as error:
        raise MalformedMessage("no-identity", f"its identity {wire.by_field} is {error}") from error
    if not value:
        raise MalformedMessage("no-identity", f"its identity {wire.by_field} is empty")
    return wire.fact_id(value)


def _fact_id(wire: _Wire, event: object) -> bytes:
    try:
        return _fact_id_of(wire, event)
    except MalformedMessage as error:
        raise PublishError(f"event {wire.spec.where} cannot be published: {error.detail}") from error


def _wire(spec: EventSpec) -> _Wire:
    wire = _wires.get(spec)
    if wire is None:
        wire = _wires[spec] = _Wire(spec)
    return wire
