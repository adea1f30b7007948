"""NOTIFY and LISTEN: a commit wakes the processes that wait for it. A hint that shortens a poll, never replaces it.

On a connection of its own: a NOTIFY inside a unit would take a lock over the whole database at its commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from typing import Any

import psycopg

from eventkeel.errors import EventkeelError
from eventkeel.stores.postgres.pool import Pool, closed

AGAIN = 1.0
"""Seconds before a lost connection is made again; meanwhile the polls do it alone."""
QUIET = 0.002
"""Seconds between two notifications: what is committed meanwhile is told together."""

OUTBOX, GATES = "o", "g"


class Wake:
    """Tells the other processes of one schema, and hears them. On the event loop only."""

    def __init__(self, pool: Pool, schema: str, heard: Callable[[bool, bool], None]) -> None:
        self._pool, self._heard = pool, heard
        self._channel = "eventkeel_" + hashlib.blake2b(schema.encode(), digest_size=8).hexdigest()
        self._news: set[str] = set()
        self._told = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, *, listen: bool) -> None:
        if not self._tasks:
            self._tasks.append(asyncio.create_task(self._forever(self._tell), name="eventkeel notify"))
        if listen and len(self._tasks) == 1:
            self._tasks.append(asyncio.create_task(self._forever(self._listen), name="eventkeel listen"))

    def tell(self, outbox: bool, gates: bool) -> None:
        """Something was committed."""
        if outbox:
            self._news.add(OUTBOX)
        if gates:
            self._news.add(GATES)
        self._told.set()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
        self._tasks.clear()

    async def _forever(self, work: Callable[[psycopg.AsyncConnection[Any]], Any]) -> None:
        while True:
            with contextlib.suppress(psycopg.Error, EventkeelError, OSError):
                connection = await self._pool.connect()
                try:
                    await work(connection)
                finally:
                    await closed(connection)
            await asyncio.sleep(AGAIN)

    async def _tell(self, connection: psycopg.AsyncConnection[Any]) -> None:
        while True:
            await self._told.wait()
            self._told.clear()
            news, self._news = self._news, set()
            await connection.execute("select pg_notify(%s, %s)", (self._channel, "".join(sorted(news))))
            await asyncio.sleep(QUIET)

    async def _listen(self, connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.execute(f"listen {self._channel}")
        self._heard(True, True)  # whatever was told before we listened, or between two connections
        async for notice in connection.notifies():
            self._heard(OUTBOX in notice.payload, GATES in notice.payload)
