"""Lanes: worker slots. A (topic, key) always hashes to the same lane, so its order is the lane's.

A lane takes what is there, up to ``batch_size``, for one consumer; it never waits to fill. What
fails in company runs again in parts; only a failure alone is the delivery's own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from typing import Any, TypeVar

from eventkeel.drive import drive
from eventkeel.engine.aside import bury_unit, mark_unit, park_unit
from eventkeel.engine.context import Context
from eventkeel.engine.faults import point
from eventkeel.engine.inside import INSIDE
from eventkeel.engine.lifecycle import Part
from eventkeel.engine.running import ERROR_TEXT, Deadline, GivenUp, Runner, error_text
from eventkeel.engine.unit_of_work import FencedOff, UnitFailed, UnitLimits, unit_of_work
from eventkeel.engine.work import Share, Work
from eventkeel.errors import CommitUnknown, Contention, StoreUnavailable
from eventkeel.message import Slice
from eventkeel.policy.blame import split
from eventkeel.policy.retry import decide
from eventkeel.ports.observer import Ending
from eventkeel.ports.store import Held, Unit

T = TypeVar("T")

DEATHS = 3
"""Process deaths on one delivery, while it ran alone, after which it is a dead letter."""


class Lane(Part):
    """One worker slot with its own queue and its own connection."""

    name = "lane"

    def __init__(
        self,
        context: Context,
        settle: Callable[[Iterable[Share]], Awaitable[None]],
        fenced: Callable[[Iterable[Slice]], None],
    ) -> None:
        super().__init__(context)
        self._settle, self._fenced = settle, fenced
        self._queue: deque[Work] = deque()
        self._busy: set[Share] = set()
        self.turned: Callable[[], None] = lambda: None
        """Called when it has finished what it took."""
        self._turn = asyncio.Event()
        self._runner = Runner(context.service)
        self._unit: Unit | None = None

    # -- from intake and ownership -------------------------------------------------------------

    def put(self, work: Work) -> None:
        self._queue.append(work)
        self._woken.set()

    async def quiet(self, share: Share) -> None:
        """Returns when no unit of this lane runs deliveries of ``share`` any more."""
        while share in self._busy:
            await self._turn.wait()

    @property
    def working(self) -> bool:
        """It runs a unit, or is about to."""
        return bool(self._busy) or self._woken.is_set()

    @property
    def idle(self) -> bool:
        return not self._queue and not self._busy

    async def stop(self) -> None:
        await super().stop()
        if self._unit is not None:
            self._unit.close()
            self._unit = None
        self._runner.close()

    # -- the loop ------------------------------------------------------------------------------

    async def run_once(self) -> None:
        INSIDE.set(self.context.service)
        batch = self._take()
        if not batch:
            await self.pause(3600)
            return
        self._busy = {work.share for work in batch}
        try:
            await self._process(batch)
        except BaseException:
            self._discard()  # whatever it was, its connection is not to be trusted
            self._queue.extendleft(reversed([work for work in batch if not work.finished]))
            raise
        finally:
            self._busy = set()
            self._turn.set()
            self._turn = asyncio.Event()
            self.turned()

    def _take(self) -> list[Work]:
        """The next works for one consumer, in queue order; nothing passes an earlier one of its key for its consumer,
        nor one of its key that nobody can be told yet, which holds every consumer."""
        queue, kept = self._queue, deque[Work]()
        while queue and (queue[0].share.stalled or not queue[0].share.live):
            work = queue.popleft()
            if work.share.live:
                kept.append(work)  # its whole partition waits, so nothing of its key can pass it
        if not queue:
            self._queue = kept
            return []
        first = queue.popleft()
        limit = self._limit(first)
        batch, passed = [first], set[tuple[str, bytes | None]]()
        looked = 0
        while queue and len(batch) < limit and looked < 2 * limit:
            looked += 1
            work = queue.popleft()
            place = (work.share.slice.topic, work.key)
            if not work.share.live:
                continue
            if work.share.stalled:
                kept.append(work)
            elif work.refusal or (work.consumer is first.consumer and (work.share.suspect or place in passed)):
                passed.add(place)
                kept.append(work)
            elif work.consumer is not first.consumer:
                kept.append(work)
            else:
                batch.append(work)
        queue.extendleft(reversed(kept))
        return batch

    def _limit(self, first: Work) -> int:
        if first.share.suspect or first.refusal or self.context.pace(first.name).alone:
            return 1
        return self.context.crowding(first.name).limit

    async def _process(self, batch: list[Work]) -> None:
        todo = deque([batch])
        troubles = 0
        full: set[Share] = set()
        later: list[Work] = []
        while todo:
            part = [work for work in todo.popleft() if work.share.live]
            later += [work for work in part if work.share in full]
            part = [work for work in part if work.share not in full]
            if not part:
                continue
            try:
                if part[0].refusal is not None:
                    await self._refuse(part[0])
                else:
                    again = await self._run_guarded(part)
                    # From here on nothing of a full partition runs before what has to wait there.
                    full |= {work.share for work in again if work.share.stalled}
                    if again:
                        todo.appendleft(again)
                troubles = 0
            except FencedOff as off:
                self._lose(off.slices)
                todo.appendleft(part)
            except (CommitUnknown, StoreUnavailable) as error:
                # Nothing is known against the deliveries: ask the inbox, or the database, again.
                self._discard()
                troubles += 1
                self._report(error)
                for work in part:
                    work.renew()
                todo.appendleft(part)
                if self._stopping:
                    return
                await self.context.clock.sleep(min(2.0, 0.02 * 2 ** min(troubles, 10)) * (0.5 + self.context.dice()))
            except UnitFailed as failed:
                for work in part:
                    work.renew()
                if len(part) > 1:
                    todo.extendleft(reversed(split(part, self._blamed(part, failed))))
                elif await self._failed_alone(part[0], failed.cause):
                    todo.appendleft(part)
            if self._stopping and todo:
                return  # an interrupted delivery counts no attempt; its next owner runs it
        self._queue.extendleft(reversed(later))

    def _blamed(self, works: Sequence[Work], failed: UnitFailed) -> int | None:
        """Who met another transaction is not to blame for it."""
        if not isinstance(failed.cause, Contention):
            return failed.index
        self.context.crowding(works[0].name).collided(len(works))
        return None

    async def _run_guarded(self, works: Sequence[Work]) -> list[Work]:
        if not works[0].share.suspect:
            async with self.context.quarantine.ordinary():
                return await self._run_unit(works)
        async with self.context.quarantine.suspect():
            return await self._run_unit(works) if await self._may_run(works[0]) else []

    async def _run_unit(self, works: Sequence[Work]) -> list[Work]:
        """One unit of work over ``works``; what has to be handed in again."""
        consumer, clock = works[0].consumer, self.context.clock
        assert consumer is not None
        unit = self._open_unit()
        scope = self.context.scope(unit, works, consumer.name)
        numbers = self.context.numbers
        deadline = Deadline(numbers.deadline, sync=consumer.sync)
        pace = self.context.pace(consumer.name)

        def handled(seconds: float, count: int) -> None:
            if count:
                pace.note(seconds, count)

        limits = UnitLimits(numbers.unit_seconds, clock.monotonic, numbers.key_cap, deadline.begun, handled)
        program = unit_of_work(unit, scope, works, consumer, self.context.group, limits)
        try:
            endings = await self._runner.run(program, unit, scope, deadline)
        except GivenUp:
            self._discard()
            raise
        except UnitFailed as failed:
            if isinstance(failed.cause, CommitUnknown | StoreUnavailable):
                raise failed.cause from failed
            raise
        self.context.crowding(consumer.name).passed(len(works))
        await self._finish(works, endings)
        return [work for work, ending in zip(works, endings, strict=True) if ending is None]

    async def _finish(self, works: Sequence[Work], endings: Sequence[Ending | None], error: str = "") -> None:
        """The outcome is durable: tell the observers, then settle."""
        observers, now = self.context.observers, self.context.clock.monotonic()
        shares: set[Share] = set()
        for work, ending in zip(works, endings, strict=True):
            if ending is None:
                continue
            work.finished = True
            if ending == "applied" and work.share.suspect:
                work.share.suspect -= 1
            if work.arrived.finish():
                shares.add(work.share)
            for observer in observers:
                observer.done(work.told(), ending, now - work.arrived.at, error)
        point("lane.before_settle")
        await self._settle(shares)

    # -- failures ------------------------------------------------------------------------------

    async def _failed_alone(self, work: Work, error: BaseException) -> bool:
        """True: run it again now. Otherwise its outcome (parked or dead) is durable and settled."""
        assert work.consumer is not None
        decision = decide(work.consumer.retry, error, work.attempt, self.context.dice(), parked=False)
        text = error_text(error)
        if decision.kind != "dead":
            for observer in self.context.observers:
                observer.failed(work.told(), error, decision.wait)
        if decision.kind == "now":
            await self.context.clock.sleep(decision.wait)
            work.attempt += 1
            return True
        held = work.held(attempts=work.attempt, reason="error", error=text)
        now = self.context.clock.now()
        if decision.kind == "later":
            await self._alone(lambda unit: park_unit(unit, self.context.group, work, held, now + decision.wait, now))
            await self._finish([work], ["parked"], text)
        else:
            await self._bury(work, held, blocks=True)
        return False

    async def _refuse(self, work: Work) -> None:
        """Nobody can be told: an unknown type parks its key, undecodable bytes are a dead letter at once."""
        assert work.refusal is not None
        held = work.held(reason=work.refusal.reason, error=work.refusal.error[:ERROR_TEXT])
        if not work.refusal.waits:
            await self._bury(work, held, blocks=False)
            return
        now = self.context.clock.now()
        await self._alone(lambda unit: park_unit(unit, self.context.group, work, held, now + 5.0, now))
        await self._finish([work], ["parked"], held.error)

    async def _bury(self, work: Work, held: Held, *, blocks: bool) -> None:
        now = self.context.clock.now()
        await self._alone(lambda unit: bury_unit(unit, self.context.group, work, held, blocks, now))
        await self._finish([work], ["dead"], held.error)

    async def _may_run(self, work: Work) -> bool:
        """A suspect delivery is counted before it runs; after three deaths it is a dead letter."""
        if work.marked:
            return True
        now = self.context.clock.now()
        starts = await self._alone(lambda unit: mark_unit(unit, self.context.group, work, now))
        work.marked = True
        if starts <= DEATHS:
            return True
        text = f"its process died {starts - 1} times while it ran alone"
        await self._bury(work, work.held(attempts=starts - 1, reason="kills-its-process", error=text), blocks=True)
        return False

    def _lose(self, slices: Sequence[Slice]) -> None:
        for slice in slices:
            for observer in self.context.observers:
                observer.fenced(slice)
        self._fenced(slices)

    def _report(self, error: BaseException) -> None:
        for observer in self.context.observers:
            observer.trouble(f"{self.context.service} lane", error)

    # -- connections ---------------------------------------------------------------------------

    def _open_unit(self) -> Unit:
        if self._unit is None:
            self._unit = self.context.store.unit()
        return self._unit

    def _discard(self) -> None:
        if self._unit is not None:
            unit, self._unit = self._unit, None
            unit.close(discard=True)

    async def _alone(self, make: Callable[[Unit], Generator[Any, Any, T]]) -> T:
        """A small unit without user code."""
        unit = self._open_unit()
        return await drive(make(unit), unit.connection)
