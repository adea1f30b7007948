"""Effects happen once, nothing is lost, keys keep their order."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from eventkeel import CommitUnknown, Event, NestedTransaction, Retry, Service, Transaction
from eventkeel.ports.store import Kind, Reply, Statement
from eventkeel.testing.harness import Harness, every_crash_point, harness

from .domain import SCHEMA, STEPS, Journal, Noted, Ordered, Paid, ordered, paying


async def test_an_order_is_paid_once_and_says_so_once() -> None:
    async with harness(paying()) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        assert await app.rows("select number, amount from payments") == [("1", Decimal("9.99"))]
        assert [paid.number for paid in await app.published(Paid)] == ["1"]


async def test_redelivery_has_no_effect() -> None:
    async with harness(paying()) as app:
        await app.publish(*[ordered(n, f"c{n}") for n in range(20)])
        await app.until_quiet()
        await app.redeliver("ordered", times=3)
        await app.until_quiet()
        assert await app.rows("select count(*) from payments") == [(20,)]
        assert len(await app.published(Paid)) == 20


async def test_the_same_fact_published_twice_by_a_foreign_producer_is_one() -> None:
    async with harness(paying()) as app:
        await app.raw("ordered", "c", b'{"number":"7","customer":"c","amount":100}')
        await app.raw("ordered", "c", b'{"amount":1.0E2, "customer":"c","number":"7"}')
        await app.until_quiet()
        assert await app.rows("select count(*) from payments") == [(1,)]
        assert await app.rows("select count(*) from eventkeel_held") == [(0,)]


async def test_events_of_one_key_are_applied_in_order_and_in_batches() -> None:
    journal = Journal()
    async with harness(journal.service) as app:
        await app.publish(*[Noted(customer=f"c{n % 5}", step=n) for n in range(300)])
        await app.until_quiet()
        for customer in range(5):
            steps = [step for (step,) in await app.rows(STEPS, {"customer": f"c{customer}"})]
            assert steps == list(range(customer, 300, 5))


async def test_an_event_published_with_a_rolled_back_transaction_is_never_seen() -> None:
    async with harness(paying()) as app:
        with pytest.raises(ZeroDivisionError):
            async with app.service.transaction() as tx:
                tx.publish(Paid(number="1", customer="c"))
                raise ZeroDivisionError
        async with app.service.transaction() as tx:
            tx.publish(Paid(number="2", customer="c"))
        await app.until_quiet()
        assert [paid.number for paid in await app.published(Paid)] == ["2"]


async def test_after_a_restart_nothing_is_repeated_and_nothing_missing(caplog: pytest.LogCaptureFixture) -> None:
    async with harness(paying()) as app:
        await app.publish(*[ordered(n, f"c{n}") for n in range(50)])
        await app.until_quiet()
        await app.crash()
        await app.restart()
        await app.publish(*[ordered(n, f"c{n}") for n in range(40, 90)])
        await app.until_quiet()
        assert await app.rows("select count(*), count(distinct number) from payments") == [(90, 90)]
        ids = [message.headers.text("ce_id") for message in await app.messages("paid")]
        assert len(set(ids)) == 90
        # What a broker does not confirm in time may be there all the same, and is sent again: that, and nothing else.
        assert len(ids) == 90 or "is sent again" in caplog.text


CRASHING = paying()


@every_crash_point(CRASHING, batch_size=4)
async def test_a_crash_at_any_point_leaves_each_order_paid_once(app: Harness) -> object:
    await app.publish(*[ordered(n, f"c{n % 3}") for n in range(6)])
    await app.until_quiet()
    payments = await app.rows("select number from payments order by number")
    paid = {event.number for event in await app.published(Paid)}
    return payments, paid


FAILING = Journal(Retry(attempts=0, first=1.0, in_place=()))


@every_crash_point(FAILING.service)
async def test_a_crash_at_any_point_of_a_parked_key_keeps_its_order(app: Harness) -> object:
    FAILING.failing = {("c", 2): 2}
    there = len(await app.messages("noted"))
    await app.publish(*[Noted(customer="c", step=n) for n in range(there, 5)])
    await app.until_quiet()
    return await app.rows(STEPS, {"customer": "c"})


class LostAnswer:
    """A COMMIT that happens and whose answer is lost, once."""

    armed = False
    fired = 0


async def test_a_commit_whose_answer_is_lost_is_settled_by_the_inbox(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = LostAnswer()
    service = paying()
    calls = []

    @service.on(Paid)
    async def remember(paid: Paid, tx: Transaction) -> None:
        calls.append(paid.number)

    async with harness(service) as app:
        unit = app.runtime.lanes[0]._open_unit()
        monkeypatch.setattr(type(unit.connection), "run", _losing(type(unit.connection).run, lost))
        lost.armed = True
        await app.publish(ordered(1))
        await app.until_quiet()
        assert lost.fired == 1
        assert await app.rows("select count(*) from payments") == [(1,)]
        assert len(await app.published(Paid)) == 1


def _losing(run: object, lost: LostAnswer) -> object:
    async def lossy(self: object, statement: Statement) -> Reply:
        reply: Reply = await run(self, statement)  # type: ignore[operator]
        if statement.kind is Kind.COMMIT and lost.armed:
            lost.armed, lost.fired = False, lost.fired + 1
            raise CommitUnknown("the answer was lost")
        return reply

    return lossy


async def test_a_handler_that_asks_for_its_own_services_transaction_is_told_so() -> None:
    service = Service("nesting", schema=SCHEMA)
    seen: list[BaseException] = []

    @service.on(Ordered)
    async def nest(order: Ordered, tx: Transaction) -> None:
        try:
            async with service.transaction():
                pass
        except NestedTransaction as error:
            seen.append(error)

    async with harness(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        assert "it would wait for the unit" in str(seen[0])


async def test_two_handlers_of_one_event_each_take_effect_once() -> None:
    service = paying()

    @service.on(Ordered, name="second")
    async def second(order: Ordered, tx: Transaction) -> None:
        tx.write("insert into steps (customer, step) values (:customer, :number)", order)

    async with harness(service) as app:
        await app.publish(*[ordered(n, f"c{n % 4}") for n in range(30)])
        await app.redeliver("ordered")
        await app.until_quiet()
        assert await app.rows("select count(*) from payments") == [(30,)]
        assert await app.rows("select count(*) from steps") == [(30,)]


class Opened(Event, topic="account", key="id"):
    id: str


class Closed(Event, topic="account", key="id"):
    id: str


async def test_one_handler_of_several_types_sees_a_key_in_order() -> None:
    service = Service("accounts", schema=SCHEMA)
    seen: list[tuple[str, str]] = []

    @service.on(Opened, Closed)
    async def watch(event: Opened | Closed, tx: Transaction) -> None:
        seen.append((event.id, type(event).__name__))

    async with harness(service) as app:
        for n in range(10):
            await app.publish(Opened(id=f"{n % 2}"), Closed(id=f"{n % 2}"))
        await app.until_quiet()
        for key in ("0", "1"):
            assert [name for id, name in seen if id == key] == ["Opened", "Closed"] * 5


async def test_a_slow_handler_does_not_hold_its_batch_open() -> None:
    service = Service("slow", schema=SCHEMA)

    @service.on(Noted)
    async def slow(noted: Noted, tx: Transaction) -> None:
        await asyncio.sleep(0.03)
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)

    async with harness(service) as app:
        await app.publish(*[Noted(customer="c", step=n) for n in range(30)])
        await app.until_quiet()
        steps = [step for (step,) in await app.rows(STEPS, {"customer": "c"})]
        assert steps == list(range(30))
        assert app.runtime.context.pace("slow/slow").alone
