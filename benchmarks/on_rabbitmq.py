"""Exchanges, queues and streams of a run on RabbitMQ: made, filled, counted, dropped.

``by hand``: the same topology as Eventkeel's, name for name. ``plain``: quorum queues alone, one for each lane, reached
by the default exchange. ``peer``: a topic exchange and one quorum queue for each topic, as users of FastStream declare
them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, cast
from uuid import uuid4

from pamqp import base, commands

from benchmarks import amqp
from benchmarks.job import PARTITIONS, Input
from benchmarks.servers import Place

PLAIN = 4
"""Plain queues for each topic."""
_WAVE = 1000
_PATIENCE = 10.0
_QUORUM: dict[str, Any] = {"x-queue-type": "quorum"}


def queues_in(here: Place) -> list[str]:
    """Where the messages wait."""
    if here.layout == "plain":
        return [f"{here.prefix}{here.topic_in}.{number}" for number in range(PLAIN)]
    if here.layout == "peer":
        return [here.topic_in]
    return [f"{_hash(here)}.{shard}" for shard in range(PARTITIONS)]


def queues_out(here: Place) -> list[str]:
    """Where the answers go; empty: into a stream."""
    if here.layout == "plain":
        return [f"{here.prefix}{here.topic_out}.{number}" for number in range(PLAIN)]
    return [here.topic_out] if here.layout == "peer" else []


def exchange(here: Place, topic: str) -> str:
    return topic if here.layout == "peer" else here.prefix + topic


def _history(here: Place, topic: str) -> str:
    return f"{here.prefix}{topic}.history"


def _hash(here: Place) -> str:
    return f"{here.prefix}{_group(here)}.{here.topic_in}.g1"


def _group(here: Place) -> str:
    return f"payment-service-group_{here.tag}"


# ------------------------------------------------------------------ made and dropped


def make(here: Place) -> None:
    if here.layout:
        _run(here, _make)


async def _make(client: amqp.Client, here: Place) -> None:
    channel = await client.channel(1)
    frames = list(_topology(here) if here.layout == "by hand" else _queues(here))
    for each in frames:
        await client.ask(channel, each)


def _queues(here: Place) -> Iterable[base.Frame]:
    for queue in (*queues_in(here), *queues_out(here)):
        yield _queue(queue, _QUORUM)
        if here.layout == "peer":
            yield commands.Exchange.Declare(exchange=queue, exchange_type="topic", durable=True)
            yield commands.Queue.Bind(queue=queue, exchange=queue, routing_key="#")


def _topology(here: Place) -> Iterable[base.Frame]:
    """What Eventkeel declares for the two topics and the group, with the same arguments."""
    dead = f"{here.prefix}{_group(here)}.dead"
    for topic in (here.topic_in, here.topic_out):
        name = exchange(here, topic)
        yield commands.Exchange.Declare(exchange=name, exchange_type="topic", durable=True)
        yield _queue(_history(here, topic), {"x-queue-type": "stream", "x-max-age": "7D"})
        yield commands.Queue.Bind(queue=_history(here, topic), exchange=name, routing_key="#")
    yield commands.Exchange.Declare(exchange=dead, exchange_type="fanout", durable=True)
    yield _queue(dead, _QUORUM)
    yield commands.Queue.Bind(queue=dead, exchange=dead, routing_key="#")
    yield commands.Exchange.Declare(exchange=_hash(here), exchange_type="x-consistent-hash", durable=True)
    for shard in queues_in(here):
        yield _queue(
            shard,
            {
                **_QUORUM,
                "x-single-active-consumer": True,
                "x-overflow": "reject-publish",
                "x-delivery-limit": 100,
                "x-dead-letter-exchange": dead,
                "x-dead-letter-strategy": "at-least-once",
            },
        )
        yield commands.Exchange.Declare(exchange=shard, exchange_type="fanout", durable=True)
        yield commands.Queue.Bind(queue=shard, exchange=shard)
        yield commands.Exchange.Bind(destination=shard, source=_hash(here), routing_key="1")
    yield commands.Exchange.Bind(destination=_hash(here), source=exchange(here, here.topic_in), routing_key="#")


def _queue(name: str, arguments: dict[str, Any]) -> base.Frame:
    return commands.Queue.Declare(queue=name, durable=True, arguments=arguments)


def drop(here: Place) -> None:
    """What is not there is gone."""
    _run(here, _drop)


async def _drop(client: amqp.Client, here: Place) -> None:
    channel = await client.channel(1)
    dead, topics = f"{here.prefix}{_group(here)}.dead", [here.topic_in, here.topic_out]
    queues = [*queues_in(here), *queues_out(here)]
    exchanges = [exchange(here, topic) for topic in topics]
    if here.layout in ("", "by hand"):
        topics.append(f"ticks_{here.tag}")  # of a service that stands in the same module
        exchanges = [*(here.prefix + topic for topic in topics), _hash(here), dead, f"{here.prefix}eventkeel.hash"]
        exchanges += queues_in(here)  # one before each queue
        queues += [dead, *(_history(here, topic) for topic in topics), f"{here.prefix}eventkeel.registry"]
    for name in exchanges:
        await client.ask(channel, commands.Exchange.Delete(exchange=name))
    for name in queues:
        await client.ask(channel, commands.Queue.Delete(queue=name))


# ------------------------------------------------------------------ filled and counted


def fill(here: Place, inputs: Iterable[Input]) -> int:
    """Put messages on the topic in, each confirmed, and say how many. Not measured."""
    inputs = list(inputs)
    if inputs:
        _run(here, lambda client, here: _fill(client, here, inputs))
        _wait(lambda: _run(here, _waiting) == len(inputs), f"{here.topic_in} holds {len(inputs)} messages")
    return len(inputs)


async def _fill(client: amqp.Client, here: Place, inputs: Sequence[Input]) -> None:
    channel = amqp.Confirming(client, 1)
    await channel.open()
    plain, name = queues_in(here) if here.layout == "plain" else [], exchange(here, here.topic_in)
    for start in range(0, len(inputs), _WAVE):
        part = inputs[start : start + _WAVE]
        wave = channel.wave(len(part))
        for number, each in enumerate(part):
            to = ("", plain[number % PLAIN].encode()) if plain else (name, each.key)
            channel.write(*to, each.headers, each.body, wave)
        await wave.done


def out(here: Place) -> int:
    """Messages on the topic out."""
    return int(_run(here, _out))


async def _out(client: amqp.Client, here: Place) -> int:
    if queues := queues_out(here):
        return await _depth(client, queues)
    return await _length(client, _history(here, here.topic_out))


def left(here: Place) -> int:
    """Messages in that nobody has acknowledged, once what was out to a closed connection has come back."""
    time.sleep(0.3)
    return int(_run(here, _waiting))


async def _waiting(client: amqp.Client, here: Place) -> int:
    return await _depth(client, queues_in(here))


async def _depth(client: amqp.Client, queues: Sequence[str]) -> int:
    channel = await client.channel(1)
    total = 0
    for queue in queues:
        found = await client.ask(channel, commands.Queue.Declare(queue=queue, durable=True, passive=True))
        total += cast("commands.Queue.DeclareOk", found).message_count or 0
    return total


async def _length(client: amqp.Client, stream: str) -> int:
    """Of a stream: read up to a marker, because the number that it declares proves nothing."""
    marker = uuid4().hex.encode()
    channel = amqp.Confirming(client, 1)
    await channel.open()
    wave = channel.wave(1)
    channel.write("", stream.encode(), [(amqp.MARKER, marker)], b"-", wave)
    await wave.done
    reading, count = await client.channel(2), 0
    ended = asyncio.get_running_loop().create_future()

    def got(message: amqp.Message) -> None:
        nonlocal count
        if message.headers.get(amqp.MARKER) == marker:
            ended.set_result(None)
            return
        count += 1
        if message.tag % 500 == 0:
            client.write(amqp.ack(reading, message.tag))

    client.consumers[reading] = got
    await client.ask(reading, commands.Basic.Qos(prefetch_count=2000))
    await client.ask(reading, commands.Basic.Consume(queue=stream, arguments={"x-stream-offset": "first"}))
    await ended
    return count


def _wait(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not true():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {_PATIENCE:g} s")
        time.sleep(0.05)


def _run(here: Place, what: Callable[[amqp.Client, Place], Coroutine[Any, Any, Any]]) -> Any:
    """On a connection of its own."""

    async def run() -> Any:
        client = await amqp.connect(here.servers.broker)
        try:
            async with asyncio.timeout(120):
                return await what(client, here)
        finally:
            await client.close()

    return asyncio.run(run())
