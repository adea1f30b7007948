"""Runs that everybody can wait for; the full ones are ``python -m tests.crash`` and its neighbours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from shop.brokers import with_options
from tests.crash.cluster import brokers_die
from tests.crash.places import Where, place
from tests.crash.rolling import rolling
from tests.crash.run import CrashRun, Wish
from tests.crash.slow import slow_handler


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_is_lost_twice_or_out_of_order_while_processes_are_killed(tmp_path: Path) -> None:
    verdict = CrashRun(Wish(seed=3).modest(kills=16), tmp_path).run()
    assert verdict.code == 0, "\n".join(verdict.lines())


@pytest.mark.slow
@pytest.mark.servers
@pytest.mark.timeout(600)
def test_nothing_is_lost_twice_or_out_of_order_while_processes_and_servers_are_killed(tmp_path: Path) -> None:
    wish = dataclasses.replace(
        Wish(seed=3).modest(kills=16), relays=3, need_relays=1, broker_kills=1, store_kills=1, stops_in_unit=1
    )
    with place("kafka", "postgres") as where:
        verdict = CrashRun(wish, tmp_path, where=where).run()
    assert verdict.code == 0, "\n".join(verdict.lines())
    assert {outage.server for outage in verdict.tally.outages} == {"broker", "database"}


@pytest.mark.slow
@pytest.mark.servers
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("broker", "holds"),
    [
        pytest.param("kafka", rolling, id="a rolling restart"),
        pytest.param("kafka", slow_handler, id="a handler slower than the poll interval"),
        pytest.param("kafka-cluster", lambda where, folder: brokers_die(where, folder, 1), id="a broker of three dies"),
        pytest.param(
            "rabbitmq-cluster", lambda where, folder: brokers_die(where, folder, 1), id="a RabbitMQ node of three dies"
        ),
    ],
)
def test_under_load_nothing_is_lost_and_nobody_stands_still_for_long(
    broker: str, holds: Callable[[Where, Path], list[str]], tmp_path: Path
) -> None:
    with place(broker, "postgres") as where:
        assert holds(where, tmp_path) == []


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.servers
@pytest.mark.timeout(600)
def test_the_run_sees_queues_that_have_one_member_only(tmp_path: Path) -> None:
    with place("rabbitmq-cluster", "postgres") as where:
        single = dataclasses.replace(where, broker=with_options(where.broker, {"replication": "1"}))
        wrong = brokers_die(single, tmp_path, 1, patience=25.0)
    assert any("stood still" in each for each in wrong), wrong
