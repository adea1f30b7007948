"""AMQP 0-9-1 by hand, for one job: what passes for each message is read and written here, the rest is pamqp's.

One connection on the event loop. No reconnecting, no heartbeats, bodies in one frame: whatever goes wrong ends the
process.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast
from urllib.parse import unquote, urlsplit

from pamqp import base, commands, decode, frame

from benchmarks.postgres_twin import fail

_DELIVER, _ACK, _NACK = b"\x00\x3c\x00\x3c", b"\x00\x3c\x00\x50", b"\x00\x3c\x00\x78"
_frame = struct.Struct(">BHI")
_long = struct.Struct(">Q")
_ack = struct.Struct(">BHIIQBB").pack
_size = struct.Struct(">I").pack

OFFSET, MARKER = "x-stream-offset", "marker"


class Message(NamedTuple):
    """One delivery."""

    tag: int
    key: bytes
    headers: dict[str, Any]
    body: bytes


class Client(asyncio.Protocol):
    """Made by ``connect``. ``confirmed`` hears of each confirm: the tag, and whether all before it are meant too."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._asked: dict[int, deque[asyncio.Future[base.Frame]]] = defaultdict(deque)
        self._rest, self._out = b"", list[bytes]()
        self.consumers: dict[int, Callable[[Message], None]] = {}
        self.confirmed: Callable[[int, bool], None] = lambda tag, multiple: None
        self.closed = False

    async def open(self, url: str) -> None:
        parts = urlsplit(url)
        await self._loop.create_connection(lambda: self, parts.hostname or "", parts.port or 5672)
        self._transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start: asyncio.Future[base.Frame] = self._loop.create_future()
        self._asked[0].append(start)
        self.write(b"AMQP\x00\x00\x09\x01")
        await start
        login = f"\0{unquote(parts.username or 'guest')}\0{unquote(parts.password or 'guest')}"
        can: Any = {"capabilities": {"publisher_confirms": True, "basic.nack": True}}
        tune = cast("commands.Connection.Tune", await self.ask(0, commands.Connection.StartOk(can, "PLAIN", login)))
        self.tell(0, commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0))
        await self.ask(0, commands.Connection.Open(unquote(parts.path[1:]) or "/"))

    async def ask(self, channel: int, what: base.Frame) -> base.Frame:
        """Questions of a channel are answered in their order."""
        answer: asyncio.Future[base.Frame] = self._loop.create_future()
        self._asked[channel].append(answer)
        self.tell(channel, what)
        return await answer

    def tell(self, channel: int, what: base.Frame) -> None:
        self.write(frame.marshal(what, channel))

    async def channel(self, number: int) -> int:
        await self.ask(number, commands.Channel.Open())
        return number

    def write(self, data: bytes) -> None:
        """Sent with what else this turn of the loop writes."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        data, self._out = b"".join(self._out), []
        self._transport.write(data)

    async def close(self) -> None:
        self.closed = True
        await self.ask(0, commands.Connection.Close(200, "", 0, 0))
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed:
            fail(f"the connection to RabbitMQ was lost: {error}")

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        while end - at >= 8:
            kind, channel, size = _frame.unpack_from(data, at)
            stop = at + 8 + size
            if stop > end:
                break
            if kind != 1:
                at = stop  # a heartbeat
                continue
            start = data[at + 7 : at + 11]
            if start == _DELIVER:
                if (after := self._delivered(data, at + 7, stop, end, channel)) is None:
                    break
                stop = after
            elif start == _ACK:
                self.confirmed(_long.unpack_from(data, at + 11)[0], bool(data[at + 19] & 1))
            else:
                self._said(channel, cast("base.Frame", frame.unmarshal(data[at:stop])[2]))
            at = stop
        self._rest = data[at:]

    def _delivered(self, data: bytes, at: int, head: int, end: int, channel: int) -> int | None:
        """The three frames of a message, and where they end; None while they are not all there."""
        if end - head < 8:
            return None
        size: int = _frame.unpack_from(data, head)[2]
        after = head + 8 + size
        if end < after:
            return None
        length: int = _long.unpack_from(data, head + 11)[0]
        if length and end < after + 8 + length:
            return None
        at += 5 + data[at + 4]  # behind the consumer's tag
        tag = _long.unpack_from(data, at)[0]
        at += 10 + data[at + 9]  # the exchange
        key = data[at + 1 : at + 1 + data[at]]
        body = data[after + 7 : after + 7 + length] if length else b""
        self.consumers[channel](Message(tag, key, _headers(data, head + 7), body))
        return after + 8 + length if length else after

    def _said(self, channel: int, what: base.Frame) -> None:
        if isinstance(what, (commands.Channel.Close, commands.Connection.Close, commands.Basic.Return)):
            fail(f"RabbitMQ says: {what.reply_text}")
        if isinstance(what, (commands.Basic.Nack, commands.Basic.Cancel)):
            fail(f"RabbitMQ says: {what.name}")
        self._asked[channel].popleft().set_result(what)


async def connect(url: str) -> Client:
    client = Client()
    await client.open(url)
    return client


def ack(channel: int, tag: int) -> bytes:
    """Of this one and all before it."""
    return _ack(1, channel, 13, 0x003C0050, tag, 1, 0xCE)


@lru_cache(maxsize=256)
def _name(name: bytes) -> str:
    return name.decode()


def _headers(data: bytes, at: int) -> dict[str, Any]:
    """The table of a content header that begins at ``at``."""
    flags = data[at + 12] << 8 | data[at + 13]
    at += 14
    if flags & 0x8000:
        at += 1 + data[at]
    if flags & 0x4000:
        at += 1 + data[at]
    found: dict[str, Any] = {}
    if not flags & 0x2000:
        return found
    end = at + 4 + int.from_bytes(data[at : at + 4], "big")
    at += 4
    while at < end:
        size = data[at]
        name = _name(data[at + 1 : at + 1 + size])
        at += 1 + size
        if data[at] == 0x53:
            size = int.from_bytes(data[at + 1 : at + 5], "big")
            found[name] = data[at + 5 : at + 5 + size]
            at += 5 + size
        else:
            used, found[name] = decode.embedded_value(data[at:end])
            at += used
    return found


@lru_cache(maxsize=64)
def _method(channel: int, exchange: str, mandatory: bool) -> tuple[bytes, int]:
    """What comes before the routing key, and the frame's size without it."""
    name = exchange.encode()
    return b"\x00\x3c\x00\x28\x00\x00%c%b" % (len(name), name), 9 + len(name)


@lru_cache(maxsize=256)
def _head(name: str) -> bytes:
    """A header's name as a table has it; what the events call ``ce_`` is ``ce-`` here."""
    encoded = name.replace("ce_", "ce-").encode()
    return b"%c%bS" % (len(encoded), encoded)


def publish(channel: int, exchange: str, key: bytes, headers: Sequence[tuple[str, bytes]], body: bytes) -> bytes:
    """The three frames of one persistent, mandatory message."""
    begin, size = _method(channel, exchange, True)
    table = b"".join([b"%b%b%b" % (_head(name), _size(len(value)), value) for name, value in headers])
    properties = b"\x00\x3c\x00\x00%b\x30\x00%b%b\x02" % (_long.pack(len(body)), _size(len(table)), table)
    return b"%b%b%c%b\x01\xce%b%b\xce%b%b\xce" % (
        _frame.pack(1, channel, size + len(key)),
        begin,
        len(key),
        key,
        _frame.pack(2, channel, len(properties)),
        properties,
        _frame.pack(3, channel, len(body)),
        body,
    )


class Confirming:
    """A channel that publishes, and waits for waves to be confirmed."""

    def __init__(self, client: Client, channel: int) -> None:
        self.client, self.channel = client, channel
        self._tag, self._low = 0, 1
        self._open: dict[int, _Wave] = {}
        client.confirmed = self._confirmed

    async def open(self) -> None:
        await self.client.channel(self.channel)
        await self.client.ask(self.channel, commands.Confirm.Select())

    def write(self, exchange: str, key: bytes, headers: Sequence[tuple[str, bytes]], body: bytes, wave: _Wave) -> None:
        self._tag += 1
        self._open[self._tag] = wave
        self.client.write(publish(self.channel, exchange, key, headers, body))

    def wave(self, size: int) -> _Wave:
        return _Wave(size)

    def _confirmed(self, tag: int, multiple: bool) -> None:
        if not multiple:
            self._open.pop(tag).confirmed()
            return
        for each in range(self._low, tag + 1):
            if (wave := self._open.pop(each, None)) is not None:
                wave.confirmed()
        self._low = tag + 1


class _Wave:
    """``done`` when all are confirmed."""

    __slots__ = ("_left", "done")

    def __init__(self, size: int) -> None:
        self._left, self.done = size, asyncio.get_running_loop().create_future()

    def confirmed(self) -> None:
        self._left -= 1
        if not self._left:
            self.done.set_result(None)
