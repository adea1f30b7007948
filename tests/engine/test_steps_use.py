"""What a handler with steps may write, what it is given, and what it is told when it cannot be."""

from __future__ import annotations

import asyncio
import functools
import threading
from datetime import timedelta
from typing import Any

import pytest

from eventkeel import (
    Delivery,
    Service,
    SignatureError,
    StepRefused,
    Steps,
    SyncSteps,
    SyncTransaction,
    Transaction,
)
from eventkeel.testing.harness import harness

from .domain import PATIENT, SCHEMA, Ordered, ordered
from .third_party import INSERT, PAYMENTS, Gateway, Receipt, charging

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
