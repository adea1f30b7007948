"""Runs a unit's statements on one PostgreSQL connection, for asynchronous and for synchronous units."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq

from eventkeel.errors import CommitUnknown, StatementRefused, StoreUnavailable, TransactionAborted, TransactionClosed
from eventkeel.ports.store import Kind, PipelineFailed, Reply, Statement
from eventkeel.stores.postgres.wire import Exchange, Failed, Item, Wire, run_async, run_sync

if TYPE_CHECKING:
    from eventkeel.stores.postgres.pool import Pool

NOTHING = Reply([], 0)
_IN_TRANSACTION, _ACTIVE = pq.TransactionStatus.INTRANS, pq.TransactionStatus.ACTIVE
_COMMIT_PATIENCE = 5.0
"""Seconds that a cancelled task still waits for the answer to its COMMIT."""


class _Lent:
    """On a connection lent to a user: what would end the engine's transaction is refused."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise StatementRefused(
            "begin, commit, rollback and close belong to the engine, which commits what a handler does together with "
            "its inbox row; use tx.savepoint() or connection.transaction()"
        )

    commit = rollback = close = set_autocommit = _refuse

    handle: Handle
    lease: Any = None
    """Whose it is for now; an integration's own."""

    def __del__(self, *_: Any) -> None:
        """Nothing to say: the connection goes on without this view of it."""


class LentConnection(_Lent, psycopg.Connection[Any]):
    """psycopg's connection inside a unit of work."""

    def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        self.handle.enter(lent=True)
        try:
            return super().wait(gen, *args, **options)
        finally:
            self.handle.called()


class LentAsyncConnection(_Lent, psycopg.AsyncConnection[Any]):
    """psycopg's asynchronous connection inside a unit of work."""

    async def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        self.handle.enter(lent=True)
        try:
            return await super().wait(gen, *args, **options)
        finally:
            self.handle.called()


class Handle:
    """One connection, and whether a transaction of ours has to be open on it."""

    def __init__(self, wire: Wire, generation: int) -> None:
        self.wire, self.generation = wire, generation
        self.begun: bool | None = False
        """True between BEGIN and its end as we know it; None: closed for good."""
        self.doubtful = False
        """Nobody may have it again."""
        self._later: list[Item] = []
        """Sent with the next statement whose answer is wanted; BEGIN is the usual one."""
        self._opening = 0
        self._sent = False
        """Something of the transaction has reached the server."""
        self.serial = 0
        """Number of the transaction on this connection."""
        self._guard = threading.Lock()
        """Between who enters and who closes from another thread."""

    @property
    def alive(self) -> bool:
        if self.begun is not True:
            return False
        return not self._sent or self.wire.pg.transaction_status == _IN_TRANSACTION

    @property
    def reusable(self) -> bool:
        return not (self.doubtful or self.wire.busy or self.wire.lost or self.begun is None)

    def check(self, serial: int) -> None:
        """Raises TransactionClosed: who waited for its turn must not get into the next transaction."""
        if self.serial != serial:
            raise TransactionClosed("the unit of work is over; this statement came too late for it")

    def begin(self, items: Sequence[Item]) -> None:
        self.serial += 1
        self.begun, self._sent, self.wire.lent = True, False, False
        self._later, self._opening = list(items), len(items)

    def execute(self, statement: Statement) -> Exchange[Reply]:
        """Everything but BEGIN, which has to get the connection first."""
        sql, params, kind = statement
        if kind is Kind.COMMIT:
            return (yield from self._commit())
        if kind is Kind.ROLLBACK:
            return (yield from self.rollback())
        if not self.begun:
            self._refuse()
        if kind is Kind.LATER:
            self._later.append(Item(sql, params))
            return NOTHING
        if kind is Kind.PIPELINE:
            return (yield from self._pipeline([Item(each.sql, each.params) for each in params]))
        results = yield from self._exchange([Item(sql, params)])
        return self.wire.reply(results[-1])

    def enter(self, *, lent: bool = False) -> None:
        """Somebody is inside the connection from now on: whoever closes it meanwhile must not free it.

        Behind a statement that was cut off nothing may follow: it would be given the answer to that one."""
        with self._guard:
            if self.begun is None:
                self._refuse()
            if self.wire.lost:
                raise StoreUnavailable("the connection to the database was lost")
            if self.wire.busy and not lent:
                raise TransactionAborted(
                    "a statement of this transaction was cut off (by a timeout or a cancelled task), or a COPY or a "
                    "stream on the driver's own connection is not finished; nothing of the transaction is applied"
                )
            self.wire.busy = True

    def _refuse(self) -> None:
        """Outside a transaction a statement would take effect at once, and again with the next attempt."""
        if self.begun is None:
            raise TransactionClosed("the unit of work is over; its connection is closed")
        raise TransactionAborted("no transaction was begun, or it is over; nothing was applied")

    def _exchange(self, items: list[Item]) -> Exchange[list[pq.abc.PGresult]]:
        self.enter()
        later, self._later = self._later, []
        self._sent = True
        try:
            return (yield from self.wire.exchange(later + items))
        except Failed as failed:
            cause = failed.__cause__
            if failed.index < len(later) or len(items) == 1:
                assert isinstance(cause, Exception)
                raise cause from cause.__cause__
            raise Failed(failed.index - len(later)) from cause

    def _pipeline(self, items: list[Item]) -> Exchange[Reply]:
        if not items and not self._later:
            return NOTHING
        before = len(self._later)
        try:
            results = yield from self._exchange(items)
        except Failed as failed:
            raise PipelineFailed(failed.index) from failed.__cause__
        except Exception as error:
            # One statement alone is reported as the pipeline that it is; what was queued before it, or the
            # connection, is nobody's statement.
            if len(items) == 1 and not isinstance(error, StoreUnavailable):
                raise PipelineFailed(0) from error
            raise
        affected = [(result.command_tuples or 0,) for result in results[before:]]
        return Reply(affected, len(affected))

    def _commit(self) -> Exchange[Reply]:
        if not self.alive:
            raise TransactionAborted(
                "the transaction was dead before its commit (an SQL error was caught outside a savepoint, or somebody "
                "ended it on the driver's own connection); nothing of it was applied"
            )
        if not self._sent and len(self._later) == self._opening:
            self._later = []  # nothing was asked of the database at all
            self.begun = False
            return NOTHING
        try:
            results = yield from self._exchange([Item("commit", ())])
        except StoreUnavailable as error:
            self.doubtful = True
            if not self.wire.busy:  # the server has answered: it refused something before the commit
                raise
            raise CommitUnknown(f"the answer to a commit was lost: {error}") from error
        if results[-1].command_status != b"COMMIT":
            self.begun = False
            raise TransactionAborted(
                "PostgreSQL answered the commit with ROLLBACK: an SQL error had ended the transaction before, and "
                "nothing of it was applied. Put the statement into 'with tx.savepoint():'"
            )
        self.begun = False
        return NOTHING

    def rollback(self) -> Exchange[Reply]:
        """Never raises."""
        if self.begun and self._sent and not self.wire.lost:
            self._later = []
            if self.wire.busy:
                self.doubtful = True
            else:
                try:
                    self.enter()
                    yield from self.wire.exchange([Item("rollback", ())])
                except (Failed, StoreUnavailable, TransactionAborted, TransactionClosed, psycopg.Error):
                    self.doubtful = True
        self._later = []
        if self.begun is not None:
            self.begun = False
        return NOTHING

    def lend(self, *, sync: bool) -> LentConnection | LentAsyncConnection:
        """The connection for a user's own calls, outside pipeline mode."""
        self.wire.lend()
        made: LentConnection | LentAsyncConnection
        made = LentConnection(self.wire.pg) if sync else LentAsyncConnection(self.wire.pg)
        made.handle = self
        made._autocommit = True  # it is inside our transaction, and must begin none
        made.prepare_threshold = None  # its names would meet those of another view, and its DEALLOCATE ALL our plans
        return made

    def called(self) -> None:
        """A call on a lent connection is over. One that was cut off leaves the connection in doubt, and one whose
        unit was given up meanwhile ends here."""
        self.wire.busy = self.wire.cut = self.wire.pg.transaction_status == _ACTIVE
        if self.begun is None:
            self.wire.busy = False
            self.close()

    def close(self) -> None:
        """From any thread. One that waits for the server meets an end of the connection."""
        with self._guard:
            self.begun = None
            inside = self.wire.busy and not self.wire.cut
        with contextlib.suppress(Exception):
            if inside:
                with socket.socket(fileno=os.dup(self.wire.pg.socket)) as other:
                    other.shutdown(socket.SHUT_RDWR)
            else:
                self.wire.pg.finish()


class Seat:
    """A unit's place at the database, for both of its sides. Its connection comes with its first BEGIN."""

    __slots__ = ("handle", "over", "pool", "sync")

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.handle: Handle | None = None
        self.over = False
        self.sync = False
        """The side that began."""

    @property
    def alive(self) -> bool:
        return self.handle is not None and self.handle.alive

    def take(self) -> Handle | None:
        if self.over:
            raise TransactionClosed("the unit of work is over; do not keep its transaction for later")
        if self.handle is not None and (not self.handle.reusable or (not self.handle.begun and self.handle.wire.stale)):
            handle, self.handle = self.handle, None
            self.pool.give_back(handle)
        return self.handle

    def given(self, handle: Handle) -> Handle:
        """A connection came; somebody may have stopped waiting for it meanwhile."""
        if self.over:
            self.pool.give_back(handle)
            raise TransactionClosed("the unit of work was given up while it waited for its connection")
        self.handle = handle
        return handle

    def nothing_begun(self, kind: Kind) -> Reply:
        if kind is Kind.ROLLBACK:
            return NOTHING
        if self.over:
            raise TransactionClosed("the unit of work is over; its connection is closed")
        raise TransactionAborted("no transaction was begun, or it is over; nothing was applied")

    def leave(self) -> Handle | None:
        handle, self.handle, self.over = self.handle, None, True
        return handle


def begin_items(statement: Statement) -> list[Item]:
    return [Item(statement.sql, ()), *[Item(sql, ()) for sql in statement.params]]


class AsyncSide:
    """For the event loop. A handler's tasks may use it at once: one statement after another."""

    __slots__ = ("_seat", "_turn")

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._turn = asyncio.Lock()

    @property
    def alive(self) -> bool:
        return self._seat.alive

    async def run(self, statement: Statement) -> Reply:
        seat, kind = self._seat, statement.kind
        if kind is Kind.BEGIN:
            handle = seat.take() or seat.given(await seat.pool.take())
            handle.begin(begin_items(statement))
            seat.sync = False
            return NOTHING
        if seat.handle is None:
            return seat.nothing_begun(kind)
        handle = seat.handle
        loop = asyncio.get_running_loop()
        if kind is Kind.ROLLBACK:  # waits for nobody: what is under way is thrown away with its connection
            return await run_async(handle.wire, handle.rollback(), loop)
        serial = handle.serial
        async with self._turn:
            handle.check(serial)
            if kind is Kind.COMMIT:
                return await _uncut(run_async(handle.wire, handle.execute(statement), loop))
            return await run_async(handle.wire, handle.execute(statement), loop)


async def _uncut(commit: Any) -> Reply:
    """Cancelling a task whose COMMIT is on its way would leave its outcome unknown for no reason."""
    task: asyncio.Task[Reply] = asyncio.ensure_future(commit)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_seen)
        try:
            await asyncio.wait({task}, timeout=_COMMIT_PATIENCE)
        finally:
            task.cancel()
        raise


def _seen(task: asyncio.Task[Reply]) -> None:
    """Nobody waits for what became of it."""
    if not task.cancelled():
        task.exception()


class SyncSide:
    """For a lane's thread, and those that a handler starts: one statement after another."""

    __slots__ = ("_seat", "_turn")

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._turn = threading.Lock()

    @property
    def alive(self) -> bool:
        return self._seat.alive

    def run(self, statement: Statement) -> Reply:
        seat, kind = self._seat, statement.kind
        if kind is Kind.BEGIN:
            handle = seat.take() or seat.given(seat.pool.take_sync())
            handle.begin(begin_items(statement))
            seat.sync = True
            return NOTHING
        if seat.handle is None:
            return seat.nothing_begun(kind)
        handle, serial = seat.handle, seat.handle.serial
        with self._turn:
            handle.check(serial)
            try:
                return run_sync(handle.wire, handle.execute(statement))
            finally:
                if handle.begun is None:  # given up while this ran: only now nothing of it is under way any more
                    handle.wire.busy = False
                    handle.close()
