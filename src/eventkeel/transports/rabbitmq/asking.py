"""Questions: how far groups are behind, and a topic's history once more."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from eventkeel.errors import BrokerUnavailable, ConfigurationError
from eventkeel.message import Delivery, Headers, Slice
from eventkeel.ports.transport import Sent, SliceLag, Span
from eventkeel.transports.rabbitmq import wire
from eventkeel.transports.rabbitmq.connection import ANSWER, Channel
from eventkeel.transports.rabbitmq.publisher import to_queue
from eventkeel.transports.rabbitmq.registry import ready_in
from eventkeel.transports.rabbitmq.streams import consume
from eventkeel.transports.rabbitmq.topology import HISTORY

if TYPE_CHECKING:
    from eventkeel.transports.rabbitmq.transport import RabbitTransport

_PAGE = 500


async def lags(transport: RabbitTransport, group: str) -> list[SliceLag]:
    """Of every queue that holds messages of the group or will."""
    try:
        state = await transport.registry.alive()
    except ConfigurationError:  # nothing was ever declared here
        return []
    found: list[SliceLag] = []
    elsewhere: dict[str, int] | None = None
    for topic in state.topics_of(group):
        if state.unfilled(group, topic):
            found.append(await _history_lag(transport, group, topic))
        for generation in state.waiting(group, topic):
            for shard in range(generation.shards):
                if shard in generation.drained:
                    continue
                slice = Slice(topic, shard, generation.number)
                queue = transport.options.queue(group, topic, generation.number, shard)
                ready = await _ready(transport, queue)
                flow = transport.flow(group, slice)
                if flow is not None:
                    end = flow.settled + flow.held + ready
                    found.append(SliceLag(slice, flow.settled, end, queue, flow.oldest))
                    continue
                if elsewhere is None:
                    elsewhere = await transport.management.unsettled()
                found.append(SliceLag(slice, 0, ready + elsewhere.get(queue, 0), queue))
    return found


async def _history_lag(transport: RabbitTransport, group: str, topic: str) -> SliceLag:
    slice, stream = Slice(topic, 0, HISTORY), transport.options.history_of(topic)
    flow = transport.flow(group, slice)
    count = await _ready(transport, stream)
    if flow is None:
        return SliceLag(slice, None, count, stream)
    return SliceLag(slice, flow.settled or None, max(count, flow.settled + flow.held), stream, flow.oldest)


async def _ready(transport: RabbitTransport, queue: str) -> int:
    channel = await (await transport.asking.get()).channel()
    try:
        return await ready_in(channel, queue) or 0
    finally:
        channel.close()


async def history(transport: RabbitTransport, topic: str, span: Span) -> AsyncIterator[Sequence[Delivery]]:
    """See ``RabbitTransport.read``. The end is a marker of our own: a stream's declared length proves nothing."""
    await transport.registry.alive()
    if topic not in transport.registry.state.topics:
        raise ConfigurationError(f"topic {topic!r} does not exist on broker {transport.options.name}")
    if span.partition not in (None, 0):
        raise ConfigurationError(f"topic {topic!r} has one partition to read again, 0, and no {span.partition}")
    stream, slice = transport.options.history_of(topic), Slice(topic, 0, HISTORY)
    marker = os.urandom(8).hex()
    message = to_queue(stream, Headers([(wire.MARKER, marker.encode())]), b"")
    outcome = (await transport.publisher.publish([message], ANSWER))[0]
    if not isinstance(outcome, Sent):
        raise BrokerUnavailable(f"broker {transport.options.name}, {stream}: {outcome.reason}")
    arrived: asyncio.Queue[Delivery | None] = asyncio.Queue()
    last = span.last

    def take(at: Channel, method: bytes, header: bytes, body: bytes) -> None:
        got = wire.delivered(method, header)
        at.connection.write(wire.ack(at.number, got.tag, False))
        if got.marker == marker or (last is not None and got.offset >= last):
            arrived.put_nowait(None)
        elif not got.marker and got.offset >= span.first:
            arrived.put_nowait(Delivery(slice, got.offset, got.key, got.headers, body, got.time))

    def prepare(channel: Channel) -> None:
        channel.on_content = partial(take, channel)

    channel = await consume(transport.asking, stream, span.first or "first", _PAGE, prepare)
    channel.on_closed = lambda reason: arrived.put_nowait(None)
    try:
        ended = False
        while not ended and channel.closed is None:
            page: list[Delivery] = []
            async with asyncio.timeout(ANSWER):
                found = await arrived.get()
            while found is not None:
                page.append(found)
                if len(page) >= _PAGE or arrived.empty():
                    break
                found = arrived.get_nowait()
            ended = found is None
            if page:
                yield page
        if channel.closed is not None:
            raise BrokerUnavailable(f"broker {transport.options.name}, {stream}: {channel.closed}")
    except TimeoutError:
        raise BrokerUnavailable(f"broker {transport.options.name} sends nothing of {stream}") from None
    finally:
        channel.close()
