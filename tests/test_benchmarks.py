"""The benchmarks run, count every row, and tell where the time goes. How fast is not asserted here."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import latency, many, reference, twin
from benchmarks.job import orders
from benchmarks.where import Sampler


@pytest.mark.parametrize("batch", [1, 100])
def test_the_twin_and_eventkeel_do_the_same_job(batch: int) -> None:
    inputs = orders(1500)  # long enough to be sampled
    profile = Sampler()
    assert twin.measure(inputs, batch).messages == reference.measure(inputs, batch, profile).messages == 1500
    assert sum(share for _, share in profile.shares()) == pytest.approx(1)
    assert profile.hottest(3)


@pytest.mark.slow
def test_many_processes_share_the_work() -> None:
    outcome = many.one(2, 400)
    assert (outcome.workers, outcome.errors) == (2, 0)
    assert outcome.balance > 0.5


@pytest.mark.slow
def test_latency_and_idle_cost_are_read(tmp_path: Path) -> None:
    result = latency.measure(tmp_path, rate=50, seconds=1, idle=1)
    assert result["orders"] == 50
    assert 0 < result["p50_ms"] <= result["p99_ms"]
