"""START HERE: the life of a delivery, in one transaction.

    begin -> fence -> claim -> handlers -> append -> commit          (then, outside: settle)

One delivery per transaction is the truth; several share one only speculatively: any failure rolls
the whole back, and its parts run again (policy/blame.py). This file decides and does no I/O: it
yields statements and calls, which drive.py carries out, asynchronously or not.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Sequence
from typing import NamedTuple

from eventkeel.drive import Invoke, Program
from eventkeel.engine.faults import point
from eventkeel.engine.work import Work, conflict_id
from eventkeel.errors import CommitUnknown, Fenced, StoreUnavailable, TransactionAborted
from eventkeel.handling import QueuedWriteFailed, Scope, SyncTransaction, Transaction
from eventkeel.message import Slice
from eventkeel.ports.observer import Ending
from eventkeel.ports.store import Parked, Unit, Verdict
from eventkeel.routing import Consumer

_UNDONE = (Awaitable, Generator, AsyncGenerator)
"""What a call returns instead of doing its work."""


class UnitFailed(Exception):
    """The unit was rolled back. ``index``: the delivery to blame, or None where it cannot be known."""

    def __init__(self, index: int | None, cause: BaseException) -> None:
        super().__init__(index, type(cause).__name__)  # not its text: a user's error may be unable to make one
        self.index, self.cause = index, cause


class FencedOff(Fenced):
    """These slices belong to another process; the unit was rolled back."""

    def __init__(self, slices: tuple[Slice, ...]) -> None:
        super().__init__(", ".join(map(str, slices)))
        self.slices = slices


class UnitLimits(NamedTuple):
    """What one unit may take: seconds after which it takes no further delivery, and how many
    deliveries may wait behind one gate. ``begun`` is called when the transaction is open; ``handled`` is
    told how many seconds the handlers and their statements took, and for how many deliveries, without the
    wait for the database and the commit, which are not their slowness."""

    seconds: float
    clock: Callable[[], float]
    cap: int
    begun: Callable[[], None]
    handled: Callable[[float, int], None]


def unit_of_work(
    unit: Unit, scope: Scope, works: Sequence[Work], consumer: Consumer, group: str, limits: UnitLimits
) -> Program[list[Ending | None]]:
    """Handle ``works`` of one consumer in one transaction; what became of each.

    None: not this time, hand it in again (the gate it waited behind is gone, or the batch was
    closed early because it took too long). Raises UnitFailed, FencedOff, CommitUnknown.
    """
    point("unit.before_begin")
    yield from unit.begin(speculative=len(works) > 1)
    limits.begun()
    started = limits.clock()
    try:
        point("unit.begun")
        shares = {work.arrived.share for work in works}
        if lost := (yield from unit.fence(group, {share.slice: share.epoch for share in shares})):
            point("unit.fenced")
            raise FencedOff(lost)
        if consumer.exclusive:
            yield from unit.exclude(consumer.name, sorted({work.key for work in works if work.key is not None}))
        verdicts = yield from unit.claim(consumer.name, [work.claim() for work in works], scope.now)
        point("unit.claimed")
        handle = _handle_together if consumer.batch else _handle_each
        endings = yield from handle(unit, scope, works, verdicts, consumer, limits)
        if works[0].marked:
            yield from unit.clear_attempt(consumer.name, works[0].event_id)
        point("unit.handled")
        yield from scope.settle()
        limits.handled(limits.clock() - started, len(endings) - endings.count(None))
        yield from unit.append(scope.records, scope.now)
        point("unit.before_commit")
        yield from unit.commit()
    except QueuedWriteFailed as failed:
        yield from unit.rollback()
        raise UnitFailed(failed.index, failed.cause) from failed.cause
    except Exception as error:
        yield from unit.rollback()
        if isinstance(error, FencedOff | UnitFailed):
            raise
        raise UnitFailed(None, error) from error
    except BaseException:
        yield from unit.rollback()
        raise
    finally:
        scope.close()
        point("unit.over")
    point("unit.committed")
    return endings


def _handle_each(
    unit: Unit, scope: Scope, works: Sequence[Work], verdicts: Sequence[Verdict], consumer: Consumer, limits: UnitLimits
) -> Program[list[Ending | None]]:
    """One after another, in order; no savepoints. A failure is the blame of the delivery that ran."""
    endings: list[Ending | None] = [None] * len(works)
    again: set[bytes | None] = set()
    closes = limits.clock() + limits.seconds
    for index, (work, verdict) in enumerate(zip(works, verdicts, strict=True)):
        try:
            if verdict is Verdict.NEW:
                yield from call_handler(unit, scope, work, consumer, index)
                endings[index] = "applied"
            elif work.key not in again:  # what follows on a key must not pass what is handed in again
                endings[index] = yield from set_aside(unit, work, verdict, scope.now, limits.cap)
                if endings[index] is None:
                    again.add(work.key)
        except Exception as error:
            raise UnitFailed(index, error) from error
        if limits.clock() > closes and index + 1 < len(works):
            rest = zip(works[index + 1 :], verdicts[index + 1 :], strict=True)
            yield from unit.unclaim(consumer.name, [w.event_id for w, verdict in rest if verdict is Verdict.NEW])
            break
    return endings


def call_handler(unit: Unit, scope: Scope, work: Work, consumer: Consumer, index: int) -> Program[None]:
    """Run user code for one delivery. A handler of lists is given a list of one here."""
    tx = SyncTransaction(scope, index) if consumer.sync else Transaction(scope, index)
    if consumer.plain:
        yield from invoke(scope, consumer, Invoke(consumer.call, (work.event, tx)))
    else:
        told = work.told() if consumer.wants_delivery else None
        one = consumer.batch
        arguments = consumer.arguments([work.event] if one else work.event, tx, [told] if one else told)
        yield from invoke(scope, consumer, Invoke(by_name, (consumer, arguments)))
    check_alive(unit, scope, consumer)


def by_name(consumer: Consumer, arguments: dict[str, object]) -> object:
    return consumer.call(**arguments)


def invoke(
    scope: Scope, consumer: Consumer, call: Invoke, *, passing: type[BaseException] = QueuedWriteFailed
) -> Program[None]:
    """User code may raise anything; what would end the loop that runs it, or speaks of another database than
    this unit's, becomes an ordinary failure. ``passing``: what is the engine's own."""
    try:
        made = yield call
    except (StoreUnavailable, CommitUnknown) as error:
        if error is scope.unavailable:
            raise
        raise RuntimeError(f"{consumer.name} raised {type(error).__name__}, not of its own database") from error
    except (Exception, QueuedWriteFailed, passing, CancelledError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise RuntimeError(f"{consumer.name} raised {type(error).__name__}, which is no Exception") from error
    if made is not None and isinstance(made, _UNDONE):
        if isinstance(made, Coroutine):
            made.close()
        raise TypeError(
            f"{consumer.name} returned a {type(made).__name__}, which nobody runs, so nothing was done. A handler is "
            "a plain function or 'async def' without yield; a decorator around 'async def' has to await it"
        )


def _handle_together(
    unit: Unit, scope: Scope, works: Sequence[Work], verdicts: Sequence[Verdict], consumer: Consumer, limits: UnitLimits
) -> Program[list[Ending | None]]:
    """A handler of list[Event] gets the claimed ones, in order, once. Any failure in it is blame unknown."""
    endings: list[Ending | None] = []
    for work, verdict in zip(works, verdicts, strict=True):
        if verdict is Verdict.NEW:
            endings.append("applied")
        else:
            endings.append((yield from set_aside(unit, work, verdict, scope.now, limits.cap)))
    fresh = [work for work, verdict in zip(works, verdicts, strict=True) if verdict is Verdict.NEW]
    if fresh:
        tx = SyncTransaction(scope, 0) if consumer.sync else Transaction(scope, 0)
        told = [work.told() for work in fresh] if consumer.wants_delivery else []
        arguments = consumer.arguments([work.event for work in fresh], tx, told)
        try:
            yield from invoke(scope, consumer, Invoke(by_name, (consumer, arguments)))
            check_alive(unit, scope, consumer)
            yield from scope.flush()
        except QueuedWriteFailed as failed:
            raise UnitFailed(None if len(works) > 1 else 0, failed.cause) from failed.cause
    return endings


def set_aside(unit: Unit, work: Work, verdict: Verdict, now: float, cap: int) -> Program[Ending | None]:
    """Everything but a fresh claim: a duplicate, a key that waits, an identity with other facts."""
    if verdict is Verdict.DONE:
        return "duplicate"
    if verdict is Verdict.WAITING:
        held, epoch = work.held(), work.share.epoch
        kept = yield from unit.park(work.name, held, due=0.0, opens=False, epoch=epoch, now=now, cap=cap)
        work.share.stalled |= kept is Parked.FULL
        return "parked" if kept is Parked.KEPT else None
    assert work.fingerprint is not None
    held = work.held(
        event_id=conflict_id(work.event_id, work.fingerprint),
        reason="identity-conflict",
        error="an event with this identity and other facts was taken before; this one was not applied",
    )
    yield from unit.bury(work.name, held, blocks=False, epoch=work.share.epoch, now=now)
    return "conflict"


def check_alive(unit: Unit, scope: Scope, consumer: Consumer) -> None:
    """A handler that swallowed an SQL error must not commit what is left of its work."""
    if scope.failed is not None:
        raise scope.failed
    if scope.broken is not None:
        broken, scope.broken = scope.broken, None
        if isinstance(broken, StoreUnavailable):
            raise broken  # no fault of the handler's, and catching it was none either
        raise TransactionAborted(
            f"{consumer.name} caught an SQL error outside a savepoint and went on; nothing of this unit was "
            f"applied. Put the statement into 'with tx.savepoint():' and catch around it. The error was: {broken}"
        ) from broken
    alive = unit.sync_connection.alive if consumer.sync else unit.connection.alive
    if not alive:
        raise TransactionAborted(
            f"the database ended the transaction while {consumer.name} ran (disk full, or a statement with "
            "'or rollback'); nothing of this unit was applied"
        )
