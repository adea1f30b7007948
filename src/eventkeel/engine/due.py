"""Runs what is due: the heads of keys that wait, and the events that were published for later.

The gate is *leased* (owner, epoch, until) in a short transaction; the head runs in its own unit, and
only that unit's last statements take the gate row: no lock on a gate or on a parked inbox row is
held while user code runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from eventkeel import codec
from eventkeel.drive import drive
from eventkeel.engine.aside import whole
from eventkeel.engine.context import Context
from eventkeel.engine.faults import point
from eventkeel.engine.heads import GateLost, LeasedHead, forward_unit, head_unit, outcome_unit
from eventkeel.engine.inside import INSIDE
from eventkeel.engine.lanes import DEATHS
from eventkeel.engine.lifecycle import Part
from eventkeel.engine.running import ERROR_TEXT, Deadline, Runner, error_text
from eventkeel.engine.stepping import run_steps
from eventkeel.engine.timers import fire_unit
from eventkeel.engine.unit_of_work import UnitFailed
from eventkeel.engine.work import Arrived, Share, Work, tell
from eventkeel.errors import CommitUnknown, Fenced, MalformedMessage, StoreUnavailable, UnknownType
from eventkeel.message import Delivery, Headers
from eventkeel.policy.retry import Decision, Retry, backoff, decide
from eventkeel.ports.observer import Ending
from eventkeel.ports.store import Gone, Head, HeadOutcome, Held, Unit
from eventkeel.routing import Consumer

AT_ONCE = 20
"""Gates leased in one turn."""
TIMERS_AT_ONCE = 500
"""Events sent in one transaction."""
NET = 1.0
"""Seconds between two looks where nobody said that a gate changed: the net below the wake-ups."""
IN_THE_WAY = 0.1
"""Seconds between two looks at what is due and cannot be had: another process is at it."""
UNKNOWN = Retry(attempts=0, first=5.0, cap=60.0)
"""How often a type nobody knows is tried again: a deploy brings a new process, which tries at once."""


class Due(Part):
    """One loop for the parked heads of all consumers of this service, and for its timers.

    Heads run one after another, except those of handlers with steps, which wait for third parties: as
    many at once as in their lane, so that a backlog drains as fast as it would have been handled.
    """

    name = "due"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        consumers = context.routes.consumers
        self._names = (*[consumer.name for consumer in consumers if not consumer.steps], context.undecided)
        self._with_steps = tuple(consumer.name for consumer in consumers if consumer.steps)
        self._most_calls = context.numbers.steps
        self._calls: set[asyncio.Task[None]] = set()
        self._ttl = context.numbers.deadline + 2 * context.numbers.lease
        self._busy = False
        self._counted: set[tuple[str, bytes]] = set()
        """Suspect heads whose start this process has counted."""
        self._runner = Runner(context.service)

    @property
    def running(self) -> bool:
        """A head is being run."""
        return self._busy or bool(self._calls)

    async def stop(self) -> None:
        await super().stop()
        while self._calls:
            await asyncio.wait(self._calls)
        self._runner.close()

    def kill(self) -> None:
        super().kill()
        for call in self._calls:
            call.cancel()

    async def ended(self) -> None:
        await super().ended()
        if self._calls:
            await asyncio.wait(self._calls)

    async def run_once(self) -> None:
        INSIDE.set(self.context.service)
        self._busy = True
        try:
            fired = await self._fire()
            if self._with_steps and len(self._calls) < self._most_calls:
                for head in await self._lease(self._with_steps, self._most_calls - len(self._calls)):
                    self._call(head)
            heads = await self._lease(self._names, AT_ONCE)
            point("due.leased")
            for head in heads:
                await self._run_key(head, self._runner)
        finally:
            self._busy = False
        if not heads and not fired:
            await self.pause(await self._until_next())

    async def _lease(self, names: Sequence[str], limit: int) -> list[Head]:
        context = self.context
        return await context.store.due(names, context.member, limit=limit, ttl=self._ttl, now=context.clock.now())

    async def _until_next(self) -> float:
        """Seconds, at most NET. What is due and was not run is in other hands, or has to wait for one of ours."""
        store, now = self.context.store, self.context.clock.now()
        gate, timer = await store.next_due(now), await store.next_timer()
        ahead = [due - now for due in (gate, timer) if due is not None]
        if any(wait <= 0 for wait in ahead):
            return IN_THE_WAY
        return min([NET, *ahead])

    # -- timers --------------------------------------------------------------------------------

    async def _fire(self) -> int:
        """Events that are due join the order of their keys; how many."""
        context = self.context
        now, timer = context.clock.now(), await context.store.next_timer()
        if timer is None or timer > now:
            return 0
        unit = context.store.unit()
        try:
            return await drive(fire_unit(unit, now, TIMERS_AT_ONCE), unit.connection)
        finally:
            unit.close()

    # -- heads ---------------------------------------------------------------------------------

    def _call(self, head: Head) -> None:
        """Run a head with steps, and those behind it, beside everything else."""
        task = asyncio.create_task(self._run_apart(head), name=f"eventkeel {head.lease.consumer} steps")
        self._calls.add(task)
        task.add_done_callback(self._called)

    async def _run_apart(self, head: Head) -> None:
        runner = Runner(self.context.service)
        try:
            await self._run_key(head, runner)
        except Exception as error:  # the lease runs out, and then somebody tries again
            self._trouble(error)
        finally:
            runner.close()

    def _called(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # seen: whoever ended it knows why
        self.wake()

    async def _run_key(self, head: Head, runner: Runner) -> None:
        """The head, and while they succeed those behind it."""
        current: Head | None = head
        while current is not None and not self._stopping:
            gone = await self._run_head(current, runner)
            current = None
            if gone is Gone.MORE:
                held = await self.context.store.next_head(head.lease)
                current = None if held is None else Head(head.lease, held, head.until)

    async def _run_head(self, head: Head, runner: Runner) -> Gone | None:
        """MORE: applied, and more wait. None: it did not succeed, or the gate is somebody else's."""
        context = self.context
        unit = context.store.unit()
        try:
            if head.lease.consumer == context.undecided:
                return await self._tell_consumers(unit, head)
            consumer = context.routes.by_name[head.lease.consumer]
            if not head.suspect:
                async with context.quarantine.ordinary():
                    return await self._run_consumer(unit, head, consumer, runner)
            async with context.quarantine.suspect():
                gone = None if await self._kills(unit, head) else await self._run_consumer(unit, head, consumer, runner)
            self._counted.discard((head.lease.consumer, head.held.event_id))  # its outcome is stored
            return gone
        except GateLost:
            for observer in context.observers:
                observer.fenced(head.held.slice)
            return None
        except (Fenced, CommitUnknown, StoreUnavailable) as error:
            self._trouble(error)
            return None  # the lease runs out, and the inbox tells what happened
        finally:
            unit.close()

    def _trouble(self, error: BaseException) -> None:
        for observer in self.context.observers:
            observer.trouble(f"{self.context.service} due", error)

    async def _kills(self, unit: Unit, head: Head) -> bool:
        """A head whose last process died is counted before it runs; after three deaths it is a dead letter."""
        held, name, now = head.held, head.lease.consumer, self.context.clock.now()
        if (name, held.event_id) in self._counted:
            return False  # counted by this very process, which lives: an outcome that could not be stored is no death
        self._counted.add((name, held.event_id))
        starts = await drive(whole(unit, unit.mark_attempt(name, held.event_id, now)), unit.connection)
        if starts <= DEATHS:
            return False
        text = f"its process died {starts - 1} times while it ran alone"
        outcome = HeadOutcome("dead", attempts=held.attempts, reason="kills-its-process", error=text)
        await drive(outcome_unit(unit, head, outcome, now), unit.connection)
        self._report(_delivery(held), held, name, held.attempts, "dead", 0.0, text)
        return True

    async def _run_consumer(self, unit: Unit, head: Head, consumer: Consumer, runner: Runner) -> Gone | None:
        context, held = self.context, head.held
        attempt, began = held.attempts + 1, context.clock.monotonic()
        delivery = _delivery(held)
        try:
            decoded = codec.decode(delivery)
            work = _work(delivery, held, consumer, decoded.event, attempt)
            work.correlation = decoded.correlation
            gone = await self._handle(unit, head, work, runner)
        except (MalformedMessage, UnknownType) as error:
            return await self._failed(head, consumer.retry, attempt, error, delivery)
        except UnitFailed as failed:
            if isinstance(failed.cause, CommitUnknown | StoreUnavailable | GateLost):
                raise failed.cause from failed
            return await self._failed(head, consumer.retry, attempt, failed.cause, delivery)
        self._report(delivery, held, consumer.name, attempt, "applied", context.clock.monotonic() - began)
        return gone

    async def _handle(self, unit: Unit, head: Head, work: Work, runner: Runner) -> Gone | None:
        context, consumer = self.context, work.consumer
        assert consumer is not None
        if consumer.steps:
            ground = LeasedHead(head, self._ttl)
            await run_steps(context, work, ground, runner)
            return ground.gone
        scope = context.scope(unit, [work], consumer.name)
        deadline = Deadline(context.numbers.deadline, sync=consumer.sync)
        return await runner.run(head_unit(unit, scope, work, head, consumer, deadline.begun), unit, scope, deadline)

    async def _failed(
        self, head: Head, policy: Retry, attempt: int, error: BaseException, delivery: Delivery
    ) -> Gone | None:
        context = self.context
        if isinstance(error, UnknownType):
            decision = Decision("later", backoff(UNKNOWN, head.held.attempts, context.dice()))
        else:
            decision = decide(policy, error, attempt, context.dice(), parked=True)
        kind, name, text = decision.kind, head.lease.consumer, error_text(error)
        told = tell(delivery, head.held.event_id, head.held.type, attempt, name)
        for observer in context.observers:
            observer.failed(told, error, decision.wait)
        reason = error.reason if isinstance(error, MalformedMessage) else head.held.reason or "error"
        outcome = HeadOutcome(
            "dead" if kind == "dead" else "retry",
            attempts=attempt,
            due=context.clock.now() + decision.wait,
            reason=reason,
            error=text[:ERROR_TEXT],
        )
        unit = context.store.unit()
        try:
            await drive(outcome_unit(unit, head, outcome, context.clock.now()), unit.connection)
        finally:
            unit.close()
        if kind == "dead":
            self._report(delivery, head.held, name, attempt, "dead", 0.0, text)
        return None

    async def _tell_consumers(self, unit: Unit, head: Head) -> Gone | None:
        """What nobody could be told when it came: try to read it again, and hand it to its consumers' gates."""
        context, held = self.context, head.held
        delivery = _delivery(held)
        try:
            decoded = codec.decode(delivery)
        except (UnknownType, MalformedMessage) as error:
            if isinstance(error, UnknownType) and (held.slice.topic, error.type) in context.routes.ignored:
                return await drive(
                    outcome_unit(unit, head, HeadOutcome("applied"), context.clock.now()), unit.connection
                )
            return await self._failed(head, UNKNOWN, held.attempts + 1, error, delivery)
        consumers = context.routes.of(held.slice.topic, decoded.type)
        again = Held(
            event_id=decoded.id,
            slice=held.slice,
            position=held.position,
            key=head.lease.key,
            headers=held.headers,
            body=held.body,
            time=held.time,
            type=decoded.type,
            fingerprint=decoded.fingerprint,
            reason="was " + (held.reason or "unknown-type"),
        )
        names = [consumer.name for consumer in consumers]
        return await drive(forward_unit(unit, head, again, names, context.clock.now()), unit.connection)

    def _report(
        self,
        delivery: Delivery,
        held: Held,
        consumer: str,
        attempt: int,
        ending: Ending,
        seconds: float,
        error: str = "",
    ) -> None:
        told = tell(delivery, held.event_id, held.type, attempt, consumer)
        for observer in self.context.observers:
            observer.done(told, ending, seconds, error)


def _delivery(held: Held) -> Delivery:
    return Delivery(held.slice, held.position, held.key, Headers.from_packed(held.headers), held.body, held.time)


def _work(delivery: Delivery, held: Held, consumer: Consumer, event: object, attempt: int) -> Work:
    share = Share(held.slice, 0, "", 0, 0)
    arrived = Arrived(delivery, share, 1, 0.0)
    work = Work(arrived, consumer, consumer.name, event, held.event_id, held.key, held.type, held.fingerprint)
    work.attempt = attempt
    return work
