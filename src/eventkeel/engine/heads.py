"""Units of work over the head of a key that waits: its gate is leased, and taken by their last statements only."""

from __future__ import annotations

from collections.abc import Callable

from eventkeel.drive import Program
from eventkeel.engine.aside import whole
from eventkeel.engine.faults import point
from eventkeel.engine.stepping import Claimed
from eventkeel.engine.unit_of_work import UnitFailed, call_handler
from eventkeel.engine.work import Work
from eventkeel.errors import Fenced
from eventkeel.handling import QueuedWriteFailed, Scope
from eventkeel.ports.store import Gone, Head, HeadOutcome, Held, Unit
from eventkeel.routing import Consumer


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
        gone = yield from finish(unit, head, HeadOutcome("applied"), scope.now)
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
    return whole(unit, finish(unit, head, outcome, now))


def forward_unit(unit: Unit, head: Head, held: Held, consumers: list[str], now: float) -> Program[Gone]:
    """Hand a delivery that can be read now to the gates of its consumers, in order."""

    def body() -> Program[Gone]:
        for consumer in consumers:
            yield from unit.park(consumer, held, due=now, opens=True, epoch=0, now=now)
        return (yield from finish(unit, head, HeadOutcome("applied"), now))

    return whole(unit, body())


def finish(unit: Unit, head: Head, outcome: HeadOutcome, now: float) -> Program[Gone]:
    gone = yield from unit.finish_head(head.lease, head.held, outcome, now)
    if gone is Gone.LOST:
        raise GateLost(head.lease.key)
    yield from unit.clear_attempt(head.lease.consumer, head.held.event_id)
    return gone


class LeasedHead:
    """On what ground a head with steps is this process's to run: see ``stepping.Ground``."""

    def __init__(self, head: Head, ttl: float) -> None:
        self._head, self._ttl = head, ttl
        self.gone: Gone | None = None

    def check(self, unit: Unit, now: float) -> Program[None]:
        """And keep the gate for the next call, which may take as long as a handler may."""
        if not (yield from unit.hold_gate(self._head.lease, now + self._ttl)):
            raise GateLost(self._head.lease.key)

    def claim(self, unit: Unit, now: float) -> Program[Claimed]:
        """Its inbox row says parked already; its gate is not locked while user code runs."""
        yield from ()
        return "new"

    def finish(self, unit: Unit, now: float) -> Program[None]:
        self.gone = yield from finish(unit, self._head, HeadOutcome("applied"), now)
        point("due.before_commit")
