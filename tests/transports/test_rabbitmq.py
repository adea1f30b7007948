"""The RabbitMQ transport: what every transport does, on a real broker, and what is its own."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from eventkeel.testing.transport_suite import TransportSuite
from eventkeel.transports.rabbitmq import RabbitTransport

QUICK = "catch_up_ms=300"
"""On one machine nothing is under way for longer."""


def own(url: str, place: Path, more: str = "") -> RabbitTransport:
    """A transport whose names are this test's own, on the broker that all tests share."""
    prefix = f"t{zlib.crc32(str(place).encode()):08x}."
    rest = url.removeprefix("amqp:")
    return RabbitTransport(f"{rest}{'&' if '?' in rest else '?'}prefix={prefix}&{QUICK}{more}")


class TestRabbitMQ(TransportSuite):
    @pytest.fixture(autouse=True)
    def _broker(self, rabbitmq_url: str) -> None:
        self.url = rabbitmq_url

    async def make(self, place: Path) -> RabbitTransport:
        return own(self.url, place)
