"""Runs statements on one SQLite connection, for asynchronous and for synchronous units."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import apsw
import apsw.ext

from eventkeel._sqlite import begin_immediate, begin_immediate_async, connect
from eventkeel.errors import CommitUnknown, StoreUnavailable, TransactionAborted
from eventkeel.ports.store import Kind, PipelineFailed, Reply, Row, Statement
from eventkeel.stores.sqlite.values import read, reader

Readers = tuple[Callable[[Any], Any] | None, ...] | None
_NOTHING = Reply([], 0)


class Handle:
    """One connection. ``durable`` False: its commits may be lost in a power failure (never in a
    crash of the process), which is right for what may be done twice."""

    def __init__(self, path: str, *, durable: bool = True) -> None:
        self.native = connect(path)
        if not durable:
            self.native.execute("pragma synchronous=normal")
        self._readers: dict[str, Readers] = {}

    @property
    def alive(self) -> bool:
        return self.native.in_transaction

    def execute(self, statement: Statement) -> Reply:
        """Everything but BEGIN, which has to wait in its own way."""
        sql, params, kind = statement
        native = self.native
        if kind is Kind.RUN:
            cursor = native.execute(sql, params)
            rows: list[Row] = cursor.fetchall()
            if rows:
                return Reply(self._converted(sql, rows), len(rows))
            return Reply(rows, native.changes())
        if kind is Kind.PIPELINE:
            return self._pipeline(params)
        if kind is Kind.MANY:
            return Reply(native.executemany(sql, params).fetchall(), native.changes())
        if kind is Kind.COMMIT:
            self._commit()
        elif kind is Kind.ROLLBACK:
            self.rollback()
        return _NOTHING

    def _pipeline(self, statements: Sequence[Statement]) -> Reply:
        native, affected, index = self.native, [], 0
        try:
            for index, statement in enumerate(statements):
                native.execute(statement.sql, statement.params)
                affected.append((native.changes(),))
        except Exception as error:
            raise PipelineFailed(index) from error
        return Reply(affected, len(affected))

    def _commit(self) -> None:
        native = self.native
        if not native.in_transaction:
            raise TransactionAborted("SQLite had ended the transaction before its commit; nothing of it was applied")
        try:
            native.execute("commit")
        except apsw.ConstraintError:
            raise  # a deferred constraint: the transaction is still open, and nothing is applied
        except apsw.BusyError as error:
            raise StoreUnavailable(f"{native.filename} was busy at commit; nothing was applied") from error
        except apsw.Error as error:
            raise CommitUnknown(f"the disk failed during a commit to {native.filename}: {error}") from error

    def rollback(self) -> None:
        with contextlib.suppress(apsw.Error):
            if self.native.in_transaction:
                self.native.execute("rollback")

    def _converted(self, sql: str, rows: list[Row]) -> list[Row]:
        readers = self._readers.get(sql, ())
        if readers == ():
            readers = self._readers[sql] = self._describe(sql)
        return rows if readers is None else read(rows, readers)

    def _describe(self, sql: str) -> Readers:
        described = apsw.ext.query_info(self.native, sql).description
        readers = tuple(reader(declared) for _, declared in described)
        return readers if any(readers) else None

    def close(self) -> None:
        """From any thread. A statement under way elsewhere is interrupted; user code there can do no more harm."""
        with contextlib.suppress(Exception):
            self.native.interrupt()
            self.rollback()
            self.native.close()


class AsyncSide:
    """For the event loop. SQLite answers in microseconds, so statements run on the loop itself: a
    thread hop would cost twenty times as much. Only BEGIN waits, without blocking the loop; the
    units of one process queue for it, so that they do not spin against each other."""

    __slots__ = ("_handle", "_queue", "_queued")

    def __init__(self, handle: Handle, queue: asyncio.Lock) -> None:
        self._handle, self._queue, self._queued = handle, queue, False

    @property
    def alive(self) -> bool:
        return self._handle.native.in_transaction

    async def run(self, statement: Statement) -> Reply:
        if statement.kind is Kind.BEGIN:
            await self._begin()
            return _NOTHING
        try:
            return self._handle.execute(statement)
        finally:
            if self._queued and not self._handle.native.in_transaction:
                self.leave()

    async def _begin(self) -> None:
        await self._queue.acquire()
        self._queued = True
        try:
            await begin_immediate_async(self._handle.native)
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        if self._queued:
            self._queued = False
            self._queue.release()


class SyncSide:
    """For a lane's thread."""

    __slots__ = ("_handle",)

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    @property
    def alive(self) -> bool:
        return self._handle.native.in_transaction

    def run(self, statement: Statement) -> Reply:
        if statement.kind is Kind.BEGIN:
            begin_immediate(self._handle.native)
            return _NOTHING
        return self._handle.execute(statement)
