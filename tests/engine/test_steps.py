"""Steps: third parties are called with one key, no transaction is open meanwhile, and the effect is once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from eventkeel import (
    Delivery,
    Retry,
    Service,
    Steps,
)
from eventkeel.testing.harness import Crash, Harness, every_crash_point, harness

from .domain import PATIENT, SCHEMA, STEPS, Noted, Ordered, Paid, ordered
from .third_party import INSERT, JOURNALLED, PAYMENTS, Gateway, Receipt, charging

# ------------------------------------------------------------------ the plain case


async def test_a_step_runs_once_and_its_effects_are_one_unit() -> None:
    gateway = Gateway()
    async with harness(charging(gateway)) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        await app.redeliver("ordered", times=2)
        await app.until_quiet()
        assert len(gateway.calls) == 1
        assert await app.rows(PAYMENTS) == [("1",)]
        assert [paid.number for paid in await app.published(Paid)] == ["1"]
        assert await app.rows(JOURNALLED) == []
        assert await app.rows("select count(*) from eventkeel_inbox") == [(1,)]


async def test_what_is_done_already_does_not_run_again_after_a_restart() -> None:
    gateway = Gateway()
    async with harness(charging(gateway)) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        await app.crash()
        await app.restart()
        await app.publish(ordered(1))
        await app.until_quiet()
        assert len(gateway.calls) == 1


async def test_no_transaction_is_open_while_a_step_runs() -> None:
    gateway = Gateway()
    async with harness(charging(gateway, deadline=3.0)) as app:
        entered, leave = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            entered.set()
            await leave.wait()

        gateway.before = wait
        await app.publish(ordered(1))
        await asyncio.wait_for(entered.wait(), 10)
        try:
            # On SQLite there is one writer: this could not begin if the handler had a transaction open.
            async with asyncio.timeout(5), app.service.transaction() as tx:
                tx.write("insert into steps (customer, step) values ('outside', 1)")
        finally:
            leave.set()
        await app.until_quiet()
        assert await app.rows(PAYMENTS) == [("1",)]


async def test_a_handler_that_ends_without_a_transaction_is_done() -> None:
    service, calls = Service("mailing", schema=SCHEMA), []

    async def send(number: str) -> None:
        calls.append(number)

    @service.on(Ordered)
    async def mail(order: Ordered, steps: Steps) -> None:
        await steps.run("send", send, order.number)

    async with harness(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        await app.redeliver("ordered")
        await app.until_quiet()
        assert calls == ["1"]
        assert await app.rows("select state from eventkeel_inbox") == [(0,)]
        assert await app.rows(JOURNALLED) == []


async def test_a_delivery_and_reads_are_given_beside_steps() -> None:
    service, seen = Service("reading", schema=SCHEMA), []

    @service.on(Ordered)
    async def read(order: Ordered, steps: Steps, delivery: Delivery) -> None:
        count = await steps.fetch_value("select count(*) from payments where customer = :customer", order)
        seen.append((delivery.attempt, count, await steps.fetch_one("select number from payments")))
        async with steps.transaction() as tx:
            tx.write(INSERT, order)

    async with harness(service) as app:
        await app.publish(ordered(1), ordered(2))
        await app.until_quiet()
        assert seen == [(1, 0, None), (1, 1, ("1",))]


async def test_a_read_writes_nothing() -> None:
    service = Service("reading", schema=SCHEMA)

    @service.on(Ordered)
    async def read(order: Ordered, steps: Steps) -> None:
        await steps.fetch_all(INSERT, order)

    async with harness(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        assert await app.rows(PAYMENTS) == []


# ------------------------------------------------------------------ crashes between the lines

CRASHES = Gateway()


@every_crash_point(charging(CRASHES))
async def test_a_crash_anywhere_charges_once(app: Harness) -> Any:
    await app.publish(*[ordered(n, f"c{n % 2}") for n in range(4)])
    await app.until_quiet()
    rows = await app.rows(PAYMENTS)
    paid = sorted({each.number for each in await app.published(Paid)})
    assert len(CRASHES.keys) == len(CRASHES.charged) == 4
    return rows, paid, await app.rows(JOURNALLED)


BETWEEN = {
    "before the call": ("steps.before_call", 1),
    "in the call, after its effect": ("", 2),
    "after the call, before its journal": ("steps.called", 2),
    "after the journal": ("steps.journalled", 1),
    "in the transaction": ("unit.claimed", 1),
    "at the commit": ("unit.before_commit", 1),
    "after the commit": ("unit.committed", 1),
}
"""Where the process dies -> how often the third party is called then, with its one key."""


@pytest.mark.parametrize("where", BETWEEN)
async def test_the_key_is_the_same_and_the_effect_once_wherever_it_dies(where: str) -> None:
    from eventkeel.engine import faults

    name, calls = BETWEEN[where]
    gateway, died = Gateway(), asyncio.Event()
    service = Service("dying", schema=SCHEMA, retry=PATIENT)

    @service.on(Ordered)
    async def charge(order: Ordered, steps: Steps) -> None:
        async def call() -> Receipt:
            receipt = await gateway.charge(order.number, steps.key("charge"))
            if not name and not died.is_set():
                died.set()
                raise Crash
            return receipt

        await steps.run("charge", call, result_type=Receipt)
        async with steps.transaction() as tx:
            tx.write(INSERT, order)

    def hook(point: str) -> None:
        if died.is_set() or point == name:
            died.set()
            raise Crash

    async with harness(service) as app:
        before = faults.install(hook)
        try:
            await app.publish(ordered(1))
            await asyncio.wait_for(died.wait(), 10)
            await app.crash()
        finally:
            faults.install(before)
        await app.restart()
        await app.until_quiet()
        assert len(gateway.calls) == calls
        assert len(gateway.keys) == len(gateway.charged) == 1
        assert await app.rows(PAYMENTS) == [("1",)]
        assert await app.rows(JOURNALLED) == []


async def test_the_key_is_one_for_consumer_event_and_step() -> None:
    service, keys = Service("keys", schema=SCHEMA), []

    @service.on(Ordered)
    async def first(order: Ordered, steps: Steps) -> None:
        keys.append((order.number, "first", steps.key("a"), steps.key("b")))

    @service.on(Ordered)
    async def second(order: Ordered, steps: Steps) -> None:
        keys.append((order.number, "second", steps.key("a"), steps.key("b")))

    async with harness(service) as app:
        await app.publish(ordered(1), ordered(2))
        await app.until_quiet()
        assert len({key for *_, a, b in keys for key in (a, b)}) == 8


# ------------------------------------------------------------------ failures


async def test_a_step_that_succeeded_is_kept_for_the_next_attempt() -> None:
    service, calls = Service("two", schema=SCHEMA, retry=PATIENT), []

    async def first() -> int:
        calls.append("first")
        return 7

    async def second() -> None:
        calls.append("second")
        if calls.count("second") < 3:
            raise TimeoutError("no answer")

    @service.on(Ordered)
    async def call(order: Ordered, steps: Steps) -> None:
        assert await steps.run("first", first) == 7
        await steps.run("second", second)
        async with steps.transaction() as tx:
            tx.write(INSERT, order)

    async with harness(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        assert calls == ["first", "second", "second", "second"]
        assert await app.rows(PAYMENTS) == [("1",)]
        assert await app.rows(JOURNALLED) == []


async def test_a_failed_key_waits_while_others_flow_and_goes_on_in_order() -> None:
    service, seen, failing = Service("notes", schema=SCHEMA, retry=PATIENT), [], {("bad", 1): 2}

    @service.on(Noted)
    async def note(noted: Noted, steps: Steps) -> None:
        async def call() -> None:
            seen.append((noted.customer, noted.step))
            if failing.get((noted.customer, noted.step), 0):
                failing[noted.customer, noted.step] -= 1
                raise TimeoutError("no answer")

        await steps.run("call", call)
        async with steps.transaction() as tx:
            tx.write("insert into steps (customer, step) values (:customer, :step)", noted)

    async with harness(service) as app:
        await app.publish(*[Noted(customer=c, step=n) for n in range(5) for c in ("bad", "good")])
        await app.until_quiet(retries=False)
        assert [step for (step,) in await app.rows(STEPS, {"customer": "good"})] == list(range(5))
        assert [step for (step,) in await app.rows(STEPS, {"customer": "bad"})] == [0]
        await app.until_quiet()
        assert [step for (step,) in await app.rows(STEPS, {"customer": "bad"})] == list(range(5))
        assert [step for customer, step in seen if customer == "bad"] == [0, 1, 1, 1, 2, 3, 4]
        assert await app.rows("select count(*) from eventkeel_gate") == [(0,)]


async def test_a_dead_letter_keeps_its_steps_for_its_redrive() -> None:
    service, calls, broken = Service("dead", schema=SCHEMA, retry=Retry(attempts=1, in_place=())), [], [True]

    async def charge(key: str) -> str:
        calls.append(key)
        return "paid"

    @service.on(Ordered)
    async def pay(order: Ordered, steps: Steps) -> None:
        await steps.run("charge", charge, steps.key("charge"))
        async with steps.transaction() as tx:
            tx.write(INSERT, order)
            if broken[0]:
                raise RuntimeError("a bug")

    async with harness(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        assert await app.rows("select state from eventkeel_held") == [("dead",)]
        assert await app.rows(JOURNALLED) == [("charge",)]
        broken[0] = False
        await app.rows("update eventkeel_held set state = 'parked'")
        await app.rows("update eventkeel_gate set state = 'waiting', due = 0")
        await app.rows("update eventkeel_inbox set state = 1")
        await app.until_quiet()
        assert len(calls) == 1
        assert await app.rows(PAYMENTS) == [("1",)]
        assert await app.rows(JOURNALLED) == []


async def test_a_failure_in_the_transaction_fails_the_delivery_even_when_it_is_caught() -> None:
    service, attempts = Service("catching", schema=SCHEMA, retry=PATIENT), []

    @service.on(Ordered)
    async def pay(order: Ordered, steps: Steps, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        try:
            async with steps.transaction() as tx:
                tx.write(INSERT, order)
                if delivery.attempt < 3:
                    raise KeyError("not yet")
        except KeyError:
            pass

    async with harness(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        assert attempts == [1, 2, 3]
        assert await app.rows(PAYMENTS) == [("1",)]


async def test_an_error_after_the_transaction_changes_nothing() -> None:
    service = Service("late", schema=SCHEMA, retry=PATIENT)

    @service.on(Ordered)
    async def pay(order: Ordered, steps: Steps) -> None:
        async with steps.transaction() as tx:
            tx.write(INSERT, order)
        raise RuntimeError("too late to matter")

    async with harness(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        assert await app.rows(PAYMENTS) == [("1",)]
        assert await app.rows("select count(*) from eventkeel_held") == [(0,)]


async def test_a_call_that_hangs_is_given_up_and_tried_again() -> None:
    gateway = Gateway()
    hanging = [True]

    async def hang() -> None:
        if hanging[0]:
            hanging[0] = False
            await asyncio.Event().wait()

    gateway.before = hang
    async with harness(charging(gateway, deadline=0.2)) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        assert len(gateway.calls) == 2 and len(gateway.keys) == 1
        assert await app.rows(PAYMENTS) == [("1",)]


async def test_each_step_has_the_whole_deadline() -> None:
    service = Service("slow", schema=SCHEMA, retry=Retry(attempts=1, in_place=()), deadline=0.5)

    async def slow() -> None:
        await asyncio.sleep(0.3)

    @service.on(Ordered)
    async def call(order: Ordered, steps: Steps) -> None:
        for number in range(3):
            await steps.run(f"slow-{number}", slow)
        async with steps.transaction() as tx:
            tx.write(INSERT, order)

    async with harness(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        assert await app.rows(PAYMENTS) == [("1",)]
