"""A crash run that everybody can wait for; the full one is ``python -m tests.crash``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.run import CrashRun, Wish


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_is_lost_twice_or_out_of_order_while_processes_are_killed(tmp_path: Path) -> None:
    verdict = CrashRun(Wish(seed=3).modest(kills=16), tmp_path).run()
    assert verdict.code == 0, "\n".join(verdict.lines())
