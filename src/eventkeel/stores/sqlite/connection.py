"""Runs statements on one SQLite connection, for asynchronous and for synchronous units."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import apsw

from eventkeel._sqlite import begin_immediate, begin_immediate_async, connect
from eventkeel.errors import CommitUnknown, StoreUnavailable, TransactionAborted, TransactionClosed
from eventkeel.ports.store import Kind, PipelineFailed, Reply, Row, Statement
from eventkeel.stores.sqlite.values import read, reader

Readers = tuple[Callable[[Any], Any] | None, ...] | None
_NOTHING = Reply([], 0)
_MOST_SHAPES = 1000
"""Statements whose columns are remembered: SQL that is put together anew each time must not fill the memory."""


def fetch(db: apsw.Connection, sql: str, params: Sequence[Any] = ()) -> list[Row]:
    """All rows of one statement, as SQLite gives them."""
    rows: list[Row] = db.execute(sql, params).fetchall()
    return rows


_MACHINE = (apsw.FullError, apsw.IOError, apsw.CantOpenError, apsw.ReadOnlyError, apsw.CorruptError, apsw.BusyError)
"""What says something of the disk or the file, and nothing against the statement."""


def _refuse_transactions(operation: int, *_: str | None) -> int:
    if operation in (apsw.SQLITE_TRANSACTION, apsw.SQLITE_ATTACH, apsw.SQLITE_DETACH):
        return apsw.SQLITE_DENY
    return apsw.SQLITE_OK


class Handle:
    """One connection, and whether a transaction of ours has to be open on it."""

    def __init__(self, path: str) -> None:
        self.native = connect(path)
        self.begun: bool | None = False
        """True between BEGIN and its end as we know it; None: closed for good."""
        self.doubtful = False
        """A commit or a rollback failed on it: nobody may have it again."""
        self._lent = False
        self._readers: dict[str, Readers] = {}

    @property
    def alive(self) -> bool:
        return self.begun is True and self.native.in_transaction

    @property
    def in_use(self) -> bool:
        """A transaction is open on it, or another thread is inside one of its statements."""
        try:
            return self.native.in_transaction
        except apsw.Error:
            return True

    def opened(self) -> None:
        """After a BEGIN, for which somebody may have stopped waiting meanwhile."""
        if self.begun is None:
            self.close()
            raise TransactionClosed("the unit of work was given up while it waited for its transaction")
        self.begun = True

    def execute(self, statement: Statement) -> Reply:
        """Everything but BEGIN, which has to wait in its own way."""
        sql, params, kind = statement
        if kind is Kind.COMMIT:
            self._commit()
            return _NOTHING
        if kind is Kind.ROLLBACK:
            self.rollback()
            return _NOTHING
        native = self.native
        if not self.begun or not native.in_transaction:
            self._refuse()
        if kind is Kind.PIPELINE:
            return self._pipeline(params)
        try:
            if kind is Kind.MANY:
                before = native.total_changes()
                return Reply(native.executemany(sql, params).fetchall(), native.total_changes() - before)
            before = native.total_changes()
            rows: list[Row] = native.execute(sql, params).fetchall()
        except _MACHINE as error:
            raise self._unavailable(error) from error
        if rows:
            return Reply(self._converted(sql, params, rows), len(rows))
        return Reply(rows, native.changes() if native.total_changes() != before else 0)  # or the last one's

    def _refuse(self) -> None:
        """Outside a transaction a statement would take effect at once, and again with the next attempt."""
        if self.begun is None:
            self.close()
            raise TransactionClosed("the unit of work is over; its connection is closed")
        if not self.begun:
            raise TransactionAborted("no transaction was begun, or it is over; nothing was applied")
        raise TransactionAborted(
            "SQLite has ended the transaction by itself (disk full, or a trigger with raise(rollback)): nothing of it "
            "was applied, and nothing more can run in it"
        )

    def _pipeline(self, statements: Sequence[Statement]) -> Reply:
        native = self.native
        affected: list[Row] = []
        before = native.total_changes()
        try:
            for sql, params, _ in statements:
                native.execute(sql, params).fetchall()
                after = native.total_changes()
                affected.append((native.changes() if after != before else 0,))  # or the last one's
                before = after
        except _MACHINE as error:
            raise PipelineFailed(len(affected)) from self._unavailable(error)
        except Exception as error:
            raise PipelineFailed(len(affected)) from error
        return Reply(affected, len(affected))

    def _unavailable(self, error: apsw.Error) -> StoreUnavailable:
        return StoreUnavailable(f"{self.native.filename} cannot be used now: {type(error).__name__}: {error}")

    def lend(self) -> apsw.Connection:
        """The connection itself, for a user's own calls: what would end the engine's transaction is refused on it
        until the unit ends it."""
        if self.begun:
            self.native.set_authorizer(_refuse_transactions)
            self._lent = True
        return self.native

    def _take_back(self) -> None:
        if self._lent:
            self._lent = False
            self.native.set_authorizer(None)

    def _commit(self) -> None:
        native = self.native
        if not self.alive:
            raise TransactionAborted("SQLite had ended the transaction before its commit; nothing of it was applied")
        self._take_back()
        try:
            native.execute("commit")
        except apsw.ConstraintError:
            raise  # a deferred constraint: the transaction is still open, and nothing is applied
        except apsw.BusyError as error:
            raise StoreUnavailable(f"{native.filename} was busy at commit; nothing was applied") from error
        except apsw.Error as error:
            self.doubtful = True  # its frames may lie in the log, and a recovery may find them
            raise CommitUnknown(f"the disk failed during a commit to {native.filename}: {error}") from error
        self.begun = False

    def rollback(self) -> None:
        closed = self.begun is None
        try:
            self._take_back()
            if self.native.in_transaction:
                self.native.execute("rollback")
        except apsw.Error:
            self.doubtful = True
        if closed:
            self.close()
        else:
            self.begun = False

    def _converted(self, sql: str, params: Any, rows: list[Row]) -> list[Row]:
        readers = self._readers.get(sql, ())
        if readers is not None and len(readers) != len(rows[0]):  # new, or another process has altered the table
            if len(self._readers) >= _MOST_SHAPES:
                self._readers.clear()
            readers = self._readers[sql] = self._describe(sql, params)
        return rows if readers is None else read(rows, readers)

    def _describe(self, sql: str, params: Any) -> Readers:
        """By a statement that is prepared and not run."""
        readers: list[Callable[[Any], Any] | None] = []

        def look(cursor: apsw.Cursor, statement: str, bindings: Any) -> bool:
            readers.extend(reader(declared) for _, declared in cursor.get_description())
            return False

        cursor = self.native.cursor()
        cursor.exec_trace = look
        with contextlib.suppress(apsw.ExecTraceAbort):
            cursor.execute(sql, params)
        return tuple(readers) if any(readers) else None

    def close(self) -> None:
        """From any thread. A statement under way elsewhere is interrupted; user code there can do no
        more harm: whatever it asks next is refused, and the connection closed behind it."""
        self.begun = None
        with contextlib.suppress(Exception):
            self.native.interrupt()
        with contextlib.suppress(Exception):
            self._take_back()
        with contextlib.suppress(Exception):
            if self.native.in_transaction:
                self.native.execute("rollback")
        with contextlib.suppress(Exception):
            self.native.close()


class Seat:
    """A unit's place at the database, for both of its sides. Its connection comes with its first BEGIN:
    a thousand units that wait for the one writer must not have a thousand files open."""

    __slots__ = ("_lend", "beginning", "handle", "over")

    def __init__(self, lend: Callable[[], Handle]) -> None:
        self._lend = lend
        self.handle: Handle | None = None
        self.beginning = False
        """Somebody waits for BEGIN on it, perhaps in another thread."""
        self.over = False

    @property
    def alive(self) -> bool:
        return self.handle is not None and self.handle.alive

    def take(self) -> Handle:
        """Its connection, from now until it is left."""
        if self.over:
            raise TransactionClosed("the unit of work is over; do not keep its transaction for later")
        if self.handle is None:
            try:
                self.handle = self._lend()
            except _MACHINE as error:
                raise StoreUnavailable(f"no connection could be opened: {error}") from error
        return self.handle

    def nothing_begun(self, kind: Kind) -> Reply:
        if kind is Kind.ROLLBACK:
            return _NOTHING
        if self.over:
            raise TransactionClosed("the unit of work is over; its connection is closed")
        raise TransactionAborted("no transaction was begun, or it is over; nothing was applied")

    def leave(self) -> tuple[Handle | None, bool]:
        """For good: the connection, and whether somebody may still be using it. Who kept the unit
        (a handler's thread after its timeout) must never write into another one's transaction."""
        handle, self.handle, self.over = self.handle, None, True
        return handle, self.beginning or (handle is not None and handle.in_use)


class AsyncSide:
    """For the event loop. SQLite answers in microseconds, so statements run on the loop itself: a
    thread hop would cost twenty times as much. Only BEGIN waits, without blocking the loop; the
    units of one process queue for it, so that they do not spin against each other."""

    __slots__ = ("_queue", "_queued", "_seat")

    def __init__(self, seat: Seat, queue: asyncio.Lock) -> None:
        self._seat, self._queue, self._queued = seat, queue, False

    @property
    def alive(self) -> bool:
        return self._seat.alive

    async def run(self, statement: Statement) -> Reply:
        if statement.kind is Kind.BEGIN:
            await self._begin()
            return _NOTHING
        handle = self._seat.handle
        if handle is None:
            return self._seat.nothing_begun(statement.kind)
        try:
            return handle.execute(statement)
        finally:
            if self._queued and not handle.alive:
                self.leave()

    async def _begin(self) -> None:
        await self._queue.acquire()
        self._queued = True
        seat = self._seat
        try:
            handle = seat.take()
            seat.beginning = True
            await begin_immediate_async(handle.native)
            handle.opened()
        except BaseException as error:
            self.leave()
            if isinstance(error, _MACHINE):
                raise StoreUnavailable(f"no transaction could be opened: {error}") from error
            raise
        finally:
            seat.beginning = False

    def leave(self) -> None:
        if self._queued:
            self._queued = False
            self._queue.release()


class SyncSide:
    """For a lane's thread."""

    __slots__ = ("_seat",)

    def __init__(self, seat: Seat) -> None:
        self._seat = seat

    @property
    def alive(self) -> bool:
        return self._seat.alive

    def run(self, statement: Statement) -> Reply:
        if statement.kind is Kind.BEGIN:
            self._begin()
            return _NOTHING
        handle = self._seat.handle
        if handle is None:
            return self._seat.nothing_begun(statement.kind)
        try:
            return handle.execute(statement)
        finally:
            if handle.begun is None:
                handle.close()  # given up while this ran: only now nothing of it is under way any more

    def _begin(self) -> None:
        seat = self._seat
        handle = seat.take()
        seat.beginning = True
        try:
            begin_immediate(handle.native)
            handle.opened()
        except _MACHINE as error:
            raise StoreUnavailable(f"no transaction could be opened: {error}") from error
        finally:
            seat.beginning = False
