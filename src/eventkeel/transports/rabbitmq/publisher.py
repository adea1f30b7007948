"""Waves of messages: persistent, mandatory, confirmed, one message of a key outstanding at a time.

A message is sent when the broker has confirmed it and has not returned it before. Whatever is not confirmed by the
deadline, or when its channel ends, is unknown: it may lie in a queue.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from itertools import takewhile

from pamqp import commands

from eventkeel.errors import BrokerUnavailable, ConfigurationError
from eventkeel.message import Headers, Outgoing
from eventkeel.ports.transport import Outcome, Refused, Sent, Unknown, Unrouted
from eventkeel.transports.rabbitmq import wire
from eventkeel.transports.rabbitmq.connection import Channel, ChannelClosed, Line
from eventkeel.transports.rabbitmq.settings import MAX_KEY, Options

_SENT = Sent()
_RENEW = 0.5
"""Seconds between two channels that are opened because the broker could not store something."""
_DEAF = 3.0
"""Seconds without any confirm after which another channel is tried: one through which messages were under way when the
leader of a stream died may get none any more."""
_CHUNK = 200
"""Messages that are encoded before the loop may do something else."""
_TOO_LARGE = re.compile(r"message size \d+ .*?max(?:imum)? size (\d+)")


class _Wave:
    """Messages whose outcomes somebody waits for."""

    __slots__ = ("behind", "done", "left", "messages", "outcomes", "progress")

    def __init__(self, messages: Sequence[Outgoing], done: asyncio.Future[None]) -> None:
        self.messages, self.done = messages, done
        self.outcomes: list[Outcome | None] = [None] * len(messages)
        self.left = len(messages)
        self.progress = False
        self.behind: dict[int, int] = {}
        """Of each message, the next one of its key."""

    def first(self) -> list[int]:
        """The messages that may be sent at once: the first of each key, and all without a key."""
        last: dict[tuple[str, bytes], int] = {}
        heads: list[int] = []
        for index, message in enumerate(self.messages):
            if not message.key:
                place = (message.topic, b"")
                if message.key is None:
                    heads.append(index)
                    continue
            else:
                place = (message.topic, message.key)
            before = last.get(place)
            if before is None:
                heads.append(index)
            else:
                self.behind[before] = index
            last[place] = index
        return heads

    def decide(self, index: int, outcome: Outcome) -> None:
        if self.outcomes[index] is None:
            self.outcomes[index] = outcome
            self.left -= 1
            if not self.left and not self.done.done():
                self.done.set_result(None)

    def give_up(self, index: int, outcome: Outcome) -> int:
        """This one was not sent, so nothing behind it is; the index of the last of its key."""
        self.decide(index, outcome)
        while (following := self.behind.get(index)) is not None:
            index = following
            self.decide(index, Unknown("the message before it, of the same key, was not sent"))
        return index


class Publisher:
    """One confirmed channel on a connection of its own, which an alarm may block."""

    def __init__(self, options: Options, line: Line) -> None:
        self._options, self._line = options, line
        self._opening = asyncio.Lock()
        self._channel: Channel | None = None
        self._tag = 0
        self._refuses = False
        """The broker could not store something. Up to RabbitMQ 3.12 a channel that first publishes to a queue while
        that has no leader goes on refusing when it has one."""
        self._renewed = 0.0
        self._confirms, self._deaf_at = 0, -1
        """Confirms until now, and when a channel was last given up: the next one has until the deadline, which ends
        the connection, since a node that confirms nothing at all is left for another one."""
        self._open: dict[int, tuple[_Wave, int]] = {}
        self._returned: dict[int, str] = {}
        self._known: set[str] = set()
        self._forbidden: dict[str, str] = {}
        self.max_body = options.max_body

    async def publish(self, wave: Sequence[Outgoing], deadline: float) -> Sequence[Outcome]:
        """See the port."""
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline
        run = _Wave(wave, loop.create_future())
        heads = run.first()
        channel: Channel | None = None
        try:
            async with asyncio.timeout_at(until):
                async with self._opening:  # whoever came first sends first
                    channel = await self._ready()
                    missing = await self._missing({message.topic for message in wave})
                await self._unblocked(channel)
                await self._start(run, heads, channel, missing)
                await self._decided(run, channel)
        except TimeoutError:
            self._overdue(run, channel)
        except (BrokerUnavailable, ChannelClosed, ConfigurationError) as error:
            self._forget(run, str(error))
        except BaseException:
            self._forget(run, "cancelled")
            raise
        return [outcome if outcome is not None else Unknown("it was not sent") for outcome in run.outcomes]

    async def close(self, deadline: float) -> None:
        """Wait for open confirms, then say goodbye."""
        waits = [wave.done for wave, _ in self._open.values()]
        if waits:
            await asyncio.wait(set(waits), timeout=deadline / 2)
        await self._line.close(deadline / 2)

    # -- the channel

    async def _ready(self) -> Channel:
        channel = self._channel
        if channel is not None and channel.closed is None:
            if not self._refuses or self._moment() < self._renewed + _RENEW:
                return channel
            self._give_up(channel, "the broker could not store something; publishing goes on in another channel")
        self._refuses, self._renewed = False, self._moment()
        connection = await self._line.get()
        channel = await connection.channel()
        await channel.ask(commands.Confirm.Select(), commands.Confirm.SelectOk)
        channel.on_confirm, channel.on_content = self._confirmed, self._came_back
        channel.on_closed = self._ended
        self._tag = 0
        self._channel = channel
        return channel

    def _give_up(self, channel: Channel, reason: str) -> None:
        channel.close()
        self._ended(ChannelClosed(0, reason))

    @staticmethod
    def _moment() -> float:
        return asyncio.get_running_loop().time()

    async def _missing(self, topics: set[str]) -> set[str]:
        """Topics that do not exist. A message for one would end the channel, and with it everybody's confirms."""
        missing: set[str] = set()
        for topic in topics - self._known:
            if topic.startswith("\0") or await self.exists(topic):
                self._known.add(topic)
            else:
                missing.add(topic)
        return missing

    async def exists(self, topic: str) -> bool:
        """Raises BrokerUnavailable."""
        channel = await (await self._line.get()).channel()
        try:
            asked = commands.Exchange.Declare(exchange=self._options.exchange(topic), passive=True)
            await channel.ask(asked, commands.Exchange.DeclareOk)
            return True
        except ChannelClosed as closed:
            if closed.code == 404:
                return False
            raise
        finally:
            channel.close()

    def forget(self, topic: str) -> None:
        """Look anew whether it exists, and may be written to."""
        self._known.discard(topic)
        self._forbidden.pop(topic, None)

    async def _unblocked(self, channel: Channel) -> None:
        while (connection := channel.connection).blocked and channel.closed is None:
            await connection.change()

    # -- sending

    async def _start(self, run: _Wave, heads: list[int], channel: Channel, missing: set[str]) -> None:
        for start in range(0, len(heads), _CHUNK):
            if channel.closed is not None:  # while we waited: what is written now would count for another channel
                raise channel.closed
            for index in heads[start : start + _CHUNK]:
                refusal = self._refusal(run.messages[index], missing)
                if refusal is None:
                    self._send(run, index, channel)
                else:
                    run.give_up(index, refusal)
            await asyncio.sleep(0)  # the broker gets these while we encode the next ones
            await channel.connection.drain()
            if channel.closed is not None:
                raise channel.closed

    async def _decided(self, run: _Wave, channel: Channel) -> None:
        while not run.done.done():
            before = self._confirms
            await asyncio.wait((run.done,), timeout=None if self._deaf_at == before else _DEAF)
            deaf = self._confirms == before and not channel.connection.blocked
            if deaf and not run.done.done() and self._channel is channel:
                self._deaf_at = before
                self._give_up(channel, f"no confirms for {_DEAF:g} s")

    def _refusal(self, message: Outgoing, missing: set[str]) -> Refused | None:
        """What the broker would never take, found out before anything of its key is sent."""
        topic = message.topic
        if topic in missing:
            return Refused(
                f"topic {topic!r} does not exist on this broker; it is created when a service that publishes or "
                "handles it is started",
                final=False,
            )
        if len(message.body) > self.max_body:
            return Refused(f"topic {topic!r}: a body of {len(message.body)} bytes; this broker takes {self.max_body}")
        if message.key is not None and len(message.key) > MAX_KEY:
            return Refused(f"topic {topic!r}: a key of {len(message.key)} bytes; RabbitMQ takes {MAX_KEY}")
        if not wire.fits(message.headers):
            return Refused(f"topic {topic!r}: a header's name is longer than 255 bytes")
        if topic in self._forbidden:
            return Refused(self._forbidden[topic])
        return None

    def _send(self, run: _Wave, index: int, channel: Channel) -> None:
        message = run.messages[index]
        self._tag += 1
        self._open[self._tag] = (run, index)
        exchange, key = _place(self._options, message)
        channel.connection.write(
            wire.publish(
                channel.number,
                exchange,
                key,
                message.headers,
                message.body,
                channel.connection.frame_max,
                wire.second(),
            )
        )

    # -- what the broker says

    def _confirmed(self, payload: bytes) -> None:
        self._confirms += 1
        tag, multiple = wire.confirm(payload)
        nacked = payload.startswith(wire.NACK)
        if not multiple:
            self._decide(tag, nacked)
            return
        for each in list(takewhile(tag.__ge__, self._open)):
            self._decide(each, nacked)

    def _decide(self, tag: int, nacked: bool) -> None:
        found = self._open.pop(tag, None)
        if found is None:
            return
        run, index = found
        run.progress = True
        if self._returned and (reason := self._returned.pop(tag, None)) is not None:
            run.give_up(index, Unrouted(reason))
            return
        if nacked:
            self._refuses = True
            run.give_up(index, Unknown("the broker could not store it now"))
            return
        following = run.behind.get(index) if run.behind else None
        run.decide(index, _SENT)
        channel = self._channel
        if following is None or run.outcomes[following] is not None:
            return
        if (refusal := self._refusal(run.messages[following], set())) is not None or channel is None:
            run.give_up(following, refusal or Unknown("the channel was lost"))
        elif run.done.done():
            run.give_up(following, Unknown("its time was over"))
        else:
            self._send(run, following, channel)

    def _came_back(self, method: bytes, header: bytes, body: bytes) -> None:
        """``basic.return`` comes before the confirm of the same message."""
        reason, exchange, key = wire.returned(method)
        for tag, (run, index) in self._open.items():
            message = run.messages[index]
            if tag not in self._returned and _place(self._options, message) == (exchange, key):
                self._returned[tag] = (
                    f"topic {message.topic!r}: no queue is bound to its exchange ({reason}); its history stream at "
                    "least has to be: it is bound again when a service that uses the topic is started"
                )
                return

    def _ended(self, reason: ChannelClosed) -> None:
        open_now, self._open = self._open, {}
        self._returned.clear()
        self._channel = None
        text = str(reason)
        if reason.code in (403, 404):
            self._known.clear()
        if reason.code == 403:
            for run, index in open_now.values():
                topic = run.messages[index].topic
                if f"'{self._options.exchange(topic)}'" in text:
                    self._forbidden[topic] = f"topic {topic!r}: this user may not write to it ({text})"
        if found := _TOO_LARGE.search(text):
            self.max_body = min(self.max_body, int(found[1]))
        for run, index in open_now.values():
            run.give_up(index, Unknown(f"the channel was closed: {text}"))

    # -- ends

    def _overdue(self, run: _Wave, channel: Channel | None) -> None:
        reason = "no answer in time"
        if channel is not None and channel.closed is None:
            if channel.connection.blocked:
                reason = f"the broker takes nothing now: {channel.connection.blocked}"
            elif any(wave is run for wave, _ in self._open.values()) and not run.progress:
                # Not one of a whole wave: this connection is not to be trusted any more.
                channel.connection.abort("no confirms in time")
        self._forget(run, reason)

    def _forget(self, run: _Wave, reason: str) -> None:
        if not run.done.done():
            run.done.set_result(None)
        for tag in [tag for tag, (wave, _) in self._open.items() if wave is run]:
            del self._open[tag]
            self._returned.pop(tag, None)
        for index in range(len(run.messages)):
            run.decide(index, Unknown(reason))


_QUEUE = "\0queue:"


def to_queue(queue: str, headers: Headers, body: bytes) -> Outgoing:
    """A message straight into a queue or stream: past all exchanges, so that nobody else gets it."""
    return Outgoing(_QUEUE + queue, b"", headers, body)


def _place(options: Options, message: Outgoing) -> tuple[bytes, bytes]:
    """Exchange and routing key."""
    if message.topic.startswith(_QUEUE):
        return b"", message.topic[len(_QUEUE) :].encode()
    return options.exchange(message.topic).encode(), message.key or b""
