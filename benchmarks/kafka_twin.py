"""The native twin on Kafka and PostgreSQL: the reference job by hand, with confluent-kafka and asyncpg. The practical
limit.

A thread polls the consumer; partitions are assigned by hand, so there are no rebalances. The rest is
``benchmarks.postgres_twin``.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from benchmarks import postgres_twin
from benchmarks.byhand import decode_order, unpack
from benchmarks.job import PARTITIONS, Run
from benchmarks.postgres_twin import Got, Style, fail, transaction, until
from benchmarks.servers import Meter, Place, Servers, connect


class Relay(postgres_twin.Relay):
    """Idempotent producer, all replicas; its callbacks come from a thread."""

    def __init__(self, connection: Any, where: Servers, *, linger: int = 5) -> None:
        super().__init__(connection)
        self._producer = Producer(
            {
                "bootstrap.servers": where.bootstrap,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": linger,
                "queue.buffering.max.messages": 500_000,
            }
        )
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._poll, daemon=True).start()

    async def send(self, rows: list[Any]) -> None:
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

    def _poll(self) -> None:
        while not self.stopped:
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
        await until(lambda: self._done >= here.count and relay.sent >= here.count, tasks)
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
            poller.handled.update((got.partition, got.mark) for got in batch)
            self._done += len(batch)
            poller.room.release()
            relay.wake.set()
