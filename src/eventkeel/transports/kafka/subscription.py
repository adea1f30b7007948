"""One process's membership in a group, on the event loop's side: what is handed over, and how much of it is out."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaError, KafkaException

from eventkeel.errors import BrokerUnavailable, ConfigurationError, PositionError
from eventkeel.message import Position, Slice
from eventkeel.ports.transport import Arrival, Assigned, Broken, Budget, Deliveries, Lost, Revoking
from eventkeel.transports.kafka import errors
from eventkeel.transports.kafka.admin import Place, Topic
from eventkeel.transports.kafka.flow import Chunk, Flow
from eventkeel.transports.kafka.polling import GREETING, LIST, Poller
from eventkeel.transports.kafka.settings import client_log, log

if TYPE_CHECKING:
    from eventkeel.transports.kafka.transport import KafkaTransport

WATCH = 5.0
"""Seconds between two looks at whether the topics are still the same ones."""
_AGAIN = 1.0
"""Seconds before a polling thread that failed is followed by another one."""
_QUIET = 5.0
"""Seconds in which the same trouble is said once."""


class KafkaSubscription:
    """Made by ``KafkaTransport.subscribe``. ``next`` is for one caller at a time."""

    def __init__(self, transport: KafkaTransport, group: str, topics: Sequence[str], budget: Budget) -> None:
        self._transport, self.group, self.topics, self._budget = transport, group, tuple(topics), budget
        self._options = transport.options
        self._loop = asyncio.get_running_loop()
        self._flows: dict[Slice, Flow] = {}
        self._turn: deque[Flow] = deque()
        self._news: deque[Arrival] = deque()
        self._count = self._bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._said: dict[str, float] = {}
        self._missing: set[str] = set()
        self._closed = False
        self._over = asyncio.Event()
        self._poller = self._poll()
        self._watching = self._loop.create_task(self._watch())

    def _poll(self) -> Poller:
        """A consumer, and the thread that owns it."""
        settings = self._options.for_consumer(self._options.on_broker(self.group))
        settings |= {"error_cb": self._on_error, "on_commit": self._on_commit}
        try:
            consumer = Consumer(settings, logger=client_log())
        except (KafkaException, TypeError, ValueError) as error:
            said = self._options.masked(errors.text(error))
            raise ConfigurationError(f"the options of broker {self._options.name} are not valid: {said}") from error
        names = [self._options.on_broker(topic) for topic in self.topics]
        greeting = GREETING if self._options.consumer_protocol else 0.0
        poller = Poller(consumer, names, self, lambda: self._transport.words(self.group), greeting)
        poller.start()
        return poller

    # -- what arrives

    async def next(self) -> Arrival:
        """News first, then deliveries of one slice, the begun slices in turn. After ``close``: Broken."""
        await asyncio.sleep(0)  # a caller in a loop must not starve the loop; and the only place to be cancelled ...
        while not self._closed:
            if self._news:
                return self._news.popleft()
            arrival = self._take()
            if arrival is not None:
                return arrival
            self._waiter = self._loop.create_future()
            try:
                await self._waiter  # ... is here, while nothing is in our hands
            finally:
                self._waiter = None
        return Broken("the subscription was closed", fatal=False)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take(self) -> Deliveries | None:
        count, size = self._budget.count - self._count, self._budget.bytes - self._bytes
        if count <= 0:
            return None
        for _ in range(len(self._turn)):
            flow = self._turn[0]
            if flow.paused or not flow.ready:
                self._turn.rotate(-1)
                continue
            before = flow.size
            items = flow.hand_over(min(count, LIST), size, whole=self._count == 0)
            if not items:
                return None  # its head has no room yet: it keeps its turn, or small ones would pass it for ever
            self._turn.rotate(-1)
            self._count += len(items)
            self._bytes += flow.size - before
            self._took(len(items), flow.size - before)
            return Deliveries(flow.slice, flow.incarnation, items)
        return None

    def _took(self, count: int, size: int) -> None:
        self._poller.taken += count
        self._poller.taken_bytes += size
        self._poller.took()

    # -- what the engine says

    async def begin(self, slice: Slice, at: Position | None) -> None:
        """See the port. A slice that is not ours (any more) stays quiet: who takes it away says so in ``next``."""
        self._transport.alive()
        place = self._place(slice)
        topic = await self._transport.topic(slice.topic)
        if topic is None or slice.generation != 1 or slice.partition >= topic.partitions:
            raise PositionError(f"{slice} does not exist on broker {self._options.name}; is this the right broker?")
        if at is not None:
            await self._check(slice, place, at, topic)
        self._drop(slice)
        flow = Flow(slice, place, topic.id, None if at is None else at.at)
        if at is not None:  # committed anew: who had it before may have died before the broker heard how far it was
            flow.settled = at.at
        self._flows[slice] = flow
        self._turn.append(flow)
        begun: asyncio.Future[bool] = self._loop.create_future()

        def answer(error: KafkaError | None, assigned: bool) -> None:
            def on_loop() -> None:
                if not begun.done():
                    if error is None:
                        begun.set_result(assigned)
                    else:
                        begun.set_exception(self._trouble(error, slice))

            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(on_loop)

        self._poller.begin(flow, None if at is None else at.at, answer)
        try:
            assigned = await begun
        except BaseException:
            self._drop(slice)
            raise
        if not assigned and self._flows.get(slice) is flow:
            self._drop(slice)

    def _trouble(self, error: KafkaError, slice: Slice) -> BrokerUnavailable | ConfigurationError:
        return self._transport.admin.trouble(KafkaException(error), f"could not begin {slice}")

    async def _check(self, slice: Slice, place: Place, at: Position, topic: Topic) -> None:
        """Raises PositionError unless ``at`` can be begun at."""
        broker = self._options.name
        if at.incarnation != topic.id:
            raise PositionError(
                f"{slice} on broker {broker} is not the one this store has read up to position {at.at}: the topic was "
                "made again. Point the service at the old broker, or let it read the new topic with --start earliest"
            )
        first = (await self._transport.admin.ends([place], first=True)).get(place, 0)
        if at.at < first:
            raise PositionError(
                f"{slice}: the store wants position {at.at}, but broker {broker} has only what comes from {first} on "
                "(retention). Start with --start earliest to go on without the missing messages"
            )
        end = 0
        for pause in (0.0, 0.3, 1.0):  # a new leader may need a moment to know how far everybody was
            await asyncio.sleep(pause)
            end = (await self._transport.admin.ends([place])).get(place, 0)
            if at.at <= end:
                return
        raise PositionError(
            f"{slice}: the store has read up to position {at.at}, but broker {broker} ends at {end}: the broker lost "
            "messages (a restored backup?), and new ones would get positions that count as read. Bring the log back, "
            "or start with --start earliest (the inbox absorbs what was handled)"
        )

    async def settle(self, slice: Slice, positions: Sequence[Position]) -> None:
        flow = self._flows.get(slice)
        if flow is None:
            return
        at = max((each.at for each in positions if each.incarnation == flow.incarnation), default=-1)
        if at <= flow.settled:
            return
        count, size = flow.count, flow.size
        flow.settle(at)
        if not flow.paused:
            self._count += flow.count - count
            self._bytes += flow.size - size
        self._wake()

    async def pause(self, slices: Collection[Slice], on: bool) -> None:
        """What is out of a paused slice is not counted: however long it waits, the others have the whole budget."""
        for slice in slices:
            flow = self._flows.get(slice)
            if flow is not None and flow.paused is not on:
                flow.paused = on
                sign = -1 if on else 1
                self._count += sign * flow.count
                self._bytes += sign * flow.size
                count, size = flow.waiting()
                self._took(-sign * count, -sign * size)
                self._poller.pause(flow.place, on)
        self._wake()

    async def release(self, slices: Collection[Slice]) -> None:
        flows = [flow for slice in slices if (flow := self._drop(slice)) is not None]
        self._poller.release(flows, [self._place(slice) for slice in slices])
        self._wake()

    def _drop(self, slice: Slice) -> Flow | None:
        flow = self._flows.pop(slice, None)
        if flow is None:
            return None
        self._turn.remove(flow)
        if not flow.paused:
            self._count -= flow.count
            self._bytes -= flow.size
            self._took(*flow.waiting())
        flow.ready.clear()
        return flow

    async def close(self, deadline: float) -> None:
        """Commit what is settled and leave the group, for up to ``deadline`` seconds. Twice is once."""
        if self._closed:
            return
        self._closed = True
        self._transport.forget(self)
        self._watching.cancel()
        self._wake()
        self._poller.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                await self._over.wait()

    # -- from the polling thread

    def _tell(self, what: Arrival) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._hear, what)

    def _hear(self, what: Arrival) -> None:
        if isinstance(what, Broken) and not what.fatal:
            now = self._loop.time()
            if now - self._said.get(what.reason, -_QUIET) < _QUIET:
                return
            self._said[what.reason] = now
        if isinstance(what, Lost):
            for slice in what.slices:
                self._drop(slice)
        self._news.append(what)
        self._wake()

    def arrived(self, chunks: list[tuple[Flow, Chunk]]) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._arrived, chunks)

    def _arrived(self, chunks: list[tuple[Flow, Chunk]]) -> None:
        for flow, chunk in chunks:
            if self._flows.get(flow.slice) is flow:
                flow.ready.append(chunk)
                if flow.paused:
                    self._took(len(chunk.items), chunk.size)
            else:  # released, or begun anew: it comes again, to whoever has it
                self._took(len(chunk.items), chunk.size)
        self._wake()

    def assigned(self, places: list[Place]) -> None:
        if slices := self._slices(places):
            self._tell(Assigned(slices))

    def revoking(self, places: list[Place], deadline: float) -> None:
        self._tell(Revoking(self._slices(places), deadline))

    def lost(self, places: list[Place]) -> None:
        self._tell(Lost(self._slices(places)))

    def ended(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ended)

    def _ended(self) -> None:
        """The polling thread is gone. If nobody has asked for it, all that it had is lost, and another one begins."""
        if self._closed:
            self._over.set()
            return
        slices = tuple(self._flows)
        if slices:
            self._hear(Lost(slices))
        self._loop.call_later(_AGAIN, self._poll_again)

    def _poll_again(self) -> None:
        if self._closed:
            self._over.set()
            return
        try:
            self._poller = self._poll()
        except (BrokerUnavailable, ConfigurationError) as error:
            self._hear(Broken(str(error), fatal=True))

    def failed(self, error: KafkaError, place: Place | None) -> None:
        where = f"{self._slices([place])[0]} on " if place is not None else ""
        broker = f"{where}broker {self._options.name}"
        if place is not None and error.code() in errors.GAPS:
            text = (
                f"{broker}: the position that comes next is not there any more ({errors.text(error)}): retention "
                "passed it, or the log was cut. Nothing is left out in silence: see what is missing, then start with "
                "--start earliest, which goes on at the oldest message that there is"
            )
            self._tell(Broken(self._options.masked(text), fatal=True))
            return
        fatal = errors.is_fatal(error)
        self._tell(Broken(self._options.masked(f"{broker}: {errors.advice(error)}"), fatal))

    def _on_error(self, error: KafkaError) -> None:
        """Of the client as a whole; the library goes on trying, so only what lasts is told."""
        if errors.is_fatal(error) or error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.failed(error, None)
        else:
            log.debug("broker %s: %s", self._options.name, error)

    def _on_commit(self, error: KafkaError | None, parts: list[object]) -> None:
        self._poller.on_commit(error, parts)  # type: ignore[arg-type]

    # -- are the topics still the same ones

    async def _watch(self) -> None:
        """A topic that was made again under its name would go on at a position that means something else there."""
        while True:
            await asyncio.sleep(WATCH)
            try:
                topics = await self._transport.look_at({slice.topic for slice in self._flows} | set(self.topics))
            except (BrokerUnavailable, ConfigurationError):
                continue
            self._compare(topics)

    def _compare(self, topics: dict[str, Topic]) -> None:
        broker = self._options.name
        for flow in self._flows.values():
            topic = topics.get(flow.slice.topic)
            if topic is not None and topic.id != flow.incarnation:
                text = (
                    f"topic {flow.slice.topic!r} on broker {broker} was made again while it was read. What the new one "
                    "has lies at positions that count as read: start with --start earliest"
                )
                self._hear(Broken(text, fatal=True))
                return
        missing = set(self.topics) - topics.keys()
        if gone := sorted(missing & self._missing):  # twice: a broker that starts may not know it yet
            self._hear(Broken(f"topic {gone[0]!r} was deleted from broker {broker}", fatal=True))
        self._missing = missing

    # -- names

    def _place(self, slice: Slice) -> Place:
        return self._options.on_broker(slice.topic), slice.partition

    def _slices(self, places: Sequence[Place]) -> tuple[Slice, ...]:
        return tuple(Slice(self._options.from_broker(name) or name, number) for name, number in places)
