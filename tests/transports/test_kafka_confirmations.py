"""What a Kafka broker has not confirmed is never taken for sent."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from eventkeel.errors import BrokerUnavailable
from eventkeel.ports.transport import Sent, TopicWant, Topology, Unknown
from eventkeel.testing.transport_kit import message
from eventkeel.transports.kafka import KafkaTransport
from tools.realservers import Server


@contextlib.asynccontextmanager
async def opened(server: Server) -> AsyncIterator[KafkaTransport]:
    """With a topic, to which a message was sent."""
    transport = KafkaTransport(server.url.removeprefix("kafka:"))
    await transport.open()
    try:
        await transport.topology(Topology((TopicWant("orders", 8),)), apply=True)
        assert await transport.publish([message(0)], 30.0) == [Sent()]
        yield transport
    finally:
        server.resume()
        await transport.close(1.0)


async def test_what_a_killed_broker_never_got_is_unknown(own_kafka: Server) -> None:
    async with opened(own_kafka) as transport:
        own_kafka.kill9()
        outcomes = await transport.publish([message(number, key=b"%d" % number) for number in range(50)], 2.0)
        assert {type(outcome) for outcome in outcomes} == {Unknown}
        own_kafka.start()
        outcomes = await transport.publish([message(number, key=b"%d" % number) for number in range(50)], 60.0)
        assert {type(outcome) for outcome in outcomes} == {Sent}


async def test_what_a_silent_broker_does_not_confirm_in_time_is_unknown(own_kafka: Server) -> None:
    async with opened(own_kafka) as transport:
        own_kafka.pause()
        outcomes = await transport.publish([message(number) for number in range(50)], 1.0)
        assert {type(outcome) for outcome in outcomes} == {Unknown}
        own_kafka.resume()
        assert await transport.publish([message(1)], 30.0) == [Sent()]


async def test_a_broker_that_dies_before_a_declaration_is_unavailable_and_refuses_nothing(own_kafka: Server) -> None:
    async with opened(own_kafka) as transport:
        own_kafka.kill9()
        with pytest.raises(BrokerUnavailable):
            await transport.topology(Topology((TopicWant("others", 1),)), apply=True)
