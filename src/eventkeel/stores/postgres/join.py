"""A unit on a transaction that somebody else began and will end, on their connection: ``Store.join(native)``.

Nothing of theirs is relied on or changed: our tables are named with their schema, whatever the search path is,
and nothing is prepared on their connection, so that a pooler before it is welcome.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import psycopg

from eventkeel.errors import ConfigurationError, StatementRefused
from eventkeel.ports.store import Kind, Op, Reply, Statement
from eventkeel.stores.postgres.connection import Handle
from eventkeel.stores.postgres.unit import Locks, PostgresUnit
from eventkeel.stores.postgres.wire import Wire, run_async, run_sync

_OURS = re.compile(r"\beventkeel_(?=[a-z]+\b)")


class JoinedUnit(PostgresUnit):
    """``begin``, ``commit`` and ``rollback`` are refused: they are the business of whoever has the transaction."""

    def __init__(self, native: Any, schema: str, locks: Locks, shards: int, consumer_id: Callable[[str], int]) -> None:
        side = _Psycopg(native) if isinstance(native, psycopg.BaseConnection) else native
        if not callable(getattr(side, "run", None)):
            raise ConfigurationError(f"a {type(native).__name__} is no connection that a unit could join")
        self._native = native
        self.connection = self.sync_connection = _Qualified(side, schema)  # type: ignore[assignment]
        self._locks, self._shards = locks, shards
        self._id, self._undecided = consumer_id, 0
        self._news = self._gates_changed = False

    @property
    def native(self) -> Any:
        return self._native

    def _refuse(self) -> Op[None]:
        yield from ()
        raise StatementRefused("this transaction was joined: whoever began it commits it, or rolls it back")

    def begin(self, *, speculative: bool) -> Op[None]:
        return self._refuse()

    def commit(self) -> Op[None]:
        return self._refuse()

    def rollback(self) -> Op[None]:
        return self._refuse()

    def close(self, *, discard: bool = False) -> None:
        """Nothing: the connection is not ours."""


class _Qualified:
    """Names our tables with their schema."""

    def __init__(self, side: Any, schema: str) -> None:
        self._side, self._prefix = side, '"' + schema.replace('"', '""') + '".eventkeel_'

    @property
    def alive(self) -> bool:
        return bool(self._side.alive)

    def run(self, statement: Statement) -> Any:
        """A Reply, or what to await for one: as the connection is."""
        if statement.kind is not Kind.PIPELINE:
            statement = statement._replace(sql=_OURS.sub(lambda _: self._prefix, statement.sql))
        return self._side.run(statement)


class _Psycopg:
    """psycopg's connection, below its cursors. Its transaction has to have begun."""

    def __init__(self, native: psycopg.BaseConnection[Any]) -> None:
        wire = Wire(native, None, frozenset())
        wire.most_plans = 0
        wire.lend()
        self._handle = Handle(wire, 0)
        self._handle.begun = True
        self._sync = isinstance(native, psycopg.Connection)

    @property
    def alive(self) -> bool:
        return self._handle.alive

    def run(self, statement: Statement) -> Any:
        if self._sync:
            return run_sync(self._handle.wire, self._handle.execute(statement))
        return self._awaited(statement)

    async def _awaited(self, statement: Statement) -> Reply:
        return await run_async(self._handle.wire, self._handle.execute(statement), asyncio.get_running_loop())
