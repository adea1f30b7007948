"""Who lives, as the supervisor says it."""

from __future__ import annotations

from eventkeel.supervise import Happening as Said
from shop.roll import Roll


def heard(*said: Said) -> Roll:
    roll = Roll()
    for each in said:
        roll.hear(f"{each}\n")
    return roll


def test_a_process_lives_from_its_start_to_its_end() -> None:
    roll = heard(Said("started", "orders/1", 11), Said("started", "orders/http", 12), Said("started", "users/1", 13))
    assert roll.processes("orders") == {"1": 11, "http": 12}
    roll.hear(str(Said("ended", "orders/1", 11, -9, 0.1)))
    assert roll.processes("orders") == {"1": None, "http": 12}
    roll.hear(str(Said("started", "orders/1", 14)))
    assert roll.processes("orders") == {"1": 14, "http": 12}


def test_how_long_a_process_was_away_is_known() -> None:
    roll = heard(Said("started", "a/1", 1), Said("ended", "a/1", 1, -9, 0.1), Said("started", "a/1", 2))
    began, ended, again = roll.happenings()
    assert (began.after, began.ended) == (None, "")
    assert ended.ended.startswith("ended by SIGKILL")
    assert again.after is not None
    assert roll.back_at("a") > roll.back_at("b")
    assert (again.number, again.pid) == (3, 2)


def test_lines_about_something_else_are_passed_over() -> None:
    roll = heard(Said("stopping", "", 1), Said("killed", "a/1", 1))
    roll.hear("2026-01-01 INFO [a/1] took pid 5 by surprise")
    assert roll.happenings() == []
