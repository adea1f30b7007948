"""The benchmarks on Kafka, RabbitMQ and PostgreSQL run, count every row, and judge. How fast is not asserted here."""

from __future__ import annotations

import pytest

from benchmarks import kafka, latency, memory, rabbitmq, relay
from benchmarks.comparison import Comparison
from benchmarks.job import Figure, orders, uuid7
from benchmarks.servers import Servers, check, place


def rates(**each: float) -> dict[str, Figure]:
    return {name: Figure(name, rate, rate, rate, 1.0, 1) for name, rate in each.items()}


@pytest.fixture(scope="session")
def both(kafka_url: str, postgres_url: str) -> Servers:
    return Servers(kafka_url, postgres_url)


@pytest.fixture(scope="session")
def on_rabbitmq(rabbitmq_url: str, postgres_url: str) -> Servers:
    return Servers(rabbitmq_url, postgres_url)


def test_a_ratio_below_what_is_demanded_is_a_miss() -> None:
    figures = rates(**{kafka.DEFERRED: 1000, kafka.OURS: 499, kafka.OURS_500: 400, kafka.BARE: 498})
    judged = {each.than: each for each in kafka.COMPARISON.judge(figures)}
    assert not judged[kafka.DEFERRED].holds
    assert judged[kafka.DEFERRED].ratio == pytest.approx(0.499)
    assert judged[kafka.BARE].holds
    assert str(judged[kafka.DEFERRED]).startswith("MISS")


def test_what_was_not_measured_is_not_judged() -> None:
    assert kafka.COMPARISON.judge(rates(**{kafka.OURS: 1000})) == []


@pytest.mark.parametrize("comparison", [kafka.COMPARISON, rabbitmq.COMPARISON], ids=lambda each: each.kind)
def test_every_demand_is_about_variants_that_exist(comparison: Comparison) -> None:
    names = {each.name for each in comparison.variants}
    assert all({*demand.who, demand.than} <= names for demand in comparison.demands)


@pytest.mark.parametrize("name", [kafka.DEFERRED, kafka.BULK, kafka.AWAITED, kafka.OURS, kafka.OURS_BULK])
def test_twin_and_eventkeel_do_the_same_job(both: Servers, name: str) -> None:
    outcome = kafka.COMPARISON.measure(both, name, 100, profile=name == kafka.OURS)
    assert outcome.run.messages == 100
    assert bool(outcome.where) == (name == kafka.OURS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [kafka.BARE, kafka.DRIVER, kafka.MODELS, kafka.PEER_BULK, kafka.OURS_ONE])
def test_peers_do_the_same_job(both: Servers, name: str) -> None:
    assert kafka.COMPARISON.measure(both, name, 50).run.messages == 50


@pytest.mark.parametrize("name", [rabbitmq.TWIN, rabbitmq.PLAIN, rabbitmq.OURS])
def test_twin_and_eventkeel_do_the_same_job_on_rabbitmq(on_rabbitmq: Servers, name: str) -> None:
    outcome = rabbitmq.COMPARISON.measure(on_rabbitmq, name, 100, profile=name == rabbitmq.OURS)
    assert outcome.run.messages == 100
    assert bool(outcome.where) == (name == rabbitmq.OURS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [rabbitmq.BARE, rabbitmq.DRIVER, rabbitmq.MODELS])
def test_peers_do_the_same_job_on_rabbitmq(on_rabbitmq: Servers, name: str) -> None:
    assert rabbitmq.COMPARISON.measure(on_rabbitmq, name, 50).run.messages == 50


def test_a_run_with_a_row_missing_ends_the_benchmark(both: Servers) -> None:
    with (
        pytest.raises(AssertionError, match="'inbox': 0"),
        place(both, orders(5, uuid7), kafka.VARIANTS[0].tables) as here,
    ):
        check(here)


def test_messages_that_nobody_settled_end_the_benchmark(on_rabbitmq: Servers) -> None:
    with (
        pytest.raises(AssertionError, match="'left': 5"),
        place(on_rabbitmq, orders(5, uuid7), rabbitmq.VARIANTS[0].tables, layout="by hand") as here,
    ):
        check(here)


@pytest.mark.parametrize("variant", [relay.TWIN, relay.OURS, relay.HOT])
def test_a_relay_alone_drains_the_outbox(both: Servers, variant: str) -> None:
    assert relay.measure(both, variant, 300).messages == 300


@pytest.mark.parametrize("variant", [relay.TWIN, relay.OURS, relay.HOT])
def test_a_relay_alone_drains_the_outbox_into_rabbitmq(on_rabbitmq: Servers, variant: str) -> None:
    assert relay.measure(on_rabbitmq, variant, 100).messages == 100


@pytest.mark.slow
def test_memory_is_read_while_messages_wait(both: Servers) -> None:
    with place(both, memory.large(3000, 1000)) as here:
        result = memory.measure(here, 1000)
    assert (result["waiting"], result["handled"] >= 1000) == (3000, True)
    assert 20 < result["most_mb"] < 1000


@pytest.mark.slow
def test_latency_is_read_on_servers(both: Servers) -> None:
    result = latency.on_servers(both, rate=50, seconds=1, idle=1)
    assert result["orders"] == 50
    assert 0 < result["p50_ms"] <= result["p99_ms"]
