"""The RabbitMQ transport: what every transport does, on a real broker, and what is its own."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from eventkeel.testing.transport_suite import TransportSuite
from eventkeel.transports.rabbitmq import RabbitTransport
from tests.rabbit import wipe

QUICK = "catch_up_ms=300"
"""On one machine nothing is under way for longer."""


def url_of(url: str, place: Path) -> str:
    """Where names are this test's own, on the broker that all tests share."""
    prefix = f"t{zlib.crc32(str(place).encode()):08x}."
    return f"{url}{'&' if '?' in url else '?'}prefix={prefix}&{QUICK}"


def own(url: str, place: Path, more: str = "") -> RabbitTransport:
    return RabbitTransport(url_of(url, place).removeprefix("amqp:") + more)


class TestRabbitMQ(TransportSuite):
    @pytest.fixture(autouse=True)
    async def _broker(self, rabbitmq_url: str, tmp_path: Path) -> AsyncIterator[None]:
        self.url = rabbitmq_url
        yield
        await wipe(url_of(rabbitmq_url, tmp_path))

    async def make(self, place: Path) -> RabbitTransport:
        return own(self.url, place)
