"""Exchanges, queues, bindings: declared in an order in which no message can be missed, and looked at again."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from pamqp import commands

from eventkeel.errors import BrokerUnavailable, ConfigurationError
from eventkeel.message import Slice
from eventkeel.ports.transport import Finding, GroupWant, TopicWant, Topology
from eventkeel.transports.rabbitmq.connection import Channel, ChannelClosed, Line
from eventkeel.transports.rabbitmq.management import Binding, Management
from eventkeel.transports.rabbitmq.registry import (
    Generation,
    Record,
    Registry,
    State,
    declare_queue,
    exists,
    now,
    ready_in,
)
from eventkeel.transports.rabbitmq.settings import Options, quorum_arguments, shard_arguments, stream_arguments

_PATIENCE = 60.0
"""Seconds that a declaration may take: a queue of several members has to agree on itself first."""
HISTORY = 0
"""Generation of the slice that is a topic's history."""


def refill_command(group: str, topic: str) -> str:
    """What to type when a generation is not as it was declared."""
    return f"eventkeel refill MODULE:SERVICE --topic {topic}   (MODULE:SERVICE is the service of group {group})"


class _New(NamedTuple):
    """A generation that is to be made."""

    group: str
    topic: str
    number: int
    shards: int


class Declarer:
    """Makes and checks what the registry says there is."""

    def __init__(self, options: Options, line: Line, registry: Registry, management: Management) -> None:
        self._options, self._line = options, line
        self.registry, self._management = registry, management
        self._lock = asyncio.Lock()
        self._hashes: bool | None = None
        self.ready: dict[str, int] = {}
        """Messages that lay ready in each queue at the last look."""
        self._lost: dict[str, str] = {}
        """Of each generation, what was wrong with its bindings when they were last seen."""

    # -- what is wanted

    async def topology(self, want: Topology, *, apply: bool) -> list[Finding]:
        """See the port."""
        async with self._lock:
            if apply:
                await self.registry.declare()
                if want.groups:
                    await self.look_for_hashes()
            try:
                state = await self.registry.sync()
            except ConfigurationError:
                if apply:
                    raise
                state = State()
            findings, fresh = await self._topics(want.topics, state, apply)
            refused = any(each.kind == "refused" for each in findings)
            born: dict[tuple[str, str], int] = {}
            for group in want.groups:
                found = await self._register(group, state, apply)
                findings += found
                if any(each.kind == "refused" for each in found) or refused:
                    continue
                for topic in fresh.keys() & set(group.topics):
                    born[group.name, topic] = self._shards(fresh[topic])
            if apply and not refused:
                await self._make(_New(group, topic, 1, shards) for (group, topic), shards in born.items())
                await self._open(fresh, born.keys())
                for group in want.groups:
                    if not any(each.kind == "refused" and group.name in each.what for each in findings):
                        findings += await self._generations(group, fresh)
            return findings

    async def _topics(
        self, wanted: Sequence[TopicWant], state: State, apply: bool
    ) -> tuple[list[Finding], dict[str, int]]:
        """What there is to say, and the topics that nobody has declared yet."""
        findings: list[Finding] = []
        fresh: dict[str, int] = {}
        for want in wanted:
            what, known = f"topic {want.name!r}", state.topics.get(want.name)
            if known is not None and known.partitions != want.partitions:
                findings.append(
                    Finding(
                        "refused",
                        what,
                        f"its groups have {known.partitions} shard queues each on this broker, and {want.partitions} "
                        f"are wanted. Set partitions={known.partitions}, or give it a new generation for each of its "
                        f"services: eventkeel refill MODULE:SERVICE --topic {want.name} (with partitions="
                        f"{want.partitions} in the configuration)",
                    )
                )
            elif known is not None and await self._stands(want.name):
                if apply:  # whoever made the topic may have died before it did this
                    async with _Say(self._line, self._options) as channel:
                        await self._bind_history(channel, want.name)
                findings.append(Finding("same", what))
            elif not apply:
                findings.append(Finding("refused", what, "it does not exist on this broker"))
            else:
                findings.append(Finding("created", what))
                if known is None:
                    fresh[want.name] = want.partitions
                    await self._declare_topic(want.name)
                else:
                    await self._stand_up(want.name, state)
        return findings, fresh

    async def _stands(self, topic: str) -> bool:
        channel = await (await self._line.get()).channel()
        try:
            passive = commands.Exchange.Declare(exchange=self._options.exchange(topic), passive=True)
            await channel.ask(passive, commands.Exchange.DeclareOk)
            return await exists(channel, self._options.history_of(topic))
        except ChannelClosed as closed:
            if closed.code == 404:
                return False
            raise BrokerUnavailable(f"broker {self._options.name}: {closed}") from closed
        finally:
            channel.close()

    async def _declare_topic(self, topic: str) -> None:
        """Its exchange and its history, not bound yet: nothing that is published now is taken."""
        async with _Say(self._line, self._options) as channel:
            declare = commands.Exchange.Declare(
                exchange=self._options.exchange(topic), exchange_type="topic", durable=True
            )
            await channel.ask(declare, commands.Exchange.DeclareOk)
            stream = declare_queue(self._options.history_of(topic), stream_arguments(self._options, age=True))
            await channel.ask(stream, commands.Queue.DeclareOk, _PATIENCE)

    async def _stand_up(self, topic: str, state: State) -> None:
        """Somebody has deleted the exchange or the history. While there was no exchange, nobody could publish."""
        await self._declare_topic(topic)
        async with _Say(self._line, self._options) as channel:
            for group, name in state.generations:
                generation = state.last(group, name)
                if name == topic and generation is not None:
                    await self._bind(channel, group, topic, generation.number)
            await self._bind_history(channel, topic)

    async def _open(self, fresh: dict[str, int], born: Collection[tuple[str, str]]) -> None:
        """Say who was bound from the beginning, then bind the histories: from here on the topics take messages."""
        for topic, partitions in fresh.items():
            groups = tuple(sorted(group for group, name in born if name == topic))
            await self.registry.append(Record("topic", topic=topic, partitions=partitions, born=groups))
            async with _Say(self._line, self._options) as channel:
                await self._bind_history(channel, topic)

    async def _bind_history(self, channel: Channel, topic: str) -> None:
        bind = commands.Queue.Bind(
            queue=self._options.history_of(topic), exchange=self._options.exchange(topic), routing_key="#"
        )
        await channel.ask(bind, commands.Queue.BindOk)

    # -- groups

    async def _register(self, group: GroupWant, state: State, apply: bool) -> list[Finding]:
        what = f"group {group.name!r}"
        if group.name not in state.groups:
            if not apply:
                return [Finding("refused", what, "it does not exist on this broker")]
            await self._declare_dead(group.name)
            await self.registry.append(Record("group", group=group.name, store=group.store_id))
            if state.groups.get(group.name) == group.store_id:
                return [Finding("created", what)]
        if state.groups[group.name] != group.store_id:
            return [
                Finding(
                    "refused",
                    what,
                    "another database consumes under this name on this broker; give this service another group, or "
                    "connect it to the database of the first one",
                )
            ]
        return [Finding("same", what)]

    async def _declare_dead(self, group: str) -> None:
        """What the broker has handed over too often goes here, below our own attempts."""
        dead = self._options.dead(group)
        async with _Say(self._line, self._options) as channel:
            declare = commands.Exchange.Declare(exchange=dead, exchange_type="fanout", durable=True)
            await channel.ask(declare, commands.Exchange.DeclareOk)
            await channel.ask(declare_queue(dead, quorum_arguments(self._options)), commands.Queue.DeclareOk, _PATIENCE)
            await channel.ask(commands.Queue.Bind(queue=dead, exchange=dead, routing_key="#"), commands.Queue.BindOk)

    async def _generations(self, group: GroupWant, fresh: dict[str, int]) -> list[Finding]:
        """A first generation for each topic that has none of this group."""
        state = self.registry.state
        findings: list[Finding] = []
        missing: dict[_New, bool] = {}
        for name in group.topics:
            topic = state.topics.get(name)
            if topic is None or state.last(group.name, name) is not None:
                continue
            missing[_New(group.name, name, 1, self._shards(topic.partitions))] = group.name not in topic.born
            if name not in fresh:
                findings.append(Finding("created", f"group {group.name!r}", f"its queues of topic {name!r}"))
        await self._make(new for new, past in missing.items() if past or new.topic not in fresh)
        for new, past in missing.items():
            await self._announce(new, past=past)
        return findings

    async def _announce(self, new: _New, *, past: bool) -> None:
        group, topic, number, shards = new
        record = Record("generation", group=group, topic=topic, generation=number, shards=shards, past=past, at=now())
        await self.registry.append(record)

    def _shards(self, partitions: int) -> int:
        return partitions if self._hashes else 1

    async def look_for_hashes(self) -> bool:
        """Whether the broker has the plugin of consistent hashing. An unknown type ends a whole connection."""
        if self._hashes is None:
            line = Line(self._options, "look")
            try:
                channel = await (await line.get()).channel()
                name = f"{self._options.prefix}eventkeel.hash"
                declare = commands.Exchange.Declare(exchange=name, exchange_type="x-consistent-hash", durable=True)
                await channel.ask(declare, commands.Exchange.DeclareOk)
                self._hashes = True
            except (ChannelClosed, BrokerUnavailable) as trouble:
                if "unknown exchange type" not in str(trouble):
                    raise BrokerUnavailable(f"broker {self._options.name}: {trouble}") from trouble
                self._hashes = False
            finally:
                await line.close(1.0)
        return self._hashes

    # -- generations

    async def _make(self, generations: Iterable[_New]) -> None:
        """Hash exchanges with their queues; and, last and only when the broker cannot forget these queues any more, the
        bindings that let messages in."""
        made = list(generations)
        for new in made:
            await self._declare_queues(new)
        if made:
            await asyncio.sleep(self._options.settle)
        for new in made:
            async with _Say(self._line, self._options) as channel:
                await self._bind(channel, new.group, new.topic, new.number)

    async def _declare_queues(self, new: _New) -> None:
        """Between the hash exchange and each queue stands an exchange of that queue's name, whose binding goes with a
        queue that is deleted. If it were the hash exchange's own, the queue's keys would move to other queues, where
        what comes next of a key would pass what the deleted one held."""
        group, topic, number, shards = new
        name = self._options.generation(group, topic, number)
        async with _Say(self._line, self._options) as channel:
            await self._declare_exchange(channel, name, "x-consistent-hash" if self._hashes else "fanout")
            for shard in range(shards):
                queue = self._options.queue(group, topic, number, shard)
                declared = declare_queue(queue, shard_arguments(self._options, group))
                await channel.ask(declared, commands.Queue.DeclareOk, _PATIENCE)
                await self._declare_exchange(channel, queue, "fanout")
                await channel.ask(commands.Queue.Bind(queue=queue, exchange=queue), commands.Queue.BindOk)
                # The routing key of a binding to a hash exchange is its weight.
                bind = commands.Exchange.Bind(destination=queue, source=name, routing_key="1")
                await channel.ask(bind, commands.Exchange.BindOk)

    async def _declare_exchange(self, channel: Channel, name: str, kind: str) -> None:
        declare = commands.Exchange.Declare(exchange=name, exchange_type=kind, durable=True)
        await channel.ask(declare, commands.Exchange.DeclareOk)

    async def _bind(self, channel: Channel, group: str, topic: str, number: int) -> None:
        bind = commands.Exchange.Bind(
            destination=self._options.generation(group, topic, number),
            source=self._options.exchange(topic),
            routing_key="#",
        )
        await channel.ask(bind, commands.Exchange.BindOk)

    async def refill(self, group: str, topic: str, partitions: int | None = None) -> str:
        """Replace a group's generation of a topic by a new one.

        It begins with what the topic's history holds, except where nothing is missing and another number of
        partitions is all that is wanted. Safe at any moment, and safe to repeat: the inbox knows what was handled.
        Returns what was done, for people.
        """
        async with self._lock:
            await self.look_for_hashes()
            state = await self.registry.sync()
            known, old = state.topics.get(topic), state.last(group, topic)
            if known is None or old is None:
                raise ConfigurationError(f"group {group!r} has no queues of topic {topic!r} on this broker")
            resized = partitions is not None and partitions != known.partitions
            past = not resized or bool(await self.damage(group, [topic]))
            if partitions is not None and resized:
                await self.registry.append(Record("resize", topic=topic, partitions=partitions))
            if not await self._stands(topic):
                await self._stand_up(topic, state)
            async with _Say(self._line, self._options) as channel:  # what is published now is in the history at least
                await self._bind_history(channel, topic)
            new = _New(group, topic, old.number + 1, self._shards(known.partitions))
            await self._make([new])
            await self._unbind(group, topic, old.number)
            await self._announce(new, past=past)
            first = "what the history holds" if past else f"what lies in generation {old.number}"
            return (
                f"group {group!r}, topic {topic!r}: generation {new.number} with {new.shards} queues takes what comes; "
                f"{first} is handled first"
            )

    async def _unbind(self, group: str, topic: str, number: int) -> None:
        unbind = commands.Exchange.Unbind(
            destination=self._options.generation(group, topic, number),
            source=self._options.exchange(topic),
            routing_key="#",
        )
        async with _Say(self._line, self._options) as channel:
            await channel.ask(unbind, commands.Exchange.UnbindOk)

    async def remove(self, group: str, topic: str, generation: Generation) -> None:
        """Delete a generation that is drained: its exchanges first, then the queues that are empty indeed.
        (A quorum queue cannot be deleted on the condition that it is.)"""
        name = self._options.generation(group, topic, generation.number)
        queues = [self._options.queue(group, topic, generation.number, shard) for shard in range(generation.shards)]
        for exchange in (name, *queues):
            async with _Say(self._line, self._options, missing_is_fine=True) as channel:
                await channel.ask(commands.Exchange.Delete(exchange=exchange), commands.Exchange.DeleteOk)
        for queue in queues:
            async with _Say(self._line, self._options, missing_is_fine=True) as channel:
                if await ready_in(channel, queue) == 0:
                    await channel.ask(commands.Queue.Delete(queue=queue), commands.Queue.DeleteOk, _PATIENCE)

    # -- looking

    async def slices(self, group: str, topics: Sequence[str]) -> list[Slice]:
        """What is consumed now. Raises ConfigurationError for a topic that does not exist."""
        state = await self.registry.alive()
        if any(state.last(group, topic) is None for topic in topics):
            await self.registry.sync()  # it may have been declared this moment, elsewhere
        found: list[Slice] = []
        for topic in topics:
            if topic not in state.topics:
                raise ConfigurationError(
                    f"topic {topic!r} does not exist on broker {self._options.name}; it is created when a service that "
                    "publishes or handles it is started"
                )
            found += slices_of(state, group, topic)
        return found

    async def damage(self, group: str, topics: Sequence[str]) -> str:
        """What of the group's newest generations is not as it was declared, with what to do; empty: nothing."""
        state = self.registry.state
        for topic in topics:
            generation = state.last(group, topic)
            if generation is None:
                continue
            missing = await self._lost_queues(group, topic, generation)
            if not missing:
                missing = await self._lost_bindings(group, topic, generation)
            if missing:
                return _damage(group, topic, missing)
        return ""

    def lost_queue(self, group: str, topic: str, queue: str) -> str:
        """What there is to say where an older generation's queue went before it was drained."""
        return _damage(group, topic, f"queue {queue!r} is gone from broker {self._options.name}")

    async def _lost_queues(self, group: str, topic: str, generation: Generation) -> str:
        connection = await self._line.get()
        channel = await connection.channel()
        try:
            for shard in range(generation.shards):
                queue = self._options.queue(group, topic, generation.number, shard)
                ready = await ready_in(channel, queue)
                if ready is None:
                    return f"queue {queue!r} is gone from broker {self._options.name}"
                self.ready[queue] = ready
            return ""
        finally:
            channel.close()

    async def _lost_bindings(self, group: str, topic: str, generation: Generation) -> str:
        """What was seen lost is lost until it is seen again: a look that gets no answer heals nothing."""
        name = self._options.generation(group, topic, generation.number)
        real = await self._management.bindings()
        if real is not None:
            queues = [self._options.queue(group, topic, generation.number, each) for each in range(generation.shards)]
            self._lost[name] = self._wrong_in(real, self._options.exchange(topic), name, queues)
        return self._lost.get(name, "")

    def _wrong_in(self, real: set[Binding], exchange: str, name: str, queues: Sequence[str]) -> str:
        wanted: list[Binding] = [(exchange, name, "#", "exchange")]
        for queue in queues:
            if (name, queue, "1", "queue") in real:  # made before an exchange stood before each queue
                wanted.append((name, queue, "1", "queue"))
            else:
                wanted += [(name, queue, "1", "exchange"), (queue, queue, "", "queue")]
        for binding in wanted:
            if binding not in real:
                source, destination, *_ = binding
                return f"the binding of {destination!r} to exchange {source!r} is gone from broker {self._options.name}"
        extra = sorted(each for each in real if each[0] in (name, *queues) and each not in wanted)
        if extra:
            return f"exchange {extra[0][0]!r} has a binding that does not belong to it, to {extra[0][1]!r}"
        return ""


def _damage(group: str, topic: str, missing: str) -> str:
    return (
        f"group {group!r}, topic {topic!r}: {missing}. Messages for it may be missing; give the group a new "
        "generation, which fills the gap from the topic's history: "
        f"{refill_command(group, topic)}"
    )


def slices_of(state: State, group: str, topic: str) -> list[Slice]:
    """The slices of a topic that are consumed now: what the history holds, where a generation begins with it; then
    an older generation's queues until they are drained; then the newest one's.

    The history comes first because it alone has everything in its order: where a queue is gone, its keys went on in
    other queues of the same generation.
    """
    generation = state.current(group, topic)
    if generation is None:
        return []
    if state.unfilled(group, topic):
        return [Slice(topic, 0, HISTORY)]
    return [
        Slice(topic, shard, generation.number) for shard in range(generation.shards) if shard not in generation.drained
    ]


class _Say:
    """A channel for some declarations, closed afterwards; what the broker refuses is told."""

    def __init__(self, line: Line, options: Options, *, missing_is_fine: bool = False) -> None:
        self._line, self._options, self._fine = line, options, missing_is_fine
        self._channel: Channel | None = None

    async def __aenter__(self) -> Channel:
        self._channel = await (await self._line.get()).channel()
        return self._channel

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if self._channel is not None:
            self._channel.close()
        if not isinstance(error, ChannelClosed):
            return False
        if self._fine and error.code in (404, 406):
            return True
        if error.code in (403, 406):
            raise ConfigurationError(f"broker {self._options.name} refuses it: {error}") from error
        raise BrokerUnavailable(f"broker {self._options.name}: {error}") from error
