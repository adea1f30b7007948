"""SQLAlchemy on the connection of a unit of work: a dialect that never begins, ends or closes anything.

One engine per store and kind is kept, so that SQLAlchemy's caches of compiled statements are; what it
hands out is always the connection that the unit of the moment lends (``Lease``).
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from typing import Any

import psycopg
from psycopg.adapt import AdaptersMap
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import (
    AsyncAdapt_psycopg_connection,
    PGDialect_psycopg,
    PGDialectAsync_psycopg,
)
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.util import await_only

from eventkeel.drive import drive, drive_sync
from eventkeel.errors import StatementRefused, StoreUnavailable, TransactionClosed
from eventkeel.handling import Scope
from eventkeel.ports.store import Kind, Op, Statement
from eventkeel.stores.postgres.connection import LentAsyncConnection, LentConnection
from eventkeel.stores.postgres.wire import judge

ENDS = (
    "the engine commits what a handler does together with its inbox row, and undoes it together: a handler neither "
    "begins, commits, rolls back nor closes its session. For a part that may fail alone: session.begin_nested()"
)

_TAKES_DBAPI = "dbapi" in inspect.signature(AsyncAdapt_psycopg_connection.__init__).parameters
"""From SQLAlchemy 2.1 on."""
_ASKING: ContextVar[Lease] = ContextVar("eventkeel_lease")


class Lease:
    """One call's hold of its unit's connection, and the savepoints that were made on it by SQLAlchemy."""

    def __init__(self, engine: Engine, raw: LentConnection | LentAsyncConnection, scope: Scope | None) -> None:
        self.engine, self.raw, self.scope = engine, raw, scope
        self.over = scope is None
        """Ends are ours from now on, and mean nothing to the connection."""
        self._savepoints: list[tuple[str, int]] = []
        self._connection: Connection | None = None
        self._errors: list[tuple[BaseException, Exception]] = []
        raw.lease = self
        adapters: AdaptersMap | None = getattr(engine.dialect, "_psycopg_adapters_map", None)
        if adapters is not None:
            raw._adapters = AdaptersMap(adapters)

    def connection(self) -> Connection:
        """SQLAlchemy's connection over ours; made when it is first wanted."""
        if self._connection is None:
            if self.over and self.scope is not None:
                raise TransactionClosed(
                    f"the unit of work of {self.scope.name} is over; do not keep its session for later"
                )
            token = _ASKING.set(self)
            try:
                self._connection = self.engine.connect()
            finally:
                _ASKING.reset(token)
        return self._connection

    def send(self) -> None:
        """What the handler has queued before now, and its events for later: a savepoint that comes now is behind them.
        Their failure is not that of the session's statement."""
        scope = self.scope
        if scope is None or self.over or not (scope.queue or scope.timers):
            return
        if isinstance(self.raw, LentAsyncConnection):
            await_only(drive(_queued(scope), scope.unit.connection))
        else:
            drive_sync(_queued(scope), scope.unit.sync_connection)

    def end(self) -> None:
        self.over = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def explained(self, error: BaseException) -> Exception | None:
        """What the engine should hear instead: another transaction was in the way, or the database is away."""
        for raised, made in self._errors:
            if raised is error:
                return made
        return None

    # -- told by the dialect

    def failed(self, context: ExceptionContext) -> None:
        raised, original = context.sqlalchemy_exception, context.original_exception
        if self.scope is None or not isinstance(original, Exception):
            return
        made: Exception = original
        if isinstance(original, psycopg.Error):
            made = judge(original)
            if self.raw.pgconn.status == psycopg.pq.ConnStatus.BAD:
                made = StoreUnavailable(f"the connection to the database was lost: {original}")
                made.__cause__ = original
        if raised is not None and made is not original:
            self._errors.append((raised, made))
        self.scope.note(made)

    def commit_asked(self) -> None:
        if not self.over:
            raise StatementRefused(ENDS)

    def rolled_back(self) -> None:
        """By a failed flush, or by somebody behind the session's back: nothing of this unit may be committed."""
        if not self.over and self.scope is not None and self.scope.broken is None:
            self.scope.broken = StatementRefused(ENDS)

    def entered(self, name: str) -> None:
        if self.scope is not None:
            self._savepoints.append((name, len(self.scope.records)))
            self.scope.savepoints = len(self._savepoints)

    def undoing(self, name: str) -> None:
        """What was queued and published since the savepoint goes with it."""
        scope = self.scope
        if scope is None or self.over:
            return
        scope.queue.clear()
        scope.timers.clear()
        while self._savepoints:
            last, records = self._savepoints.pop()
            if last == name:
                del scope.records[records:]
                break
        scope.savepoints = len(self._savepoints)

    def left(self, name: str) -> None:
        if self.scope is None:
            return
        while self._savepoints:
            if self._savepoints.pop()[0] == name:
                break
        self.scope.savepoints = len(self._savepoints)


def _lease(dbapi_connection: Any) -> Lease:
    raw = getattr(dbapi_connection, "driver_connection", None) or dbapi_connection
    lease: Lease = raw.lease
    return lease


class _Lent:
    """Ends belong to the unit of work."""

    def do_begin(self, dbapi_connection: Any) -> None:
        """It has begun."""

    def do_commit(self, dbapi_connection: Any) -> None:
        _lease(dbapi_connection).commit_asked()

    def do_rollback(self, dbapi_connection: Any) -> None:
        _lease(dbapi_connection).rolled_back()

    def do_close(self, dbapi_connection: Any) -> None:
        """It goes on."""

    def do_terminate(self, dbapi_connection: Any) -> None:
        """It goes on, or the unit throws it away."""

    def do_savepoint(self, connection: Any, name: str) -> None:
        super().do_savepoint(connection, name)  # type: ignore[misc]
        _lease(connection.connection).entered(name)

    def do_rollback_to_savepoint(self, connection: Any, name: str) -> None:
        _lease(connection.connection).undoing(name)
        super().do_rollback_to_savepoint(connection, name)  # type: ignore[misc]

    def do_release_savepoint(self, connection: Any, name: str) -> None:
        super().do_release_savepoint(connection, name)  # type: ignore[misc]
        _lease(connection.connection).left(name)


class LentDialect(_Lent, PGDialect_psycopg):
    supports_statement_cache = True

    @classmethod
    def get_async_dialect_cls(cls, url: Any) -> type[LentAsyncDialect]:
        return LentAsyncDialect


class LentAsyncDialect(_Lent, PGDialectAsync_psycopg):
    supports_statement_cache = True


registry.register("postgresql.eventkeel", __name__, "LentDialect")


def lent_engine(*, sync: bool, **options: Any) -> Engine:
    """An engine whose connections are lent. ``options``: of ``create_engine``, such as ``json_serializer``."""
    options = {"poolclass": NullPool, "pool_reset_on_return": None, **options}
    if sync:
        engine = create_engine("postgresql+eventkeel://", creator=lambda: _ASKING.get().raw, **options)
    else:
        engine = create_async_engine("postgresql+eventkeel://", creator=lambda: _adapted(engine), **options).sync_engine
    event.listen(engine, "handle_error", _failed)
    event.listen(engine, "before_execute", _send)
    event.listen(engine, "before_cursor_execute", _send)  # exec_driver_sql has only this
    return engine


def _adapted(engine: Engine) -> AsyncAdapt_psycopg_connection:
    """At once, and so also where nothing can be awaited (``AsyncSession.get_bind()``)."""
    adapt: Any = AsyncAdapt_psycopg_connection
    raw = _ASKING.get().raw
    made: AsyncAdapt_psycopg_connection = adapt(engine.dialect.loaded_dbapi, raw) if _TAKES_DBAPI else adapt(raw)
    return made


def _send(connection: Connection, *_: Any) -> None:
    _lease(connection.connection).send()


def _queued(scope: Scope) -> Op[None]:
    try:
        yield from scope.settle()
        yield Statement("", [], Kind.PIPELINE)  # the session's own statements go past what we only meant to send
    except Exception as error:
        error.add_note("raised by a tx.write before it, which was sent with this statement")
        raise


def _failed(context: ExceptionContext) -> None:
    connection = context.connection
    if connection is not None and not connection.invalidated and not connection.closed:
        _lease(connection.connection).failed(context)
