"""What proves something has to go red without it: each guarantee of steps and timers, switched off."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from _pytest.outcomes import Failed

from eventkeel.drive import Program
from eventkeel.engine import due, step_lane, stepping
from eventkeel.engine.aside import whole
from eventkeel.engine.faults import point
from eventkeel.engine.heads import LeasedHead
from eventkeel.engine.step_lane import Place, StepLane
from eventkeel.engine.stepping import Arrival, Stepping
from eventkeel.handling import Scope, Transaction
from eventkeel.ports.store import Unit
from eventkeel.stores.sqlite.unit import SQL, SQLiteUnit
from eventkeel.testing.harness import Harness

from . import test_steps, test_timers
from . import test_steps_at_once as at_once

pytestmark = pytest.mark.sqlite_only

Patch = Callable[[pytest.MonkeyPatch], None]
Check = Callable[[], Awaitable[None]]


def nothing_journalled(patch: pytest.MonkeyPatch) -> None:
    def journal(self: Unit, consumer: str, event_id: bytes, step: str, result: bytes, now: float) -> Program[bytes]:
        yield from ()
        return result

    patch.setattr(SQLiteUnit, "journal", journal)


def another_key_each_time(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stepping, "step_key", lambda *_: os.urandom(8).hex())


def not_asked_whether_it_is_ours(patch: pytest.MonkeyPatch) -> None:
    def check(self: Any, unit: Unit, now: float) -> Program[None]:
        yield from ()

    patch.setattr(Arrival, "check", check)
    patch.setattr(LeasedHead, "check", check)


def not_asked_before_user_code(patch: pytest.MonkeyPatch) -> None:
    async def looked(*_: object) -> tuple[str, dict[str, bytes]]:
        return "new", {}

    patch.setattr(stepping, "_looked", looked)


def no_claim_with_the_effects(patch: pytest.MonkeyPatch) -> None:
    def claim(self: Arrival, unit: Unit, now: float) -> Program[str]:
        yield from ()
        return "new"

    patch.setattr(Arrival, "claim", claim)


def one_transaction_around_it_all(patch: pytest.MonkeyPatch) -> None:
    original = Stepping._handler

    def handler(self: Stepping) -> Program[Exception | None]:
        yield from self.unit.begin(speculative=False)
        return (yield from original(self))

    patch.setattr(Stepping, "_handler", handler)


def keys_not_kept_apart(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(step_lane, "_place", lambda work: Place(work.name, repr(work.event_id), work.key))


def one_at_a_time(patch: pytest.MonkeyPatch) -> None:
    original = StepLane.__init__

    def init(self: StepLane, context: Any, settle: Any, fenced: Any, most: int) -> None:
        original(self, context, settle, fenced, 1)

    patch.setattr(StepLane, "__init__", init)


def steps_forgotten_with_a_failure(patch: pytest.MonkeyPatch) -> None:
    original = Stepping.undo

    def undo(self: Stepping, error: BaseException) -> Program[None]:
        yield from original(self, error)
        yield from self.unit.begin(speculative=False)
        yield from self.unit.forget_steps(self._work.name, self._work.event_id)
        yield from self.unit.commit()

    patch.setattr(Stepping, "undo", undo)


def a_caught_failure_is_none(patch: pytest.MonkeyPatch) -> None:
    def undo(self: Stepping, error: BaseException) -> Program[None]:
        yield from self.unit.rollback()
        self._over("applied")

    patch.setattr(Stepping, "undo", undo)


def heads_one_after_another(patch: pytest.MonkeyPatch) -> None:
    async def run_once(self: due.Due) -> None:
        for head in await self._lease((*self._names, *self._with_steps), 20):
            await self._run_key(head, self._runner)
        await self.pause(0.01)

    patch.setattr(due.Due, "run_once", run_once)


def gate_not_kept(patch: pytest.MonkeyPatch) -> None:
    def check(self: LeasedHead, unit: Unit, now: float) -> Program[None]:
        yield from ()

    patch.setattr(LeasedHead, "check", check)


def timers_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(SQL, "drop_timer", "update eventkeel_timer set due = due + 1 where number = ?")


def timers_go_before_they_are_sent(patch: pytest.MonkeyPatch) -> None:
    def fire_unit(unit: SQLiteUnit, now: float, limit: int) -> Program[int]:
        taken: list[Any] = []

        def append(records: Any, now: float) -> Program[None]:
            taken.extend(records)
            yield from ()

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(unit, "append", append)
            moved = yield from whole(unit, unit.fire(now, limit))
        point("timers.committed")
        yield from whole(unit, unit.append(taken, now))
        return moved

    patch.setattr(due, "fire_unit", fire_unit)


def timers_sent_at_once(patch: pytest.MonkeyPatch) -> None:
    def settle(self: Scope) -> Program[None]:
        yield from self.flush()
        self.records += [record for record, _ in self.timers]
        self.timers.clear()

    patch.setattr(Scope, "settle", settle)


def timers_in_any_order(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(SQL, "due_timers", SQL["due_timers"].replace("order by due, number", "order by number"))


def savepoints_know_nothing_of_timers(patch: pytest.MonkeyPatch) -> None:
    original = Transaction._undo

    def undo(self: Transaction, name: str, records: int) -> Program[None]:
        kept = list(self._scope.timers)
        yield from original(self, name, records)
        self._scope.timers += kept

    patch.setattr(Transaction, "_undo", undo)


def cancels_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(SQL, "cancel", "select 1 from eventkeel_timer where event_id = ?")


def dying(where: str) -> Check:
    async def check() -> None:
        await test_steps.test_the_key_is_the_same_and_the_effect_once_wherever_it_dies(where)

    check.__name__ = "dying " + where
    return check


async def two_instances() -> None:
    with tempfile.TemporaryDirectory() as folder:
        await test_timers.test_of_two_instances_one_sends_each_timer(Path(folder))


SWITCHED_OFF: list[tuple[Patch, Check]] = [
    (nothing_journalled, test_steps.test_a_step_that_succeeded_is_kept_for_the_next_attempt),
    (nothing_journalled, dying("after the journal")),
    (nothing_journalled, dying("at the commit")),
    (another_key_each_time, dying("in the call, after its effect")),
    (another_key_each_time, dying("after the call, before its journal")),
    (steps_forgotten_with_a_failure, test_steps.test_a_dead_letter_keeps_its_steps_for_its_redrive),
    (a_caught_failure_is_none, test_steps.test_a_failure_in_the_transaction_fails_the_delivery_even_when_it_is_caught),
    (not_asked_before_user_code, test_steps.test_a_step_runs_once_and_its_effects_are_one_unit),
    (one_transaction_around_it_all, test_steps.test_no_transaction_is_open_while_a_step_runs),
    (not_asked_whether_it_is_ours, at_once.test_a_zombie_begins_no_further_step),
    (
        no_claim_with_the_effects,
        at_once.test_what_another_process_handled_meanwhile_ends_the_handler_at_its_end,
    ),
    (keys_not_kept_apart, at_once.test_one_key_is_never_called_twice_at_once),
    (one_at_a_time, at_once.test_different_keys_are_called_at_once_up_to_the_bound_and_each_key_in_order),
    (heads_one_after_another, at_once.test_a_waiting_head_with_steps_holds_up_no_other_head),
    (gate_not_kept, at_once.test_the_gate_of_a_head_with_steps_is_kept_for_as_long_as_its_calls_take),
    (timers_stay, two_instances),
    (timers_go_before_they_are_sent, test_timers.test_a_crash_anywhere_sends_each_timer_once),
    (timers_sent_at_once, test_timers.test_an_event_for_later_is_sent_when_it_is_due_and_not_before),
    (timers_in_any_order, test_timers.test_timers_of_a_key_are_sent_in_the_order_in_which_they_are_due),
    (savepoints_know_nothing_of_timers, test_timers.test_a_savepoint_that_is_rolled_back_drops_timers_and_cancels),
    (cancels_nothing, test_timers.test_a_timer_is_cancelled_in_the_same_transaction_and_in_a_later_one),
]


@pytest.mark.parametrize(("switch_off", "check"), SWITCHED_OFF, ids=lambda value: value.__name__)
async def test_a_check_goes_red_without_what_it_checks(
    switch_off: Patch, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Harness.until, "__defaults__", (5.0,))
    switch_off(monkeypatch)
    with pytest.raises((AssertionError, Failed, TimeoutError)):
        await check()
