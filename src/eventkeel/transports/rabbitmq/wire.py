"""The hot path's frames, by hand: publish and ack on their way out, deliveries and confirms on their way in.

What is rare goes through pamqp. Encoded here, a message costs a third of what it costs there; see
docs/adr/0009-rabbitmq-client-and-topology.md. Pure: bytes in, bytes out.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from pamqp import decode as pamqp_decode

from eventkeel.message import Headers

FRAME = struct.Struct(">BHI")
"""Type, channel, size; the payload and one byte of ``END`` follow."""
END = 0xCE
METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
LARGEST = 131_072
"""Bytes of a frame that we let the broker send."""
HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"

DELIVER, ACK, NACK, RETURN = b"\x00\x3c\x00\x3c", b"\x00\x3c\x00\x50", b"\x00\x3c\x00\x78", b"\x00\x3c\x00\x32"
_CONTENT_TYPE, _ENCODING, _HEADERS, _MODE, _PRIORITY = 0x8000, 0x4000, 0x2000, 0x1000, 0x0800
_CORRELATION, _REPLY, _EXPIRATION, _MESSAGE_ID, _TIMESTAMP = 0x0400, 0x0200, 0x0100, 0x0080, 0x0040
_TYPE, _USER, _APP = 0x0020, 0x0010, 0x0008

_size = struct.Struct(">I").pack
_long = struct.Struct(">Q")
_content = struct.Struct(">HHQH").pack
_ack = struct.Struct(">BHIIQBB").pack

OFFSET = "x-stream-offset"
MARKER = "x-eventkeel-marker"
"""A message that marks a place in a stream: nothing for anybody but whoever wrote it."""
_OF_BROKER = frozenset({OFFSET, "x-delivery-count", "x-acquired-count", "x-stream-filter-value"})
"""Headers that the broker adds to what was published."""


# ------------------------------------------------------------------ out


@lru_cache(maxsize=1024)
def _name(name: str) -> bytes:
    """A header's name as a table has it, with the mark of a long string; ``ce_`` is written ``ce-`` here."""
    if name.startswith("ce_"):
        name = "ce-" + name[3:]
    encoded = name.encode()
    return bytes([len(encoded)]) + encoded + b"S"


def fits(headers: Headers) -> bool:
    """Every name has at most 255 bytes, as tables demand."""
    return all(len(name) < 64 or len(name.encode()) < 256 for name, _ in headers.pairs)


def publish(
    channel: int, exchange: bytes, routing_key: bytes, headers: Headers, body: bytes, frame_max: int, now: int
) -> bytes:
    """All frames of one persistent, mandatory message. Its id and content type are properties besides."""
    content_type = message_id = b""
    table: list[bytes] = []
    for name, value in headers.pairs:
        if name == "content-type" and not content_type and 0 < len(value) < 256:
            content_type = value
            continue
        if name == "ce_id" and len(value) < 256:
            message_id = value
        table += _name(name), _size(len(value)), value
    flags, properties = _MODE | _TIMESTAMP, b""
    if content_type:
        flags |= _CONTENT_TYPE
        properties = bytes([len(content_type)]) + content_type
    if table:
        flags |= _HEADERS
        fields = b"".join(table)
        properties += _size(len(fields)) + fields
    properties += b"\x02"
    if message_id:
        flags |= _MESSAGE_ID
        properties += bytes([len(message_id)]) + message_id
    properties += _long.pack(now)
    method = b"\x00\x3c\x00\x28\x00\x00%c%b%c%b\x01" % (len(exchange), exchange, len(routing_key), routing_key)
    frame = FRAME.pack
    start = b"%b%b\xce%b%b%b\xce" % (
        frame(METHOD, channel, len(method)),
        method,
        frame(HEADER, channel, 14 + len(properties)),
        _content(60, 0, len(body), flags),
        properties,
    )
    if not body:
        return start
    most = frame_max - 8
    if len(body) <= most:
        return b"%b%b%b\xce" % (start, frame(BODY, channel, len(body)), body)
    parts = [start]
    for at in range(0, len(body), most):
        part = body[at : at + most]
        parts += frame(BODY, channel, len(part)), part, b"\xce"
    return b"".join(parts)


def ack(channel: int, tag: int, multiple: bool) -> bytes:
    return _ack(METHOD, channel, 13, 0x003C0050, tag, multiple, END)


# ------------------------------------------------------------------ in


class Confirm(NamedTuple):
    tag: int
    multiple: bool


def confirm(payload: bytes) -> Confirm:
    """What ``basic.ack`` and ``basic.nack`` say."""
    return Confirm(_long.unpack_from(payload, 4)[0], bool(payload[12] & 1))


class Returned(NamedTuple):
    reason: str
    exchange: bytes
    routing_key: bytes


def returned(payload: bytes) -> Returned:
    text, at = _short(payload, 6)
    exchange, at = _short(payload, at)
    key, at = _short(payload, at)
    return Returned(text.decode("utf-8", "replace"), exchange, key)


class Delivered(NamedTuple):
    """One delivered message, its routing key as its key."""

    tag: int
    key: bytes
    headers: Headers
    time: float
    offset: int
    """Its place in the stream; -1 from a queue."""
    marker: str
    """The name of a marker; empty: an ordinary message."""


def delivered(method: bytes, header: bytes) -> Delivered:
    """Take ``basic.deliver`` and the content header apart. Raises ValueError where the bytes make no sense."""
    at = 5 + method[4]  # behind the consumer's tag
    tag = _long.unpack_from(method, at)[0]
    at += 9
    at += 1 + method[at]  # the exchange
    key = method[at + 1 : at + 1 + method[at]]
    flags = header[12] << 8 | header[13]
    at = 14
    pairs: list[tuple[str, bytes]] = []
    offset, marker, moment = -1, "", 0.0
    if flags & _CONTENT_TYPE:
        value, at = _short(header, at)
        pairs.append(("content-type", value))
    if flags & _ENCODING:
        at += 1 + header[at]
    if flags & _HEADERS:
        end = at + 4 + int.from_bytes(header[at : at + 4], "big")
        at += 4
        while at < end:
            size = header[at]
            name = _read_name(header[at + 1 : at + 1 + size])
            at += 1 + size
            kind = header[at]
            if kind == 0x53 or kind == 0x78:  # S, x: nearly all there are
                size = int.from_bytes(header[at + 1 : at + 5], "big")
                at += 5
                pairs.append((name, header[at : at + size]))
                at += size
                continue
            used, found = pamqp_decode.embedded_value(header[at:end])
            at += used
            if name == OFFSET:
                offset = int(str(found))
            elif name not in _OF_BROKER:
                pairs.append((name, _text(found)))
    if flags & _MODE:
        at += 1
    if flags & _PRIORITY:
        at += 1
    for flag in (_CORRELATION, _REPLY, _EXPIRATION, _MESSAGE_ID):
        if flags & flag:
            at += 1 + header[at]
    if flags & _TIMESTAMP:
        moment = float(_long.unpack_from(header, at)[0])
    if pairs and pairs[-1][0] == MARKER:
        marker = pairs[-1][1].decode("utf-8", "replace")
    return Delivered(tag, key, Headers(pairs), moment, offset, marker)


@lru_cache(maxsize=4096)
def _read_name(name: bytes) -> str:
    text = name.decode("utf-8", "replace")
    return "ce_" + text[3:] if text.startswith("ce-") else text


def _short(payload: bytes, at: int) -> tuple[bytes, int]:
    end = at + 1 + payload[at]
    return payload[at + 1 : end], end


def _text(value: Any) -> bytes:
    """A header that is no string, as text."""
    if value is None:
        return b""
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().encode()
    return str(value).encode("utf-8", "replace")


# ------------------------------------------------------------------ frames


def second() -> int:
    """Now, as the timestamp property has it."""
    return int(time.time())


class Sorter:
    """Cuts a stream of bytes into frames and puts the frames of one content together."""

    def __init__(
        self,
        method: Callable[[int, bytes], None],
        content: Callable[[int, bytes, bytes, bytes], None],
    ) -> None:
        self._method, self._content = method, content
        self._rest = b""
        self._open: dict[int, _Open] = {}

    def feed(self, data: bytes) -> None:
        """Raises ValueError for what is no AMQP 0-9-1."""
        if self._rest:
            data = self._rest + data
        at, end, unpack = 0, len(data), FRAME.unpack_from
        while end - at >= 8:
            kind, channel, size = unpack(data, at)
            stop = at + 7 + size
            if stop >= end:
                if size > LARGEST:
                    raise ValueError(f"a frame of {size} bytes")
                break
            if data[stop] != END:
                raise ValueError("a frame without its end mark")
            payload = data[at + 7 : stop]
            at = stop + 1
            if kind == METHOD:
                start = payload[:4]
                if start in (DELIVER, RETURN):
                    self._open[channel] = _Open(payload)
                else:
                    self._method(channel, payload)
            elif kind == HEADER:
                content = self._open[channel]
                content.header, content.left = payload, _long.unpack_from(payload, 4)[0]
                if not content.left:
                    self._done(channel, content, b"")
            elif kind == BODY:
                content = self._open[channel]
                content.left -= size
                if content.left:
                    content.parts.append(payload)
                else:
                    body = b"".join([*content.parts, payload]) if content.parts else payload
                    self._done(channel, content, body)
        self._rest = data[at:]

    def _done(self, channel: int, content: _Open, body: bytes) -> None:
        del self._open[channel]
        self._content(channel, content.method, content.header, body)

    def forget(self, channel: int) -> None:
        self._open.pop(channel, None)


class _Open:
    """A content whose frames are still coming."""

    __slots__ = ("header", "left", "method", "parts")

    def __init__(self, method: bytes) -> None:
        self.method, self.header, self.left = method, b"", 0
        self.parts: list[bytes] = []


def joined(parts: Sequence[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else b"".join(parts)
