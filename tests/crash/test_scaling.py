"""Order while everything happens at once, in numbers that everybody can wait for; the full ones are
``python -m tests.crash.scaling``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shop.brokers import QUICK, with_options
from tests.conformance.places import corner
from tests.crash.places import Where
from tests.crash.scaling import Wish, scaling

MODEST = Wish(keys=100, events=20, kills=2)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.scenario("K5", "T10", "X2", broker="sqlite", store="sqlite")
def test_every_key_is_in_order_on_files(tmp_path: Path) -> None:
    assert scaling(Where(), tmp_path, MODEST) == []


@pytest.mark.scenario("K5", "T10", "X2", broker="sqlite", store="postgres")
def test_every_key_is_in_order_on_a_file_and_postgres(tmp_path: Path, database: str) -> None:
    assert scaling(Where(store=f"{database}?schema={{service}}"), tmp_path, MODEST) == []


@pytest.mark.scenario("K5", "T10", "X2", broker="kafka", store="postgres")
def test_every_key_is_in_order_on_kafka_and_postgres(tmp_path: Path, kafka_url: str, database: str) -> None:
    broker = with_options(f"{kafka_url}?prefix=scaling-{os.urandom(4).hex()}.", QUICK)
    assert scaling(Where(broker, f"{database}?schema={{service}}"), tmp_path, MODEST) == []


@pytest.mark.scenario("K5", "T10", "X2", broker="kafka", store="sqlite")
def test_every_key_is_in_order_on_kafka_and_files(tmp_path: Path, kafka_url: str) -> None:
    broker = with_options(f"{kafka_url}?prefix=scaling-{os.urandom(4).hex()}.", QUICK)
    assert scaling(Where(broker), tmp_path, MODEST) == []


@pytest.mark.scenario("K5", "T10", "X2", broker="rabbitmq", store="postgres")
def test_every_key_is_in_order_on_rabbitmq_and_postgres(tmp_path: Path, rabbitmq_url: str, database: str) -> None:
    with corner(rabbitmq_url) as broker:
        assert scaling(Where(broker, f"{database}?schema={{service}}"), tmp_path, MODEST) == []


@pytest.mark.scenario("K5", "T10", "X2", broker="rabbitmq", store="sqlite")
def test_every_key_is_in_order_on_rabbitmq_and_files(tmp_path: Path, rabbitmq_url: str) -> None:
    with corner(rabbitmq_url) as broker:
        assert scaling(Where(broker), tmp_path, MODEST) == []
