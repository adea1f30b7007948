"""The thread that owns a consumer. It never runs a handler, and nothing that a handler does can keep it from polling.

What arrives is handed to the event loop in lists, one wake-up each. Where the event loop has enough, the
thread stops taking for a moment (the library's own queue is bounded too), and where it goes on having
enough, the partitions are paused and the polling goes on: the broker must see a member that lives.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from eventkeel.message import Delivery, Headers, Slice
from eventkeel.transports.kafka import errors
from eventkeel.transports.kafka.admin import Place
from eventkeel.transports.kafka.flow import PER_MESSAGE, Chunk, Flow
from eventkeel.transports.kafka.settings import log

LIST = 500
"""Most deliveries in one list."""
AHEAD_COUNT = 1_000
AHEAD_BYTES = 4 * 1024 * 1024
"""What may lie ready on the event loop beside what is handed over; from half of it on there is room again."""
COMMIT_EVERY = 1.0
REVOKE_PATIENCE = 10.0
"""Seconds that a rebalance waits for what runs; then the partition goes, and the store's fence does the rest."""
GREETING = 1.0
"""Seconds in which a broker that runs has answered a new member (KIP-848)."""
_POLL = 0.025
_ENOUGH = 0.5
"""Seconds without room after which partitions are paused, which throws away what was fetched ahead."""
_SEEK_PATIENCE = 10.0
_HEADERS_LOST = "eventkeel-unreadable-headers"


class Sink(Protocol):
    """The event loop's side; called from the thread, returns at once."""

    def arrived(self, chunks: list[tuple[Flow, Chunk]]) -> None: ...
    def assigned(self, places: list[Place]) -> None: ...
    def revoking(self, places: list[Place], deadline: float) -> None: ...
    def lost(self, places: list[Place]) -> None: ...
    def failed(self, error: KafkaError, place: Place | None) -> None: ...
    def ended(self) -> None: ...


class Poller:
    """Methods are for the event loop, except those that begin with an underscore."""

    def __init__(
        self, consumer: Consumer, topics: Sequence[str], sink: Sink, words: Callable[[], str], greeting: float = 0.0
    ) -> None:
        """``words`` go with every committed position; a member does not leave in its first ``greeting`` seconds,
        unless it has been given its partitions."""
        self._consumer, self._topics, self._sink, self._words = consumer, list(topics), sink, words
        self._greeting, self._greeted, self._started = greeting, False, time.monotonic()
        self._commands: deque[Callable[[], None]] = deque()
        self._turn = threading.Condition()
        self._waiting = False
        self._released: set[Place] = set()
        self._closing = False
        self._given = self._given_bytes = 0
        self.taken = self.taken_bytes = 0
        """What the event loop has taken out of what it was given; written there alone."""
        # The thread's own:
        self._flows: dict[Place, Flow] = {}
        self._assigned: set[Place] = set()
        self._paused: set[Place] = set()
        """Those that the engine wants to wait."""
        self._throttled = False
        self._full_since = 0.0
        self._committed_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="eventkeel-kafka-consumer", daemon=True)

    # -- for the event loop

    def start(self) -> None:
        self._thread.start()

    def begin(self, flow: Flow, at: int | None, answer: Callable[[KafkaError | None, bool], None]) -> None:
        """Let ``flow`` flow from ``at`` (None: its earliest). ``answer(error, is assigned)`` comes on the thread."""
        self._released.discard(flow.place)
        until = time.monotonic() + _SEEK_PATIENCE
        self._do(lambda: self._begin(flow, at, answer, until))

    def pause(self, place: Place, on: bool) -> None:
        self._do(lambda: self._pause(place, on))

    def release(self, flows: Collection[Flow], places: Collection[Place]) -> None:
        """Nothing of ``flows`` is wanted any more; a rebalance need not wait for ``places``."""
        with self._turn:
            self._commands.append(lambda: self._release(flows))
            self._released.update(places)
            self._turn.notify_all()

    def took(self) -> None:
        """There may be room again."""
        if self._waiting:
            with self._turn:
                self._turn.notify_all()

    def close(self) -> None:
        """Commit what is settled and leave the group; ``Sink.ended`` is called at last."""
        with self._turn:
            self._closing = True
            self._turn.notify_all()

    def _do(self, command: Callable[[], None]) -> None:
        with self._turn:
            self._commands.append(command)
            self._turn.notify_all()

    # -- the thread

    def _run(self) -> None:
        consumer = self._consumer
        try:
            consumer.subscribe(
                self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            while not self._closing:
                self._round(consumer)
            self._commit()
        except Exception as error:  # nothing may end this thread in silence
            log.exception("the polling thread failed")
            found = errors.inner(error) or KafkaError(KafkaError._FAIL, repr(error))
            self._sink.failed(found, None)
        finally:
            self._closing = True  # nobody is waited for any more
            self._leave(consumer)
            self._sink.ended()

    def _leave(self, consumer: Consumer) -> None:
        try:
            try:
                self._await_membership(consumer)
            finally:
                consumer.close()
        except Exception:
            log.exception("the consumer could not be closed")

    def _await_membership(self, consumer: Consumer) -> None:
        """Where the broker alone decides, let it answer first: a goodbye that overtakes the answer to the first
        greeting is not heard, and the broker keeps the partitions for a member that is gone until its session is over
        (45 s; the Java client had the same, KAFKA-17116). A member without partitions hears nothing, hence the age."""
        while self._greeting and not self._greeted and time.monotonic() - self._started < self._greeting:
            consumer.poll(_POLL)

    def _round(self, consumer: Consumer) -> None:
        self._run_commands()
        now = time.monotonic()
        if now - self._committed_at >= COMMIT_EVERY:
            self._commit()
        if self._full(now):
            with self._turn:
                if not self._commands and not self._closing:
                    self._waiting = True
                    self._turn.wait(_POLL)
                    self._waiting = False
            return
        first = consumer.poll(_POLL)
        if first is None:
            return
        self._sort([first, *consumer.consume(LIST - 1, 0)])

    def _run_commands(self) -> None:
        for _ in range(len(self._commands)):
            self._commands.popleft()()

    def _full(self, now: float) -> bool:
        """Whether to wait for room rather than poll. Never for long: a throttled consumer polls on."""
        count, size = self._given - self.taken, self._given_bytes - self.taken_bytes
        if self._throttled:
            if count <= AHEAD_COUNT // 2 and size <= AHEAD_BYTES // 2:
                self._throttle(False)
            return False
        if count < AHEAD_COUNT and size < AHEAD_BYTES:
            self._full_since = 0.0
            return False
        if not self._full_since:
            self._full_since = now
        if now - self._full_since < _ENOUGH:
            return True
        self._throttle(True)
        return False

    def _throttle(self, on: bool) -> None:
        self._throttled = on
        self._full_since = 0.0
        parts = [TopicPartition(*place) for place in self._flows if place not in self._paused]
        self._switch(parts, on)

    def _switch(self, parts: list[TopicPartition], off: bool) -> None:
        if not parts:
            return
        try:
            (self._consumer.pause if off else self._consumer.resume)(parts)
        except KafkaException as error:  # taken away meanwhile
            log.debug("%s: %s", "pause" if off else "resume", error)

    # -- what arrives

    def _sort(self, messages: list[Message]) -> None:
        """Make deliveries; the hot path. Messages of a partition lie together, so each run makes one list."""
        chunks: list[tuple[Flow, Chunk]] = []
        last: Place | None = None
        flow: Flow | None = None
        items: list[Delivery] = []
        size = count = total = 0
        for message in messages:
            if message.error() is not None:
                self._message_failed(message)
                continue
            place = (message.topic(), message.partition())
            if place != last:
                if flow is not None and items:
                    chunks.append((flow, Chunk(items, size)))
                    total += size
                last, items, size = place, [], 0  # type: ignore[assignment]
                flow = self._flows.get(place)  # type: ignore[arg-type]
            offset: int = message.offset()  # type: ignore[assignment]
            if flow is None or flow.dead or offset < flow.thread_next:
                continue
            flow.thread_next = offset + 1
            size += PER_MESSAGE + len(message)
            items.append(delivery_of(message, flow.slice, offset))
            count += 1
        if flow is not None and items:
            chunks.append((flow, Chunk(items, size)))
            total += size
        if chunks:
            self._given += count
            self._given_bytes += total
            self._sink.arrived(chunks)

    def _message_failed(self, message: Message) -> None:
        error = message.error()
        assert error is not None
        place = (message.topic() or "", message.partition() or 0)
        if error.code() in errors.MISSING:
            return  # the subscription looks after its topics itself
        flow = self._flows.get(place)
        if flow is None:
            if message.topic() is None or errors.is_fatal(error):
                self._sink.failed(error, None)
            return  # a partition that has not begun: begin will say what is wrong
        if error.code() in errors.GAPS or errors.is_fatal(error):
            flow.dead = True
        self._sink.failed(error, place)

    # -- commands

    def _begin(
        self, flow: Flow, at: int | None, answer: Callable[[KafkaError | None, bool], None], until: float
    ) -> None:
        if flow.place not in self._assigned:
            answer(None, False)
            return
        part = TopicPartition(*flow.place, OFFSET_BEGINNING if at is None else at)
        try:
            self._consumer.seek(part)
        except KafkaException as error:
            if errors.code(error) == KafkaError._STATE and time.monotonic() < until:
                self._commands.append(lambda: self._begin(flow, at, answer, until))  # its fetcher is still starting
                return
            answer(errors.inner(error), True)
            return
        self._flows[flow.place] = flow
        self._paused.discard(flow.place)
        if not self._throttled:
            self._switch([TopicPartition(*flow.place)], False)
        answer(None, True)

    def _pause(self, place: Place, on: bool) -> None:
        if place not in self._flows:
            return
        (self._paused.add if on else self._paused.discard)(place)
        if on or not self._throttled:
            self._switch([TopicPartition(*place)], on)

    def _release(self, flows: Collection[Flow]) -> None:
        self._commit([flow for flow in flows if flow.place in self._assigned])
        for flow in flows:
            if self._flows.get(flow.place) is flow:
                del self._flows[flow.place]
                self._paused.discard(flow.place)
                if flow.place in self._assigned:
                    self._switch([TopicPartition(*flow.place)], True)

    def _commit(self, flows: Collection[Flow] | None = None) -> None:
        """Tell the broker what is settled: a hint for people and for the next start. Nobody waits for it."""
        if flows is None:
            self._committed_at = time.monotonic()
            flows = self._flows.values()
        words = self._words()
        parts = []
        for flow in flows:
            settled = flow.settled
            if settled > flow.committed:
                flow.committed = settled
                parts.append(TopicPartition(*flow.place, settled, words))
        if not parts:
            return
        try:
            self._consumer.commit(offsets=parts, asynchronous=True)
        except KafkaException as error:
            log.debug("the group's positions were not committed: %s", error)

    def on_commit(self, error: KafkaError | None, parts: Sequence[TopicPartition]) -> None:
        """The consumer's ``on_commit``: what failed is told again with the next turn."""
        for part in parts:
            if error is None and part.error is None:
                continue
            flow = self._flows.get((part.topic, part.partition))
            if flow is not None:
                flow.committed = -1

    # -- the group; called by the library while it polls

    def _on_assign(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        self._greeted = True
        places = [(part.topic, part.partition) for part in parts]
        if parts:
            # Any offset will do: nothing flows before ``begin`` has sought, and what comes before it is dropped.
            consumer.incremental_assign([TopicPartition(*place, 0) for place in places])
            self._switch([TopicPartition(*place) for place in places], True)
        self._assigned.update(places)
        with self._turn:
            self._released.difference_update(places)
        self._sink.assigned(places)

    def _on_revoke(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        places = [(part.topic, part.partition) for part in parts]
        flowing = {place for place in places if place in self._flows}
        self._assigned.difference_update(places)  # from here on nothing of them begins
        if not self._closing:
            self._sink.revoking(places, REVOKE_PATIENCE)
            self._await_release(flowing)
        self._assigned.update(places)  # still ours to commit for
        late = flowing - self._released
        self._run_commands()
        self._commit([self._flows[place] for place in places if place in self._flows])
        self._forget(places)
        if late and not self._closing:
            self._sink.lost(sorted(late))
        if parts:
            consumer.incremental_unassign(parts)

    def _await_release(self, flowing: set[Place]) -> None:
        """Until the engine has released them, or the deadline is over, or the subscription is closed."""
        until = time.monotonic() + REVOKE_PATIENCE
        with self._turn:
            while not flowing <= self._released and not self._closing and (left := until - time.monotonic()) > 0:
                self._turn.wait(left)

    def _on_lost(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        places = [(part.topic, part.partition) for part in parts]
        self._forget(places)
        self._sink.lost(places)
        if parts:
            consumer.incremental_unassign(parts)

    def _forget(self, places: Collection[Place]) -> None:
        for place in places:
            self._flows.pop(place, None)
            self._assigned.discard(place)
            self._paused.discard(place)


def delivery_of(message: Message, slice: Slice, offset: int) -> Delivery:
    kind, milliseconds = message.timestamp()
    return Delivery(
        slice,
        offset,
        message.key(),
        _headers(message),
        message.value(),
        milliseconds / 1000 if kind else 0.0,
    )


def _headers(message: Message) -> Headers:
    """Byte for byte; a null value reads as empty."""
    try:
        pairs: Any = message.headers()
    except Exception as error:  # a name that is no text: its reader may judge it, the partition goes on
        return Headers([(_HEADERS_LOST, repr(error).encode())])
    if not pairs:
        return _NONE
    for _, value in pairs:
        if value is None:
            return Headers((name, b"" if value is None else value) for name, value in pairs)
    return Headers(pairs)


_NONE = Headers()
