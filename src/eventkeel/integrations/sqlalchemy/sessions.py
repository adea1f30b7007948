"""A handler's ``AsyncSession`` or ``Session``: new for each call, on the transaction of its unit of work.

The session is flushed at the end of the handler, inside that delivery's blame. What the handler writes
with ``tx.write`` is sent before the session's next statement, so everything reaches the database in the
order in which it was said, except what the session keeps until its next flush.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import greenlet_spawn

from eventkeel.drive import drive, drive_sync
from eventkeel.errors import ConfigurationError, StatementRefused
from eventkeel.handling import Scope, SyncTransaction, Transaction
from eventkeel.integrations.sqlalchemy.lent import ENDS, Lease, lent_engine
from eventkeel.ports.store import Kind, Op, Reply, Statement, Store
from eventkeel.stores.postgres import PostgresStore

_ENGINES: WeakKeyDictionary[Store, Engine] = WeakKeyDictionary()
_KINDS: dict[type, type] = {}


class _OfHandler:
    """What a session of a handler is not for. Its transaction is the unit's."""

    _lease: Lease

    def get_bind(self, *args: Any, **options: Any) -> Connection:
        return self._lease.connection()

    def begin(self, nested: bool = False) -> Any:
        if not nested:
            raise StatementRefused(ENDS)
        made = super().begin(nested=True)  # type: ignore[misc]
        self.connection()  # type: ignore[attr-defined]
        # Now, not with the session's first statement in it: what tx writes and publishes belongs to it too.
        return made

    def _refuse(self, *args: Any, **options: Any) -> Any:
        if not self._lease.over:
            raise StatementRefused(ENDS)

    commit = rollback = close = reset = invalidate = prepare = _refuse


def _before_release(session: Any) -> None:
    """What is queued is sent before the savepoint is released: after a RELEASE that failed SQLAlchemy does not roll
    back to it."""
    session._lease.send()


def _kind(wanted: type) -> type:
    """``wanted`` (Session, AsyncSession, or a subclass of one) as a handler gets it."""
    made = _KINDS.get(wanted)
    if made is None:
        if issubclass(wanted, AsyncSession):
            inner = _kind(wanted.sync_session_class)
            made = type(wanted.__name__, (wanted,), {"sync_session_class": inner})
        else:
            made = type(wanted.__name__, (_OfHandler, wanted), {})
            event.listen(made, "before_commit", _before_release)
        _KINDS[wanted] = made
    return made


# ------------------------------------------------------------------ for routing and start-up


def wrapped(call: Callable[..., Any], name: str, kind: type, tx_name: str | None, *, sync: bool) -> Callable[..., Any]:
    """``call`` with a session under ``name``, where the engine gives the unit's transaction."""
    made = _kind(kind)

    def given(arguments: dict[str, Any], session: Any, tx: Any) -> dict[str, Any]:
        arguments[name] = session
        if tx_name is not None:
            arguments[tx_name] = tx
        return arguments

    if sync:

        @functools.wraps(call)
        def run_sync(**arguments: Any) -> Any:
            with _sync_session(made, arguments[name]) as (session, tx):
                return call(**given(arguments, session, tx))

        return run_sync

    @functools.wraps(call)
    async def run(**arguments: Any) -> Any:
        async with _async_session(made, arguments[name]) as (session, tx):
            return await call(**given(arguments, session, tx))

    return run


async def ready(store: Store, service: str, *, sync: bool) -> None:
    """Before the first delivery: make the store's engine, and let it look at the server.

    Raises ConfigurationError where the store is none that SQLAlchemy can share."""
    if not isinstance(store, PostgresStore):
        raise ConfigurationError(
            f"a handler of service {service!r} asks for an SQLAlchemy session, and its store is no PostgreSQL: one "
            "SQLite file never passes through two SQLite libraries in one process. Ask for tx: Transaction, or give "
            "the service a postgresql:// store"
        )
    options: dict[str, Any] = getattr(store, "session_options", {})
    engine = lent_engine(sync=sync, **options)
    unit = store.unit()

    def opened() -> Op[None]:
        yield from unit.begin(speculative=False)
        yield Statement("", [], Kind.PIPELINE)

    def first() -> None:
        lease = Lease(engine, unit.native, None)
        lease.connection()
        lease.end()

    def look() -> None:
        drive_sync(opened(), unit.sync_connection)
        first()
        drive_sync(unit.rollback(), unit.sync_connection)

    try:
        if sync:
            await asyncio.to_thread(look)
        else:
            await drive(opened(), unit.connection)
            await greenlet_spawn(first)
            await drive(unit.rollback(), unit.connection)
    finally:
        unit.close()
    _ENGINES[store] = engine


# ------------------------------------------------------------------ one call


def _sent(scope: Scope) -> Op[None]:
    """What others of the unit have queued, and its BEGIN. Their failure is theirs."""
    yield from scope.flush()
    yield Statement("", [], Kind.PIPELINE)


def _session(made: type, lease: Lease) -> Any:
    session = made()
    inner: Any = session.sync_session if isinstance(session, AsyncSession) else session
    inner._lease = lease
    return session


@contextlib.asynccontextmanager
async def _async_session(made: type, tx: Transaction) -> AsyncIterator[tuple[AsyncSession, Transaction]]:
    scope = tx._open()
    await drive(_sent(scope), scope.unit.connection)
    lease = Lease(_ENGINES[scope.store], scope.unit.native, scope)
    session: AsyncSession = _session(made, lease)
    inner = session.sync_session
    mine = SessionTransaction(scope, tx._index)
    mine._session = session
    try:
        yield session, mine
        if not inner._is_clean():
            await session.flush()
    except Exception as error:
        if (instead := lease.explained(error)) is not None:
            raise instead from error
        raise
    finally:
        lease.over = True
        Session.close(inner)
        lease.end()


@contextlib.contextmanager
def _sync_session(made: type, tx: SyncTransaction) -> Iterator[tuple[Session, SyncTransaction]]:
    scope = tx._open()
    drive_sync(_sent(scope), scope.unit.sync_connection)
    lease = Lease(_ENGINES[scope.store], scope.unit.native, scope)
    session: Session = _session(made, lease)
    mine = SyncSessionTransaction(scope, tx._index)
    mine._session = session
    try:
        yield session, mine
        if not session._is_clean():
            session.flush()
    except Exception as error:
        if (instead := lease.explained(error)) is not None:
            raise instead from error
        raise
    finally:
        lease.over = True
        Session.close(session)
        lease.end()


class SessionTransaction(Transaction):
    """A transaction beside a session: what reads sees what the session holds, and ``savepoint()`` is the
    session's ``begin_nested()``."""

    __slots__ = ("_session",)
    _session: AsyncSession

    async def _run(self, op: Generator[Statement, Reply, Any]) -> Any:
        if not self._session.sync_session._is_clean():
            await self._session.flush()
        return await super()._run(op)

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """As ``Transaction.savepoint``, for the session's objects too."""
        self._open()
        async with self._session.begin_nested():
            yield


class SyncSessionTransaction(SyncTransaction):
    """As ``SessionTransaction``, without await."""

    __slots__ = ("_session",)
    _session: Session

    def _run(self, op: Generator[Statement, Reply, Any]) -> Any:
        if not self._session._is_clean():
            self._session.flush()
        return super()._run(op)

    @contextlib.contextmanager
    def savepoint(self) -> Iterator[None]:
        """As ``SyncTransaction.savepoint``, for the session's objects too."""
        self._open()
        with self._session.begin_nested():
            yield
