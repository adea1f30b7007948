"""What the tests of the PostgreSQL store share: a schema of a test's own, an onlooker, and a wire to be cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any
from urllib.parse import urlsplit

import psycopg

from eventkeel.ports.store import Reply, Row, Statement, Store
from eventkeel.stores.postgres import PostgresStore
from eventkeel.testing.store_kit import PATIENCE, SERVICE, Driver, Workbench


class Place:
    """A schema that belongs to one test. Whoever connects for it is known to the server by its name."""

    def __init__(self, server: str, name: str) -> None:
        self.server, self.name = server, name

    def url(self, server: str | None = None, **options: object) -> str:
        """A store URL."""
        said = {"schema": self.name, "application_name": self.name, **options}
        return (server or self.server) + "?" + "&".join(f"{name}={value}" for name, value in said.items())

    def store(self, server: str | None = None, service: str = SERVICE, **options: object) -> PostgresStore:
        """A closed store; each is another process to the database."""
        return PostgresStore(self.url(server, **options).partition(":")[2], service, shards=1)

    def raw(self) -> psycopg.Connection[Row]:
        """Somebody else's session: an operator, a migration, another program."""
        db = psycopg.connect(self.server, autocommit=True)
        db.execute(f'set search_path to "{self.name}", public'.encode())
        return db

    def ask(self, sql: str, *params: Any) -> list[Row]:
        with self.raw() as db:
            return db.execute(sql.encode(), params).fetchall()

    def do(self, sql: str) -> None:
        with self.raw() as db:
            db.execute(sql.encode())

    def backends(self, *, state: str = "%", query: str = "%") -> list[int]:
        """Process ids of the server's that serve this test, by what they do."""
        rows = self.ask(
            "select pid from pg_stat_activity where application_name = %s and state like %s and query ilike %s",
            self.name,
            state,
            query,
        )
        return [pid for (pid,) in rows]

    def waiting(self) -> list[int]:
        """Those that wait for a lock."""
        rows = self.ask(
            "select pid from pg_stat_activity where application_name = %s and wait_event_type = 'Lock'", self.name
        )
        return [pid for (pid,) in rows]

    def terminate(self, *pids: int) -> None:
        with self.raw() as db:
            for pid in pids:
                db.execute("select pg_terminate_backend(%s)", [pid])

    def make(self) -> None:
        with psycopg.connect(self.server, autocommit=True) as db:
            db.execute(f'create schema if not exists "{self.name}"'.encode())

    def drop(self) -> None:
        with psycopg.connect(self.server, autocommit=True) as db:
            db.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s", [self.name]
            )
            db.execute(f'drop schema if exists "{self.name}" cascade'.encode())

    @contextlib.asynccontextmanager
    async def bench(
        self, driver: Driver = "async", server: str | None = None, **options: object
    ) -> AsyncIterator[Workbench]:
        async def make(service: str) -> Store:
            return self.store(server, service, **options)

        async with contextlib.AsyncExitStack() as stack:
            yield Workbench(make, stack, driver)


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait until ``condition``, which may ask the server, gives something true."""
    async with asyncio.timeout(PATIENCE):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.02)


async def ended(running: Awaitable[Any]) -> BaseException | None:
    """What a task ended with, within our patience."""
    try:
        async with asyncio.timeout(PATIENCE):
            await running
    except BaseException as error:
        return error
    return None


def one(statement: Statement) -> Generator[Statement, Reply, Reply]:
    """An operation of one statement."""
    return (yield statement)


class Proxy:
    """A wire between clients and a server that can be cut: ``port`` here leads to ``server``."""

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._parts = parts
        self._server: asyncio.Server | None = None
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.cut_when: Callable[[bytes], bool] = lambda data: False
        """Cut the wire before these bytes of a client are passed on."""
        self.cut_after: Callable[[bytes], bool] = lambda data: False
        """Pass these bytes of a client on, and cut before the answer."""
        self.deaf = False
        """Answers of the server are kept back; the wire looks whole."""
        self.cuts = 0

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        user = f"{self._parts.username}@" if self._parts.username else ""
        return self._parts._replace(netloc=f"{user}127.0.0.1:{port}").geturl()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Cut every wire there is now."""
        self.cuts += 1
        for pair in list(self._pairs):
            for writer in pair:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            upstream, down = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            self._tasks.discard(task)
            return
        pair = (writer, down)
        self._pairs.add(pair)
        answers = asyncio.create_task(self._answers(upstream, writer))
        try:
            while data := await reader.read(1 << 16):
                if self.cut_when(data):
                    self.cut()
                    break
                down.write(data)
                await down.drain()
                if self.cut_after(data):
                    self.deaf = True
                    await asyncio.sleep(0.1)  # the server has done it
                    self.cut()
                    self.deaf = False
                    break
        except OSError:
            pass
        finally:
            answers.cancel()
            self._pairs.discard(pair)
            self._tasks.discard(task)
            writer.transport.abort()
            down.transport.abort()

    async def _answers(self, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await upstream.read(1 << 16):
                while self.deaf:
                    await asyncio.sleep(0.005)
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
