"""Steps: third parties are called with one key, no transaction is open meanwhile, and the effect is once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from eventkeel import (
    Delivery,
    Retry,
    Service,
    SignatureError,
    StepRefused,
    Steps,
    SyncSteps,
    SyncTransaction,
    Transaction,
)
from eventkeel.testing.harness import Crash, Harness, every_crash_point, harness

from .domain import PATIENT, SCHEMA, STEPS, Noted, Ordered, Paid, ordered

PAYMENTS = "select number from payments order by number"
JOURNALLED = "select step from eventkeel_journal order by step"
INSERT = "insert into payments values (:number, :customer, :amount)"


class Receipt(msgspec.Struct):
    number: str
    cents: int


class Gateway:
    """A third party: remembers every call, by its idempotency key, and charges each key once."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.charged: dict[str, Receipt] = {}
        self.failing = 0
        self.before: Callable[[], Any] = lambda: None
        self.running = self.most = 0

    async def charge(self, number: str, key: str) -> Receipt:
        self.calls.append((number, key))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            made = self.before()
            if made is not None:
                await made
        finally:
            self.running -= 1
        if self.failing:
            self.failing -= 1
            raise TimeoutError("no answer")
        return self.charged.setdefault(key, Receipt(number, len(self.charged)))

    @property
    def keys(self) -> set[str]:
        return {key for _, key in self.calls}


def charging(gateway: Gateway, retry: Retry = PATIENT, **options: Any) -> Service:
    """One call, one row and one event per order."""
    service = Service("charging", schema=SCHEMA, retry=retry, **options)

    @service.on(Ordered)
    async def charge(order: Ordered, steps: Steps) -> None:
        await steps.run("charge", gateway.charge, order.number, key=steps.key("charge"))
        async with steps.transaction() as tx:
            tx.write(INSERT, order)
            tx.publish(Paid(number=order.number, customer=order.customer))

    return service


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
    async with harness(charging(gateway)) as app:
        entered, leave = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            entered.set()
            await leave.wait()

        gateway.before = wait
        await app.publish(ordered(1))
        await asyncio.wait_for(entered.wait(), 10)
        # On SQLite there is one writer: this could not begin if the handler had a transaction open.
        async with asyncio.timeout(5), app.service.transaction() as tx:
            tx.write("insert into steps (customer, step) values ('outside', 1)")
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


# ------------------------------------------------------------------ several at once


async def test_different_keys_are_called_at_once_up_to_the_bound_and_each_key_in_order() -> None:
    gateway = Gateway()
    gateway.before = lambda: asyncio.sleep(0.02)
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
    service = charging(gateway)
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
        await app.publish(Noted(customer="c", step=1))
        await app.until_quiet(retries=False)
        app.clock.advance(60)
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
        assert calls == ["second"]  # by the new owner alone
        assert await app.rows(PAYMENTS) == [("1",)]


async def test_what_another_process_handled_meanwhile_ends_the_handler_at_its_transaction() -> None:
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
                    "select :id, id, 'ordered', 0, 0, 1, 0 from eventkeel_consumer where name = 'twice/pay'",
                    {"id": as_id(event_id[-1])},
                )

        gateway.before = lambda: asyncio.get_running_loop().create_task(outside(elsewhere))
        await app.publish(ordered(1))
        await app.until_quiet()
        assert passed == []
        assert await app.rows(PAYMENTS) == []


def as_id(event_id: bytes) -> Any:
    """As the store under test keeps it."""
    from uuid import UUID

    return UUID(bytes=event_id) if "store" in harness_elsewhere() else event_id


def harness_elsewhere() -> dict[str, str]:
    from eventkeel.testing import harness as module

    return module.ELSEWHERE


async def outside(work: Callable[[], Any]) -> None:
    """As if no handler of this process ran: another one does it."""
    from eventkeel.engine.inside import INSIDE

    INSIDE.set("")
    await work()


# ------------------------------------------------------------------ misuse


async def step_after(order: Ordered, steps: Steps) -> None:
    async with steps.transaction():
        await steps.run("late", asyncio.sleep, 0)


async def same_name(order: Ordered, steps: Steps) -> None:
    await steps.run("a", asyncio.sleep, 0)
    await steps.run("a", asyncio.sleep, 0)


async def no_json(order: Ordered, steps: Steps) -> None:
    def make() -> Any:
        return object()

    await steps.run("a", make)


async def too_large(order: Ordered, steps: Steps) -> None:
    await steps.run("a", lambda: "x" * 2_000_000)


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (step_after, "last thing"),
        (same_name, "name of its own"),
        (no_json, "cannot be kept as JSON"),
        (too_large, "below 1 MB"),
    ],
)
async def test_misuse_is_a_dead_letter_at_once_that_says_what_to_write(handler: Any, says: str) -> None:
    service = Service("misuse", schema=SCHEMA, retry=PATIENT)
    service.on(Ordered)(handler)
    async with harness(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        ((state, attempts, error),) = await app.rows("select state, attempts, error from eventkeel_held")
        assert (state, attempts) == ("dead", 1)
        assert says in error.partition("\n")[0]


async def test_a_second_transaction_is_refused_and_the_first_one_counts() -> None:
    service, caught = Service("misuse", schema=SCHEMA, retry=PATIENT), []

    @service.on(Ordered)
    async def pay(order: Ordered, steps: Steps) -> None:
        async with steps.transaction() as tx:
            tx.write(INSERT, order)
        with pytest.raises(StepRefused, match="last thing") as refused:
            async with steps.transaction():
                pass
        caught.append(refused)

    async with harness(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        assert len(caught) == 1
        assert await app.rows(PAYMENTS) == [("1",)]


def test_signatures_that_cannot_be_are_refused_at_the_start() -> None:
    service = Service("s")
    with pytest.raises(SignatureError, match=r"async with steps\.transaction"):

        @service.on(Ordered)
        async def both(order: Ordered, tx: Transaction, steps: Steps) -> None: ...

    with pytest.raises(SignatureError, match="exclusive"):

        @service.on(Ordered, exclusive=True)
        async def alone(order: Ordered, steps: Steps) -> None: ...

    with pytest.raises(SignatureError, match="one event at a time"):

        @service.on(Ordered)
        async def many(orders: list[Ordered], steps: Steps) -> None: ...

    with pytest.raises(SignatureError, match="SyncSteps"):

        @service.on(Ordered)
        def plain(order: Ordered, steps: Steps) -> None: ...

    with pytest.raises(SignatureError, match="asks for Steps"):

        @service.on(Ordered)
        async def other(order: Ordered, steps: SyncSteps) -> None: ...


# ------------------------------------------------------------------ results and calls


async def test_a_result_is_of_its_annotated_type_the_first_time_and_from_the_journal() -> None:
    service, seen = Service("types", schema=SCHEMA, retry=PATIENT), []

    async def annotated() -> Receipt:
        return Receipt("1", 5)

    def in_a_thread(name: str) -> tuple[str, bool]:
        return name, threading.current_thread() is threading.main_thread()

    class Client:
        def get(self) -> timedelta:
            return timedelta(seconds=5)

        async def __call__(self) -> dict[str, int]:
            return {"a": 1}

    @service.on(Ordered)
    async def call(order: Ordered, steps: Steps, delivery: Delivery) -> None:
        client = Client()
        seen.append(
            (
                await steps.run("annotated", annotated),
                await steps.run("thread", in_a_thread, "x"),
                await steps.run("partial", functools.partial(client.get)),
                await steps.run("object", client),
                await steps.run("said", lambda: {"number": "2", "cents": 1}, result_type=Receipt),
                await steps.run("unsaid", lambda: [1, None]),
                await steps.run("later", lambda: annotated(), result_type=Receipt),
            )
        )
        if delivery.attempt == 1:
            raise RuntimeError("again")

    async with harness(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        first, second = seen
        assert first == second
        assert first[:3] == (Receipt("1", 5), ("x", False), timedelta(seconds=5))
        assert first[3:] == ({"a": 1}, Receipt("2", 1), [1, None], Receipt("1", 5))


async def test_a_synchronous_service_has_steps_too() -> None:
    service, calls = Service("sync", schema=SCHEMA, retry=PATIENT), []
    barrier = threading.Barrier(2, timeout=10)

    def charge(number: str, key: str) -> str:
        barrier.wait()  # two keys at once, or never
        calls.append((number, key))
        if len(calls) == 1:
            raise TimeoutError("no answer")
        return number

    @service.on(Ordered)
    def pay(order: Ordered, steps: SyncSteps) -> None:
        assert steps.run("charge", charge, order.number, steps.key("charge")) == order.number
        assert steps.fetch_value("select count(*) from payments where number = :number", order) == 0
        with steps.transaction() as tx:
            assert isinstance(tx, SyncTransaction)
            tx.write(INSERT, order)

    async with harness(service) as app:
        await app.publish(ordered(1, "a"), ordered(2, "b"))
        await app.until(lambda: len(calls) == 2)
        barrier = threading.Barrier(1)
        await app.until_quiet()
        assert len(calls) == 3 and len(set(calls)) == 2
        assert await app.rows(PAYMENTS) == [("1",), ("2",)]


async def test_at_a_stop_a_running_handler_is_let_to_end() -> None:
    gateway, entered, leave = Gateway(), asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        entered.set()
        await leave.wait()

    gateway.before = wait
    async with harness(charging(gateway)) as app:
        await app.publish(ordered(1))
        await asyncio.wait_for(entered.wait(), 10)
        stopping = asyncio.ensure_future(app.runtime.stop())
        await asyncio.sleep(0)
        leave.set()
        await stopping
        app.runtime = app._make()
        await app.runtime.start()
        await app.until_quiet()
        assert len(gateway.calls) == 1
        assert await app.rows(PAYMENTS) == [("1",)]
