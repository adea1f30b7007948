"""The native twin on RabbitMQ and PostgreSQL: the reference job by hand, on a small AMQP client of its own and asyncpg.
The practical limit.

All on one event loop: a channel for each queue with a prefetch of ``PREFETCH``; a queue belongs to one lane, which
takes what has come, in one transaction, and acknowledges all of it with one frame for each queue; the relay publishes
persistent, mandatory and confirmed, several waves in flight. On the topology of Eventkeel, or on plain queues:
``benchmarks.on_rabbitmq``. The rest is ``benchmarks.postgres_twin``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

from pamqp import commands

from benchmarks import amqp, postgres_twin
from benchmarks.byhand import decode_order, unpack
from benchmarks.job import Run
from benchmarks.on_rabbitmq import PLAIN, exchange, queues_in, queues_out
from benchmarks.postgres_twin import Got, Style, transaction, until
from benchmarks.servers import Meter, Place, connect

PREFETCH = 1000
_CHUNK = 250


class Relay(postgres_twin.Relay):
    """One confirmed channel on a connection of its own."""

    def __init__(self, connection: Any, here: Place) -> None:
        super().__init__(connection)
        self._here, self._queues = here, [queue.encode() for queue in queues_out(here)]
        self._exchange = exchange(here, here.topic_out)

    async def open(self) -> None:
        self._channel = amqp.Confirming(await amqp.connect(self._here.servers.broker), 1)
        await self._channel.open()

    async def send(self, rows: list[Any]) -> None:
        write, plain, name = self._channel.write, self._queues, self._exchange
        wave = self._channel.wave(len(rows))
        for number, (shard, _, _, key, headers, body) in enumerate(rows):
            if plain:
                write("", plain[shard % PLAIN], unpack(headers), body, wave)
            else:
                write(name, key, unpack(headers), body, wave)
            if number % _CHUNK == _CHUNK - 1:
                await asyncio.sleep(0)
        await wave.done


class Lane:
    """What came for it and is not handled."""

    def __init__(self) -> None:
        self.waiting: list[Got] = []
        self.come = asyncio.Event()


class Twin:
    """One process: connection, lanes, relay."""

    def __init__(self, here: Place, style: Style, batch: int, lanes: int) -> None:
        self._here, self._style, self._batch = here, style, batch
        self._lanes = [Lane() for _ in range(lanes)]
        self._meter: Meter | None = None
        self._done = 0

    async def run(self) -> Run:
        """From the first message seen until the last outbox row is confirmed and deleted."""
        here = self._here
        relay = Relay(await connect(here), here)
        await relay.open()
        client = await amqp.connect(here.servers.broker)
        connections = [await connect(here) for _ in self._lanes]
        tasks = [asyncio.create_task(relay.run())]
        tasks += [
            asyncio.create_task(self._run(lane, connection, client, relay))
            for lane, connection in zip(self._lanes, connections, strict=True)
        ]
        for number, queue in enumerate(queues_in(here)):
            channel = await client.channel(number + 1)
            client.consumers[channel] = self._taker(number)
            await client.ask(channel, commands.Basic.Qos(prefetch_count=PREFETCH))
            await client.ask(channel, commands.Basic.Consume(queue=queue))
        await until(lambda: self._done >= here.count and relay.sent >= here.count, tasks)
        assert self._meter is not None
        done = self._meter.stop(here.count)
        relay.stop()
        for task in tasks[1:]:
            task.cancel()
        await client.close()
        return done

    def _taker(self, partition: int) -> Callable[[amqp.Message], None]:
        lane = self._lanes[partition % len(self._lanes)]
        waiting, come = lane.waiting, lane.come

        def take(message: amqp.Message) -> None:
            if self._meter is None:
                self._meter = Meter(self._here.servers)
            cause = message.headers["ce-id"].decode()
            waiting.append(Got(partition, message.tag, UUID(cause), cause, decode_order(message.body)))
            come.set()

        return take

    async def _run(self, lane: Lane, connection: Any, client: amqp.Client, relay: Relay) -> None:
        while True:
            await lane.come.wait()
            batch = lane.waiting[: self._batch]
            del lane.waiting[: self._batch]
            if not lane.waiting:
                lane.come.clear()
            await transaction(connection, self._here.topic_out, batch, self._style)
            for partition, tag in {got.partition: got.mark for got in batch}.items():
                client.write(amqp.ack(partition + 1, tag))
            self._done += len(batch)
            relay.wake.set()
