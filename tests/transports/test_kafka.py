"""The Kafka transport: what every transport does, on a real broker, and what is its own."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from eventkeel.testing.transport_suite import TransportSuite
from eventkeel.transports.kafka import KafkaTransport


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
