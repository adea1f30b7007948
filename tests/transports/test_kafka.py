"""The Kafka transport: what every transport does, on a real broker, and what is its own."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from eventkeel.errors import BrokerUnavailable
from eventkeel.ports.transport import Sent, TopicWant, Topology, Unknown
from eventkeel.testing.transport_kit import message
from eventkeel.testing.transport_suite import TransportSuite
from eventkeel.transports.kafka import KafkaTransport
from tools.realservers import Server


def own(url: str, place: Path, more: str = "") -> KafkaTransport:
    """A transport whose topics and groups are this test's own, on the broker that all tests share."""
    prefix = f"t{zlib.crc32(str(place).encode()):08x}."
    rest = url.removeprefix("kafka:")
    return KafkaTransport(f"{rest}{'&' if '?' in rest else '?'}prefix={prefix}{more}")


class TestKafka(TransportSuite):
    @pytest.fixture(autouse=True)
    def _broker(self, kafka_url: str) -> None:
        self.url = kafka_url

    async def make(self, place: Path) -> KafkaTransport:
        return own(self.url, place)


async def test_what_is_not_confirmed_in_time_is_unknown_and_may_be_sent_again(
    own_kafka: Server, tmp_path: Path
) -> None:
    transport = own(own_kafka.url, tmp_path)
    await transport.open()
    try:
        await transport.topology(Topology((TopicWant("orders", 1),)), apply=True)
        assert await transport.publish([message(0)], 30.0) == [Sent()]
        own_kafka.pause()
        (outcome,) = await transport.publish([message(1)], 1.0)
        assert isinstance(outcome, Unknown)
        own_kafka.resume()
        assert await transport.publish([message(1)], 30.0) == [Sent()]
    finally:
        own_kafka.resume()
        await transport.close(5.0)


async def test_a_broker_that_does_not_answer_a_declaration_is_unavailable(own_kafka: Server, tmp_path: Path) -> None:
    transport = own(own_kafka.url, tmp_path)
    await transport.open()
    try:
        own_kafka.kill9()
        with pytest.raises(BrokerUnavailable):
            await transport.topology(Topology((TopicWant("orders", 1),)), apply=True)
    finally:
        await transport.close(1.0)
