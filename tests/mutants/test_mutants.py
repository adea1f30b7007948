"""Every mutant is caught, by checks that pass without one."""

from __future__ import annotations

import pytest

from tests.mutants.hunt import LIMIT, MUTANTS, hunt, unharmed


@pytest.mark.slow
@pytest.mark.timeout(LIMIT + 60)
def test_the_crash_run_that_catches_mutants_holds_without_one() -> None:
    assert unharmed() == []


@pytest.mark.slow
@pytest.mark.timeout(LIMIT + 60)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str) -> None:
    caught = hunt(name)
    assert caught.caught, f"{name} was not caught by {caught.how} in {caught.seconds:.0f} s"
