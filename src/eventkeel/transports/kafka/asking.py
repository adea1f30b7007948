"""Topics and groups: declaring and comparing them, how far a group is, and reading a topic again."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from confluent_kafka import Consumer, Message, TopicPartition

from eventkeel.errors import BrokerUnavailable, ConfigurationError, GroupTaken
from eventkeel.message import Delivery, Slice
from eventkeel.ports.transport import Finding, GroupWant, SliceLag, Span, TopicWant, Topology
from eventkeel.transports.kafka import errors
from eventkeel.transports.kafka.admin import Admin, Commit, Place
from eventkeel.transports.kafka.polling import delivery_of
from eventkeel.transports.kafka.settings import Options, client_log

STORE = "eventkeel store "
"""What committed positions say beside the number: whose group it is."""
BOUND = "eventkeel group of store "
"""The same of a group that has settled nothing yet: its positions mean nothing."""
_CREATION = 15.0
_NEWS = 2.0
"""Seconds that our own client may take to hear of a partition that a broker has described."""
_OLDEST = 1.5
"""Seconds after which an answer goes without them."""
_PAGE = 500


def store_in(commit: Commit) -> str | None:
    """The store that a commit names; None: it is another client's."""
    for words in (STORE, BOUND):
        if commit.words.startswith(words):
            return commit.words.removeprefix(words)
    return None


class Asking:
    """Questions and declarations by our own names."""

    def __init__(self, options: Options, admin: Admin) -> None:
        self._options, self._admin = options, admin
        self.stores: dict[str, str] = {}
        """Group -> the store it is bound to, as declared here."""
        self._topics_of: dict[str, tuple[str, ...]] = {}
        self._clock: Consumer | None = None
        """Reads single messages for their times."""
        self._times: dict[tuple[Place, int], float] = {}
        self._reading = asyncio.Lock()

    # -- declaring

    async def topology(self, want: Topology, *, apply: bool) -> list[Finding]:
        findings = [await self._topic(topic, apply) for topic in want.topics]
        await self._compacted([topic.name for topic in want.topics], findings)
        return findings + [await self._group(group, apply) for group in want.groups]

    async def _topic(self, want: TopicWant, apply: bool) -> Finding:
        what, name = f"topic {want.name}", self._options.on_broker(want.name)
        found = (await self._admin.topics([name])).get(name)
        created = False
        if found is None:
            if not apply:
                return Finding("refused", what, "it does not exist, and nothing may be created here")
            if refused := await self._admin.create(name, want.partitions):
                return Finding("refused", what, f"it could not be created: {refused}")
            created = True
            found = await self._appeared(name)
        if found.partitions == want.partitions:
            return Finding("created", what, f"{want.partitions} partitions") if created else Finding("same", what)
        return Finding(
            "refused",
            what,
            f"it has {found.partitions} partitions, {want.partitions} are asked for; changing them would move keys "
            f"and lose their order: ask for {found.partitions}, or use a new topic",
        )

    async def _appeared(self, name: str):  # type: ignore[no-untyped-def]
        """It was created; every broker is to know it, with a leader for each partition."""
        until = time.monotonic() + _CREATION
        while time.monotonic() < until:
            found = (await self._admin.topics([name])).get(name)
            if found is not None:
                ends = await self._admin.ends([(name, number) for number in range(found.partitions)])
                if len(ends) == found.partitions:
                    return found
            await asyncio.sleep(0.05)
        raise BrokerUnavailable(f"topic {name!r} was created on broker {self._options.name} and does not appear")

    async def _compacted(self, topics: Sequence[str], findings: list[Finding]) -> None:
        """On a compacted topic events vanish."""
        names = {self._options.on_broker(topic): topic for topic in topics}
        for name, settings in (await self._admin.settings(sorted(names))).items():
            if "compact" in settings.get("cleanup.policy", ""):
                findings.append(
                    Finding(
                        "refused",
                        f"topic {names[name]}",
                        f"it has cleanup.policy={settings['cleanup.policy']}: compaction removes events. Set it to "
                        "delete, or use another topic",
                    )
                )

    async def _group(self, want: GroupWant, apply: bool) -> Finding:
        what, group = f"group {want.name}", self._options.on_broker(want.name)
        names = {topic: self._options.on_broker(topic) for topic in want.topics}
        found = await self._admin.topics(names.values())
        places = [(name, number) for name, topic in found.items() for number in range(topic.partitions)]
        commits = await self._admin.commits(group, places)
        for commit in commits.values():
            other = store_in(commit)
            if other is not None and other != want.store_id:
                return Finding("refused", what, _another(other, group, self._options.servers))
        known = any(store_in(commit) == want.store_id for commit in commits.values())
        if not known and not apply:
            return Finding("refused", what, "it does not exist, and nothing may be created here")
        self.stores[want.name], self._topics_of[want.name] = want.store_id, want.topics
        if missing := [topic for topic, name in names.items() if name not in found]:
            return Finding("refused", what, f"topic {', '.join(missing)} does not exist on this broker")
        if known:
            return Finding("same", what)
        firsts = await self._admin.ends([place for place in places if place not in commits], first=True)
        bound = await self._admin.commit(
            group, {place: Commit(first, BOUND + want.store_id) for place, first in firsts.items()}
        )
        return Finding("created", what, "" if bound else "bound to its store with its first commit")

    # -- how far

    async def slices(self, topics: Sequence[str]) -> list[Slice]:
        names = {topic: self._options.on_broker(topic) for topic in topics}
        found = await self._admin.topics(names.values())
        slices: list[Slice] = []
        for topic, name in names.items():
            if name not in found:
                raise ConfigurationError(f"topic {topic!r} does not exist on broker {self._options.name}")
            slices += [Slice(topic, number) for number in range(found[name].partitions)]
        return slices

    async def lag(self, group: str) -> list[SliceLag]:
        declared = self._topics_of.get(group)
        if declared is not None:
            counts = {self._options.on_broker(topic): 0 for topic in declared}
        else:  # nobody says which topics a group reads: its commits do
            counts = await self._admin.all_topics()
        found = await self._admin.topics(counts)
        every = [(name, number) for name, topic in sorted(found.items()) for number in range(topic.partitions)]
        commits = await self._admin.commits(self._options.on_broker(group), every)
        self._check_owner(group, commits)
        read = {name for name, _ in commits} if declared is None else found.keys()
        places = [place for place in every if place[0] in read]
        ends = await self._known(places)
        settled = {place: commit.at for place, commit in commits.items() if not commit.words.startswith(BOUND)}
        behind = {place: settled.get(place) for place in places if settled.get(place, 0) < ends.get(place, 0)}
        times = await self._oldest(behind)
        return [
            SliceLag(
                Slice(self._options.from_broker(name) or name, number),
                settled.get((name, number)),
                ends.get((name, number), 0),
                found[name].id,
                times.get((name, number)),
            )
            for name, number in places
        ]

    async def _known(self, places: Sequence[Place], *, first: bool = False) -> dict[Place, int]:
        """The ends of partitions that a broker has just described. One so new that our client has not heard of it is
        asked for again: to say that nothing is there would be wrong."""
        until = time.monotonic() + _NEWS
        while True:
            found = await self._admin.ends(places, first=first)
            if len(found) == len(places) or time.monotonic() > until:
                return found
            await asyncio.sleep(0.05)

    def _check_owner(self, group: str, commits: Mapping[Place, Commit]) -> None:
        ours = self.stores.get(group)
        for commit in commits.values():
            other = store_in(commit)
            if ours is not None and other is not None and other != ours:
                name = self._options.on_broker(group)
                raise GroupTaken(f"group {group}: {_another(other, name, self._options.servers)}")

    async def _oldest(self, behind: Mapping[Place, int | None]) -> dict[Place, float]:
        """The broker's time of the first message at or behind each position."""
        if not behind:
            return {}
        firsts = await self._admin.ends(behind, first=True)
        starts = {place: max(at or 0, firsts.get(place, 0)) for place, at in behind.items()}
        async with self._reading:
            known = {place: self._times[place, at] for place, at in starts.items() if (place, at) in self._times}
            asked = {place: at for place, at in starts.items() if place not in known}
            found = {}
            if asked:
                found = await asyncio.get_running_loop().run_in_executor(None, self._read_times, asked)
            times = known | found
            self._times = {(place, starts[place]): time for place, time in times.items()}
        return times

    def _read_times(self, starts: Mapping[Place, int]) -> dict[Place, float]:
        times: dict[Place, float] = {}
        if self._clock is None:
            self._clock = self._reader(
                {"fetch.message.max.bytes": 1_024, "fetch.wait.max.ms": 50, "queued.min.messages": 1}
            )
        self._clock.assign([TopicPartition(*place, at) for place, at in starts.items()])
        try:
            until = time.monotonic() + _OLDEST
            while len(times) < len(starts) and time.monotonic() < until:
                for message in _polled(self._clock):
                    place = (message.topic() or "", message.partition() or 0)
                    if message.error() is None and place not in times:
                        kind, milliseconds = message.timestamp()
                        times[place] = milliseconds / 1000 if kind else 0.0
        finally:
            self._clock.unassign()
        return times

    def close(self) -> None:
        if self._clock is not None:
            threading.Thread(target=self._clock.close, name="eventkeel-kafka-close", daemon=True).start()
            self._clock = None

    def _reader(self, more: Mapping[str, object]) -> Consumer:
        """A consumer without a group: its group's name is never told to the broker."""
        settings = self._options.for_consumer(f"eventkeel-reader-{os.urandom(8).hex()}")
        settings.pop("group.protocol", None)
        return Consumer({**settings, **more}, logger=client_log())

    # -- reading again

    async def read(self, topic: str, span: Span) -> AsyncIterator[Sequence[Delivery]]:
        name = self._options.on_broker(topic)
        found = (await self._admin.topics([name])).get(name)
        if found is None or (span.partition is not None and not 0 <= span.partition < found.partitions):
            where = "" if span.partition is None else f", partition {span.partition},"
            raise ConfigurationError(f"topic {topic!r}{where} does not exist on broker {self._options.name}")
        loop = asyncio.get_running_loop()
        consumer = await loop.run_in_executor(None, self._reader, {})
        try:
            for number in range(found.partitions) if span.partition is None else (span.partition,):
                place = (name, number)
                ends, firsts = await self._known([place]), await self._known([place], first=True)
                if place not in ends or place not in firsts:
                    raise BrokerUnavailable(f"{topic}/{number} on broker {self._options.name} has no leader yet")
                last = ends[place] if span.last is None else min(span.last, ends[place])
                at = max(span.first, firsts[place])
                if at >= last:
                    continue
                consumer.assign([TopicPartition(*place, at)])
                while at < last:
                    page, at = await loop.run_in_executor(
                        None, _page, consumer, Slice(topic, number), at, last, self._options
                    )
                    if page:
                        yield page
        finally:
            await loop.run_in_executor(None, consumer.close)


def _page(consumer: Consumer, slice: Slice, at: int, last: int, options: Options) -> tuple[list[Delivery], int]:
    """Some deliveries before ``last``, and where the next ones begin."""
    until = time.monotonic() + 10.0
    while time.monotonic() < until:
        page: list[Delivery] = []
        for message in _polled(consumer):
            if (error := message.error()) is not None:
                raise BrokerUnavailable(f"{slice} on broker {options.name} cannot be read: {errors.advice(error)}")
            offset = message.offset() or 0
            if offset >= last:
                return page, last
            page.append(delivery_of(message, slice, offset))
            at = offset + 1
        if page:
            return page, at
        # The last positions may be holes (a transaction's marker): the consumer stands behind them.
        for part in consumer.position([TopicPartition(*_only(consumer))]):
            if part.offset >= last:
                return [], last
    raise BrokerUnavailable(f"{slice} on broker {options.name} cannot be read: no answer within 10 s")


def _only(consumer: Consumer) -> Place:
    (part,) = consumer.assignment()
    return part.topic, part.partition


def _polled(consumer: Consumer) -> Iterable[Message]:
    first = consumer.poll(0.1)
    return [] if first is None else [first, *consumer.consume(_PAGE - 1, 0)]


def _another(store: str, group: str, servers: str) -> str:
    return (
        f"another store ({store}) consumes under this name, and each of the two would miss what the other took; give "
        f"this service a group of its own, or, if that store is gone for good: kafka-consumer-groups.sh "
        f"--bootstrap-server {servers} --group {group} --delete"
    )
