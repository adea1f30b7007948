"""Real servers for the shop's tests."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def postgres_url() -> str:
    return os.environ["EVENTKEEL_TEST_POSTGRES"]


@pytest.fixture(scope="session")
def kafka_url() -> str:
    return os.environ["EVENTKEEL_TEST_KAFKA"]
