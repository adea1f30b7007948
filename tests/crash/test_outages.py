"""RabbitMQ in trouble under load, for some seconds each: the full ones are ``python -m tests.crash.outages``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.places import corner
from tests.crash.load import journal_under_load
from tests.crash.outages import NAMES, PER_SECOND, WORKERS, Outages, outages
from tests.crash.places import Where, place
from tests.crash.shares import shares
from tests.mutants.rabbitmq import CAUGHT_BY
from tools.realservers.rabbitmq import RabbitMQ

# The outages of tests/transports/test_rabbitmq_outages.py, within one process, are in every run.
pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.servers, pytest.mark.timeout(300)]

SHARE = 0.3
"""Of the seconds that each takes in full."""
QUICK, CHANGING = "&catch_up_ms=2000", 12.0
"""On one machine nothing is under way for longer."""


def quick(where: Where) -> Where:
    return dataclasses.replace(where, broker=where.broker + QUICK)


@pytest.fixture(scope="module")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outages]:
    """Three processes under load, which all of these tests disturb."""
    folder = tmp_path_factory.mktemp("outages")
    with (
        place("rabbitmq", "postgres") as where,
        journal_under_load(quick(where), folder, workers=WORKERS, per_second=PER_SECOND) as (journal, load),
    ):
        rabbit = where.servers["broker"]
        assert isinstance(rabbit, RabbitMQ)
        yield Outages(rabbit, journal, load, SHARE, CHANGING)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_lost_or_restarted_and_all_flows_again_after(name: str, storm: Outages) -> None:
    storm.wrong.clear()
    recovery = storm.run(name)
    print(recovery)
    assert storm.wrong + storm.count() == []


def test_twelve_queues_are_shared_fairly_by_three_processes_two_and_three_again(
    tmp_path_factory: pytest.TempPathFactory, rabbitmq_url: str, database: str
) -> None:
    with corner(rabbitmq_url) as broker:
        assert shares(Where(broker, f"{database}?schema={{service}}"), tmp_path_factory.mktemp("shares")) == []


@pytest.mark.parametrize(("mutant", "name"), CAUGHT_BY.items())
def test_a_mutant_is_caught(mutant: str, name: str, tmp_path: Path) -> None:
    with place("rabbitmq", "postgres") as where:
        assert outages(quick(where), tmp_path, [name], share=2 * SHARE, mutant=f"tests.mutants.rabbitmq:{mutant}") != []


def test_a_process_that_takes_all_is_caught(tmp_path: Path) -> None:
    assert shares(Where(), tmp_path, "tests.mutants.rabbitmq:takes_all") != []
