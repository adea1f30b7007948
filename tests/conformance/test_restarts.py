"""Brokers of these tests' own, killed while messages are sent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from eventkeel.testing.conformance.restarts import RestartSuite
from eventkeel.testing.harness import Harness
from tests.conformance.places import KILLED_RABBITMQ, QUICK_KAFKA
from tools.realservers import Server
from tools.realservers.rabbitmq import RabbitMQ


class TestSQLite(RestartSuite):
    """Its broker is a file: what can be killed is whoever has it open."""

    broker, store = "sqlite", "sqlite"

    def settings(self) -> Mapping[str, str]:
        return {}

    async def restart_broker(self, app: Harness) -> None:
        await app.crash()
        await app.restart()


class Killed(RestartSuite):
    server: Server

    async def restart_broker(self, app: Harness) -> None:
        await asyncio.to_thread(self.server.kill9)
        await asyncio.to_thread(self.server.start)


@pytest.mark.slow
@pytest.mark.timeout(300)
class TestKafka(Killed):
    broker, store = "kafka", "sqlite"

    @pytest.fixture(autouse=True)
    def _own(self, own_kafka: Server) -> None:
        self.server = own_kafka

    def settings(self) -> Mapping[str, str]:
        return {"broker": f"{self.server.url}?{QUICK_KAFKA}"}


@pytest.mark.slow
@pytest.mark.timeout(300)
class TestRabbitMQ(Killed):
    broker, store = "rabbitmq", "sqlite"

    @pytest.fixture(autouse=True)
    def _own(self, own_rabbitmq: RabbitMQ) -> None:
        self.server = own_rabbitmq

    def settings(self) -> Mapping[str, str]:
        return {"broker": f"{self.server.url}?{KILLED_RABBITMQ}"}
