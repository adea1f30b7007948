"""Many keys are called at once and each key in order; of two owners one takes effect."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any
from uuid import UUID

from eventkeel import (
    Delivery,
    Service,
    Steps,
    Transaction,
)
from eventkeel.engine.inside import INSIDE
from eventkeel.testing.harness import ELSEWHERE, harness
from tests.observing import Recorder

from .domain import PATIENT, SCHEMA, STEPS, Noted, Ordered, ordered
from .third_party import INSERT, PAYMENTS, Gateway, charging

# ------------------------------------------------------------------ several at once


async def test_different_keys_are_called_at_once_up_to_the_bound_and_each_key_in_order() -> None:
    gateway, met = Gateway(), asyncio.Event()

    async def meet() -> None:
        if gateway.running == 4:
            met.set()
        await asyncio.wait_for(met.wait(), 20)
        await asyncio.sleep(0.001)

    gateway.before = meet
    async with harness(charging(gateway), steps_concurrency=4) as app:
        await app.publish(*[ordered(f"{n:02}", f"c{n % 8}") for n in range(24)])
        await app.until_quiet()
        assert gateway.most == 4
        for customer in range(8):
            mine = [number for number, _ in gateway.calls if int(number) % 8 == customer]
            assert mine == sorted(mine) and len(mine) == 3
        assert await app.rows("select count(*) from payments") == [(24,)]


async def test_one_key_is_never_called_twice_at_once() -> None:
    gateway = Gateway()
    gateway.before = lambda: asyncio.sleep(0.005)
    async with harness(charging(gateway)) as app:
        await app.publish(*[ordered(n) for n in range(6)])
        await app.until_quiet()
        assert gateway.most == 1
        assert [number for number, _ in gateway.calls] == [str(n) for n in range(6)]


async def test_a_slow_third_party_holds_up_no_other_handler() -> None:
    gateway, leave = Gateway(), asyncio.Event()
    service = charging(gateway)

    @service.on(Ordered)
    async def note(order: Ordered, tx: Transaction) -> None:
        tx.write("insert into steps (customer, step) values (:customer, 1)", order)

    gateway.before = leave.wait
    async with harness(service) as app:
        await app.publish(*[ordered(n, f"c{n}") for n in range(5)])

        async def noted() -> bool:
            return await app.rows("select count(*) from steps") == [(5,)]

        await app.until(noted)
        leave.set()
        await app.until_quiet()
        assert len(gateway.calls) == 5


async def test_a_waiting_head_with_steps_holds_up_no_other_head() -> None:
    gateway, leave = Gateway(), asyncio.Event()
    gateway.failing = 1
    service = charging(gateway, deadline=5.0)
    failing = [1]

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction) -> None:
        if failing[0]:
            failing[0] -= 1
            raise RuntimeError("once")
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)

    async with harness(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet(retries=False)
        gateway.before = leave.wait
        app.clock.advance(60)
        app._wake()
        await app.until(lambda: gateway.running == 1)
        await app.publish(Noted(customer="c", step=1))
        await app.until(lambda: not failing[0])
        await app.until(lambda: all(lane.idle for lane in app.runtime.lanes))
        app.clock.advance(10)
        app._wake()

        async def noted() -> bool:
            return gateway.running == 1 and await app.rows(STEPS, {"customer": "c"}) == [(1,)]

        await app.until(noted)
        leave.set()
        await app.until_quiet()
        assert await app.rows(PAYMENTS) == [("1",)]


# ------------------------------------------------------------------ zombies


async def test_a_zombie_journals_nothing_and_has_no_effect() -> None:
    """The partition is taken over during the call: the first result to be journalled under a live epoch counts."""
    gateway = Gateway()
    async with harness(charging(gateway)) as app:
        entered, leave = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            if not entered.is_set():
                entered.set()
                await leave.wait()

        gateway.before = wait
        await app.publish(ordered(1))
        await asyncio.wait_for(entered.wait(), 10)
        await app.rows("update eventkeel_owner set epoch = epoch + 1 where topic = 'ordered'")
        leave.set()
        await app.until(lambda: len(gateway.calls) == 2)
        await app.until_quiet()
        assert len(gateway.keys) == 1
        assert await app.rows(PAYMENTS) == [("1",)]


async def test_a_zombie_begins_no_further_step() -> None:
    service, calls = Service("zombie", schema=SCHEMA, retry=PATIENT), []
    entered, leave = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        calls.append("first")
        if not entered.is_set():
            entered.set()
            await leave.wait()

    async def second() -> None:
        calls.append("second")

    @service.on(Ordered)
    async def call(order: Ordered, steps: Steps) -> None:
        with contextlib.suppress(Exception):  # however it is caught
            await steps.run("first", first)
        await steps.run("second", second)
        async with steps.transaction() as tx:
            tx.write(INSERT, order)

    async with harness(service) as app:
        await app.publish(ordered(1))
        await asyncio.wait_for(entered.wait(), 10)
        await app.rows("update eventkeel_owner set epoch = epoch + 1 where topic = 'ordered'")
        leave.set()
        await app.until_quiet()
        assert calls == ["first", "first", "second"]  # the last two by the new owner
        assert await app.rows(PAYMENTS) == [("1",)]


async def test_what_another_process_handled_meanwhile_ends_the_handler_at_its_end() -> None:
    gateway, passed = Gateway(), []
    service = Service("twice", schema=SCHEMA, retry=PATIENT)
    event_id = []

    @service.on(Ordered)
    async def pay(order: Ordered, steps: Steps, delivery: Delivery) -> None:
        assert delivery.id is not None
        event_id.append(delivery.id.bytes)
        await steps.run("charge", gateway.charge, order.number, key=steps.key("charge"))
        try:
            async with steps.transaction() as tx:
                passed.append("in")
                tx.write(INSERT, order)
        except Exception:
            passed.append("caught")
        passed.append("after")

    async with harness(service) as app:

        async def elsewhere() -> None:
            async with app.service.transaction() as tx:
                tx.write(
                    "insert into eventkeel_inbox (event_id, consumer, topic, partition, position, epoch, at) "
                    "select :id, id, 'ordered', 0, 0, 1, :at from eventkeel_consumer where name = 'twice/pay'",
                    {"id": as_id(event_id[-1]), "at": app.clock.now()},  # of 1970 it could be purged before it is seen
                )

        gateway.before = lambda: asyncio.get_running_loop().create_task(outside(elsewhere))
        await app.publish(ordered(1))
        await app.until_quiet()
        assert passed == []
        assert await app.rows(PAYMENTS) == []


def as_id(event_id: bytes) -> Any:
    """As the store under test keeps it."""
    return UUID(bytes=event_id) if "store" in ELSEWHERE else event_id


async def outside(work: Callable[[], Any]) -> None:
    """As if no handler of this process ran: another one does it."""
    INSIDE.set("")
    await work()


async def test_a_head_whose_gate_was_taken_over_has_no_effect_and_is_one_short_line() -> None:
    gateway, seen = Gateway(), Recorder()
    gateway.failing = 1
    async with harness(charging(gateway), observers=[seen]) as app:
        entered, leave = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            if not entered.is_set():
                entered.set()
                await leave.wait()

        await app.publish(ordered(1))
        await app.until_quiet(retries=False)
        gateway.before = wait
        app.clock.advance(60)
        app._wake()
        await asyncio.wait_for(entered.wait(), 10)
        later = {"later": app.clock.now() + 300}
        await app.rows("insert into eventkeel_member (grp, member, until) values ('-', 'another', :later)", later)
        await app.rows("update eventkeel_gate set epoch = epoch + 1, owner = 'another', until = :later", later)
        leave.set()
        await app.until(lambda: not app.runtime.due or not app.runtime.due.running)
        assert await app.rows(PAYMENTS) == []
        assert [slice.topic for slice in seen.fences] == ["ordered"] and seen.troubles == []
        await app.until_quiet()
        assert len(gateway.calls) == 3 and len(gateway.keys) == 1
        assert await app.rows(PAYMENTS) == [("1",)]


async def test_the_gate_of_a_head_with_steps_is_kept_for_as_long_as_its_calls_take() -> None:
    service, untils = Service("long", schema=SCHEMA, retry=PATIENT), list[float]()
    parked = [True]

    @service.on(Ordered)
    async def call(order: Ordered, steps: Steps) -> None:
        if parked:
            parked.clear()
            raise RuntimeError("once")
        for number in range(3):
            await steps.run(f"call-{number}", time_passes)
            async with asyncio.timeout(10):
                while (left := await gate_is_held_for(steps)) <= 30:
                    await asyncio.sleep(0.01)  # it is kept by a loop of its own, which has its turn
            untils.append(left)

    async def gate_is_held_for(steps: Steps) -> float:
        ((until,),) = await steps.fetch_all("select until from eventkeel_gate")
        return float(until) - app.clock.now()

    async def time_passes() -> None:
        app.clock.advance(30)

    async with harness(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        assert len(untils) == 3


async def test_a_call_that_takes_longer_than_a_rebalance_may_wait_is_left_to_the_next_owner() -> None:
    gateway, interrupted = Gateway(), asyncio.Event()

    async def hang() -> None:
        if interrupted.is_set():
            return
        try:
            await asyncio.Event().wait()
        finally:
            interrupted.set()

    gateway.before = hang
    async with harness(charging(gateway), lease=0.4) as app:
        await app.publish(ordered(1))
        await app.until(lambda: gateway.running == 1)
        assert app.runtime.ownership is not None
        await asyncio.wait_for(app.runtime.ownership.release(list(app.runtime.ownership.shares)), 10)
        await asyncio.wait_for(interrupted.wait(), 10)
        await app.until_quiet()
        assert len(gateway.calls) == 2 and len(gateway.keys) == 1
        assert await app.rows(PAYMENTS) == [("1",)]
