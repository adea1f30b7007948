"""A schema of its own for each test of the PostgreSQL store."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import pytest_asyncio

from eventkeel.testing.store_kit import Workbench
from tests.stores.postgres_kit import Place


@pytest.fixture
def place(postgres_url: str) -> Iterator[Place]:
    made = Place(postgres_url, f"t_{uuid.uuid4().hex[:12]}")
    made.make()
    yield made
    made.drop()


@pytest.fixture
def place_for() -> Callable[[str], Place]:
    """A schema on a server of the test's own."""

    def make(server: str) -> Place:
        made = Place(server, f"t_{uuid.uuid4().hex[:12]}")
        made.make()
        return made

    return make


@pytest_asyncio.fixture(params=["async", "sync"])
async def pg(place: Place, request: pytest.FixtureRequest) -> AsyncIterator[Workbench]:
    """Stores on this test's schema, with each of the two drivers."""
    async with place.bench(request.param) as bench:
        yield bench


@pytest_asyncio.fixture
async def pga(place: Place) -> AsyncIterator[Workbench]:
    """The same with the asynchronous driver only."""
    async with place.bench() as bench:
        yield bench
