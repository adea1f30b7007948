"""Runs what is due: the heads of keys that wait.

The gate is *leased* (owner, epoch, until) in a short transaction; the head runs in its own unit, and
only that unit's last statements take the gate row: no lock on a gate or on a parked inbox row is
held while user code runs.
"""

from __future__ import annotations

from collections.abc import Callable

from eventkeel import codec
from eventkeel.drive import Program, drive
from eventkeel.engine.aside import whole
from eventkeel.engine.context import Context
from eventkeel.engine.faults import point
from eventkeel.engine.inside import INSIDE
from eventkeel.engine.lanes import DEATHS
from eventkeel.engine.lifecycle import Part
from eventkeel.engine.running import ERROR_TEXT, Deadline, Runner, error_text
from eventkeel.engine.unit_of_work import UnitFailed, call_handler
from eventkeel.engine.work import Arrived, Share, Work, tell
from eventkeel.errors import CommitUnknown, Fenced, MalformedMessage, StoreUnavailable, UnknownType
from eventkeel.handling import QueuedWriteFailed, Scope
from eventkeel.message import Delivery, Headers
from eventkeel.policy.retry import Decision, Retry, backoff, decide
from eventkeel.ports.observer import Ending
from eventkeel.ports.store import Gone, Head, HeadOutcome, Held, Unit
from eventkeel.routing import Consumer

AT_ONCE = 20
"""Gates leased in one turn."""
NET = 1.0
"""Seconds between two looks where nobody said that a gate changed: the net below the wake-ups."""
UNKNOWN = Retry(attempts=0, first=5.0, cap=60.0)
"""How often a type nobody knows is tried again: a deploy brings a new process, which tries at once."""


class Due(Part):
    """One loop for the parked heads of all consumers of this service."""

    name = "due"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._names = (*context.routes.by_name, context.undecided)
        self.running = False
        self._runner = Runner(context.service)

    async def stop(self) -> None:
        await super().stop()
        self._runner.close()

    async def run_once(self) -> None:
        INSIDE.set(self.context.service)
        context = self.context
        now = context.clock.now()
        heads = await context.store.due(
            self._names,
            context.member,
            limit=AT_ONCE,
            ttl=context.numbers.deadline + 2 * context.numbers.lease,
            now=now,
        )
        point("due.leased")
        if heads:
            self.running = True
            try:
                for head in heads:
                    await self._run_key(head)
            finally:
                self.running = False
            return
        due = await context.store.next_due(now)
        await self.pause(NET if due is None else min(NET, max(0.005, due - now)))

    async def _run_key(self, head: Head) -> None:
        """The head, and while they succeed those behind it."""
        current: Head | None = head
        while current is not None and not self._stopping:
            gone = await self._run_head(current)
            current = None
            if gone is Gone.MORE:
                held = await self.context.store.next_head(head.lease)
                current = None if held is None else Head(head.lease, held, head.until)

    async def _run_head(self, head: Head) -> Gone | None:
        """MORE: applied, and more wait. None: it did not succeed, or the gate is somebody else's."""
        context = self.context
        unit = context.store.unit()
        try:
            if head.lease.consumer == context.undecided:
                return await self._tell_consumers(unit, head)
            consumer = context.routes.by_name[head.lease.consumer]
            if not head.suspect:
                async with context.quarantine.ordinary():
                    return await self._run_consumer(unit, head, consumer)
            async with context.quarantine.suspect():
                return None if await self._kills(unit, head) else await self._run_consumer(unit, head, consumer)
        except (Fenced, CommitUnknown, StoreUnavailable) as error:
            for observer in context.observers:
                observer.trouble(f"{context.service} due", error)
            return None  # the lease runs out, and the inbox tells what happened
        finally:
            unit.close()

    async def _kills(self, unit: Unit, head: Head) -> bool:
        """A head whose last process died is counted before it runs; after three deaths it is a dead letter."""
        held, name, now = head.held, head.lease.consumer, self.context.clock.now()
        starts = await drive(whole(unit, unit.mark_attempt(name, held.event_id, now)), unit.connection)
        if starts <= DEATHS:
            return False
        text = f"its process died {starts - 1} times while it ran alone"
        outcome = HeadOutcome("dead", attempts=held.attempts, reason="kills-its-process", error=text)
        await drive(outcome_unit(unit, head, outcome, now), unit.connection)
        self._report(_delivery(held), held, name, held.attempts, "dead", 0.0, text)
        return True

    async def _run_consumer(self, unit: Unit, head: Head, consumer: Consumer) -> Gone | None:
        context, held = self.context, head.held
        attempt, began = held.attempts + 1, context.clock.monotonic()
        delivery = _delivery(held)
        try:
            decoded = codec.decode(delivery)
            work = _work(delivery, held, consumer, decoded.event, attempt)
            work.correlation = decoded.correlation
            scope = context.scope(unit, [work], consumer.name)
            deadline = Deadline(context.numbers.deadline, sync=consumer.sync)
            program = head_unit(unit, scope, work, head, consumer, deadline.begun)
            gone = await self._runner.run(program, unit, scope, deadline)
        except (MalformedMessage, UnknownType) as error:
            return await self._failed(head, consumer.retry, attempt, error, delivery)
        except UnitFailed as failed:
            if isinstance(failed.cause, CommitUnknown | StoreUnavailable | GateLost):
                raise failed.cause from failed
            return await self._failed(head, consumer.retry, attempt, failed.cause, delivery)
        self._report(delivery, held, consumer.name, attempt, "applied", context.clock.monotonic() - began)
        return gone

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


class GateLost(Fenced):
    """Another process runs this key's head by now; the unit was rolled back."""

    def __init__(self, key: bytes) -> None:
        super().__init__(f"the gate of key {key!r} belongs to another process now")


def head_unit(
    unit: Unit, scope: Scope, work: Work, head: Head, consumer: Consumer, begun: Callable[[], None]
) -> Program[Gone]:
    """Handler first, gate last: begin -> handler -> append -> take the gate, pop its head -> commit."""
    yield from unit.begin(speculative=False)
    begun()
    try:
        yield from call_handler(unit, scope, work, consumer, 0)
        yield from scope.settle()
        yield from unit.append(scope.records, scope.now)
        gone = yield from _finish(unit, head, HeadOutcome("applied"), scope.now)
        point("due.before_commit")
        yield from unit.commit()
    except QueuedWriteFailed as failed:
        yield from unit.rollback()
        raise UnitFailed(0, failed.cause) from failed.cause
    except Exception as error:
        yield from unit.rollback()
        raise UnitFailed(0, error) from error
    except BaseException:
        yield from unit.rollback()
        raise
    finally:
        scope.close()
        point("unit.over")
    return gone


def outcome_unit(unit: Unit, head: Head, outcome: HeadOutcome, now: float) -> Program[Gone]:
    """Re-date or kill a head, or pop it without an effect."""
    return whole(unit, _finish(unit, head, outcome, now))


def forward_unit(unit: Unit, head: Head, held: Held, consumers: list[str], now: float) -> Program[Gone]:
    """Hand a delivery that can be read now to the gates of its consumers, in order."""

    def body() -> Program[Gone]:
        for consumer in consumers:
            yield from unit.park(consumer, held, due=now, opens=True, epoch=0, now=now)
        return (yield from _finish(unit, head, HeadOutcome("applied"), now))

    return whole(unit, body())


def _finish(unit: Unit, head: Head, outcome: HeadOutcome, now: float) -> Program[Gone]:
    gone = yield from unit.finish_head(head.lease, head.held, outcome, now)
    if gone is Gone.LOST:
        raise GateLost(head.lease.key)
    yield from unit.clear_attempt(head.lease.consumer, head.held.event_id)
    return gone


def _delivery(held: Held) -> Delivery:
    return Delivery(held.slice, held.position, held.key, Headers.from_packed(held.headers), held.body, held.time)


def _work(delivery: Delivery, held: Held, consumer: Consumer, event: object, attempt: int) -> Work:
    share = Share(held.slice, 0, "", 0, 0)
    arrived = Arrived(delivery, share, 1, 0.0)
    work = Work(arrived, consumer, consumer.name, event, held.event_id, held.key, held.type, held.fingerprint)
    work.attempt = attempt
    return work
