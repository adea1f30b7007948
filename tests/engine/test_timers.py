"""Timers: what is published for later is sent once, when it is due, in the order of its key; and can be taken back."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from eventkeel import Event, PublishError, Service, SyncTransaction, Transaction, codec
from eventkeel.testing.harness import Harness, every_crash_point, harness

from .domain import PATIENT, SCHEMA, STEPS, Noted, Ordered, ordered

TIMERS = "select count(*) from eventkeel_timer"
NOTE = "insert into steps (customer, step) values (:customer, :step)"


class Expired(Event, topic="expired", key="number", identity="number"):
    """An order was not paid in time."""

    number: str


class Settled(Event, topic="settled", key="number"):
    number: str


def ordering(**options: Any) -> Service:
    """Each order expires after a minute, unless it is settled before."""
    service = Service("ordering", schema=SCHEMA, retry=PATIENT, **options)

    @service.on(Ordered)
    async def placed(order: Ordered, tx: Transaction) -> None:
        tx.write("insert into payments values (:number, :customer, :amount)", order)
        tx.publish(Expired(number=order.number), delay=timedelta(minutes=1))

    @service.on(Settled)
    async def settled(event: Settled, tx: Transaction) -> None:
        await tx.cancel(expiry(event.number))

    @service.on(Expired)
    async def expired(event: Expired, tx: Transaction) -> None:
        tx.write("insert into steps (customer, step) values (:number, 0)", event)

    return service


def expiry(number: str) -> UUID:
    """An event with an identity has an id that can be told without having published it."""
    record = codec.encode(Expired(number=number), new_id=lambda: b"", source="/ordering", now=0.0)
    return UUID(bytes=record.event_id)


EXPIRED = "select customer from steps order by customer"


async def test_an_event_for_later_is_sent_when_it_is_due_and_not_before() -> None:
    async with harness(ordering()) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        assert await app.published(Expired) == []
        await app.advance(55)
        assert await app.published(Expired) == []
        assert await app.rows(TIMERS) == [(1,)]
        await app.advance(10)
        assert [event.number for event in await app.published(Expired)] == ["1"]
        assert await app.rows(EXPIRED) == [("1",)]
        assert await app.rows(TIMERS) == [(0,)]


async def test_its_time_is_the_one_when_it_is_due() -> None:
    async with harness(ordering()) as app:
        at = datetime.fromtimestamp(app.clock.now() + 3600, UTC)
        async with app.service.transaction() as tx:
            tx.publish(Settled(number="1"), at=at)
        await app.advance(3601)
        (message,) = await app.messages("settled")
        said = datetime.fromisoformat(message.headers.text("ce_time") or "")
        assert abs((said - at).total_seconds()) < 0.001


async def test_a_timer_is_cancelled_in_the_same_transaction_and_in_a_later_one() -> None:
    async with harness(ordering()) as app:
        async with app.service.transaction() as tx:
            first = tx.publish(Settled(number="1"), delay=60)
            second = tx.publish(Settled(number="2"), delay=60)
            tx.publish(Settled(number="3"), delay=60)
            assert await tx.cancel(first)
            assert not await tx.cancel(first)
        async with app.service.transaction() as tx:
            assert await tx.cancel(second)
        await app.advance(61)
        assert [event.number for event in await app.published(Settled)] == ["3"]


async def test_a_cancel_after_it_was_sent_is_told_so() -> None:
    async with harness(ordering()) as app:
        await app.publish(ordered(1))
        await app.advance(61)
        async with app.service.transaction() as tx:
            assert not await tx.cancel(expiry("1"))
        assert [event.number for event in await app.published(Expired)] == ["1"]


async def test_a_handler_cancels_what_another_one_scheduled() -> None:
    async with harness(ordering()) as app:
        await app.publish(ordered(1), ordered(2))
        await app.until_quiet()
        await app.publish(Settled(number="1"))
        await app.until_quiet()
        await app.advance(120)
        assert await app.rows(EXPIRED) == [("2",)]


async def test_a_savepoint_that_is_rolled_back_drops_timers_and_cancels() -> None:
    async with harness(ordering()) as app:
        async with app.service.transaction() as tx:
            kept = tx.publish(Settled(number="kept"), delay=60)
            gone = tx.publish(Settled(number="gone"), delay=60)
            with pytest.raises(ZeroDivisionError):
                async with tx.savepoint():
                    tx.publish(Settled(number="dropped"), delay=60)
                    assert await tx.cancel(kept)
                    tx.publish(Settled(number="dropped too"), delay=60)
                    raise ZeroDivisionError
            async with tx.savepoint():
                tx.publish(Settled(number="inside"), delay=60)
                assert await tx.cancel(gone)
        await app.advance(61)
        assert sorted(event.number for event in await app.published(Settled)) == ["inside", "kept"]


async def test_timers_of_a_transaction_that_failed_are_never_sent() -> None:
    async with harness(ordering()) as app:
        with pytest.raises(ZeroDivisionError):
            async with app.service.transaction() as tx:
                tx.publish(Settled(number="1"), delay=1)
                raise ZeroDivisionError
        await app.advance(60)
        assert await app.published(Settled) == []


async def test_the_same_fact_is_scheduled_once_and_the_first_time_stays() -> None:
    async with harness(ordering()) as app:
        for delay in (60, 10):
            async with app.service.transaction() as tx:
                tx.publish(Expired(number="1"), delay=delay)
        await app.advance(30)
        assert await app.published(Expired) == []
        await app.advance(31)
        assert len(await app.published(Expired)) == 1


async def test_timers_of_a_key_are_sent_in_the_order_in_which_they_are_due() -> None:
    service = Service("noting", schema=SCHEMA)

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction) -> None:
        tx.write(NOTE, noted)

    async with harness(service) as app:
        async with app.service.transaction() as tx:
            for step in reversed(range(50)):
                tx.publish(Noted(customer="c", step=step), delay=float(step))
        await app.advance(60)
        assert [step for (step,) in await app.rows(STEPS, {"customer": "c"})] == list(range(50))


async def test_timers_outlive_a_crash_and_are_sent_late_rather_than_never() -> None:
    async with harness(ordering()) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        await app.crash()
        app.clock.advance(3600)
        await app.restart()
        await app.until_quiet()
        assert await app.rows(EXPIRED) == [("1",)]


async def test_a_service_without_handlers_sends_its_timers_too() -> None:
    async with harness(Service("quiet")) as app:
        async with app.service.transaction() as tx:
            tx.publish(Settled(number="1"), delay=5)
        await app.advance(6)
        assert len(await app.published(Settled)) == 1


async def test_of_two_instances_one_sends_each_timer(tmp_path: Any) -> None:
    async with harness(ordering(), folder=tmp_path) as app, harness(ordering(), folder=tmp_path) as other:
        async with app.service.transaction() as tx:
            for number in range(200):
                tx.publish(Settled(number=f"{number:03}"), delay=1 + number / 1000)
        other.clock.advance(5)
        app.clock.advance(5)
        other._wake()
        app._wake()
        async with asyncio.timeout(30):
            while len(await app.published(Settled)) < 200:
                await asyncio.sleep(0.01)
        for each in (app, other):  # whoever is still sending has sent
            await each.until_quiet(retries=False)
        numbers = [event.number for event in await app.published(Settled)]
        assert len(numbers) == len(set(numbers)) == 200


async def test_a_timer_wakes_its_loop_without_virtual_time() -> None:
    async with harness(ordering()) as app:
        async with app.service.transaction() as tx:
            tx.publish(Settled(number="1"), delay=0.05)

        async def sent() -> bool:
            return len(await app.published(Settled)) == 1

        await app.until(sent)


async def test_a_synchronous_service_has_timers_too() -> None:
    service = Service("sync", schema=SCHEMA)

    @service.on(Ordered)
    def placed(order: Ordered, tx: SyncTransaction) -> None:
        tx.publish(Settled(number="kept"), delay=60)
        assert tx.cancel(tx.publish(Settled(number="gone"), delay=60))

    async with harness(service) as app:
        await app.publish(ordered(1))
        await app.advance(61)
        assert [event.number for event in await app.published(Settled)] == ["kept"]


@pytest.mark.parametrize(
    "when",
    [
        {"delay": -1},
        {"delay": float("nan")},
        {"delay": 1e12},
        {"at": datetime(2030, 1, 1)},  # noqa: DTZ001
        {"at": 1_900_000_000.0},
        {"delay": 1, "at": datetime(2030, 1, 1, tzinfo=UTC)},
    ],
)
async def test_a_time_that_cannot_be_is_refused_in_the_authors_call(when: dict[str, Any]) -> None:
    async with harness(ordering()) as app, app.service.transaction() as tx:
        with pytest.raises(PublishError):
            tx.publish(Settled(number="1"), **when)


@every_crash_point(ordering())
async def test_a_crash_anywhere_sends_each_timer_once(app: Harness) -> Any:
    await app.publish(*[ordered(n, f"c{n}") for n in range(4)])
    await app.advance(120)
    return (
        await app.rows(EXPIRED),
        sorted({event.number for event in await app.published(Expired)}),
        await app.rows(TIMERS),
    )
