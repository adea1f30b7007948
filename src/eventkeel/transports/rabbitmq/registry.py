"""What all processes have to agree on: topics, groups with their stores, generations and how far they are.

AMQP lets nobody ask for bindings, arguments, or which of two declared first. So it is written down in a stream of its
own, ``eventkeel.registry``: records are only ever appended, every process reads all of them, and of two that
contradict each other the first counts. ``State`` is what they add up to; it is pure.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec
from pamqp import commands

from eventkeel.errors import BrokerUnavailable, ConfigurationError
from eventkeel.message import Headers
from eventkeel.ports.transport import Sent
from eventkeel.transports.rabbitmq import wire
from eventkeel.transports.rabbitmq.connection import ANSWER, Channel, ChannelClosed, Line
from eventkeel.transports.rabbitmq.publisher import Publisher, to_queue
from eventkeel.transports.rabbitmq.settings import Options, stream_arguments
from eventkeel.transports.rabbitmq.streams import STARTING, consume

Kind = Literal["topic", "resize", "group", "generation", "filled", "drained", "look"]


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the registry."""

    kind: Kind
    id: str = ""
    """Of the record, for whoever waits to see it."""
    topic: str = ""
    partitions: int = 0
    born: tuple[str, ...] = ()
    """Groups that were bound to the topic before its first message."""
    group: str = ""
    store: str = ""
    generation: int = 0
    shards: int = 0
    past: bool = False
    """The generation begins with what the topic's history holds."""
    at: float = 0.0
    """When it was bound, in Unix seconds."""
    shard: int = 0


class Topic(msgspec.Struct):
    partitions: int
    born: tuple[str, ...]
    id: str


class Generation(msgspec.Struct):
    """A hash exchange with its queues. Never edited: another number of shards is another generation."""

    number: int
    shards: int
    past: bool
    at: float
    filled: bool = False
    drained: set[int] = msgspec.field(default_factory=set)

    @property
    def waits_for_past(self) -> bool:
        return self.past and not self.filled


class State:
    """All records so far."""

    def __init__(self) -> None:
        self.topics: dict[str, Topic] = {}
        self.groups: dict[str, str] = {}
        self.generations: dict[tuple[str, str], list[Generation]] = {}

    def add(self, record: Record) -> None:
        key = (record.group, record.topic)
        known = self.generations.get(key, [])
        match record.kind:
            case "topic":
                self.topics.setdefault(record.topic, Topic(record.partitions, record.born, record.id))
            case "resize":
                if record.topic in self.topics:
                    self.topics[record.topic].partitions = record.partitions
            case "group":
                self.groups.setdefault(record.group, record.store)
            case "generation":
                if record.generation == len(known) + 1:
                    made = Generation(record.generation, record.shards, record.past, record.at)
                    self.generations.setdefault(key, []).append(made)
            case "filled" | "drained":
                if 0 < record.generation <= len(known):
                    generation = known[record.generation - 1]
                    if record.kind == "filled":
                        generation.filled = True
                    else:
                        generation.drained.add(record.shard)
            case "look":
                pass

    def topics_of(self, group: str) -> list[str]:
        return sorted(topic for name, topic in self.generations if name == group)

    def last(self, group: str, topic: str) -> Generation | None:
        """The one that gets what is published now."""
        known = self.generations.get((group, topic))
        return known[-1] if known else None

    def current(self, group: str, topic: str) -> Generation | None:
        """The one that is consumed now: an older one until it is drained."""
        known = self.generations.get((group, topic), [])
        for generation in known[:-1]:
            if len(generation.drained) < generation.shards:
                return generation
        return known[-1] if known else None

    def unfilled(self, group: str, topic: str) -> list[Generation]:
        """Those that begin with the topic's history, and for which it has not been handled yet."""
        return [each for each in self.generations.get((group, topic), []) if each.waits_for_past]

    def waiting(self, group: str, topic: str) -> Iterator[Generation]:
        """Those that hold messages, or will."""
        current = self.current(group, topic)
        for generation in self.generations.get((group, topic), []):
            if current is not None and generation.number >= current.number:
                yield generation


_LOST = (0, 320)
"""Codes of a channel that ended with its connection or its node."""

_read = msgspec.json.Decoder(Record).decode
_write = msgspec.json.Encoder().encode


class Registry:
    """Follows the stream. ``state`` is at most a moment old; ``sync`` makes it exact."""

    def __init__(self, options: Options, line: Line, publisher: Publisher) -> None:
        self._options, self._line, self._publisher = options, line, publisher
        self.state = State()
        self.changed: set[Callable[[], None]] = set()
        self._channel: Channel | None = None
        self._next = 0
        self._caught_up = False
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._lock = asyncio.Lock()

    async def sync(self) -> State:
        """Everything that was written before this call is read after it. Raises BrokerUnavailable, or
        ConfigurationError where nothing was ever declared on this broker."""
        await self._follow()
        await self.append(Record("look"))
        self._caught_up = True
        return self.state

    async def append(self, record: Record) -> None:
        """Write, and wait until it was read back: what was first counts."""
        await self._follow()
        record = msgspec.structs.replace(record, id=record.id or os.urandom(8).hex())
        seen = self._waiting[record.id] = asyncio.get_running_loop().create_future()
        try:
            message = to_queue(self._options.registry, Headers(), _write(record))
            outcome = (await self._publisher.publish([message], ANSWER))[0]
            if not isinstance(outcome, Sent):
                raise BrokerUnavailable(f"broker {self._options.name}, {self._options.registry}: {outcome.reason}")
            async with asyncio.timeout(ANSWER):
                await seen
        except TimeoutError:
            self._leave()
            raise BrokerUnavailable(f"broker {self._options.name} does not give its registry") from None
        finally:
            self._waiting.pop(record.id, None)

    async def declare(self) -> bool:
        """True where it was not there. Raises ConfigurationError where the broker has no streams."""
        if await self._there():
            return False
        channel = await (await self._line.get()).channel()
        arguments = stream_arguments(self._options, age=False)
        try:
            await self._let_streams_settle(channel, arguments)
            await channel.ask(declare_queue(self._options.registry, arguments), commands.Queue.DeclareOk)
            return True
        except ChannelClosed as closed:
            if closed.code in _LOST:
                raise BrokerUnavailable(f"broker {self._options.name}: {closed}") from closed
            raise ConfigurationError(
                f"broker {self._options.name} cannot make a stream ({closed}); RabbitMQ 3.10 or newer is needed, with "
                "all feature flags enabled (rabbitmqctl enable_feature_flag all)"
            ) from closed
        finally:
            channel.close()

    async def _let_streams_settle(self, channel: Channel, arguments: dict[str, object]) -> None:
        """The first stream of all starts what knows every stream of the broker, and a node that is killed within a
        second may forget it: a stream of that second is then neither usable nor deletable, ever (see ``settle``). So
        one that means nothing, of a name that is never used again, goes first."""
        if not self._options.settle:
            return
        first = f"{self._options.registry}.{os.urandom(4).hex()}"
        await channel.ask(declare_queue(first, arguments), commands.Queue.DeclareOk, STARTING)
        await asyncio.sleep(self._options.settle)
        await channel.ask(commands.Queue.Delete(queue=first), commands.Queue.DeleteOk, STARTING)

    async def _there(self) -> bool:
        """Whether the registry exists. A node that has just started answers before its streams do."""
        until = asyncio.get_running_loop().time() + STARTING
        while True:
            channel = await (await self._line.get()).channel()
            try:
                return await exists(channel, self._options.registry)
            except Inaccessible as away:
                if asyncio.get_running_loop().time() > until:
                    raise Inaccessible(
                        f"{away}. It has been away for {STARTING:g} s: RabbitMQ before 3.13.4 that was killed within a "
                        "second of its very first stream never gets that stream back; see docs/howto/rabbitmq.md"
                    ) from away
                await asyncio.sleep(0.2)
            finally:
                channel.close()

    async def _follow(self) -> None:
        async with self._lock:
            if self._channel is not None and self._channel.closed is None:
                return
            if not await self._there():
                raise ConfigurationError(
                    f"broker {self._options.name} has no topics of Eventkeel yet; they are made when a service is "
                    "started"
                )
            await consume(self._line, self._options.registry, self._next or "first", 1000, self._listen)

    def _listen(self, channel: Channel) -> None:
        channel.on_content, channel.on_cancel = self._arrived, self._leave
        self._channel = channel

    def _arrived(self, method: bytes, header: bytes, body: bytes) -> None:
        got = wire.delivered(method, header)
        channel = self._channel
        if channel is not None:
            channel.connection.write(wire.ack(channel.number, got.tag, False))
        if got.offset < self._next:
            return
        self._next = got.offset + 1
        try:
            record = _read(body)
        except msgspec.DecodeError:
            return  # a newer version's; what it means, that version knows
        self.state.add(record)
        if (seen := self._waiting.get(record.id)) is not None and not seen.done():
            seen.set_result(None)
        if record.kind != "look" or record.group:  # one with a group: somebody found it damaged
            for tell in tuple(self.changed):
                tell()

    def _leave(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    async def alive(self) -> State:
        """What is known; exact the first time, and a moment old at most from then on."""
        if not self._caught_up:
            await self.sync()
        await self._follow()
        return self.state


def now() -> float:
    return time.time()


def declare_queue(name: str, arguments: dict[str, object]) -> commands.Queue.Declare:
    return commands.Queue.Declare(queue=name, durable=True, arguments=arguments)  # type: ignore[arg-type]


class Inaccessible(BrokerUnavailable):
    """A queue exists, and its node does not answer for it now."""


async def exists(channel: Channel, queue: str) -> bool:
    """Whether a queue or stream exists. The channel is closed where it does not. Raises BrokerUnavailable."""
    return await ready_in(channel, queue) is not None


async def ready_in(channel: Channel, queue: str) -> int | None:
    """Messages that lie ready in a queue; None: there is no such queue, and the channel is closed."""
    try:
        asked = commands.Queue.Declare(queue=queue, passive=True)
        found = await channel.ask(asked, commands.Queue.DeclareOk)
    except ChannelClosed as closed:
        if closed.code == 404 and "no queue" in str(closed):
            return None
        raise Inaccessible(f"broker {channel.connection.name}: {closed}") from closed
    return found.message_count or 0
