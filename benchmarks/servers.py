"""A broker and PostgreSQL for the benchmarks: where they are, topics and a schema for one run, rows counted by plain
SQL, and the CPU time that the servers used.

Without Eventkeel, as everything that both sides share.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit
from uuid import uuid4

import msgspec
import psutil  # type: ignore[import-untyped]
import psycopg

from benchmarks.job import Input, Run
from benchmarks.processes import family

SCHEMES = {"kafka": "kafka", "amqp": "rabbitmq"}
TOOL = Path(__file__).parent.parent / "tools" / "servers"


class Servers(msgspec.Struct, frozen=True):
    """Where both servers are."""

    broker: str
    """``kafka://host:port`` or ``amqp://user:password@host:port``."""
    store: str
    """``postgresql://…``."""

    @property
    def kind(self) -> str:
        """``kafka`` or ``rabbitmq``."""
        return SCHEMES[urlsplit(self.broker).scheme]

    @property
    def bootstrap(self) -> str:
        return urlsplit(self.broker).netloc

    def dsn(self) -> str:
        """The database for libpq and asyncpg: without what only Eventkeel understands."""
        parts = urlsplit(self.store)
        query = [pair for pair in parse_qsl(parts.query) if pair[0] != "schema"]
        return urlunsplit(parts._replace(query=urlencode(query)))

    def store_of(self, schema: str) -> str:
        """The store's URL with one schema."""
        url = self.dsn()
        return f"{url}{'&' if urlsplit(url).query else '?'}schema={quote(schema)}"


Layout = Literal["", "by hand", "plain", "peer"]
"""How messages lie on RabbitMQ: as Eventkeel makes it; the same made by hand; queues without exchanges; as a user of
FastStream declares them. On Kafka a topic is a topic."""


class Place(msgspec.Struct, frozen=True):
    """One run's own topics and tables."""

    servers: Servers
    tag: str
    count: int
    layout: Layout = ""

    @property
    def broker(self) -> str:
        """The broker for Eventkeel; on RabbitMQ with a registry of the run's own."""
        return f"{self.servers.broker}?prefix={self.prefix}" if self.servers.kind == "rabbitmq" else self.servers.broker

    @property
    def prefix(self) -> str:
        return f"b{self.tag}."

    @property
    def topic_in(self) -> str:
        return f"reference_orders_{self.tag}"

    @property
    def topic_out(self) -> str:
        return f"reference_payments_{self.tag}"

    @property
    def schema(self) -> str:
        return f"benchmark_{self.tag}"

    @property
    def group(self) -> str:
        return f"benchmark-{self.tag}"


# ------------------------------------------------------------------ where they are


def add_options(parser: argparse.ArgumentParser, brokers: str = "kafka://host:port") -> None:
    parser.add_argument("--broker", default=os.environ.get("EVENTKEEL_BROKER", ""), help=brokers)
    parser.add_argument(
        "--store", default=os.environ.get("EVENTKEEL_STORE", ""), help="postgresql://user@host/database"
    )


@contextlib.contextmanager
def servers(broker: str, store: str, kind: str = "kafka") -> Iterator[Servers]:
    """Those named, or else servers of our own, stopped at the end. A ``broker`` without address is what to start."""
    if broker in SCHEMES.values():
        broker, kind = "", broker
    if broker and store:
        yield Servers(broker, store)
        return
    if broker or store:
        raise SystemExit("say both, --broker URL and --store postgresql://…, or neither for servers of our own")
    with tempfile.TemporaryDirectory(prefix="eventkeel-benchmark-") as data:
        own = {**os.environ, "EVENTKEEL_SERVERS": data}  # whatever runs already is not ours to stop
        try:
            said = _told(subprocess.run([TOOL, "up", kind, "postgres"], check=True, stdout=subprocess.PIPE, env=own))
            yield Servers(said["EVENTKEEL_BROKER"], said["EVENTKEEL_STORE"])
        finally:
            subprocess.run([TOOL, "down"], check=True, stdout=subprocess.DEVNULL, env=own)


def _told(ended: subprocess.CompletedProcess[bytes]) -> dict[str, str]:
    """What lines ``export NAME=VALUE`` say."""
    words = shlex.split(ended.stdout.decode())
    return dict(word.split("=", 1) for word in words if "=" in word)


# ------------------------------------------------------------------ topics and tables of a run


def topics(where: Servers) -> ModuleType:
    """What makes, fills, counts and drops topics there: ``benchmarks.on_kafka`` or ``benchmarks.on_rabbitmq``."""
    return importlib.import_module(f"benchmarks.on_{where.kind}")


@contextlib.contextmanager
def place(
    where: Servers,
    inputs: Iterable[Input] = (),
    tables: str = "",
    count: int = 0,
    *,
    layout: Layout = "",
    prepare: Callable[[Place], object] = lambda here: None,
) -> Iterator[Place]:
    """Fresh topics, the first one filled with ``inputs``, and a fresh schema with ``tables``; gone afterwards, with
    every schema whose name begins with this one's. ``count``: how many events this is about; else all of ``inputs``.
    ``prepare`` is called before the topic is filled."""
    here = Place(where, uuid4().hex[:8], count, layout)
    on = topics(where)
    try:
        on.make(here)
        with psycopg.connect(where.dsn(), autocommit=True) as connection:
            connection.execute(f"create schema {here.schema}".encode())
            connection.execute(f"set search_path = {here.schema}".encode())
            connection.execute(tables.encode())
            prepare(here)
            filled = on.fill(here, inputs)
            connection.execute("checkpoint")
        yield here if count else msgspec.structs.replace(here, count=filled)
    finally:
        on.drop(here)
        drop_schemas(here)


def drop_schemas(here: Place) -> None:
    with psycopg.connect(here.servers.dsn(), autocommit=True) as connection:
        found = connection.execute("select nspname from pg_namespace where starts_with(nspname, %s)", (here.schema,))
        for (name,) in found.fetchall():
            connection.execute(f'drop schema "{name}" cascade'.encode())


def ask(here: Place, sql: str) -> int:
    """One number from a run's schema."""
    with psycopg.connect(here.servers.dsn(), autocommit=True) as connection:
        connection.execute(f"set search_path = {here.schema}".encode())
        row = connection.execute(sql.encode()).fetchone()
        assert row is not None
        return int(row[0])


def check(here: Place, inbox: str = "inbox", outbox: str = "outbox") -> None:
    """It counts only if every row is there: one inbox row, one payment and one message out for each message in."""
    found = {
        "inbox": ask(here, f"select count(*) from {inbox}"),
        "payments": ask(here, "select count(*) from payments"),
        "waiting": ask(here, f"select count(*) from {outbox}"),
        "out": topics(here.servers).out(here),
        "left": topics(here.servers).left(here),
    }
    wanted = {"inbox": here.count, "payments": here.count, "waiting": 0, "out": here.count, "left": 0}
    assert found == wanted, f"{found} is not {wanted}"


# ------------------------------------------------------------------ drivers without types


async def connect(here: Place) -> Any:
    """asyncpg's connection, inside the run's schema."""
    import asyncpg  # type: ignore[import-untyped]

    return await asyncpg.connect(here.servers.dsn(), server_settings={"search_path": here.schema})


async def pool(here: Place, size: int) -> Any:
    """asyncpg's pool, inside the run's schema."""
    import asyncpg

    return await asyncpg.create_pool(
        here.servers.dsn(), min_size=size, max_size=size, server_settings={"search_path": here.schema}
    )


# ------------------------------------------------------------------ CPU time


class Meter:
    """Wall-clock time, and CPU time of this process and of both servers, since it was made.

    The servers are found by who listens on their ports; where the system does not tell, they are left out.
    """

    def __init__(self, where: Servers) -> None:
        self._pids = {name: pid for name, url in _named(where) if (pid := _listener(url)) is not None}
        self._servers = self._read()
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def stop(self, messages: int) -> Run:
        seconds, cpu, servers = time.perf_counter() - self._wall, time.process_time() - self._cpu, self._read()
        spent = {name: servers[name] - before for name, before in self._servers.items()}
        return Run(messages, seconds, cpu, spent)

    def _read(self) -> dict[str, float]:
        return {name: _seconds(pid) for name, pid in self._pids.items()}


def _named(where: Servers) -> list[tuple[str, str]]:
    return [("postgres", where.store), (where.kind, where.broker.partition(",")[0])]


def _listener(url: str) -> int | None:
    """The process that listens on a URL's port here."""
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        return None
    try:
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == parts.port:
                return int(each.pid) if each.pid else None
    except psutil.AccessDenied:
        pass
    return None


def _seconds(pid: int) -> float:
    """CPU time of a process, of all below it, and of those that it has seen end."""
    total, tick = 0.0, os.sysconf("SC_CLK_TCK")
    for each in family(pid):
        with contextlib.suppress(OSError):  # a connection's process that has just ended counts with its parent
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(field) for field in fields[11:15]) / tick
    return total
