"""What a handler receives: ``Transaction`` (or ``SyncTransaction``). ``Steps`` are in steps.py.

A transaction here is a view of one delivery on the unit of work that it shares with others. Its
statements are queued and sent in order; each carries its delivery, so that a failure is that
delivery's blame even when another handler's read sends it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from eventkeel.codec.identity import as_uuid
from eventkeel.drive import drive, drive_sync
from eventkeel.errors import PublishError, RowsMismatch, StoreUnavailable, TransactionClosed
from eventkeel.ports.store import Kind, Op, PipelineFailed, Record, Reply, Row, Statement, Store, Unit

MOST_DELAY = 100 * 366 * 86400.0
"""Seconds."""

Params = Mapping[str, Any] | object
Encode = Callable[[object, "Scope", int, float], Record]
"""What the outbox takes of an event: of which transaction, of which delivery in it, and when it happens."""


class QueuedWriteFailed(BaseException):
    """A queued ``write`` failed. Not an Exception: user code that catches everything must not
    swallow the failure of a neighbour's statement. The engine catches it; users never see it."""

    def __init__(self, index: int, cause: BaseException) -> None:
        super().__init__(f"a queued write of delivery {index} of this unit failed: {cause}")
        self.index = index
        self.cause = cause


class Queued:
    """A statement that waits for the next read, savepoint edge or commit."""

    __slots__ = ("index", "rows", "statement")

    def __init__(self, statement: Statement, rows: int | None, index: int) -> None:
        self.statement, self.rows, self.index = statement, rows, index


class Scope:
    """What the transactions of one unit of work share. Engine only."""

    __slots__ = (
        "broken",
        "closed",
        "encode",
        "failed",
        "name",
        "now",
        "queue",
        "records",
        "savepoints",
        "shared",
        "store",
        "timers",
        "unavailable",
        "unit",
    )

    def __init__(self, store: Store, unit: Unit, encode: Encode, now: float, name: str, *, shared: bool = True) -> None:
        self.store, self.unit, self.encode, self.now, self.name = store, unit, encode, now, name
        self.shared = shared
        """It belongs to deliveries, perhaps of several handlers; not: a transaction outside."""
        self.queue: list[Queued] = []
        self.records: list[Record] = []
        self.timers: list[tuple[Record, float]] = []
        """What is published for later, with when it is due (Unix seconds)."""
        self.savepoints = 0
        self.closed = False
        self.broken: BaseException | None = None
        """An SQL error raised to a handler outside any savepoint: the transaction is not to be trusted."""
        self.unavailable: BaseException | None = None
        """What this unit's own database said last: a handler may raise the same of another one."""
        self.failed: QueuedWriteFailed | None = None
        """A queued write that failed: remembered, should a handler swallow even a BaseException."""

    @property
    def catchable(self) -> bool:
        """What is queued was queued by who sends it, and may be caught: nobody else's is in a savepoint or outside."""
        return bool(self.savepoints) or not self.shared

    def flush(self) -> Op[None]:
        """Send what is queued, strictly in order. A failure is the blame of the delivery that queued it."""
        if not self.queue:
            return
        queue, self.queue = self.queue, []
        try:
            reply = yield Statement("", [each.statement for each in queue], Kind.PIPELINE)
        except PipelineFailed as failed:
            cause = failed.__cause__ or failed
            if self.catchable:
                raise cause from None
            self.failed = QueuedWriteFailed(queue[failed.index].index, cause)
            raise self.failed from cause
        for each, (affected,) in zip(queue, reply.rows, strict=True):
            if each.rows is not None and affected != each.rows:
                mismatch = RowsMismatch(
                    f"a write that said rows={each.rows} affected {affected} rows: {_brief(each.statement.sql)}"
                )
                if self.catchable:
                    raise mismatch
                self.failed = QueuedWriteFailed(each.index, mismatch)
                raise self.failed

    def settle(self) -> Op[None]:
        """Send what is queued, and write down what is published for later."""
        yield from self.flush()
        if self.timers:
            timers, self.timers = self.timers, []
            yield from self.unit.schedule([record for record, _ in timers], [due for _, due in timers])

    def note(self, error: Exception) -> None:
        """A statement's error is on its way to the handler."""
        if isinstance(error, StoreUnavailable):
            self.unavailable = error
        if not self.savepoints and self.broken is None:
            self.broken = error

    def close(self) -> None:
        self.closed = True
        self.queue = []
        self.records = []
        self.timers = []


class _Base:
    """What both kinds of transaction share: queueing, publishing, and the operations below them."""

    __slots__ = ("_direct", "_index", "_scope")

    def __init__(self, scope: Scope, index: int) -> None:
        self._scope, self._index, self._direct = scope, index, False

    def _open(self) -> Scope:
        if self._scope.closed:
            raise TransactionClosed(
                f"the unit of work of {self._scope.name} is over; do not keep its transaction for later "
                "or for another task"
            )
        return self._scope

    def write(self, sql: str, params: Params = (), rows: int | None = None) -> None:
        """Queue a statement: sent in order before the next read, savepoint edge and commit.

        The fast way to write. ``params`` is a mapping or an object with the attributes named by
        ``:name`` in ``sql``. ``rows``: the delivery fails with RowsMismatch when the statement
        affects another number of rows; use it for every guarded update. A failure of the statement
        is this delivery's failure and cannot be caught in the handler (use ``execute``), except
        by a ``savepoint()`` around it.
        """
        scope = self._open()
        queued = Queued(scope.store.prepare(sql, params), rows, self._index)
        if self._direct:
            try:
                scope.unit.sync_connection.run(queued.statement)
            except Exception as error:
                scope.note(error)
                raise
        else:
            scope.queue.append(queued)

    def publish(self, event: object, *, delay: timedelta | float | None = None, at: datetime | None = None) -> UUID:
        """Publish with this transaction's commit, or not at all. Returns the event's id.

        Encoding, routing and size are checked here, in the author's call: raises PublishError.
        ``delay`` (seconds, or a timedelta) or ``at`` (a time with its zone): publish it then, or later, never before;
        ``cancel`` takes it back until then. It joins the order of its key when it is due, which is also its time
        (``ce_time``). While an event waits, the same one (with an identity: the same fact) is not scheduled again:
        the first time stays.
        """
        scope = self._open()
        due = due_at(scope.now, delay, at)
        record = scope.encode(event, scope, self._index, scope.now if due is None else due)
        if due is None:
            scope.records.append(record)
        else:
            scope.timers.append((record, due))
        return as_uuid(record.event_id)

    # -- operations, run by the two drivers ---------------------------------------------------

    def _statement(self, sql: str, params: Params) -> Op[Reply]:
        scope = self._open()
        statement = scope.store.prepare(sql, params)
        try:
            yield from scope.flush()
            return (yield statement)
        except Exception as error:
            scope.note(error)
            raise

    def _cancel(self, id: UUID) -> Op[bool]:
        scope = self._open()
        yield from scope.settle()
        return (yield from scope.unit.cancel(id.bytes))

    def _lend(self) -> Op[None]:
        """Everything of this transaction has to have reached the database, its BEGIN too."""
        yield from self._open().flush()
        yield Statement("", [], Kind.PIPELINE)
        self._direct = True

    def _enter(self) -> Op[tuple[str, int]]:
        scope = self._open()
        yield from scope.settle()
        name = f"eventkeel_{scope.savepoints}"
        yield from scope.unit.savepoint(name)
        scope.savepoints += 1
        return name, len(scope.records)

    def _leave(self, name: str) -> Op[None]:
        scope = self._open()
        yield from scope.settle()
        yield from scope.unit.release(name)
        scope.savepoints -= 1

    def _undo(self, name: str, records: int) -> Op[None]:
        scope = self._scope
        if scope.closed:
            return
        scope.queue.clear()
        scope.timers.clear()
        del scope.records[records:]
        scope.savepoints -= 1
        yield from scope.unit.rollback_to(name)
        yield from scope.unit.release(name)


class Transaction(_Base):
    """One delivery's part of a unit of work, in an asynchronous service.

    Everything done through it, and every event published with it, commits together with the
    delivery's inbox row, or not at all. Use it only inside the handler that received it.
    """

    __slots__ = ()

    async def _run(self, op: Generator[Statement, Reply, Any]) -> Any:
        return await drive(op, self._scope.unit.connection)

    async def execute(self, sql: str, params: Params = ()) -> int:
        """Run a statement now; the number of rows affected. An error that you mean to catch belongs
        into ``async with tx.savepoint()``: caught outside of one, it fails the delivery."""
        reply: Reply = await self._run(self._statement(sql, params))
        return reply.affected

    async def fetch_all(self, sql: str, params: Params = ()) -> list[Row]:
        """All rows, as tuples."""
        reply: Reply = await self._run(self._statement(sql, params))
        return reply.rows

    async def fetch_one(self, sql: str, params: Params = ()) -> Row | None:
        """The first row, or None."""
        rows = await self.fetch_all(sql, params)
        return rows[0] if rows else None

    async def fetch_value(self, sql: str, params: Params = ()) -> Any:
        """The first column of the first row, or None."""
        row = await self.fetch_one(sql, params)
        return row[0] if row else None

    async def cancel(self, id: UUID) -> bool:
        """Take back an event that was published with ``delay`` or ``at``, in this transaction or an earlier one, by
        the id that ``publish`` returned. False: there is none (any more); it may have been published."""
        cancelled: bool = await self._run(self._cancel(id))
        return cancelled

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """A part that can fail alone: an exception leaving the block undoes its writes and cancels, and drops
        the events published in it, for now or for later; catch it around the block. Queued writes are sent on entry and
        before release, so their errors are raised inside the ``async with``."""
        name, records = await self._run(self._enter())
        try:
            yield
            await self._run(self._leave(name))
        except BaseException:
            await self._run(self._undo(name, records))
            raise

    async def native(self) -> Any:
        """The driver's own connection, inside this transaction. Sends the queue first; from then on
        this handler's writes are sent at once. Never begin, commit or roll back on it."""
        await self._run(self._lend())
        return self._scope.unit.native


class SyncTransaction(_Base):
    """One delivery's part of a unit of work, in a synchronous service: as ``Transaction``, without await."""

    __slots__ = ()

    def _run(self, op: Generator[Statement, Reply, Any]) -> Any:
        return drive_sync(op, self._scope.unit.sync_connection)

    def execute(self, sql: str, params: Params = ()) -> int:
        """As ``Transaction.execute``."""
        reply: Reply = self._run(self._statement(sql, params))
        return reply.affected

    def fetch_all(self, sql: str, params: Params = ()) -> list[Row]:
        """All rows, as tuples."""
        reply: Reply = self._run(self._statement(sql, params))
        return reply.rows

    def fetch_one(self, sql: str, params: Params = ()) -> Row | None:
        """The first row, or None."""
        rows = self.fetch_all(sql, params)
        return rows[0] if rows else None

    def fetch_value(self, sql: str, params: Params = ()) -> Any:
        """The first column of the first row, or None."""
        row = self.fetch_one(sql, params)
        return row[0] if row else None

    def cancel(self, id: UUID) -> bool:
        """As ``Transaction.cancel``."""
        cancelled: bool = self._run(self._cancel(id))
        return cancelled

    @contextlib.contextmanager
    def savepoint(self) -> Iterator[None]:
        """As ``Transaction.savepoint``."""
        name, records = self._run(self._enter())
        try:
            yield
            self._run(self._leave(name))
        except BaseException:
            self._run(self._undo(name, records))
            raise

    def native(self) -> Any:
        """As ``Transaction.native``."""
        self._run(self._lend())
        return self._scope.unit.native


def due_at(now: float, delay: timedelta | float | None, at: datetime | None) -> float | None:
    """When an event is to be published, in Unix seconds; None: with the commit. Raises PublishError."""
    if at is not None:
        if delay is not None:
            raise PublishError("say delay= or at=, not both")
        if getattr(at, "tzinfo", None) is None:  # what is no datetime at all, too
            raise PublishError(f"at= takes a datetime with its zone, such as datetime.now(UTC), not {at!r}")
        return at.timestamp()
    if delay is None:
        return None
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    if not 0 <= seconds < MOST_DELAY:
        raise PublishError(f"delay= takes seconds from 0 on (a century at most), or a timedelta, not {delay!r}")
    return now + seconds


def _brief(sql: str) -> str:
    text = " ".join(sql.split())
    return text if len(text) <= 120 else text[:117] + "…"
