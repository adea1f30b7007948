"""Brokers that die, hang and come back under the Kafka transport, which has to go on without a restart."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable

import pytest

from eventkeel.errors import BrokerUnavailable
from eventkeel.message import Delivery, Headers, Outgoing, Position
from eventkeel.ports.transport import (
    Assigned,
    Broken,
    Budget,
    Deliveries,
    GroupWant,
    Lost,
    Revoking,
    Sent,
    TopicWant,
    Topology,
    Unknown,
)
from eventkeel.testing.transport_kit import numbers
from eventkeel.transports.kafka import KafkaTransport
from eventkeel.transports.kafka.subscription import KafkaSubscription
from tools.realservers import Server

KEYS = 7


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[KafkaTransport]:
    transport = KafkaTransport(url.removeprefix("kafka:"))
    await transport.open()
    try:
        found = await transport.topology(
            Topology((TopicWant("orders", 3),), (GroupWant("billing", "a store", ("orders",)),)), apply=True
        )
        assert all(each.kind != "refused" for each in found), found
        yield transport
    finally:
        await transport.close(2.0)


def outgoing(numbers: Iterable[int]) -> list[Outgoing]:
    return [Outgoing("orders", b"k%d" % (n % KEYS), Headers([("n", b"%d" % n)]), b"%d" % n) for n in numbers]


class Relay:
    """Sends everything in order, again and again until it is confirmed, as the engine's relay does."""

    def __init__(self, transport: KafkaTransport, count: int, deadline: float = 2.0) -> None:
        self._transport, self._deadline = transport, deadline
        self.unsent = outgoing(range(count))
        self.unknown = 0

    async def run(self) -> None:
        while self.unsent:
            outcomes = await self._transport.publish(self.unsent[:20], self._deadline)
            sent = [isinstance(each, Sent) for each in outcomes]
            assert all(isinstance(each, (Sent, Unknown)) for each in outcomes), outcomes
            self.unknown += sent.count(False)
            left = [message for message, done in zip(self.unsent, sent, strict=False) if not done]
            self.unsent = left + self.unsent[20:]
            await asyncio.sleep(0.002)


class Reader:
    """Takes everything, in a group."""

    def __init__(self, subscription: KafkaSubscription) -> None:
        self._subscription = subscription
        self.got: list[Delivery] = []
        self.broken: list[Broken] = []

    async def run(self, count: int) -> None:
        seen: set[int] = set()
        while len(seen) < count:
            arrival = await self._subscription.next()
            match arrival:
                case Assigned(slices):
                    for slice in slices:
                        await self._subscription.begin(slice, None)
                case Deliveries():
                    self.got += arrival.items
                    seen.update(numbers(arrival.items))
                    after = Position(arrival.items[-1].position + 1, arrival.incarnation)
                    await self._subscription.settle(arrival.slice, [after])
                case Revoking(slices, _) | Lost(slices):
                    await self._subscription.release(slices)
                case Broken():
                    assert not arrival.fatal, arrival
                    self.broken.append(arrival)


def check(got: Iterable[Delivery], count: int) -> None:
    """Nothing is missing, and what is new comes in order for each key; repeats are the inbox's."""
    run = numbers(got)
    assert set(run) == set(range(count))
    for key in range(KEYS):
        newest = -1
        for number in (n for n in run if n % KEYS == key):
            assert number <= newest + KEYS, f"{number} came before {newest + KEYS}"
            newest = max(newest, number)


@pytest.mark.timeout(400)
async def test_a_killed_broker_that_comes_back_is_survived_by_sender_and_reader(own_kafka: Server) -> None:
    count = 3000
    async with opened(own_kafka.url) as transport:
        relay, reader = Relay(transport, count), Reader(transport.subscribe("billing", ["orders"], Budget()))
        reading = asyncio.ensure_future(reader.run(count))
        for part in (relay.unsent[:1000], relay.unsent[1000:2000], relay.unsent[2000:]):
            relay.unsent = list(part)
            sending = asyncio.ensure_future(relay.run())
            while len(relay.unsent) > 500:
                assert not sending.done()
                await asyncio.sleep(0.005)
            if part[-1].body != b"%d" % (count - 1):  # twice
                await asyncio.to_thread(own_kafka.kill9)
                await asyncio.to_thread(own_kafka.start)
            healed, have = time.monotonic(), len(reader.got)
            await sending
            while len(reader.got) == have:
                await asyncio.sleep(0.01)
            assert time.monotonic() - healed < 30
        async with asyncio.timeout(60):
            await reading
        check(reader.got, count)
        assert not any(each.fatal for each in reader.broken)


async def test_a_broker_that_hangs_makes_a_wave_unknown_in_time_and_loses_nothing(own_kafka: Server) -> None:
    async with opened(own_kafka.url) as transport:
        reader = Reader(transport.subscribe("billing", ["orders"], Budget()))
        reading = asyncio.ensure_future(reader.run(60))
        assert all(isinstance(each, Sent) for each in await transport.publish(outgoing(range(20)), 10.0))
        own_kafka.pause()
        try:
            began = time.monotonic()
            outcomes = await transport.publish(outgoing(range(20, 40)), 1.0)
            assert time.monotonic() - began < 2.5
            assert all(isinstance(each, Unknown) for each in outcomes), outcomes
        finally:
            own_kafka.resume()
        relay = Relay(transport, 60, deadline=10.0)
        relay.unsent = relay.unsent[20:]
        async with asyncio.timeout(30):
            await relay.run()
            await reading
        check(reader.got, 60)


async def test_nobody_there_is_said_in_a_sentence(own_kafka: Server) -> None:
    url = own_kafka.url
    await asyncio.to_thread(own_kafka.kill9)
    transport = KafkaTransport(url.removeprefix("kafka:") + "?sasl.password=hush")
    said = r"broker kafka://127\.0\.0\.1:\d+ does not answer; start it, or correct its URL: "
    with pytest.raises(BrokerUnavailable, match=said) as raised:
        await transport.open()
    assert "hush" not in str(raised.value)
    await transport.close(1.0)


async def test_a_broker_that_does_not_answer_a_declaration_is_unavailable(own_kafka: Server) -> None:
    async with opened(own_kafka.url) as transport:
        await asyncio.to_thread(own_kafka.kill9)
        with pytest.raises(BrokerUnavailable):
            await transport.topology(Topology((TopicWant("more", 1),)), apply=True)
