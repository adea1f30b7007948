"""A handler with steps: calls to third parties with no transaction open, then one unit of work.

    open (look: is it ours, is it new, what is journalled?) -> user code: step, step, … -> unit of work -> settle

Each step is three things: a short transaction that asks whether the delivery is still ours, the call, and a short
transaction that journals its result. Between the first and the last another process may take the partition over: the
call cannot be undone then, but its journal row is refused with the epoch, and the new owner's call has the same key.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypeVar
from uuid import UUID, uuid5

from eventkeel.drive import Invoke, Program, drive
from eventkeel.engine.aside import whole
from eventkeel.engine.context import Context
from eventkeel.engine.faults import point
from eventkeel.engine.running import Deadline, Runner
from eventkeel.engine.unit_of_work import FencedOff, UnitFailed, by_name, check_alive, invoke, set_aside
from eventkeel.engine.work import Work
from eventkeel.errors import CommitUnknown, Fenced, StepRefused, StoreUnavailable, TransactionClosed
from eventkeel.handling import Params, QueuedWriteFailed, SyncTransaction, Transaction
from eventkeel.ports.observer import Ending
from eventkeel.ports.store import Row, Unit, Verdict
from eventkeel.routing import Consumer
from eventkeel.steps import Steps, SyncSteps

T = TypeVar("T")

Claimed = Ending | Literal["new", "again"]
"""``new``: its handler has to run. ``again``: not this time, hand it in again. Else: what became of it."""


class Ground(Protocol):
    """On what ground a delivery is this process's to handle, and what ends it."""

    def check(self, unit: Unit, now: float) -> Program[None]:
        """Raises Fenced where it is not ours any more."""
        ...

    def claim(self, unit: Unit, now: float) -> Program[Claimed]: ...

    def finish(self, unit: Unit, now: float) -> Program[None]:
        """The last statements before the commit of its effects."""
        ...


class Arrival:
    """It came from a slice that this process owns."""

    def __init__(self, context: Context, work: Work) -> None:
        self._context, self._work = context, work

    def check(self, unit: Unit, now: float) -> Program[None]:
        share = self._work.share
        if lost := (yield from unit.fence(self._context.group, {share.slice: share.epoch})):
            point("unit.fenced")
            raise FencedOff(lost)

    def claim(self, unit: Unit, now: float) -> Program[Claimed]:
        yield from self.check(unit, now)
        work = self._work
        (verdict,) = yield from unit.claim(work.name, [work.claim()], now)
        if verdict is Verdict.NEW:
            return "new"
        return (yield from set_aside(unit, work, verdict, now, self._context.numbers.key_cap)) or "again"

    def finish(self, unit: Unit, now: float) -> Program[None]:
        if self._work.marked:
            yield from unit.clear_attempt(self._work.name, self._work.event_id)


class Halted(BaseException):
    """The delivery has an outcome already: its handler ends here. Not an Exception, so that nobody catches it."""


async def run_steps(context: Context, work: Work, ground: Ground, runner: Runner) -> Claimed:
    """Run one delivery of a handler with steps. Raises UnitFailed, Fenced, CommitUnknown, StoreUnavailable."""
    consumer = work.consumer
    assert consumer is not None
    claimed, journalled = await _looked(context, work, ground)
    if claimed != "new":
        return claimed
    point("steps.opened")
    unit = context.store.unit()
    try:
        deadline = Deadline(context.numbers.deadline, sync=consumer.sync)
        run = Stepping(context, work, consumer, ground, unit, deadline, journalled)
        return await runner.run(run.program(), unit, run.scope, deadline)
    finally:
        unit.close()


async def _looked(context: Context, work: Work, ground: Ground) -> tuple[Claimed, dict[str, bytes]]:
    unit = context.store.unit()
    try:
        return await drive(_look(unit, work, ground, context.clock.now()), unit.connection)
    except Exception as error:
        raise _as_outcome(error) from error
    finally:
        unit.close()


def _look(unit: Unit, work: Work, ground: Ground, now: float) -> Program[tuple[Claimed, dict[str, bytes]]]:
    """Is there anything to do, and what was done of it before? A fresh claim is undone again: it comes with the
    effects, and not before them."""
    yield from unit.begin(speculative=False)
    try:
        claimed = yield from ground.claim(unit, now)
        journalled: dict[str, bytes] = {}
        if claimed == "new":
            journalled = yield from unit.recall(work.name, work.event_id)
            yield from unit.rollback()
        else:
            yield from unit.commit()
    except BaseException:
        yield from unit.rollback()
        raise
    return claimed, journalled


class Stepping:
    """One run of one handler with steps: what ``Steps`` asks of the engine. See ``steps.Run``.

    What happens to the delivery is noted here, so that it stands whatever user code does with the exceptions.
    """

    def __init__(
        self,
        context: Context,
        work: Work,
        consumer: Consumer,
        ground: Ground,
        unit: Unit,
        deadline: Deadline,
        journalled: dict[str, bytes],
    ) -> None:
        self._context, self._work, self._consumer, self._ground = context, work, consumer, ground
        self.unit, self._deadline, self._journalled = unit, deadline, journalled
        self.scope = context.scope(unit, [work], consumer.name)
        self._used: set[str] = set()
        """Names of steps that were run, or run now: two calls at once with one key would be one for the third party."""
        self._stage: Literal["steps", "open", "over"] = "steps"
        self._outcome: Claimed | None = None
        self._failure: BaseException | None = None
        """What went wrong with the delivery itself, and not with a call."""

    # -- the whole -----------------------------------------------------------------------------

    def program(self) -> Program[Claimed]:
        """User code, and the unit of work that it may have left to us. Driven on the unit of that work."""
        error = yield from self._handler()
        if self._outcome is None and self._failure is None and error is None and self._stage == "steps":
            try:
                yield from self.open()
                yield from self.commit()
            except Halted:
                pass
            except Exception as raised:
                error = raised
        if self._outcome is not None:
            if error is not None and self._outcome == "applied":
                self._tell(error)
            return self._outcome
        if self._stage == "open":
            yield from self.unit.rollback()
            error = error or StepRefused(f"{self._consumer.name} ended inside 'async with steps.transaction()'")
        failure = self._failure or error
        assert failure is not None
        raise _as_outcome(failure) from failure.__cause__

    def _handler(self) -> Program[Exception | None]:
        consumer, work = self._consumer, self._work
        steps = SyncSteps(self) if consumer.sync else Steps(self)
        told = work.told() if consumer.wants_delivery else None
        self._deadline.begun()
        try:
            call = Invoke(by_name, (consumer, consumer.arguments(work.event, steps, told)))
            yield from invoke(self.scope, consumer, call, passing=Halted)
        except Halted:
            return None
        except QueuedWriteFailed as failed:
            return _exception(failed.cause)
        except Exception as raised:
            return raised
        return None

    def _tell(self, error: Exception) -> None:
        """Its effects are committed: what it did wrong afterwards changes nothing, but somebody should know."""
        for observer in self._context.observers:
            observer.trouble(f"{self._consumer.name}, after its steps.transaction()", error)

    # -- steps ---------------------------------------------------------------------------------

    def key(self, step: str) -> str:
        return step_key(self._work.event_id, self._consumer.name, step)

    def short(self) -> Unit:
        return self._context.store.unit()

    def start(self, unit: Unit, step: str) -> Program[bytes | None]:
        self._go_on(f"step {step!r}")
        if step in self._used:
            raise StepRefused(
                f"{self._consumer.name}: step {step!r} was run before in this handler, and would only give its result "
                f'again. Give each call a name of its own, such as f"{step}-{{number}}"'
            )
        self._used.add(step)
        known = self._journalled.get(step)
        if known is None:
            known = (yield from self._whole(unit, self._started(unit))).get(step)
        if known is not None:
            return known
        point("steps.before_call")
        return None

    def _started(self, unit: Unit) -> Program[dict[str, bytes]]:
        yield from self._ground.check(unit, self._context.clock.now())
        return (yield from unit.recall(self._work.name, self._work.event_id))

    def called(self, step: str) -> None:
        self._deadline.begun()
        point("steps.called")

    def failed(self, step: str) -> None:
        self._used.discard(step)

    def record(self, unit: Unit, step: str, result: bytes) -> Program[bytes]:
        self._go_on(f"the result of step {step!r}")
        kept = yield from self._whole(unit, self._recorded(unit, step, result))
        point("steps.journalled")
        return kept

    def _recorded(self, unit: Unit, step: str, result: bytes) -> Program[bytes]:
        now = self._context.clock.now()
        yield from self._ground.check(unit, now)
        return (yield from unit.journal(self._work.name, self._work.event_id, step, result, now))

    def ask(self, unit: Unit, sql: str, params: Params) -> Program[list[Row]]:
        self._go_on("a read")
        statement = self._context.store.prepare(sql, params)
        try:
            yield from unit.begin(speculative=False)
            rows: list[Row] = (yield statement).rows
        except StoreUnavailable as error:
            self.scope.unavailable = error  # of this service's own database: no fault of the handler's
            raise
        finally:
            yield from unit.rollback()  # whatever it was, it only reads
        return rows

    def _whole(self, unit: Unit, body: Program[T]) -> Program[T]:
        """In a short transaction. If it fails, so has the run: a handler that goes on without its journal must not
        get as far as its effects."""
        try:
            return (yield from whole(unit, body))
        except Exception as error:
            self._failure = self._failure or error
            raise

    def _go_on(self, what: str) -> None:
        if self.scope.closed and self._outcome is None and self._failure is None:
            raise TransactionClosed(
                f"{what} comes too late: this run of {self._consumer.name} was given up. From one step to the next it "
                f"may take {self._deadline.seconds:g} s (Service(deadline=…))"
            )
        if self._stage != "steps":
            raise StepRefused(
                f"{self._consumer.name}: {what} comes after steps.transaction(), which is the last thing that a "
                "handler does, and once. Put it above; catch what may fail in it by tx.savepoint() inside"
            ) from self._failure
        if self._failure is not None:
            raise self._failure
        self._deadline.begun()

    # -- the unit of work ----------------------------------------------------------------------

    def open(self) -> Program[None]:
        self._go_on("a second steps.transaction()")
        self._stage, now = "open", self._context.clock.now()
        self.scope.now = now
        point("unit.before_begin")
        try:
            yield from self.unit.begin(speculative=False)
            point("unit.begun")
            claimed = yield from self._ground.claim(self.unit, now)
            point("unit.claimed")
            if claimed != "new":
                yield from self.unit.commit()
        except BaseException as error:
            yield from self.undo(error)
            raise
        if claimed != "new":
            self._over(claimed)
            raise Halted

    def commit(self) -> Program[None]:
        unit, scope, work = self.unit, self.scope, self._work
        try:
            check_alive(unit, scope, self._consumer)
            point("unit.handled")
            yield from scope.settle()
            yield from unit.append(scope.records, scope.now)
            yield from self._ground.finish(unit, scope.now)
            yield from unit.forget_steps(work.name, work.event_id)
            point("unit.before_commit")
            yield from unit.commit()
        except BaseException as error:
            yield from self.undo(error)
            if isinstance(error, QueuedWriteFailed):
                raise error.cause from error
            raise
        self._over("applied")
        point("unit.committed")

    def undo(self, error: BaseException) -> Program[None]:
        """It failed, and with it the delivery, whatever is caught above it."""
        self._failure = self._failure or (error.cause if isinstance(error, QueuedWriteFailed) else error)
        try:
            yield from self.unit.rollback()
        finally:
            self._over(None)

    def _over(self, outcome: Claimed | None) -> None:
        self._outcome, self._stage = outcome, "over"
        self.scope.close()
        point("unit.over")

    def handle(self) -> Transaction:
        return Transaction(self.scope, 0)

    def sync_handle(self) -> SyncTransaction:
        return SyncTransaction(self.scope, 0)


def step_key(event_id: bytes, consumer: str, step: str) -> str:
    """The same for every run of a delivery, wherever it runs."""
    return str(uuid5(UUID(bytes=event_id), f"{consumer}\n{step}"))


def _as_outcome(error: BaseException) -> BaseException:
    """As lanes and the due loop take it: what says nothing against the delivery as it is, the rest as its failure."""
    return error if isinstance(error, Fenced | CommitUnknown | StoreUnavailable) else UnitFailed(0, error)


def _exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(f"a write failed: {error!r}")
