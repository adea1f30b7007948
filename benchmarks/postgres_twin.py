"""What the native twins on PostgreSQL share, by hand with asyncpg: tables, a batch's transaction, the relay.

Lanes (a connection each) handle batches in one transaction each: claim, rows, outbox, commit; a relay selects, sends,
deletes what was confirmed. No retries, dead letters, leases, epochs, gates or savepoints: what a careful programmer
would write for this one job.

``awaited``: one statement awaited per event. ``deferred``: the handler queues, one ``executemany`` per batch, which
regroups statements by their text. ``bulk``: one statement per batch.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple
from uuid import UUID

from benchmarks.byhand import OrderCreated, outgoing
from benchmarks.job import PARTITIONS

Style = Literal["awaited", "deferred", "bulk"]

TABLES = """
create table inbox (consumer int not null, event_id uuid not null, at timestamptz not null default now(),
    primary key (event_id, consumer));
create table payments (order_id text primary key, amount numeric not null);
create table outbox (shard smallint not null, id bigint generated always as identity, event_id uuid not null,
    topic text not null, key bytea not null, headers bytea not null, body bytea not null,
    at timestamptz not null default now(), primary key (shard, id));
"""
CLAIM = "insert into inbox (consumer, event_id) select 1, unnest($1::uuid[]) on conflict do nothing returning event_id"
PAY = "insert into payments (order_id, amount) values ($1, $2::text::numeric)"
PAY_MANY = """insert into payments (order_id, amount)
select o, a::numeric from unnest($1::text[], $2::text[]) as t (o, a)"""
APPEND = """insert into outbox (shard, event_id, topic, key, headers, body)
select * from unnest($1::smallint[], $2::uuid[], $3::text[], $4::bytea[], $5::bytea[], $6::bytea[])"""
PULL = """select o.shard, o.id, o.topic, o.key, o.headers, o.body
from unnest($1::smallint[], $2::bigint[]) s (shard, last),
lateral (select * from outbox where shard = s.shard and id > s.last order by id limit $3) o"""
DELETE = "delete from outbox where shard = $1 and id = any($2::bigint[])"

PATIENCE = 180.0


class Got(NamedTuple):
    """One message, decoded."""

    partition: int
    mark: int
    """What to tell the broker when it is handled, and all before it in its partition: an offset, a delivery tag."""
    id: UUID
    cause: str
    order: OrderCreated


def columns(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    """Rows as PostgreSQL's ``unnest`` takes them."""
    return [list(column) for column in zip(*rows, strict=True)]


async def transaction(connection: Any, topic: str, batch: list[Got], style: Style) -> None:
    """Claim, the handlers' rows, outbox, commit."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
    async with connection.transaction():
        fresh = {row[0] for row in await connection.fetch(CLAIM, [got.id for got in batch])}
        pay, out = [], []
        for got in batch:
            if got.id not in fresh:
                continue
            order = got.order
            if style == "awaited":
                await connection.execute(PAY, order.order_id, str(order.amount))
            else:
                pay.append((order.order_id, str(order.amount)))
            id, key, headers, body = outgoing(got.id, got.cause, order, now)
            out.append((got.partition, id, topic, key, headers, body))
        if pay and style == "deferred":
            await connection.executemany(PAY, pay)
        elif pay:
            await connection.execute(PAY_MANY, *columns(pay))
        if out:
            await connection.execute(APPEND, *columns(sorted(out, key=_shard)))


def _shard(row: tuple[Any, ...]) -> Any:
    return row[0]


async def until(done: Callable[[], bool], tasks: Sequence[asyncio.Task[None]]) -> None:
    """Raises what a task has failed with meanwhile."""
    async with asyncio.timeout(PATIENCE):
        while not done():
            await asyncio.sleep(0.01)
            for task in tasks:
                if task.done():
                    task.result()


class Relay:
    """Several waves in flight; a wave is deleted when all of it is confirmed.

    The cursor (id > last) is safe only because one lane writes a shard: its ids commit in order.
    """

    def __init__(self, connection: Any, *, wave: int = 2000, depth: int = 4) -> None:
        self._connection, self._wave = connection, wave
        self._depth, self._one = asyncio.Semaphore(depth), asyncio.Lock()
        self._waves: set[asyncio.Task[None]] = set()
        self.stopped = False
        self.wake, self.sent = asyncio.Event(), 0

    def stop(self) -> None:
        self.stopped = True
        self.wake.set()

    async def send(self, rows: list[Any]) -> None:
        """Returns when the broker has confirmed all of them."""
        raise NotImplementedError

    async def run(self) -> None:
        last = dict.fromkeys(range(PARTITIONS), 0)
        while not self.stopped:
            self.wake.clear()
            async with self._one:
                rows = await self._connection.fetch(PULL, list(last), list(last.values()), self._wave // PARTITIONS)
            if not rows:
                await self._pause(0.05)
                continue
            for row in rows:
                last[row[0]] = row[1]
            await self._depth.acquire()
            task = asyncio.create_task(self._publish(rows))
            self._waves.add(task)
            task.add_done_callback(self._ended)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.wake.wait()
        except TimeoutError:
            pass

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._waves.discard(task)
        if error := task.exception():
            fail(repr(error))

    async def _publish(self, rows: list[Any]) -> None:
        await self.send(rows)
        self._depth.release()
        await self._delete(rows)

    async def _delete(self, rows: list[Any]) -> None:
        ids: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            ids[row[0]].append(row[1])
        async with self._one, self._connection.transaction():
            for shard, confirmed in ids.items():
                await self._connection.execute(DELETE, shard, confirmed)
        self.sent += len(rows)


def fail(why: str) -> None:
    """End the process from whatever thread: a twin does not recover."""
    print(f"the twin failed: {why}", file=sys.stderr, flush=True)
    os._exit(1)
