"""The engine's scenarios on each of our brokers and stores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from eventkeel.testing import harness
from eventkeel.testing.conformance.service_suite import ServiceSuite
from tests.conformance import places


@pytest.mark.timeout(600)
class Pair(ServiceSuite):
    """Bound by the names of its broker and store."""

    @pytest.fixture(autouse=True)
    def _place(self, request: pytest.FixtureRequest) -> Iterator[None]:
        harness.PLACES.clear()
        with (
            places.broker(self.broker, request) as broker,
            places.store(self.store, request) as store,
        ):
            self._settings = {**broker, **store}
            yield

    def settings(self) -> Mapping[str, str]:
        return self._settings


class TestSQLite(Pair):
    broker, store = "sqlite", "sqlite"


@pytest.mark.servers
class TestSQLiteAndPostgres(Pair):
    broker, store = "sqlite", "postgres"


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.thorough
class TestKafkaAndSQLite(Pair):
    broker, store = "kafka", "sqlite"


@pytest.mark.servers
@pytest.mark.slow
class TestKafkaAndPostgres(Pair):
    broker, store = "kafka", "postgres"


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.thorough
class TestRabbitMQAndSQLite(Pair):
    broker, store = "rabbitmq", "sqlite"


@pytest.mark.servers
@pytest.mark.slow
class TestRabbitMQAndPostgres(Pair):
    broker, store = "rabbitmq", "postgres"
