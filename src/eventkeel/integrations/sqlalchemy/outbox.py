"""``service.outbox(session)``: events that commit with the transaction of a user's own SQLAlchemy session.

They are kept with the session, cut back with a savepoint that is rolled back or closed, and appended once:
after the session's last flush, before its COMMIT, on its own connection.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, NoReturn
from uuid import UUID
from weakref import WeakKeyDictionary

import psycopg
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, SessionTransaction, scoped_session
from sqlalchemy.util import await_only

from eventkeel.codec.identity import as_uuid
from eventkeel.drive import drive, drive_sync
from eventkeel.errors import ConfigurationError, PublishError, StatementRefused
from eventkeel.handling import due_at
from eventkeel.integrations.sqlalchemy.asyncpg import AsyncpgSide
from eventkeel.ports.store import Kind, Op, Record, Statement, Store, Unit
from eventkeel.stores.postgres import PostgresStore

Make = Callable[[object, float], Record]
"""Of an event and its time."""
Published = tuple[Record, float | None]
"""None: with the commit; else when it is due."""

_OUTBOXES: WeakKeyDictionary[Session, dict[int, SessionOutbox]] = WeakKeyDictionary()
_CHECKED: WeakKeyDictionary[Engine, set[str]] = WeakKeyDictionary()
"""Ids of the stores that an engine's database is known to hold."""
_MOST_FLUSHES = 100


def outbox(session: Any, store: Store, make: Make, now: Callable[[], float]) -> SessionOutbox:
    """The outbox of ``store`` in the transaction of ``session``. Raises ConfigurationError."""
    if isinstance(session, async_scoped_session | scoped_session):
        session = session()
    inner = session.sync_session if isinstance(session, AsyncSession) else session
    if not isinstance(inner, Session):
        raise ConfigurationError(
            f"service.outbox() takes an SQLAlchemy session (AsyncSession or Session), not a {type(session).__name__}"
        )
    if getattr(inner, "_lease", None) is not None:
        raise StatementRefused("this session is a handler's, whose transaction the engine commits: tx.publish(event)")
    if not isinstance(store, PostgresStore):
        raise ConfigurationError(
            "service.outbox(session) needs the session's database to be the service's store, and that is no "
            "PostgreSQL. Use async with service.transaction() as tx, or give the service a postgresql:// store"
        )
    of_session = _OUTBOXES.setdefault(inner, {})
    made = of_session.get(id(store))
    if made is None:
        made = of_session[id(store)] = SessionOutbox(store, make, now)
        made.listen(inner)
    return made.at(inner)


class SessionOutbox:
    """Events of one session for one store. Lives as long as the session."""

    def __init__(self, store: PostgresStore, make: Make, now: Callable[[], float]) -> None:
        self._store, self._make, self._now = store, make, now
        self._published: list[Published] = []
        self._marks: dict[SessionTransaction, int] = {}
        """How many events there were when a savepoint began."""
        self._released: set[SessionTransaction] = set()
        self._sealed = False
        """What this transaction publishes has been appended."""
        self._appended = False

    def at(self, session: Session) -> SessionOutbox:
        """Its rollback has to be noticed, so it has to have begun."""
        if not session.in_transaction():
            session.begin()
        return self

    def publish(self, event: object, *, delay: timedelta | float | None = None, at: datetime | None = None) -> UUID:
        """Publish with the session's commit (or, with ``delay`` or ``at``, later, as ``tx.publish`` does), or not at
        all. Returns the event's id. Raises PublishError."""
        if self._sealed:
            raise PublishError(
                "the session is committing, and its events have been written: publish before commit(), or in a "
                "listener of a flush"
            )
        now = self._now()
        due = due_at(now, delay, at)
        record = self._make(event, now if due is None else due)
        self._published.append((record, due))
        return as_uuid(record.event_id)

    # -- what the session tells

    def listen(self, session: Session) -> None:
        event.listen(session, "after_transaction_create", self._transaction_began)
        event.listen(session, "before_commit", self._before_commit)
        event.listen(session, "after_commit", self._after_commit)
        event.listen(session, "after_transaction_end", self._transaction_ended)
        nested = session.get_nested_transaction()
        while nested is not None:  # savepoints that are open already
            if nested.nested:
                self._marks[nested] = 0
            nested = nested.parent

    def _transaction_began(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.nested:
            self._marks[transaction] = len(self._published)

    def _before_commit(self, session: Session) -> None:
        """Of the whole, or of a savepoint, which is none of our business."""
        if session.in_nested_transaction() and not _commits_whole(session):
            return
        for _ in range(_MOST_FLUSHES):  # what is said while it flushes belongs to it
            if session._is_clean():
                break
            session.flush()
        self._sealed = True
        published, self._published = self._published, []
        if published:
            self._append(session.connection(), published)
            self._appended = True

    def _after_commit(self, session: Session) -> None:
        nested = session.get_nested_transaction()
        if nested is not None:
            self._released.add(nested)
        elif self._appended:
            self._store.notify(outbox=True, gates=True)

    def _transaction_ended(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.nested:
            mark = self._marks.pop(transaction, 0)
            if transaction in self._released:
                self._released.remove(transaction)
            else:
                del self._published[mark:]
        elif transaction.parent is None:
            self._published.clear()
            self._marks.clear()
            self._released.clear()
            self._sealed = self._appended = False

    # -- writing

    def _append(self, connection: Connection, published: list[Published]) -> None:
        if connection.dialect.name != "postgresql":
            self._elsewhere(f"it is on {connection.dialect.name}")
        if connection.dialect.driver not in ("psycopg", "asyncpg"):
            raise ConfigurationError(
                f"service.outbox(session) speaks psycopg 3 and asyncpg, and this session is on "
                f"{connection.dialect.driver}: make its engine with postgresql+psycopg://"
            )
        native = connection.connection.driver_connection
        if not _begun(native):
            connection.exec_driver_sql("select 1")  # the first statement begins a transaction
            if not _begun(native):
                raise ConfigurationError(
                    "the session is in AUTOCOMMIT: its rows and its events could not commit together. Bind it to an "
                    "engine with an isolation level"
                )
        self._check(connection)
        unit = self._store.join(native if isinstance(native, psycopg.BaseConnection) else AsyncpgSide(native))
        write = _write(unit, published, self._now())
        if connection.dialect.is_async:
            await_only(drive(write, unit.connection))
        else:
            drive_sync(write, unit.sync_connection)

    def _check(self, connection: Connection) -> None:
        """This store lives in the session's database: looked up once for each engine."""
        known = _CHECKED.setdefault(connection.engine, set())
        if self._store.store_id in known:
            return
        table = '"' + self._store.address.schema.replace('"', '""') + '".eventkeel_meta'
        if connection.scalar(text("select to_regclass(:name)::text"), {"name": table}) is None:
            self._elsewhere("there is none of its tables")
        asked = text(f"select value from {table.replace(':', chr(92) + ':')} where name = 'store_id'")
        if connection.scalar(asked) != self._store.store_id:
            self._elsewhere("its tables are those of another one")
        known.add(self._store.store_id)

    def _elsewhere(self, why: str) -> NoReturn:
        raise ConfigurationError(
            f"the session's database is not the one of service {self._store.service!r} ({self._store.address.shown}): "
            f"{why}. Rows there and events here could not commit together; bind the session to the store's database"
        )


def _commits_whole(session: Session) -> bool:
    """A savepoint is open: is it released, or does the whole commit with it?

    SQLAlchemy tells both in the same way. Where this cannot be known the events are appended: they are rows, and
    go with whatever is rolled back; it only takes their locks earlier."""
    root = session.get_transaction()
    return root is None or getattr(root, "_current_fn", root) is not None


def _begun(native: Any) -> bool:
    if isinstance(native, psycopg.BaseConnection):
        return native.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
    return bool(native.is_in_transaction())  # asyncpg


def _write(unit: Unit, published: list[Published], now: float) -> Op[None]:
    timers = [(record, due) for record, due in published if due is not None]
    if timers:
        yield from unit.schedule([record for record, _ in timers], [due for _, due in timers])
    yield from unit.append([record for record, due in published if due is None], now)
    yield Statement("", [], Kind.PIPELINE)
