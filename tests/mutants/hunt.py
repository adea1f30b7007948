"""One mutant at a time: run the check that has to fail, and see that it does."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.crash.run import CrashRun, Verdict, Wish

LIMIT = 180.0
"""Seconds within which a mutant has to be caught."""

CRASH = dataclasses.replace(Wish(seed=11).modest(kills=12), stalled_after=8.0)
"""Enough for every mutant that a crash run can see; the same run passes without a mutant."""

OWN_TEST = {
    "commit_not_checked": (
        "tests/engine/test_failures.py",
        "test_a_swallowed_sql_error_commits_nothing_and_says_what_to_write",
    ),
    "no_fence": (
        "tests/engine/test_ownership.py",
        "test_a_zombies_unit_is_fenced_and_its_successor_applies_it_once",
    ),
}
"""What no crash run shows as loss: the inbox still absorbs what a zombie repeats, and the shop's
handlers swallow no error. So these have a test of their own, which has to fail."""

MUTANTS = (
    "no_inbox",
    "no_outbox",
    "settle_before_commit",
    "remove_before_confirm",
    "commit_not_checked",
    "no_fence",
    "order_ignored",
)


@dataclasses.dataclass(frozen=True)
class Caught:
    caught: bool
    how: str
    seconds: float


def hunt(name: str, tell: Callable[[str], None] | None = None) -> Caught:
    """Apply the mutant where its check runs. A check that could not run at all has caught nothing."""
    began = time.monotonic()
    if name in OWN_TEST:
        caught, how = _own_test(name)
    else:
        caught, how = _crash_run(name, tell or (lambda line: None))
    seconds = time.monotonic() - began
    return Caught(caught and seconds <= LIMIT, how, seconds)


def unharmed() -> list[str]:
    """The same crash run without a mutant: what is wrong with it. Anything at all makes the hunt worthless."""
    return _run(CRASH, lambda line: None).wrong


def _run(wish: Wish, tell: Callable[[str], None]) -> Verdict:
    folder = Path(tempfile.mkdtemp(prefix="eventkeel-mutant-"))
    try:
        return CrashRun(wish, folder, tell).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _crash_run(name: str, tell: Callable[[str], None]) -> tuple[bool, str]:
    verdict = _run(dataclasses.replace(CRASH, mutant=f"tests.mutants.patches:{name}"), tell)
    broken = verdict.lost + verdict.twice + verdict.out_of_order
    found = f"a crash run: lost {verdict.lost}, twice {verdict.twice}, out of order {verdict.out_of_order}"
    return broken > 0 and verdict.shop.orders > 0, found


def _own_test(name: str) -> tuple[bool, str]:
    """Exit code 1 of pytest: a test failed. Anything else: it passed, or there was nothing to run."""
    file, test = OWN_TEST[name]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "tests.mutants.plugin", f"{file}::{test}"]
    environment = {**os.environ, "EVENTKEEL_TEST_MUTANT": name}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    return ran.returncode == 1, f"its own test, {test}"
