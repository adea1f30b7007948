"""One process's membership in a group: what flows, how much of it is out, and how far it is settled."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from eventkeel.errors import BrokerUnavailable, PositionError
from eventkeel.message import Position, Slice
from eventkeel.ports.transport import Arrival, Broken, Budget, Deliveries
from eventkeel.transports.sqlite.reading import Page, Place, Unreadable

if TYPE_CHECKING:
    from eventkeel.transports.sqlite.transport import SQLiteTransport

PAGE = 500
"""Most deliveries in one list."""
FLUSH_EVERY = 1.0
"""Seconds between two writes of the settled positions: a hint for people, never waited for."""
_BUSY_PAUSE = 0.02
_LOOK_EVERY = 0.01


class _Flow:
    """A slice that was begun."""

    __slots__ = ("end", "incarnation", "next", "out", "paused", "settled", "slice", "slot")

    def __init__(self, slice: Slice, place: Place, at: int) -> None:
        self.slice, self.slot, self.incarnation = slice, place.slot, place.incarnation
        self.next, self.end, self.settled = at, place.end, at
        self.paused = False
        self.out: deque[tuple[int, int]] = deque()
        """(position, bytes) of each delivery handed over and not settled."""

    @property
    def ready(self) -> bool:
        return self.next < self.end and not self.paused


class SQLiteSubscription:
    """Made by ``SQLiteTransport.subscribe``. ``next`` is for one caller at a time."""

    def __init__(self, transport: SQLiteTransport, group: str, topics: Sequence[str], budget: Budget) -> None:
        self._transport, self.group, self.topics, self._budget = transport, group, tuple(topics), budget
        self._loop = asyncio.get_running_loop()
        self._flows: dict[Slice, _Flow] = {}
        self._turn: deque[Slice] = deque()
        self._count = self._bytes = 0
        self._unflushed: dict[Slice, Position] = {}
        self._flush_timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._looked_at = 0.0
        self.seen = -1
        """The version of the file that ``next`` has looked at."""
        self._closed = False

    # -- what arrives

    async def next(self) -> Arrival:
        """Deliveries of one slice, the begun slices in turn; waits where there is nothing or the budget is out.

        Broken (fatal) where a begun topic was deleted or the file cannot be read. After ``close``: Broken.
        """
        await asyncio.sleep(0)  # a caller in a loop must not starve the loop; and the only place to be cancelled ...
        while not self._closed:
            try:
                arrival = self._look_now_and_then() or self._take() or self._look()
            except Unreadable as error:
                if not error.busy:
                    return Broken(str(error), error.fatal)
                await self._wait(_BUSY_PAUSE)
                continue
            except BrokerUnavailable as error:
                return Broken(str(error), fatal=not self._closed)
            if isinstance(arrival, (Deliveries, Broken)):
                return arrival
            if not arrival:
                await self._wait(None)  # ... is here, while nothing is in our hands
        return Broken("the subscription was closed", fatal=False)

    def _take(self) -> Deliveries | None:
        count, size = self._budget.count - self._count, self._budget.bytes - self._bytes
        if count <= 0:
            return None
        for _ in range(len(self._turn)):
            flow = self._flows[self._turn[0]]
            if not flow.ready:
                self._turn.rotate(-1)
                continue
            page = self._transport.reader.page(
                flow.slice,
                flow.slot,
                flow.next,
                flow.end,
                count=min(count, PAGE),
                size=size,
                whole=self._count == 0,
            )
            if not page.items and not page.fits:
                return None  # its head has no room yet: it keeps its turn, or small ones would pass it for ever
            self._turn.rotate(-1)
            if page.items:
                return self._hand_over(flow, page)
            flow.next = flow.end  # these positions were removed from the log
        return None

    def _hand_over(self, flow: _Flow, page: Page) -> Deliveries:
        flow.next = page.items[-1].position + 1
        flow.out.extend(page.sizes)
        self._count += len(page.items)
        self._bytes += sum(size for _, size in page.sizes)
        return Deliveries(flow.slice, flow.incarnation, page.items)

    def _look_now_and_then(self) -> Broken | None:
        """Also while one slice has a long past to give, the others' news must be seen."""
        if self._loop.time() - self._looked_at < _LOOK_EVERY:
            return None
        found = self._look()
        return found if isinstance(found, Broken) else None

    def _look(self) -> bool | Broken:
        """Ask the file what is new. True: something may be."""
        self._looked_at = self._loop.time()
        version = self._transport.look()
        if version == self.seen:
            return False
        self.seen = version
        ends = self._transport.reader.ends([flow.slot for flow in self._flows.values()])
        new = False
        for flow in self._flows.values():
            if flow.slot not in ends:
                return Broken(f"topic {flow.slice.topic!r} was deleted from {self._transport.path}", fatal=True)
            new |= ends[flow.slot] > flow.end and self._count < self._budget.count
            flow.end = ends[flow.slot]
        return new

    async def _wait(self, seconds: float | None) -> None:
        self._waiter = self._loop.create_future()
        timer = self._loop.call_later(seconds, self.wake) if seconds is not None else None
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def wake(self) -> None:
        """Let ``next`` look again. On the event loop only."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- what the engine says

    async def begin(self, slice: Slice, at: Position | None) -> None:
        """See the port. Begun again, a slice starts anew from ``at``."""
        self._transport.alive()
        place = self._transport.reader.place(slice.topic, slice.partition)
        path = self._transport.path
        if place is None or slice.generation != 1:
            raise PositionError(f"{slice} does not exist on the broker {path}; is this the right broker file?")
        if at is not None:
            _check(slice, at, place, str(path))
        self._drop(slice)
        self._flows[slice] = _Flow(slice, place, place.first if at is None else at.at)
        self._turn.append(slice)
        if at is not None:  # who had it before may have died before the broker heard how far it was
            self._note(slice, at)
        self.wake()

    async def settle(self, slice: Slice, positions: Sequence[Position]) -> None:
        flow = self._flows.get(slice)
        if flow is None:
            return
        at = max((each.at for each in positions if each.incarnation == flow.incarnation), default=-1)
        at = min(at, flow.next)
        if at <= flow.settled:
            return
        flow.settled = at
        finished = []
        while flow.out and flow.out[0][0] < at:
            finished.append(flow.out.popleft())
        if not flow.paused:
            self._charge(finished, -1)
        self._note(slice, Position(at, flow.incarnation))
        self.wake()

    def _note(self, slice: Slice, mark: Position) -> None:
        """To be written down with the next flush."""
        self._unflushed[slice] = mark
        if self._flush_timer is None:
            self._flush_timer = self._loop.call_later(FLUSH_EVERY, self.flush)

    async def pause(self, slices: Collection[Slice], on: bool) -> None:
        """What is out of a paused slice is not counted: however long it waits, the others have the whole budget."""
        for slice in slices:
            flow = self._flows.get(slice)
            if flow is not None and flow.paused is not on:
                flow.paused = on
                self._charge(flow.out, -1 if on else 1)
        self.wake()

    def _charge(self, out: Collection[tuple[int, int]], sign: int) -> None:
        self._count += sign * len(out)
        self._bytes += sign * sum(size for _, size in out)

    async def release(self, slices: Collection[Slice]) -> None:
        for slice in slices:
            self._drop(slice)
        if any(slice in self._unflushed for slice in slices):
            self.flush()
        self.wake()

    def _drop(self, slice: Slice) -> None:
        flow = self._flows.pop(slice, None)
        if flow is not None:
            self._turn.remove(slice)
            if not flow.paused:
                self._charge(flow.out, -1)

    def flush(self) -> asyncio.Future[None] | None:
        """Write the settled positions down; None where there are none. Failing, they are kept for the next time."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        if not self._unflushed:
            return None
        marks, self._unflushed = self._unflushed, {}
        future = self._transport.settle(self.group, marks)

        def done(future: asyncio.Future[None]) -> None:
            if future.cancelled() or future.exception() is None:
                return
            for slice, mark in marks.items():
                self._unflushed.setdefault(slice, mark)
            if self._flush_timer is None and not self._closed:
                self._flush_timer = self._loop.call_later(FLUSH_EVERY, self.flush)

        future.add_done_callback(done)
        return future

    async def close(self, deadline: float) -> None:
        """Write down what is settled, within ``deadline`` seconds. Twice is once."""
        if self._closed:
            return
        self._closed = True
        self._transport.forget(self)
        flushed = self.flush()
        self._flows.clear()
        self._turn.clear()
        self._count = self._bytes = 0
        self.wake()
        if flushed is not None:
            await asyncio.wait([flushed], timeout=deadline)


def _check(slice: Slice, at: Position, place: Place, path: str) -> None:
    if at.incarnation != place.incarnation:
        raise PositionError(
            f"{slice} on the broker {path} is not the one this store has read up to position {at.at}: the topic was "
            "made again, or the broker's file was replaced. Point the service at the old file, or let it read the "
            "new topic with --start earliest"
        )
    if at.at > place.end:
        raise PositionError(
            f"{slice}: the store has read up to position {at.at}, but the broker {path} ends at {place.end}: its file "
            "is older than the store (a backup?), and new messages would get positions that count as read. Bring the "
            "newer file back, or start with --start earliest (the inbox absorbs what was handled)"
        )
    if at.at < place.first:
        raise PositionError(
            f"{slice}: the store wants position {at.at}, but the broker {path} has only what comes from {place.first} "
            "on (retention). Start with --start earliest to go on without the missing messages"
        )
