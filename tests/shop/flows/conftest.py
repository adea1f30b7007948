"""Every flow on files, and on Kafka and PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest

from shop.brokers import with_options
from tests.outside import Outside
from tests.shop.kit import SERVICES, Shop, shop


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    with Outside(tmp_path) as made:
        yield made


@pytest.fixture(params=["files", pytest.param("servers", marks=[pytest.mark.servers, pytest.mark.slow])])
def options(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Where broker and databases are."""
    if request.param == "files":
        yield {}
        return
    kafka, postgres = request.getfixturevalue("kafka_url"), request.getfixturevalue("postgres_url")
    name = f"shop{uuid.uuid4().hex[:8]}"
    yield {
        "broker": with_options(kafka, {"prefix": f"{name}."}),
        "store": f"{postgres}?schema={name}-{{service}}",
        "partitions": "2",
    }
    with psycopg.connect(postgres, autocommit=True) as admin:
        for service in SERVICES.values():
            admin.execute(f'drop schema if exists "{name}-{service.name}" cascade'.encode())


@pytest.fixture
async def it(tmp_path: Path, outside: Outside, options: dict[str, str]) -> AsyncIterator[Shop]:
    """The shop. At the end, the ledger has to balance."""
    async with shop(tmp_path, outside, **options) as made:
        yield made
        await made.until_quiet()
        found = made.ledger()
        assert found.balanced, found.line()
        assert found.open == 0, found.line()
