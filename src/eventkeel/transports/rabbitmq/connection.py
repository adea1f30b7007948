"""One AMQP 0-9-1 connection on the event loop: handshake, heartbeats, channels, deadlines. Nothing in it retries."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

from pamqp import base, commands, exceptions, frame

from eventkeel.errors import BrokerUnavailable, ConfigurationError
from eventkeel.transports.rabbitmq import wire
from eventkeel.transports.rabbitmq.settings import Options

log = logging.getLogger("eventkeel.transports.rabbitmq")

F = TypeVar("F", bound=base.Frame)

CONNECT = 5.0
"""Seconds in which a host has to let us in."""
ANSWER = 10.0
"""Seconds in which the broker has to answer a question; one that does not is given up."""
_CAPABILITIES: dict[str, Any] = {
    "publisher_confirms": True,
    "consumer_cancel_notify": True,
    "basic.nack": True,
    "connection.blocked": True,
    "authentication_failure_close": True,
    "exchange_exchange_bindings": True,
}


class ChannelClosed(Exception):
    """The broker closed the channel (or it was closed under a question), with AMQP's ``code``; 0: not told."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Channel:
    """One channel. Questions are answered in their order; everything else arrives at the callbacks."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection, self.number = connection, number
        self.closed: ChannelClosed | None = None
        self.on_closed: Callable[[ChannelClosed], None] = lambda reason: None
        self.on_content: Callable[[bytes, bytes, bytes], None] = lambda method, header, body: None
        """A delivery or a returned message: method, content header, body."""
        self.on_confirm: Callable[[bytes], None] = lambda payload: None
        self.on_cancel: Callable[[], None] = lambda: None
        """The broker ended our consumer: its queue is gone, or moves."""
        self._asked: deque[asyncio.Future[base.Frame]] = deque()

    def tell(self, what: base.Frame) -> None:
        """Send it and expect nothing."""
        if self.closed is None:
            self.connection.write(frame.marshal(what, self.number))

    async def ask(self, what: base.Frame, answer: type[F], deadline: float = ANSWER) -> F:
        """Send it and wait for its answer. Raises ChannelClosed, BrokerUnavailable."""
        if self.closed is not None:
            raise self.closed
        future: asyncio.Future[base.Frame] = asyncio.get_running_loop().create_future()
        self._asked.append(future)
        self.connection.write(frame.marshal(what, self.number))
        return await self._answer(future, answer, deadline)

    async def _answer(self, future: asyncio.Future[base.Frame], answer: type[F], deadline: float) -> F:
        try:
            async with asyncio.timeout(deadline):
                found = await future
        except TimeoutError:
            self.connection.abort(f"no {answer.__name__} within {deadline:g} s")
            raise BrokerUnavailable(f"broker {self.connection.name} does not answer") from None
        if not isinstance(found, answer):
            self.connection.abort(f"{found.name} instead of {answer.__name__}")
            raise BrokerUnavailable(f"broker {self.connection.name} answered {found.name}")
        return found

    def expect(self) -> None:
        """A question was sent by ``tell`` whose answer nobody needs."""
        future: asyncio.Future[base.Frame] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._asked.append(future)

    def close(self) -> None:
        """At once for us; whatever still comes for it is dropped. Unacknowledged messages go back to their queue."""
        if self.closed is None and self.number:
            self.tell(commands.Channel.Close(200, "", 0, 0))
            self._end(ChannelClosed(0, "the channel was closed"))
            self.on_content = lambda method, header, body: None

    # -- from the connection

    def take(self, payload: bytes, found: base.Frame) -> None:
        if isinstance(found, commands.Channel.CloseOk):
            self.connection.free(self)
        elif isinstance(found, commands.Channel.Close):
            ours = self.closed is not None  # both closed at once: the answer to ours is still to come, and frees it
            self.connection.write(frame.marshal(commands.Channel.CloseOk(), self.number))
            if not ours:
                self.connection.free(self)
            self.lost(ChannelClosed(found.reply_code or 0, found.reply_text))
        elif self.closed is not None:
            pass
        elif isinstance(found, commands.Basic.Cancel):
            self.on_cancel()
        elif isinstance(found, commands.Channel.Flow):
            self.tell(commands.Channel.FlowOk(found.active))
        elif self._asked:
            future = self._asked.popleft()
            if not future.done():
                future.set_result(found)

    def lost(self, reason: ChannelClosed) -> None:
        if self.closed is None:
            self._end(reason)
            self.on_closed(reason)

    def _end(self, reason: ChannelClosed) -> None:
        self.closed = reason
        while self._asked:
            future = self._asked.popleft()
            if not future.done():
                future.set_exception(reason)


class Connection(asyncio.Protocol):
    """Made by ``connect``. ``on_lost`` is called once, when it ends by other means than ``close``."""

    def __init__(self, options: Options, purpose: str) -> None:
        self.options, self.purpose, self.name = options, purpose, options.name
        self.on_lost: Callable[[str], None] = lambda reason: None
        self.blocked = ""
        """Why the broker takes nothing from this connection now; empty: it does."""
        self.version = self.cluster = ""
        self.frame_max = wire.LARGEST
        self.host = 0
        """The number of the host in the URL."""
        self.gone: str | None = None
        """Why it ended."""
        self._loop = asyncio.get_running_loop()
        self._sorter = wire.Sorter(self._method, self._content)
        self._started = self._loop.create_future()
        self._shut = asyncio.Event()
        self._zero = Channel(self, 0)
        self._channels: dict[int, Channel] = {0: self._zero}
        self._free: list[int] = []
        self._most = 2047
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._may_write = asyncio.Event()
        self._changed = asyncio.Event()
        self._beat: asyncio.TimerHandle | None = None
        self._heard = self._wrote = True
        self._silent = 0
        self._reading = True

    # -- life

    async def open(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        """Raises ConfigurationError where we are not let in, else BrokerUnavailable."""
        where = f"broker {self.name}"
        try:
            async with asyncio.timeout(CONNECT):
                await self._loop.create_connection(lambda: self, host, port, ssl=context)
                await self._handshake()
        except TimeoutError:
            self.abort("no welcome in time")
            raise BrokerUnavailable(f"{where} does not answer within {CONNECT:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise ConfigurationError(f"{where}: its certificate is not trusted: {error.verify_message}") from error
        except OSError as error:
            raise BrokerUnavailable(f"{where} cannot be reached: {error}") from error
        except ChannelClosed as refused:
            raise self._refusal(refused) from refused

    def _refusal(self, refused: ChannelClosed) -> Exception:
        text = f"broker {self.name} does not let us in: {refused}"
        if refused.code == 403:
            return ConfigurationError(f"{text}. Correct user and password in its URL")
        if refused.code == 530:
            return ConfigurationError(f"{text}. Correct the virtual host in its URL, or give the user a right to it")
        return BrokerUnavailable(text)

    async def _handshake(self) -> None:
        options = self.options
        self.write(b"AMQP\x00\x00\x09\x01")
        start = await self._started
        product = start.server_properties or {}
        self.version, self.cluster = _plain(product.get("version")), _plain(product.get("cluster_name"))
        me = {
            "product": "Eventkeel",
            "platform": "Python",
            "connection_name": f"eventkeel {self.purpose} {socket.gethostname()}",
            "capabilities": _CAPABILITIES,
        }
        response = f"\0{options.user}\0{options.password}"
        tune = await self._zero.ask(
            commands.Connection.StartOk(cast("Any", me), "PLAIN", response), commands.Connection.Tune
        )
        self._most = tune.channel_max or 2047
        self.frame_max = min(tune.frame_max or wire.LARGEST, wire.LARGEST)
        self._zero.tell(commands.Connection.TuneOk(self._most, self.frame_max, options.heartbeat))
        await self._zero.ask(commands.Connection.Open(options.vhost), commands.Connection.OpenOk)
        if sock := cast("asyncio.Transport", self._transport).get_extra_info("socket"):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._beat = self._loop.call_later(options.heartbeat / 2, self._tick)

    async def close(self, deadline: float) -> None:
        """Say goodbye; twice is once."""
        if self.gone is None:
            self.on_lost = lambda reason: None
            self.resume_reading()
            with contextlib.suppress(BrokerUnavailable, ChannelClosed):
                bye = commands.Connection.Close(200, "", 0, 0)
                await self._zero.ask(bye, commands.Connection.CloseOk, max(0.05, deadline))
        await self.end("closed")

    async def end(self, reason: str) -> None:
        """``abort``, and returns when the socket is closed."""
        self.abort(reason)
        if self._transport is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._shut.wait()

    def abort(self, reason: str) -> None:
        """End it now."""
        if self.gone is not None:
            return
        self._flush()
        self.gone = reason
        if self._beat is not None:
            self._beat.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._may_write.set()
        self._wake()
        ending = ChannelClosed(0, reason)
        if not self._started.done():
            self._started.set_exception(ending)
            self._started.exception()
        for channel in tuple(self._channels.values()):
            channel.lost(ending)
        self._channels.clear()
        self.on_lost(reason)

    # -- channels

    async def channel(self) -> Channel:
        channel = self.open_channel()
        await channel._answer(channel._asked[-1], commands.Channel.OpenOk, ANSWER)
        return channel

    def open_channel(self) -> Channel:
        """Without waiting for the broker's answer: what it refuses comes as ``on_closed``."""
        if self.gone is not None:
            raise BrokerUnavailable(f"the connection to broker {self.name} is lost: {self.gone}")
        number = self._free.pop() if self._free else len(self._channels)
        if number > self._most:
            raise BrokerUnavailable(f"broker {self.name} allows {self._most} channels on a connection")
        channel = self._channels[number] = Channel(self, number)
        channel.expect()
        channel.tell(commands.Channel.Open())
        return channel

    def free(self, channel: Channel) -> None:
        """Its number may be used again: both sides have closed it."""
        if self._channels.get(channel.number) is channel:
            self._sorter.forget(channel.number)
            # A place that is kept for its number, so that the next new number is another one.
            self._channels[channel.number] = Channel(self, channel.number)
            self._channels[channel.number].closed = ChannelClosed(0, "closed")
            self._free.append(channel.number)

    # -- bytes

    def write(self, data: bytes) -> None:
        """Sent with what else this turn of the loop writes."""
        if self.gone is None:
            if not self._out:
                self._loop.call_soon(self._flush)
            self._out.append(data)

    def _flush(self) -> None:
        if self._out and self._transport is not None and self.gone is None:
            data, self._out = wire.joined(self._out), []
            self._wrote = True
            self._transport.write(data)

    async def drain(self) -> None:
        """Returns when the socket takes more, or the connection is gone."""
        await self._may_write.wait()

    def pause_reading(self) -> None:
        if self._reading and self._transport is not None and self.gone is None:
            self._reading = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._reading and self._transport is not None and self.gone is None:
            self._reading = True
            self._transport.resume_reading()

    async def change(self) -> None:
        """Returns when it was blocked, let go on, or lost."""
        await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _tick(self) -> None:
        """Say that we live; look whether the broker does. One silent look more than needed: the loop may have been
        kept from reading what lies in the socket."""
        if not self._wrote:
            self.write(wire.HEARTBEAT_FRAME)
        self._wrote = False
        self._silent = 0 if self._heard or not self._reading else self._silent + 1
        self._heard = False
        if self._silent > 4:
            self.abort(f"the broker was silent for {2 * self.options.heartbeat} s")
            return
        self._beat = self._loop.call_later(self.options.heartbeat / 2, self._tick)

    # -- from the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=4 * 1024 * 1024)
        self._may_write.set()
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._heard = True
        try:
            self._sorter.feed(data)
        except (ValueError, KeyError, IndexError, exceptions.PAMQPException) as error:
            self.abort(f"it does not speak AMQP 0-9-1: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self._shut.set()
        self.abort(str(error) if error else "the broker closed it")

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def _content(self, number: int, method: bytes, header: bytes, body: bytes) -> None:
        channel = self._channels.get(number)
        if channel is not None and channel.closed is None:
            channel.on_content(method, header, body)

    def _method(self, number: int, payload: bytes) -> None:
        start = payload[:4]
        channel = self._channels.get(number)
        if channel is None:
            return
        if start == wire.ACK or start == wire.NACK:
            if channel.closed is None:
                channel.on_confirm(payload)
            return
        whole = wire.FRAME.pack(wire.METHOD, number, len(payload)) + payload + b"\xce"
        found = cast("base.Frame", frame.unmarshal(whole)[2])
        if number:
            channel.take(payload, found)
        else:
            self._take(found, payload)

    def _take(self, found: base.Frame, payload: bytes) -> None:
        if isinstance(found, commands.Connection.Start):
            if not self._started.done():
                self._started.set_result(found)
        elif isinstance(found, commands.Connection.Close):
            reason = ChannelClosed(found.reply_code or 0, found.reply_text)
            self.write(frame.marshal(commands.Connection.CloseOk(), 0))
            self._zero.lost(reason)
            self.abort(found.reply_text)
        elif isinstance(found, commands.Connection.Blocked):
            self.blocked = found.reason or "it has an alarm"
            log.warning("broker %s: the broker takes nothing now: %s; what is published waits", self.name, self.blocked)
            self._wake()
        elif isinstance(found, commands.Connection.Unblocked):
            self.blocked = ""
            log.warning("broker %s: it takes messages again", self.name)
            self._wake()
        else:
            self._zero.take(payload, found)


def _plain(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


async def connect(options: Options, purpose: str, hosts: Iterable[int] = (0,)) -> Connection:
    """To the first host that lets us in, of those of the URL with these numbers.

    Raises ConfigurationError, BrokerUnavailable.
    """
    context = options.context()
    trouble: Exception = BrokerUnavailable(f"broker {options.name} has no host")
    for number in hosts:
        connection = Connection(options, purpose)
        connection.host = number
        try:
            await connection.open(*options.hosts[connection.host], context)
            return connection
        except BrokerUnavailable as error:
            trouble = error
            await connection.end("not opened")
        except BaseException:
            await connection.end("not opened")
            raise
    raise trouble


class Line:
    """A connection for one purpose that is made anew when it is needed, not more often than it helps."""

    def __init__(self, options: Options, purpose: str) -> None:
        self._options, self._purpose = options, purpose
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()
        self._first = random.randrange(len(options.hosts))
        """The host that is asked first: any, so that a cluster's nodes share its clients; then the one behind the host
        that was lost, which may not even refuse."""
        self._failures = 0
        self._not_before = 0.0
        self._trouble = ""
        self._over = asyncio.Event()
        self.on_lost: Callable[[str], None] = lambda reason: None

    @property
    def connection(self) -> Connection | None:
        """The one that lives now, or None."""
        connection = self._connection
        return connection if connection is not None and connection.gone is None else None

    async def get(self) -> Connection:
        """Raises BrokerUnavailable, at once where the last attempt failed a moment ago; ConfigurationError."""
        async with self._lock:
            if (connection := self.connection) is not None:
                return connection
            if self._over.is_set():
                raise BrokerUnavailable(f"broker {self._options.name} is not open")
            now = asyncio.get_running_loop().time()
            if now < self._not_before:
                raise BrokerUnavailable(self._trouble)
            try:
                connection = await connect(self._options, self._purpose, self._round())
            except BrokerUnavailable as error:
                self._failures += 1
                self._trouble = str(error)
                pause = min(2.0, 0.1 * 2.0**self._failures)
                self._not_before = asyncio.get_running_loop().time() + pause
                raise
            self._failures = 0
            if self._over.is_set():  # while we were being let in
                await connection.end("closed")
                raise BrokerUnavailable(f"broker {self._options.name} is not open")
            self._connection = connection
            connection.on_lost = self._lost
            return connection

    def _round(self) -> Iterator[int]:
        """Each host once. Who is cancelled at one that is silent goes on with the next, the next time."""
        count = len(self._options.hosts)
        for _ in range(count):
            host = self._first % count
            self._first = host + 1
            yield host

    def _lost(self, reason: str) -> None:
        self.on_lost(reason)

    async def close(self, deadline: float) -> None:
        self._over.set()
        if self._connection is not None:
            await self._connection.close(deadline)
