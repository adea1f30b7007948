"""The lane of handlers with steps: third parties are slow, so many keys at once, each key one after another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from eventkeel.drive import drive
from eventkeel.engine.context import Context
from eventkeel.engine.inside import INSIDE
from eventkeel.engine.lanes import Lane
from eventkeel.engine.lifecycle import Part
from eventkeel.engine.stepping import Arrival, run_steps
from eventkeel.engine.work import Share, Work
from eventkeel.message import Slice
from eventkeel.ports.store import Unit

T = TypeVar("T")


class Place(NamedTuple):
    """What has to come one after another."""

    consumer: str
    topic: str
    key: bytes | None


class Running(NamedTuple):
    work: Work
    task: asyncio.Task[None]


class Slot(Lane):
    """Runs one delivery at a time, and fails, parks and buries as a lane does. Between its transactions, and while user
    code runs, it keeps no connection."""

    async def run_one(self, work: Work) -> None:
        try:
            await self._process([work])
        finally:
            self._queue.clear()  # what is not finished goes back to the lane's queue

    def interrupt(self) -> None:
        """Begin nothing more, not even a retry."""
        self._stopping = True

    async def _run_unit(self, works: Sequence[Work]) -> list[Work]:
        (work,) = works
        claimed = await run_steps(self.context, work, Arrival(self.context, work), self._runner)
        if claimed == "new" or claimed == "again":
            return [work]
        await self._finish(works, [claimed])
        return []

    async def _alone(self, make: Callable[[Unit], Generator[Any, Any, T]]) -> T:
        unit = self.context.store.unit()
        try:
            return await drive(make(unit), unit.connection)
        finally:
            unit.close()


class StepLane(Lane):
    """Up to ``most`` deliveries at once, of different keys (or consumers)."""

    name = "steps"

    def __init__(
        self,
        context: Context,
        settle: Callable[[Iterable[Share]], Awaitable[None]],
        fenced: Callable[[Iterable[Slice]], None],
        most: int,
    ) -> None:
        super().__init__(context, settle, fenced)
        self._slots = [Slot(context, settle, fenced) for _ in range(most)]
        self._free = list(self._slots)
        self._running: dict[Place, Running] = {}

    @property
    def working(self) -> bool:
        return bool(self._running) or self._woken.is_set()

    @property
    def idle(self) -> bool:
        return not self._queue and not self._running

    async def quiet(self, share: Share) -> None:
        """Lets what runs end, for a while: the partition's next owner waits, and so do the leases of the others. What
        takes longer is interrupted; the next owner goes on from its journal."""
        tasks = [task for work, task in self._running.values() if work.share is share]
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=self.context.numbers.lease / 2)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def stop(self) -> None:
        for slot in self._slots:
            slot.interrupt()
        await Part.stop(self)
        while self._running:
            await asyncio.wait([task for _, task in self._running.values()])
        for slot in self._slots:
            await slot.stop()

    def kill(self) -> None:
        super().kill()
        for _, task in self._running.values():
            task.cancel()

    async def ended(self) -> None:
        await super().ended()
        if self._running:
            await asyncio.wait([task for _, task in self._running.values()])

    async def run_once(self) -> None:
        INSIDE.set(self.context.service)
        while self._free and (work := self._next()) is not None:
            self._begin(work)
        await self.pause(3600)

    def _next(self) -> Work | None:
        """The first that may run; nothing passes an earlier one of its place."""
        kept: list[Work] = []
        waits: set[Place] = set()
        found: Work | None = None
        while self._queue and found is None:
            work = self._queue.popleft()
            place = _place(work)
            if not work.share.live:
                continue
            if work.share.stalled or place in waits or place in self._running:
                waits.add(place)
                kept.append(work)
            else:
                found = work
        self._queue.extendleft(reversed(kept))
        return found

    def _begin(self, work: Work) -> None:
        slot, place = self._free.pop(), _place(work)
        task = asyncio.create_task(self._run_one(slot, work), name=f"eventkeel {work.name} steps")
        self._running[place] = Running(work, task)
        task.add_done_callback(lambda _: self._over(slot, place))

    async def _run_one(self, slot: Slot, work: Work) -> None:
        try:
            await slot.run_one(work)
        except Exception as error:  # a lane's loop would report it, and go on after a pause
            self._report(error)
            await self.context.clock.sleep(0.5 + self.context.dice())

    def _over(self, slot: Slot, place: Place) -> None:
        work, task = self._running.pop(place)
        if not task.cancelled():
            task.exception()  # seen: whoever ended it knows why
        self._free.append(slot)
        if not work.finished:
            self._queue.appendleft(work)
        self.wake()
        self.turned()


def _place(work: Work) -> Place:
    return Place(work.name, work.share.slice.topic, work.key)
