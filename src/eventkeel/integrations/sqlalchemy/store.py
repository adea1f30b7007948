"""``SQLAlchemyStore(engine)``: a store on the database of a user's engine, reached as the engine reaches it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import psycopg
from psycopg.rows import tuple_row
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool
from sqlalchemy.util.concurrency import greenlet_spawn

from eventkeel.errors import ConfigurationError
from eventkeel.stores.postgres import PostgresStore
from eventkeel.stores.postgres.url import Address

T = TypeVar("T")


class SQLAlchemyStore:
    """For ``service.configure(store=SQLAlchemyStore(engine))``.

    ``engine``: an ``AsyncEngine`` or ``Engine`` on ``postgresql+psycopg://``. Its URL, its ``connect_args`` and its
    events make the connections; they are the service's own, at most ``pool`` of a process for units, and no part of
    the engine's pool. ``schema``: where Eventkeel's and the service's own tables are, made if missing; ``{service}``
    stands for the service's name.
    """

    scheme = "postgresql"

    def __init__(self, engine: AsyncEngine | Engine, *, schema: str = "public", pool: int = 16) -> None:
        self._engine = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
        dialect = self._engine.dialect
        if dialect.name != "postgresql":
            raise ConfigurationError(
                f"SQLAlchemyStore needs a PostgreSQL engine, and this one is on {dialect.name}. On SQLite write "
                'store="sqlite:///PATH": one file never passes through two SQLite libraries in one process'
            )
        if dialect.driver != "psycopg":
            raise ConfigurationError(
                f"SQLAlchemyStore needs an engine on psycopg 3, below whose cursors handlers' statements are "
                f"pipelined, and this one is on {dialect.driver}: create_async_engine('postgresql+psycopg://…'). Your "
                "own sessions may stay as they are: service.outbox(session) takes those of asyncpg too"
            )
        if pool < 2:
            raise ConfigurationError(f"SQLAlchemyStore(pool={pool}): the most connections of a process, from 2 on")
        self._schema, self._pool = schema, pool

    def of(self, service: str) -> PostgresStore:
        """The store of one service, not opened yet."""
        schema = self._schema.replace("{service}", service)
        if not schema or len(schema.encode()) > 63 or "\0" in schema:
            raise ConfigurationError(f"schema={schema!r}: a PostgreSQL name has 1 to 63 bytes")
        shown = self._engine.url.render_as_string(hide_password=True)
        made = _EngineStore(
            Address("", schema, f"{shown} (schema {schema})", self._pool), service, dial=_Dial(self._engine)
        )
        made.session_options = _session_options(self._engine)
        return made


class _EngineStore(PostgresStore):
    session_options: dict[str, Any]
    """How the sessions of handlers are like those of the engine."""


def _session_options(engine: Engine) -> dict[str, Any]:
    options: dict[str, Any] = {
        name: value
        for name in ("json_serializer", "json_deserializer")
        if (value := getattr(engine.dialect, f"_{name}", None)) is not None
    }
    said = {name: value for name, value in engine.get_execution_options().items() if name != "isolation_level"}
    return {**options, "execution_options": said}


class _Dial:
    """New connections, made by the engine's creator with the engine's events, and taken out of its hands."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._is_async = engine.dialect.is_async

    def _new(self) -> psycopg.BaseConnection[Any]:
        pool = self._engine.pool
        maker = NullPool(pool._creator, dialect=self._engine.dialect, _dispatch=pool.dispatch)
        try:
            fairy = maker.connect()
        except DBAPIError as error:
            if isinstance(error.orig, psycopg.Error):
                raise error.orig from error
            raise
        connection: Any = fairy.driver_connection
        fairy.detach()
        connection.row_factory = tuple_row
        return connection  # type: ignore[no-any-return]

    async def connect(self) -> psycopg.AsyncConnection[Any]:
        if self._is_async:
            made: Any = await greenlet_spawn(self._new)
        else:
            made = _other(await asyncio.to_thread(self._new), psycopg.AsyncConnection)
        await made.set_autocommit(True)
        return made  # type: ignore[no-any-return]

    def connect_sync(self) -> psycopg.Connection[Any]:
        if self._is_async:
            made: Any = _other(_elsewhere(greenlet_spawn(self._new)), psycopg.Connection)
        else:
            made = self._new()
        made.autocommit = True
        return made  # type: ignore[no-any-return]


def _other(connection: psycopg.BaseConnection[Any], kind: Any) -> Any:
    """The same connection for the other kind of caller."""
    made = kind(connection.pgconn)
    made.origin = connection  # not collected before the connection is closed: it would complain
    return made


def _elsewhere(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run in a thread with a loop of its own: the caller's may be waiting for us."""
    result: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            result.append(asyncio.run(coroutine))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="eventkeel connect")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return result[0]
