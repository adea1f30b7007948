"""Failures: a failed key waits while others flow; blame is given to who deserves it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from eventkeel import Delivery, Event, FinalError, Retry, Service, Transaction
from eventkeel.testing.harness import Harness, harness

from .domain import PATIENT, SCHEMA, STEPS, Journal, Noted, ordered, partition_of, paying

HELD = "select state, reason, attempts, error from eventkeel_held order by number"


async def steps(app: Harness, customer: str) -> list[int]:
    return [step for (step,) in await app.rows(STEPS, {"customer": customer})]


async def test_a_failed_key_waits_while_others_flow() -> None:
    journal = Journal(Retry(attempts=0, first=60.0, in_place=()))
    journal.failing = {("bad", 2): 99}
    async with harness(journal.service) as app:
        await app.publish(*[Noted(customer=c, step=n) for n in range(6) for c in ("bad", "good")])
        await app.until_quiet(retries=False)
        assert await steps(app, "good") == [0, 1, 2, 3, 4, 5]
        assert await steps(app, "bad") == [0, 1]


async def test_a_parked_key_goes_on_in_order_once_its_head_succeeds() -> None:
    journal = Journal()
    journal.failing = {("bad", 2): 2}
    async with harness(journal.service) as app:
        await app.publish(*[Noted(customer="bad", step=n) for n in range(6)])
        await app.until_quiet()
        assert await steps(app, "bad") == [0, 1, 2, 3, 4, 5]
        assert await app.rows("select count(*) from eventkeel_gate") == [(0,)]
        assert await app.rows("select count(*) from eventkeel_held") == [(0,)]


async def test_a_delivery_that_never_succeeds_is_dead_and_blocks_its_key() -> None:
    journal = Journal()
    journal.failing = {("bad", 1): 99}
    async with harness(journal.service) as app:
        await app.publish(*[Noted(customer="bad", step=n) for n in range(3)], Noted(customer="good", step=0))
        await app.until_quiet()
        assert await steps(app, "bad") == [0]
        assert await steps(app, "good") == [0]
        rows = await app.rows(HELD)
        assert [(state, attempts) for state, _, attempts, _ in rows] == [("dead", 4), ("parked", 0)]
        assert "fails" in rows[0][3].partition("\n")[0]


async def test_a_final_error_is_not_retried() -> None:
    service = Service("final", schema=SCHEMA)
    calls = []

    @service.on(Noted)
    async def refuse(noted: Noted, tx: Transaction) -> None:
        calls.append(noted.step)
        raise FinalError("never")

    async with harness(service) as app:
        await app.publish(Noted(customer="c", step=1))
        await app.until_quiet()
        assert calls == [1]
        assert [row[0] for row in await app.rows(HELD)] == ["dead"]


async def test_retries_in_place_leave_no_trace_when_they_help() -> None:
    journal = Journal(Retry())
    journal.failing = {("c", 0): 2}
    async with harness(journal.service) as app:
        await app.publish(Noted(customer="c", step=0))
        await app.until_quiet()
        assert await steps(app, "c") == [0]
        assert len(journal.calls) == 3


async def test_the_attempt_is_told_to_the_handler_through_parking() -> None:
    service = Service("attempts", schema=SCHEMA, retry=PATIENT)
    attempts = []

    @service.on(Noted)
    async def count(noted: Noted, tx: Transaction, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        assert delivery.id is not None and delivery.topic == "noted" and delivery.type == "Noted"
        if delivery.attempt < 3:
            raise RuntimeError("again")

    async with harness(service) as app:
        await app.publish(Noted(customer="c", step=0))
        await app.until_quiet()
        assert attempts == [1, 2, 3]


# ------------------------------------------------------------------ blame in a batch


async def together(app: Harness, *events: object) -> None:
    """Make sure that they are one batch: they lie on the broker before anybody looks."""
    await app.runtime.stop()
    await app.publish(*events)
    app.runtime = app._make()
    await app.runtime.start()
    await app.until_quiet()


async def test_known_blame_runs_only_the_failing_one_alone() -> None:
    journal = Journal()
    journal.failing = {("c3", 3): 1}
    async with harness(journal.service, partitions=1) as app:
        await together(app, *[Noted(customer=f"c{n}", step=n) for n in range(8)])
        assert await app.rows("select count(*), count(distinct step) from steps") == [(8, 8)]
    # 4 in the failed batch (0..3), then 0..2 again, 3 again after parking, 4..7 once
    assert len(journal.calls) <= 4 + 3 + 1 + 1 + 4 + 8


async def test_unknown_blame_runs_them_one_by_one_and_only_the_culprit_fails() -> None:
    """A deferred constraint speaks at commit, when nobody knows whose row it was."""
    schema = """
    create table if not exists parents (id integer primary key);
    create table if not exists steps (id integer primary key, customer text, step integer,
      parent integer references parents (id) deferrable initially deferred);
    """
    service = Service("deferred", schema=schema, retry=Retry(attempts=1, in_place=()))

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction) -> None:
        parent = 99 if noted.step == 3 else None
        tx.write(
            "insert into steps (customer, step, parent) values (:customer, :step, :parent)",
            {"customer": noted.customer, "step": noted.step, "parent": parent},
        )

    async with harness(service, partitions=1) as app:
        await together(app, *[Noted(customer=f"c{n}", step=n) for n in range(8)])
        assert sorted(step for (step,) in await app.rows("select step from steps")) == [0, 1, 2, 4, 5, 6, 7]
        rows = await app.rows(HELD)
        assert [row[0] for row in rows] == ["dead"] and "foreign key" in rows[0][3].lower()


async def test_a_queued_write_that_fails_is_the_blame_of_who_queued_it() -> None:
    """Even when a neighbour's read sends it, and even when that neighbour catches everything."""
    service = Service("queued", schema=SCHEMA, retry=Retry(attempts=1, in_place=()))

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction) -> None:
        if noted.customer == "writer":
            tx.write("insert into payments (number, customer, amount) values (null, null, null)")
            return
        try:
            await tx.fetch_all("select 1")
        except BaseException:  # a handler that is greedier than it may be
            return
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)

    async with harness(service, partitions=1) as app:
        await together(app, Noted(customer="writer", step=1), *[Noted(customer=f"r{n}", step=n) for n in range(6)])
        assert await app.rows("select count(*) from steps") == [(6,)]
        held = await app.rows("select key, state from eventkeel_held")
        assert held == [(b"writer", "dead")]


async def test_a_guarded_update_that_hits_no_row_fails_its_delivery() -> None:
    service = Service("guarded", schema=SCHEMA, retry=Retry(attempts=1, in_place=()))

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction) -> None:
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)
        tx.write("update payments set amount = 0 where number = :number", {"number": "none"}, rows=1)

    async with harness(service) as app:
        await together(app, Noted(customer="c", step=1))
        assert await app.rows("select count(*) from steps") == [(0,)]
        (row,) = await app.rows(HELD)
        assert row[0] == "dead" and "rows=1 affected 0" in row[3]


async def test_a_swallowed_sql_error_commits_nothing_and_says_what_to_write() -> None:
    service = Service("greedy", schema=SCHEMA, retry=Retry(attempts=1, in_place=()))

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction) -> None:
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)
        with contextlib.suppress(Exception):
            await tx.execute("insert into payments (number, customer, amount) values (null, null, null)")

    async with harness(service) as app:
        await together(app, Noted(customer="c", step=1))
        assert await app.rows("select count(*) from steps") == [(0,)]
        (row,) = await app.rows(HELD)
        assert "tx.savepoint()" in row[3]


async def test_an_error_inside_a_savepoint_is_the_handlers_to_catch() -> None:
    service = Service("careful", schema=SCHEMA, retry=Retry(attempts=1, in_place=()))

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction) -> None:
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)
        try:
            async with tx.savepoint():
                tx.write("insert into steps (customer, step) values ('lost', 0)")
                tx.publish(Noted(customer="lost", step=0))
                tx.write("insert into payments (number, customer, amount) values (null, null, null)")
        except Exception:
            tx.write("insert into steps (customer, step) values ('caught', 0)")

    async with harness(service) as app:
        await together(app, Noted(customer="c", step=1))
        assert await app.rows("select customer from steps order by id") == [("c",), ("caught",)]
        assert len(await app.published(Noted)) == 1  # the one that came in


@pytest.mark.sqlite_only
async def test_a_transaction_that_sqlite_ended_by_itself_commits_nothing() -> None:
    """What a full disk does: SQLite rolls back on its own, and the statements after it would autocommit."""
    service = Service("ended", schema=SCHEMA, retry=Retry(attempts=1, in_place=()))

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction) -> None:
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)
        if noted.step == 1:
            connection = await tx.native()
            connection.set_authorizer(None)  # it would be refused
            connection.execute("rollback")

    async with harness(service, partitions=1) as app:
        await together(app, *[Noted(customer=f"c{n}", step=n) for n in range(4)])
        assert sorted(await app.rows("select step from steps")) == [(0,), (2,), (3,)]
        (row,) = await app.rows(HELD)
        assert "ended the transaction" in row[3]


async def test_a_batch_handler_that_fails_is_called_again_with_lists_of_one() -> None:
    service = Service("lists", schema=SCHEMA, retry=Retry(attempts=1, in_place=()))
    sizes: list[int] = []

    @service.on(Noted)
    async def note(noted: list[Noted], tx: Transaction, deliveries: list[Delivery]) -> None:
        sizes.append(len(noted))
        assert [d.type for d in deliveries] == ["Noted"] * len(noted)
        for each in noted:
            if each.step == 3:
                raise RuntimeError("three")
            tx.write("insert into steps (customer, step) values (:customer, :step)", each)

    async with harness(service, partitions=1) as app:
        await together(app, *[Noted(customer=f"c{n}", step=n) for n in range(8)])
        assert sorted(await app.rows("select step from steps")) == [(n,) for n in (0, 1, 2, 4, 5, 6, 7)]
        assert max(sizes) > 1 and 1 in sizes


async def test_a_handler_that_takes_too_long_is_rolled_back() -> None:
    service = Service("late", schema=SCHEMA, retry=Retry(attempts=1, in_place=()), deadline=0.2)

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction) -> None:
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)
        if noted.step == 1:
            await asyncio.sleep(60)

    async with harness(service) as app:
        await together(app, *[Noted(customer=f"c{n}", step=n) for n in range(3)])
        assert sorted(await app.rows("select step from steps")) == [(0,), (2,)]
        (row,) = await app.rows(HELD)
        assert "longer than 0.2 s" in row[3]


@pytest.mark.parametrize("raised", [SystemExit, asyncio.CancelledError, RecursionError, MemoryError])
async def test_whatever_a_handler_raises_the_consumer_lives_on(raised: type[BaseException]) -> None:
    service = Service("wild", schema=SCHEMA, retry=Retry(attempts=1, in_place=()))

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction) -> None:
        if noted.step == 1:
            raise raised()
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)

    async with harness(service) as app:
        await together(app, *[Noted(customer=f"c{n}", step=n) for n in range(3)])
        assert sorted(await app.rows("select step from steps")) == [(0,), (2,)]
        assert [row[0] for row in await app.rows(HELD)] == ["dead"]


# ------------------------------------------------------------------ bad input


BAD: list[tuple[str, Callable[[], bytes]]] = [
    ("malformed", lambda: b'{"number": "1", '),
    ("missing fields", lambda: b'{"number": "1"}'),
    ("wrong types", lambda: b'{"number": 1, "customer": [], "amount": "much"}'),
    ("5 MB", lambda: b'{"number": "1", "customer": "c", "amount": 1, "x": "' + b"x" * 5_000_000 + b'"}'),
    ("10,000 deep", lambda: b'{"number": "1", "x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
    ("not text", lambda: b"\xff\xfe\x00"),
    ("empty", lambda: b""),
]


@pytest.mark.parametrize(("kind", "body"), BAD, ids=[kind for kind, _ in BAD])
async def test_bad_input_is_a_dead_letter_and_loses_no_neighbour(kind: str, body: Callable[[], bytes]) -> None:
    async with harness(paying()) as app:
        await app.publish(ordered("before"))
        await app.raw("ordered", "c", body())
        await app.publish(ordered("after"))
        await app.until_quiet()
        assert await app.rows("select number from payments order by number") == [("after",), ("before",)]
        rows: list[Any] = await app.rows(HELD)
        assert [row[0] for row in rows] == ["dead"], rows


async def test_the_same_order_with_another_amount_is_a_conflict_not_a_payment() -> None:
    async with harness(paying()) as app:
        await app.publish(ordered(1, amount="9.99"))
        await app.publish(ordered(1, amount="99.90"))
        await app.publish(ordered(2, amount="5"))
        await app.until_quiet()
        assert await app.rows("select number from payments order by number") == [("1",), ("2",)]
        assert [(row[0], row[1]) for row in await app.rows(HELD)] == [("conflict", "identity-conflict")]


async def test_the_same_conflict_twice_is_one_dead_letter() -> None:
    async with harness(paying()) as app:
        await app.publish(ordered(1, amount="9.99"), ordered(1, amount="1"), ordered(1, amount="1"))
        await app.until_quiet()
        assert len(await app.rows(HELD)) == 1


async def test_an_empty_key_is_taken_from_the_event() -> None:
    async with harness(paying()) as app:
        await app.raw("ordered", "", b'{"number":"1","customer":"c","amount":1}')
        await app.raw("ordered", None, b'{"number":"2","customer":"c","amount":1}')
        await app.until_quiet()
        assert await app.rows("select count(*) from payments") == [(2,)]


class Later(Event, topic="noted", key="customer"):
    """Known to the broker before it is known to the service in these tests."""

    customer: str


async def test_an_unknown_type_blocks_its_key_until_somebody_knows_it() -> None:
    journal = Journal()
    envelope = {"ce_specversion": "1.0", "ce_id": "x1", "ce_source": "/new", "ce_type": "FromTomorrow"}
    async with harness(journal.service) as app:
        await app.publish(Noted(customer="c", step=1))
        await app.raw("noted", "c", b'{"customer":"c"}', envelope)
        await app.publish(Noted(customer="c", step=2), Noted(customer="d", step=1))
        await app.until_quiet(retries=False)
        assert await steps(app, "c") == [1]
        assert await steps(app, "d") == [1]
        assert [row[1] for row in await app.rows(HELD)] == ["unknown-type", ""]

        journal.service.ignore("noted", "FromTomorrow")
        await app.runtime.stop()
        app.runtime = app._make()
        await app.runtime.start()
        await app.until_quiet()
        assert await steps(app, "c") == [1, 2]
        assert await app.rows("select count(*) from eventkeel_gate") == [(0,)]


async def test_a_declared_type_without_a_handler_is_passed_over() -> None:
    journal = Journal()
    async with harness(journal.service) as app:
        await app.publish(Noted(customer="c", step=1), Later(customer="c"), Noted(customer="c", step=2))
        await app.until_quiet()
        assert await steps(app, "c") == [1, 2]


async def test_the_gate_is_not_locked_while_user_code_runs() -> None:
    """What comes in for a key whose head is being retried is parked behind it, not made to wait."""
    service = Service("open-gate", schema=SCHEMA, retry=Retry(attempts=0, first=1.0, in_place=()))
    running, go = asyncio.Event(), asyncio.Event()

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction, delivery: Delivery) -> None:
        if noted.step == 0 and delivery.attempt == 1:
            raise RuntimeError("park it")
        if noted.step == 0:
            running.set()
            await go.wait()
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)

    async with harness(service) as app:
        await app.publish(Noted(customer="c", step=0))
        await app.until_quiet(retries=False)
        app.clock.advance(2)
        assert app.runtime.due is not None
        app.runtime.due.wake()
        await asyncio.wait_for(running.wait(), 10)
        assert app.runtime.due.running
        await app.publish(*[Noted(customer="c", step=n) for n in (1, 2)])
        go.set()
        await app.until_quiet()
        assert await steps(app, "c") == [0, 1, 2]


async def test_an_event_that_grew_a_field_is_the_same_fact() -> None:
    """A producer's deploy adds a member; the same order is published again: no second payment, no conflict."""
    async with harness(paying()) as app:
        await app.raw("ordered", "c", b'{"number":"1","customer":"c","amount":9.99}')
        await app.raw("ordered", "c", b'{"number":"1","customer":"c","amount":9.99,"channel":"web"}')
        await app.until_quiet()
        assert await app.rows("select count(*) from payments") == [(1,)]
        assert await app.rows(HELD) == []


@pytest.mark.knows_partitions
async def test_a_key_with_too_many_waiting_makes_its_partition_wait_and_drops_nothing() -> None:
    journal = Journal(Retry(attempts=0, first=30.0, cap=30.0, in_place=()))
    journal.failing = {("bad", 0): 1}
    async with harness(journal.service, partitions=2, batch_size=1) as app:
        app.runtime.context.numbers = structs.replace(app.runtime.context.numbers, key_cap=5)
        good = next(f"g{n}" for n in range(50) if partition_of(f"g{n}", 2) != partition_of("bad", 2))
        await app.publish(*[Noted(customer="bad", step=n) for n in range(12)])
        await app.publish(*[Noted(customer=good, step=n) for n in range(12)])
        await app.until(lambda: applied(app, good, 12))
        await app.until(lambda: parked(app, 5))
        assert await steps(app, "bad") == []
        app.clock.advance(60)
        assert app.runtime.due is not None
        app.runtime.due.wake()
        await app.until(lambda: applied(app, "bad", 12))
        assert await steps(app, "bad") == list(range(12))


async def applied(app: Harness, customer: str, count: int) -> bool:
    return len(await steps(app, customer)) == count


async def parked(app: Harness, count: int) -> bool:
    return await app.rows("select count(*) from eventkeel_held") == [(count,)]
