"""The native twin on Kafka and PostgreSQL: the reference job by hand, with confluent-kafka and asyncpg. The practical
limit.

A thread polls the consumer; lanes (a connection each) handle batches in one transaction each: claim, rows, outbox,
commit; a relay selects, sends with acks=all, deletes what was confirmed. Partitions are assigned by hand. No retries,
dead letters, leases, epochs, gates, rebalances or savepoints: what a careful programmer would write for this one job.

``awaited``: one statement awaited per event. ``deferred``: the handler queues, one ``executemany`` per batch, which
regroups statements by their text. ``bulk``: one statement per batch.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple
from uuid import UUID

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from benchmarks.byhand import OrderCreated, decode_order, outgoing, unpack
from benchmarks.job import PARTITIONS, Run
from benchmarks.servers import Meter, Place, Servers, connect

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
    """One message, decoded by the thread that polls."""

    partition: int
    next: int
    id: UUID
    cause: str
    order: OrderCreated


class Relay:
    """Several waves in flight; a wave is deleted when all of it is confirmed.

    The cursor (id > last) is safe only because one lane writes a shard: its ids commit in order.
    """

    def __init__(self, connection: Any, where: Servers, *, linger: int = 5, wave: int = 2000, depth: int = 4) -> None:
        self._connection, self._wave = connection, wave
        self._producer = Producer(
            {
                "bootstrap.servers": where.bootstrap,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": linger,
                "queue.buffering.max.messages": 500_000,
            }
        )
        self._loop, self._depth, self._one = asyncio.get_running_loop(), asyncio.Semaphore(depth), asyncio.Lock()
        self._waves: set[asyncio.Task[None]] = set()
        self._stopped = False
        self.wake, self.sent = asyncio.Event(), 0
        threading.Thread(target=self._poll, daemon=True).start()

    def stop(self) -> None:
        self._stopped = True
        self.wake.set()

    async def run(self) -> None:
        last = dict.fromkeys(range(PARTITIONS), 0)
        while not self._stopped:
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
        done, left = self._loop.create_future(), len(rows)

        def delivered(error: KafkaError | None, _: Message) -> None:
            nonlocal left
            if error:
                fail(error.str())
            left -= 1
            if not left:
                self._loop.call_soon_threadsafe(done.set_result, None)

        produce: Callable[..., None] = self._producer.produce
        for number, (_, _, topic, key, headers, body) in enumerate(rows):
            produce(topic, body, key, headers=unpack(headers), on_delivery=delivered)
            if number % 250 == 249:
                await asyncio.sleep(0)
        await done
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

    def _poll(self) -> None:
        while not self._stopped:
            self._producer.poll(0.1)


class Poller(threading.Thread):
    """Owns the consumer: decodes, sorts into batches by lane, commits offsets in the background."""

    def __init__(self, here: Place, batch: int, lanes: int, hand_over: Callable[[int, list[Got]], object]) -> None:
        super().__init__(daemon=True)
        self._topic, self._batch, self._lanes, self._hand_over = here.topic_in, batch, lanes, hand_over
        self._servers = here.servers
        self._consumer = Consumer(
            {
                "bootstrap.servers": here.servers.bootstrap,
                "group.id": here.group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 100,
                "queued.min.messages": 20000,
            }
        )
        self._consumer.assign([TopicPartition(here.topic_in, number, 0) for number in range(PARTITIONS)])
        self.room = threading.Semaphore(2 * lanes)
        self.handled: dict[int, int] = {}
        self.meter: Meter | None = None
        self.stopped = False

    def run(self) -> None:
        waiting: list[list[Got]] = [[] for _ in range(self._lanes)]
        told = time.monotonic()
        while not self.stopped:
            messages = self._consumer.consume(self._batch, 0.05)
            if messages and self.meter is None:
                self.meter = Meter(self._servers)
            for message in messages:
                got = _read(message)
                waiting[got.partition % self._lanes].append(got)
            for lane, batch in enumerate(waiting):
                while len(batch) >= self._batch or (batch and not messages):
                    self._give(lane, batch[: self._batch])
                    del batch[: self._batch]
            if self.handled and time.monotonic() - told > 0.2:
                self._consumer.commit(offsets=self._offsets(), asynchronous=True)
                told = time.monotonic()
        self._consumer.commit(offsets=self._offsets(), asynchronous=False)
        self._consumer.close()

    def _give(self, lane: int, batch: list[Got]) -> None:
        while not self.room.acquire(timeout=0.1):
            if self.stopped:
                return
        self._hand_over(lane, batch)

    def _offsets(self) -> list[TopicPartition]:
        return [TopicPartition(self._topic, partition, next) for partition, next in list(self.handled.items())]


def _read(message: Message) -> Got:
    if error := message.error():
        fail(error.str())
    headers: Any = message.headers()
    partition, offset, body = message.partition(), message.offset(), message.value()
    assert partition is not None and offset is not None and body is not None
    cause = dict(headers)["ce_id"].decode()
    return Got(partition, offset + 1, UUID(cause), cause, decode_order(body))


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


class Twin:
    """One process: poller, lanes, relay."""

    def __init__(self, here: Place, style: Style, batch: int, lanes: int) -> None:
        self._here, self._style, self._batch = here, style, batch
        self._queues: list[asyncio.Queue[list[Got]]] = [asyncio.Queue() for _ in range(lanes)]
        self._done = 0

    async def run(self) -> Run:
        """From the first message seen until the last outbox row is confirmed and deleted."""
        here, loop = self._here, asyncio.get_running_loop()
        relay = Relay(await connect(here), here.servers)
        poller = Poller(
            here,
            self._batch,
            len(self._queues),
            lambda lane, batch: loop.call_soon_threadsafe(self._queues[lane].put_nowait, batch),
        )
        connections = [await connect(here) for _ in self._queues]
        tasks = [asyncio.create_task(relay.run())]
        tasks += [
            asyncio.create_task(self._lane(queue, connection, poller, relay))
            for queue, connection in zip(self._queues, connections, strict=True)
        ]
        poller.start()
        async with asyncio.timeout(PATIENCE):
            while self._done < here.count or relay.sent < here.count:
                await asyncio.sleep(0.01)
                for task in tasks:
                    if task.done():
                        task.result()
        assert poller.meter is not None
        done = poller.meter.stop(here.count)
        poller.stopped = True
        await asyncio.to_thread(poller.join)
        relay.stop()
        for task in tasks[1:]:
            task.cancel()
        return done

    async def _lane(self, queue: asyncio.Queue[list[Got]], connection: Any, poller: Poller, relay: Relay) -> None:
        while True:
            batch = await queue.get()
            await transaction(connection, self._here.topic_out, batch, self._style)
            poller.handled.update((got.partition, got.next) for got in batch)
            self._done += len(batch)
            poller.room.release()
            relay.wake.set()


def fail(why: str) -> None:
    """End the process from whatever thread: a twin does not recover."""
    print(f"the twin failed: {why}", file=sys.stderr, flush=True)
    os._exit(1)
