from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from interop.programs import Programs, ready
from tests.interop.kit import Street
from tools.realservers import ServersError


@pytest.fixture(scope="session")
def programs() -> Programs:
    """Other people's programs, brought and built where they are not yet there."""
    try:
        return ready()
    except ServersError as error:
        trouble = error
    pytest.fail(f"no programs for this test: {trouble}", pytrace=False)


@pytest.fixture
def street(kafka_url: str, database: str, tmp_path: Path) -> Iterator[Street]:
    made = Street(kafka_url, database, f"interop-{uuid4().hex[:10]}.", tmp_path)
    yield made
    made.close()
