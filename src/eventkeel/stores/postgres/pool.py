"""Connections of one process to its database: made when wanted, kept, and thrown away when in doubt."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

import psycopg
from psycopg.adapt import AdaptersMap

from eventkeel.errors import ConfigurationError, StoreUnavailable
from eventkeel.stores.postgres.connection import Handle
from eventkeel.stores.postgres.url import Address
from eventkeel.stores.postgres.values import readers
from eventkeel.stores.postgres.wire import Wire

PATIENCE = 30.0
"""Seconds to wait for a connection that others have."""
SETTINGS = {
    "lock_timeout": "5s",
    "statement_timeout": "30s",
    "idle_in_transaction_session_timeout": "45s",
    "client_connection_check_interval": "5s",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "client_encoding": "UTF8",
    "standard_conforming_strings": "on",
}
"""Of every session. A unit that does nothing for 45 s is ended by the server, so that nobody waits for it longer."""
_SET = "select set_config(name, value, false) from unnest(%s::text[], %s::text[]) as s (name, value)"
_LOOK = "select pg_backend_pid(), current_setting('server_version_num')::int, current_setting('synchronous_commit')"
OLDEST = 150000
_REFUSALS = ("does not exist", "authentication failed", "no password supplied", "no pg_hba.conf entry")
"""How libpq quotes a server that will not have us (there is no SQLSTATE before a connection)."""
_UNTRUSTED = ("does not support SSL", "certificate", "private key")
"""How it says that no encrypted connection as the URL wants it can be made."""


class Context:
    """What psycopg has to know to read columns."""

    def __init__(self, adapters: AdaptersMap) -> None:
        self.adapters = adapters
        self.connection: psycopg.BaseConnection[Any] | None = None


class Dial(Protocol):
    """How connections are made."""

    async def connect(self) -> psycopg.AsyncConnection[Any]: ...

    def connect_sync(self) -> psycopg.Connection[Any]: ...


class _Libpq:
    """As the URL says."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo

    async def connect(self) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)

    def connect_sync(self) -> psycopg.Connection[Any]:
        return psycopg.Connection.connect(self._conninfo, autocommit=True)


class Pool:
    """Gives connections to units and to the store itself. From any thread."""

    def __init__(
        self,
        address: Address,
        own: frozenset[str],
        most: int,
        dial: Dial | None = None,
        *,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """``settings`` of its sessions, beside those that all of them have."""
        self.address, self._own, self._most, self._more = address, own, most, settings or {}
        self._dial = dial or _Libpq(address.conninfo)
        self._context = Context(readers())
        self._lock = threading.Lock()
        self._free: list[Handle] = []
        self._all: weakref.WeakSet[Handle] = weakref.WeakSet()
        self._waiting: deque[concurrent.futures.Future[Handle | None]] = deque()
        self._count = 0
        self._generation = 0
        self.closed = False

    # -- taking and giving

    async def take(self) -> Handle:
        """Raises StoreUnavailable."""
        while True:
            ready = self._next()
            if isinstance(ready, Handle):
                return ready
            if ready is None:
                return await self._made()
            try:
                async with asyncio.timeout(PATIENCE):
                    handed = await asyncio.wrap_future(ready)
            except BaseException as error:
                self._forget(ready)
                if isinstance(error, TimeoutError):
                    raise self._all_taken() from error
                raise
            if handed is not None:
                return handed

    def take_sync(self) -> Handle:
        """The same, in a thread."""
        while True:
            ready = self._next()
            if isinstance(ready, Handle):
                return ready
            if ready is None:
                return self._made_sync()
            try:
                handed = ready.result(PATIENCE)
            except concurrent.futures.TimeoutError as error:
                self._forget(ready)
                raise self._all_taken() from error
            if handed is not None:
                return handed

    def _next(self) -> Handle | concurrent.futures.Future[Handle | None] | None:
        """A free connection; None: make one; else what to wait for."""
        with self._lock:
            if self.closed:
                raise ConfigurationError(f"the store {self.address.shown} was closed")
            while self._free:
                handle = self._free.pop()
                if handle.reusable and handle.generation == self._generation and not handle.wire.stale:
                    return handle
                self._count -= 1
                handle.close()
            if self._count < self._most:
                self._count += 1
                return None
            waiting: concurrent.futures.Future[Handle | None] = concurrent.futures.Future()
            self._waiting.append(waiting)
            return waiting

    def _forget(self, waiting: concurrent.futures.Future[Handle | None]) -> None:
        with self._lock:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                return
        if waiting.cancelled() or not waiting.done() or waiting.exception() is not None:
            return
        handle = waiting.result()
        if handle is not None:
            self.give_back(handle)
        else:
            self._tell_next()

    def _all_taken(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"all {self._most} connections of this process to {self.address.shown} have been in use for "
            f"{PATIENCE:g} s; close transactions sooner, or write pool={2 * self.address.pool} into the store's URL"
        )

    def give_back(self, handle: Handle) -> None:
        """Kept if it is above doubt; a lost one makes the others of its time suspect."""
        with self._lock:
            if handle.wire.lost and handle.generation == self._generation:
                self._generation += 1
            keep = handle.reusable and not handle.begun and not self.closed
            if keep and handle.generation == self._generation:
                while self._waiting:
                    waiting = self._waiting.popleft()
                    if waiting.set_running_or_notify_cancel():
                        waiting.set_result(handle)
                        return
                self._free.append(handle)
                return
        handle.close()
        self._one_less()

    def _one_less(self) -> None:
        with self._lock:
            self._count -= 1
        self._tell_next()

    def _tell_next(self) -> None:
        """There is room for a new connection."""
        with self._lock:
            while self._waiting:
                waiting = self._waiting.popleft()
                if waiting.set_running_or_notify_cancel():
                    waiting.set_result(None)
                    return

    def close(self) -> None:
        with self._lock:
            self.closed = True
            open = list(self._all)  # also what a unit that was given up never gave back
            self._free.clear()
            waiting, self._waiting = list(self._waiting), deque()
        for handle in open:
            handle.close()
        for each in waiting:
            if each.set_running_or_notify_cancel():
                each.set_exception(StoreUnavailable("the store was closed"))

    # -- making

    async def _made(self) -> Handle:
        try:
            connection = await self.connect()
        except BaseException:
            self._one_less()
            raise
        return self._handle(connection)

    def _made_sync(self) -> Handle:
        try:
            connection = self._dial.connect_sync()
            try:
                self._check(connection, connection.execute(_LOOK).fetchone())
                connection.execute(_SET, self._settings())
            except BaseException:
                connection.close()
                raise
        except psycopg.Error as error:
            self._one_less()
            raise self._refused(error) from error
        except BaseException:
            self._one_less()
            raise
        return self._handle(connection)

    async def connect(self) -> psycopg.AsyncConnection[Any]:
        """A connection as all of them are. Raises StoreUnavailable, ConfigurationError."""
        try:
            connection = await self._dial.connect()
            try:
                self._check(connection, await (await connection.execute(_LOOK)).fetchone())
                await connection.execute(_SET, self._settings())
            except BaseException:
                await connection.close()
                raise
        except psycopg.Error as error:
            raise self._refused(error) from error
        return connection

    def _settings(self) -> tuple[list[str], list[str]]:
        path = '"' + self.address.schema.replace('"', '""') + '"'
        if self.address.schema != "public":
            path += ", public"
        settings = {**SETTINGS, **self._more, "search_path": path}
        return list(settings), list(settings.values())

    def _handle(self, connection: psycopg.BaseConnection[Any]) -> Handle:
        handle = Handle(Wire(connection, self._context, self._own), self._generation)
        self._all.add(handle)
        return handle

    def _check(self, connection: psycopg.BaseConnection[Any], row: tuple[int, int, str] | None) -> None:
        assert row is not None
        pid, version, synchronous = row
        if version < OLDEST:
            raise ConfigurationError(f"{self.address.shown} is PostgreSQL {version // 10000}; 15 or later is needed")
        if pid != connection.pgconn.backend_pid:
            raise ConfigurationError(
                f"between this process and {self.address.shown} there is a pooler (PgBouncer?), which takes settings, "
                "prepared statements and notifications away from a session. Connect to PostgreSQL itself: a process "
                "keeps few connections (pool=16 in the store's URL is their most)"
            )
        if synchronous == "off":
            raise ConfigurationError(
                f"{self.address.shown} says synchronous_commit = off: what was committed could be lost, and its events "
                "with it. Set it on for this user: alter role … set synchronous_commit = on"
            )

    def _refused(self, error: psycopg.Error) -> Exception:
        text = " ".join(str(error).split())
        if "unsupported startup parameter" in text:
            return ConfigurationError(f"{self.address.shown} is a pooler; connect to PostgreSQL itself ({text})")
        code = error.sqlstate or ""
        if isinstance(error, psycopg.ProgrammingError) and not code:  # it was not even tried
            return ConfigurationError(f"{self.address.shown}: libpq does not take the store's URL: {text}")
        if any(words in text for words in _UNTRUSTED):
            return ConfigurationError(
                f"{self.address.shown}: the encrypted connection could not be made; correct sslmode, sslrootcert and "
                f"the like in the store's URL ({text})"
            )
        if code.startswith(("28", "3D")) or any(words in text for words in _REFUSALS):
            return ConfigurationError(
                f"{self.address.shown} refuses us: {text}. Correct user, password and database in the store's URL, or "
                "make them there (create role …, create database …)"
            )
        return StoreUnavailable(f"{self.address.shown} cannot be reached: {text}")


async def closed(connection: psycopg.AsyncConnection[Any]) -> None:
    with contextlib.suppress(Exception):
        await connection.close()
