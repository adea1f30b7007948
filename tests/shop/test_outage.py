"""Third parties that are gone for a while."""

from __future__ import annotations

from pathlib import Path

import pytest

from shop.running import Place
from tests.shop.outage import outage


@pytest.mark.slow
def test_while_the_provider_is_down_orders_are_taken_and_afterwards_nothing_is_lost(tmp_path: Path) -> None:
    found = outage(Place(tmp_path), down=8, per_second=10)
    assert found.holds, found.line()
    assert len(found.latencies) > 20
    assert found.p99 < 2, found.line()
