"""One process's membership in a group: a channel for each slice, a budget for all, and an eye on what was declared."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from eventkeel.errors import BrokerUnavailable, ConfigurationError, PositionError
from eventkeel.message import Headers, Position, Slice
from eventkeel.ports.transport import Arrival, Broken, Budget, Deliveries, Halted, Lost, Resumed, Sent
from eventkeel.transports.rabbitmq import wire
from eventkeel.transports.rabbitmq.connection import ANSWER, ChannelClosed
from eventkeel.transports.rabbitmq.flow import Flow, HistoryFlow
from eventkeel.transports.rabbitmq.publisher import to_queue
from eventkeel.transports.rabbitmq.registry import Record, now, ready_in
from eventkeel.transports.rabbitmq.streams import no_copy_here
from eventkeel.transports.rabbitmq.topology import HISTORY, slices_of

if TYPE_CHECKING:
    from eventkeel.transports.rabbitmq.transport import RabbitTransport

log = logging.getLogger("eventkeel.transports.rabbitmq")

PAGE = 500
"""Most deliveries in one list."""
LOOK_EVERY = 5.0
"""Seconds between two looks at what was declared."""
LOOK_OFTEN = 1.0
"""The same while an older generation is drained."""
IDLE = 10.0
"""Seconds without a delivery, while the queue has messages, after which a consumer is built anew."""
_SURE = 1.0
"""Seconds between the two looks that have to find the same damage."""


class RabbitSubscription:
    """Made by ``RabbitTransport.subscribe``. ``next`` is for one caller at a time."""

    def __init__(self, transport: RabbitTransport, group: str, topics: Sequence[str], budget: Budget) -> None:
        self._transport, self.group, self.topics, self._budget = transport, group, tuple(topics), budget
        self._loop = asyncio.get_running_loop()
        self.flows: dict[Slice, Flow] = {}
        self._turn: deque[Slice] = deque()
        self._events: deque[Arrival] = deque()
        self._count = self._bytes = self._ready = 0
        self._waiter: asyncio.Future[None] | None = None
        self._fatal: Broken | None = None
        self._halted = ""
        """What is gone, with what to do about it."""
        self._closed = False
        self._look_now = asyncio.Event()
        self._look_now.set()
        self._markers: dict[Slice, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._dead = 0
        self._watching = asyncio.create_task(self._watch(), name=f"rabbitmq {group} watch")
        transport.registry.changed.add(self._news)

    # -- what arrives

    async def next(self) -> Arrival:
        """Deliveries of one slice, the begun slices in turn; ``Lost`` for a slice whose channel ended or that is
        finished; ``Halted`` where queues or bindings of the group are gone, ``Resumed`` once it has others; ``Broken``
        where we are not let in any more (fatal), and after ``close``."""
        await asyncio.sleep(0)  # a caller in a loop must not starve the loop; and the only place to be cancelled ...
        while not self._closed:
            if self._events:
                return self._events.popleft()
            if self._fatal is not None:
                return self._fatal
            if (deliveries := self._take()) is not None:
                return deliveries
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
            flow = self.flows[self._turn[0]]
            if flow.paused or not flow.ready:
                self._turn.rotate(-1)
                continue
            before = flow.ready_bytes
            items = flow.hand_over(min(count, PAGE), size, whole=self._count == 0)
            if not items:
                return None  # its head has no room yet: it keeps its turn, or small ones would pass it for ever
            self._turn.rotate(-1)
            taken = before - flow.ready_bytes
            self._count += len(items)
            self._bytes += taken
            self._let_come(-taken)
            return Deliveries(flow.slice, flow.incarnation, items, flow.each)
        return None

    def _arrived(self, flow: Flow, size: int) -> None:
        flow.idle_since = self._loop.time()
        if not flow.paused:
            self._let_come(size)
            self._wake()

    def _let_come(self, change: int) -> None:
        """More lies ready than may: let the broker wait, by not reading. It still hears us."""
        self._ready += change
        connection = self._transport.consuming.connection
        if connection is None:
            return
        if self._ready > self._budget.bytes:
            connection.pause_reading()
        elif self._ready <= self._budget.bytes // 2:
            connection.resume_reading()

    # -- what the engine says

    async def begin(self, slice: Slice, at: Position | None) -> None:
        """See the port. ``at`` means nothing for a queue. Raises BrokerUnavailable; PositionError for a slice that
        does not exist."""
        self._transport.alive()
        connection = await self._transport.consuming.get()
        if self._halted:
            raise BrokerUnavailable(self._halted)
        self._check(slice)
        self._drop(slice)
        options = self._transport.options
        if slice.generation == HISTORY:
            first = None if at is None else at.at
            stream = options.history_of(slice.topic)
            fills = self._transport.registry.state.unfilled(self.group, slice.topic)
            since = min((generation.at for generation in fills), default=now()) - options.history_age
            flow: Flow = HistoryFlow(slice, stream, first, since, self._arrived, lambda: self._history_went_on(slice))
            marking = self._mark(flow)
            self._markers[slice] = asyncio.create_task(marking, name=f"rabbitmq {self.group} marker")
        else:
            queue = options.queue(self.group, slice.topic, slice.generation, slice.partition)
            flow = Flow(slice, queue, self._arrived)
        flow.idle_since = self._loop.time()
        self.flows[slice] = flow
        self._turn.append(slice)
        flow.open(connection, min(options.prefetch, max(1, self._budget.count)), self._lost)

    def _check(self, slice: Slice) -> None:
        known = self._transport.registry.state.generations.get((self.group, slice.topic), [])
        if not known or slice.generation > len(known):
            raise PositionError(f"{slice} does not exist on broker {self._transport.options.name} for {self.group!r}")

    async def settle(self, slice: Slice, positions: Sequence[Position]) -> None:
        flow = self.flows.get(slice)
        if flow is None:
            return
        mine = [each.at for each in positions if each.incarnation == flow.incarnation]
        if not mine:
            return
        count, size = flow.settle(mine)
        if not flow.paused:
            self._count -= count
            self._bytes -= size
        self._wake()

    async def pause(self, slices: Collection[Slice], on: bool) -> None:
        """What is out of a paused slice is not counted; what still comes of it is bounded by the prefetch."""
        for slice in slices:
            flow = self.flows.get(slice)
            if flow is not None and flow.paused is not on:
                flow.paused = on
                sign = -1 if on else 1
                self._count += sign * len(flow.out)
                self._bytes += sign * flow.out_bytes
                self._let_come(sign * flow.ready_bytes)
        self._wake()

    async def release(self, slices: Collection[Slice]) -> None:
        for slice in slices:
            self._drop(slice)
        self._wake()

    def _drop(self, slice: Slice) -> None:
        flow = self.flows.pop(slice, None)
        if flow is None:
            return
        self._turn.remove(slice)
        if not flow.paused:
            self._count -= len(flow.out)
            self._bytes -= flow.out_bytes
            self._let_come(-flow.ready_bytes)
        if (marking := self._markers.pop(slice, None)) is not None:
            marking.cancel()
        flow.close()

    async def close(self, deadline: float) -> None:
        """Give everything back. Twice is once."""
        if self._closed:
            return
        self._closed = True
        self._transport.forget(self)
        self._transport.registry.changed.discard(self._news)
        for slice in tuple(self.flows):
            self._drop(slice)
        tasks = [self._watching, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=deadline)
        self._wake()

    # -- slices that end

    def _lost(self, flow: Flow, reason: ChannelClosed) -> None:
        if self.flows.get(flow.slice) is not flow:
            return
        log.info("group %s: %s is lost: %s", self.group, flow.slice, reason)
        self._lose(flow.slice)
        if reason.code == 403:
            self._stop(f"group {self.group!r}: this user may not read {flow.queue!r} ({reason})")
        elif reason.code == 404:
            self._look_now.set()
        elif no_copy_here(reason) and (connection := self._transport.consuming.connection) is not None:
            connection.abort(f"{flow.queue} is not to be read at this node: {reason}")  # the next one may have a copy

    def _lose(self, slice: Slice) -> None:
        self._drop(slice)
        self._events.append(Lost((slice,)))
        self._wake()

    def _stop(self, reason: str) -> None:
        if self._fatal is None:
            self._fatal = Broken(reason, fatal=True)
            self._wake()

    def _halt(self, damage: str) -> None:
        """Stand still: keys would move to other queues, and pass what lies in the old ones. What runs is settled
        still; then the engine releases the slices. Told again where something else is wrong by now."""
        if self._halted == damage:
            return
        if not self._halted:
            self._say(Record("look", group=self.group))  # the others need not wait for their next look
        self._halted = damage
        self._events.append(Halted(damage))
        self._wake()

    def _resume(self) -> None:
        if self._halted:
            log.warning("group %s: it has new queues, and goes on", self.group)
            self._halted = ""
            self._events.append(Resumed())
            self._wake()

    def _news(self) -> None:
        """The registry has some."""
        self._look_now.set()
        self._changed()

    def _changed(self) -> None:
        """What is not consumed any more is given up at once."""
        state = self._transport.registry.state
        valid = {slice for topic in self.topics for slice in slices_of(state, self.group, topic)}
        for slice in [slice for slice in self.flows if slice not in valid]:
            self._lose(slice)

    # -- the past of a group

    async def _mark(self, flow: Flow) -> None:
        """Say where the history's part ends: what was under way when the group was bound lies before it."""
        assert isinstance(flow, HistoryFlow)
        flow.fills = self._transport.registry.state.unfilled(self.group, flow.slice.topic)
        bound = max((generation.at for generation in flow.fills), default=0.0)
        await asyncio.sleep(max(0.0, bound + self._transport.options.catch_up - now()))
        message = to_queue(flow.queue, Headers([(wire.MARKER, flow.marker.encode())]), b"")
        while not isinstance((await self._transport.publisher.publish([message], ANSWER))[0], Sent):
            await asyncio.sleep(1.0)

    def _history_went_on(self, slice: Slice) -> None:
        flow = self.flows.get(slice)
        if isinstance(flow, HistoryFlow) and flow.finished:
            for generation in flow.fills:
                if generation.waits_for_past:
                    self._say(Record("filled", group=self.group, topic=slice.topic, generation=generation.number))

    def _go_further(self, slice: Slice) -> None:
        """Somebody has asked for another generation meanwhile: its past ends behind our marker."""
        flow = self.flows.get(slice)
        if not isinstance(flow, HistoryFlow) or not flow.finished or any(each.waits_for_past for each in flow.fills):
            return
        if self._transport.registry.state.unfilled(self.group, slice.topic):
            self._lose(slice)

    def _say(self, record: Record) -> None:
        """Tell everybody, beside what is going on. What fails is said again at the next look."""

        async def append() -> None:
            with contextlib.suppress(BrokerUnavailable, ConfigurationError):
                await self._transport.registry.append(record)

        task = asyncio.create_task(append())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- looking

    async def _watch(self) -> None:
        while not self._closed and self._fatal is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_OFTEN if self._in_between() else LOOK_EVERY):
                    await self._look_now.wait()
            self._look_now.clear()
            try:
                await self._look()
            except (BrokerUnavailable, ChannelClosed) as trouble:
                log.debug("group %s: could not look: %s", self.group, trouble)
            except ConfigurationError as error:
                self._stop(f"group {self.group!r}: {error}")
            except Exception:  # whatever it was: nobody else looks after this group's queues
                log.exception("group %s: could not look", self.group)

    def _in_between(self) -> bool:
        """The group is on its way from one generation to the next: somebody waits."""
        state = self._transport.registry.state
        return any(state.current(self.group, topic) is not state.last(self.group, topic) for topic in self.topics)

    async def _look(self) -> None:
        declarer = self._transport.declarer
        await self._transport.registry.alive()
        if await declarer.damage(self.group, self.topics):
            await asyncio.sleep(_SURE)
            if damage := await declarer.damage(self.group, self.topics):
                self._halt(damage)
                return
        for topic in self.topics:
            if damage := await self._drain(topic):
                self._halt(damage)
                return
        self._resume()
        self._changed()
        for slice in tuple(self.flows):
            self._history_went_on(slice)
            self._go_further(slice)
        for flow in tuple(self.flows.values()):
            self._wake_up(flow)
        await self._look_at_dead()

    async def _ready_in(self, queue: str) -> int | None:
        channel = await (await self._transport.asking.get()).channel()
        try:
            return await ready_in(channel, queue)
        finally:
            channel.close()

    async def _drain(self, topic: str) -> str:
        """Say of an older generation's queues, which get nothing any more, that they are empty and settled. Returns
        which of them was lost, with what to do; empty: none."""
        state = self._transport.registry.state
        generation, newest = state.current(self.group, topic), state.last(self.group, topic)
        if generation is None or newest is None or generation is newest or state.unfilled(self.group, topic):
            return ""
        if now() < newest.at + self._transport.options.catch_up:
            return ""
        for shard in set(range(generation.shards)) - generation.drained:
            queue = self._transport.options.queue(self.group, topic, generation.number, shard)
            ready = await self._ready_in(queue)
            if ready is not None:
                self._transport.declarer.ready[queue] = ready  # for ``_wake_up``: a consumer may hear nothing here too
            if ready is None:
                await self._transport.registry.sync()  # it may have been drained and removed, elsewhere
                if shard in generation.drained:
                    continue
                if not any(each.past for each in state.waiting(self.group, topic) if each is not generation):
                    return self._transport.declarer.lost_queue(self.group, topic, queue)
            elif not await self._is_drained(Slice(topic, shard, generation.number), ready):
                continue
            await self._transport.registry.append(
                Record("drained", group=self.group, topic=topic, generation=generation.number, shard=shard)
            )
        if len(generation.drained) >= generation.shards:
            await self._transport.declarer.remove(self.group, topic, generation)
        return ""

    async def _is_drained(self, slice: Slice, ready: int) -> bool:
        """Nothing is ready, and nothing is out: neither with us, nor with a process that lost its lease and lives, nor
        on its way to us. A queue does not tell; but what we put in last comes to its one consumer last."""
        flow = self.flows.get(slice)
        if flow is None or ready or not flow.idle:
            return False
        if not flow.proof:
            flow.proof, flow.proved = os.urandom(8).hex(), self._look_now.set
            message = to_queue(flow.queue, Headers([(wire.MARKER, flow.proof.encode())]), b"")
            if not isinstance((await self._transport.publisher.publish([message], ANSWER))[0], Sent):
                flow.proof = ""  # the next look tries again
        return flow.last and flow.idle

    def _wake_up(self, flow: Flow) -> None:
        """A consumer that gets nothing while its queue has something is built anew."""
        idle = self._loop.time() - flow.idle_since
        if flow.held or idle < IDLE or not self._transport.declarer.ready.get(flow.queue):
            return
        log.warning("group %s: %s is not empty, and nothing comes of it; consuming anew", self.group, flow.queue)
        self._lose(flow.slice)

    async def _look_at_dead(self) -> None:
        queue = self._transport.options.dead(self.group)
        count = await self._ready_in(queue) or 0
        if count > self._dead:
            log.error(
                "group %s: the broker has put %s messages aside into %s, because their consumers ended too often; "
                "nothing is lost: move them back to their queue when it is known why (rabbitmqctl, shovel)",
                self.group,
                count,
                queue,
            )
        self._dead = count
