"""What all tests share: real servers and a browser, for those that ask for them."""

from __future__ import annotations

import pytest

from tests import browser as a_browser
from tests import lanes, servers
from tests.browser import browser, chromium
from tests.servers import (
    database,
    kafka_url,
    own_kafka,
    own_kafka_cluster,
    own_postgres,
    own_rabbitmq,
    own_rabbitmq_cluster,
    postgres_url,
    rabbitmq_url,
)

__all__ = [
    "browser",
    "chromium",
    "database",
    "kafka_url",
    "own_kafka",
    "own_kafka_cluster",
    "own_postgres",
    "own_rabbitmq",
    "own_rabbitmq_cluster",
    "postgres_url",
    "rabbitmq_url",
]


def pytest_configure(config: pytest.Config) -> None:
    servers.prepare(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    servers.clean(config)


@pytest.hookimpl(tryfirst=True)  # before -m is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    servers.mark(items)
    a_browser.mark(items)
    lanes.mark(items)
