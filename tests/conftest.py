"""What all tests share: real servers, for those that ask for them."""

from __future__ import annotations

import pytest

from tests import servers
from tests.servers import (
    database,
    kafka_url,
    own_kafka,
    own_kafka_cluster,
    own_postgres,
    own_rabbitmq,
    postgres_url,
    rabbitmq_url,
)

__all__ = [
    "database",
    "kafka_url",
    "own_kafka",
    "own_kafka_cluster",
    "own_postgres",
    "own_rabbitmq",
    "postgres_url",
    "rabbitmq_url",
]


def pytest_configure(config: pytest.Config) -> None:
    servers.prepare(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    servers.clean(config)


@pytest.hookimpl(tryfirst=True)  # before -m "not servers" is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    servers.mark(items)
