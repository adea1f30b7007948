"""What goes wrong: X, and what has to be refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from eventkeel import ConfigurationError, Event, PublishError, Service, Transaction
from eventkeel.testing.conformance.kit import (
    PARTITIONS,
    PATIENT,
    SCHEMA,
    STUBBORN,
    Bought,
    Echoed,
    Journal,
    Noted,
    ServiceScenarios,
    bought,
    count,
    effects,
    in_time,
    kept,
    noted,
    operator,
    scenario,
    unsent,
    write,
)
from eventkeel.testing.harness import Harness, every_crash_point


class Placed(Event, topic="conformance_placed", key="who", identity="position", accept="plain"):
    """Every message is its own fact, wherever it lies."""

    who: str


@pytest.mark.asyncio
class TroubleScenarios(ServiceScenarios):
    """Part of ``ServiceSuite``."""

    # -- dying

    @scenario("X1", "F1")
    async def test_dying_at_any_named_step_leaves_one_effect_and_one_event_each(self) -> None:
        service = Service("dying", schema=SCHEMA, retry=PATIENT)

        @service.on(Bought)
        async def buy(order: Bought, tx: Transaction) -> None:
            event = Echoed(who=order.number, step=1)
            write(tx, event, "buy")
            tx.publish(event)

        @every_crash_point(service, **{"partitions": PARTITIONS, "batch_size": 4, **self.settings()})
        async def each_once(app: Harness) -> object:
            await app.publish(*[bought(n) for n in range(6)])
            await app.until_quiet()
            echoes = [echo.who for echo in await app.published(Echoed)]
            ids = {each.headers.text("ce_id") for each in await app.messages("conformance_echoed")}
            return await count(app, "buy"), sorted(set(echoes)), len(ids)

        await each_once()

    @scenario("X1", "X6")
    async def test_dying_at_any_named_step_while_a_key_waits_keeps_its_order(self) -> None:
        journal = Journal(retry=STUBBORN)

        @every_crash_point(journal.service, **{"partitions": PARTITIONS, **self.settings()})
        async def in_order(app: Harness) -> object:
            journal.failing = {("a", 2): 2}
            there = len(await app.messages("conformance_noted"))
            await app.publish(*noted(5 - there, first=there))
            await app.until_quiet()
            return await effects(app)

        await in_order()

    # -- committing

    @scenario("X4")
    async def test_transactions_that_commit_out_of_order_beside_a_long_idle_one_lose_nothing(self) -> None:
        journal = Journal()
        async with self.app(journal.service) as app:
            at_once = app.runtime.store.caps.parallel_units
            idle, slow = asyncio.Event(), asyncio.Event()

            async def publish(who: str, until: asyncio.Event | None, fails: bool = False) -> None:
                async with journal.service.transaction() as tx:
                    tx.publish(Noted(who=who, step=0))
                    await tx.fetch_all("select 1")
                    if until is not None and at_once:  # one writer at a time: who waits here would stop the others
                        await until.wait()
                    if fails:
                        raise ZeroDivisionError

            first = asyncio.ensure_future(publish("first", slow))
            long = asyncio.ensure_future(publish("long", idle))
            await asyncio.sleep(0.05)
            await publish("second", None)
            with pytest.raises(ZeroDivisionError):
                await publish("never", None, fails=True)
            await publish("third", None)
            await app.until(lambda: _at_least(app, 2))
            slow.set()
            await first
            await app.until(lambda: _at_least(app, 3))
            idle.set()
            await long
            await app.until_quiet()
            assert [await effects(app, who) for who in ("first", "second", "third", "long", "never")] == [[0]] * 4 + [
                []
            ]

    # -- clocks, sizes, types

    @scenario("X8")
    async def test_a_clock_that_jumps_during_a_handler_a_delay_and_a_lease_repeats_nothing(self) -> None:
        journal = Journal(retry=STUBBORN)
        journal.failing = {("b", 0): 1}
        async with self.app(journal.service, lease=2.0) as app:
            await app.publish(*noted(2, "b"))
            await app.until_quiet(retries=False)
            async with journal.service.transaction() as tx:
                tx.publish(Noted(who="c", step=0), delay=3600)
            journal.held = {("a", 0): asyncio.Event()}
            await app.publish(*noted(3))
            await in_time(journal.waiting.wait())
            app.clock.advance(86400)
            journal.held[("a", 0)].set()
            await app.until_quiet()
            assert await effects(app) == [0, 1, 2]
            assert await effects(app, "b") == [0, 1]
            assert await effects(app, "c") == [0]

    @scenario("X8", "C3")
    async def test_leases_from_before_the_clock_was_put_back_hold_nobody_up(self) -> None:
        journal = Journal(retry=STUBBORN)
        journal.failing = {("b", 0): 3}
        async with self.app(journal.service, lease=1.0) as app:
            await app.publish(*noted(1, "b"))
            await app.until_quiet(retries=False)
            ownership, store, group = app.runtime.ownership, app.runtime.store, app.service.group
            assert ownership is not None
            later = app.clock.now() + 3600
            await store.lease(group, "of yesterday", {}, ttl=1.0, now=later)
            taken = [*ownership.shares, *ownership.relays]
            await store.take(group, "of yesterday", taken, ttl=1.0, now=later, force=True)
            await store.due(["journal/note"], "of yesterday", limit=9, ttl=1.0, now=later)
            await app.publish(*noted(1))
            await app.until(lambda: _at_least(app, 1))
            await app.until_quiet()
            assert await effects(app) == [0]
            assert await effects(app, "b") == [0]

    @scenario("X8")
    async def test_an_event_that_is_too_large_is_refused_in_its_authors_call(self) -> None:
        journal = Journal()
        async with self.app(journal.service) as app:
            async with journal.service.transaction() as tx:
                with pytest.raises(PublishError, match="bytes"):
                    tx.publish(Bought(number="x" * 2_000_000, buyer="b", amount=1))  # type: ignore[arg-type]
                tx.publish(Noted(who="a", step=0))
            await app.until_quiet()
            assert await effects(app) == [0]
            assert await unsent(app) == 0

    @scenario("X8")
    async def test_an_unknown_type_blocks_its_key_until_somebody_knows_it(self) -> None:
        journal = Journal()
        envelope = {"ce_specversion": "1.0", "ce_id": "x1", "ce_source": "/new", "ce_type": "FromTomorrow"}
        async with self.app(journal.service) as app:
            await app.publish(*noted(1))
            await app.raw("conformance_noted", "a", b'{"who":"a"}', envelope)
            await app.publish(*noted(2, first=1), *noted(1, "b"))
            await app.until_quiet(retries=False)
            assert await effects(app) == [0]
            assert await effects(app, "b") == [0]
            assert next(reason for _, reason in await kept(app)) == "unknown-type"
            journal.service.ignore("conformance_noted", "FromTomorrow")  # a deploy
            await app.stop()
            await app.start_again()
            await app.until_quiet()
            assert await effects(app) == [0, 1, 2]

    # -- what cannot be is refused

    @scenario("X9")
    async def test_a_fact_that_is_told_by_its_position_works_or_is_refused_at_the_start(self) -> None:
        service = Service("positions", schema=SCHEMA)

        @service.on(Placed)
        async def note(event: Placed, tx: Transaction) -> None:
            write(tx, Noted(who=event.who, step=1))

        refused: ConfigurationError | None = None
        try:
            async with self.app(service) as app:
                assert app.runtime.transport.caps.settle == "prefix"
                await app.raw("conformance_placed", "a", b'{"who":"a"}')
                await app.raw("conformance_placed", "a", b'{"who":"a"}')
                await app.until_quiet()
                assert await effects(app) == [1, 1]
        except ConfigurationError as error:
            refused = error
        if refused is not None:
            assert "identity='position'" in str(refused)
            assert "name the field" in str(refused)

    @scenario("X9")
    async def test_another_number_of_partitions_is_refused_at_the_start(self, tmp_path: Path) -> None:
        journal = Journal()
        async with self.app(journal.service, folder=tmp_path) as app:
            await app.publish(*noted(3))
            await app.until_quiet()
        with pytest.raises(ConfigurationError, match="partitions"):
            async with self.app(journal.service, folder=tmp_path, partitions=PARTITIONS + 1):
                pass
        async with self.app(journal.service, folder=tmp_path) as app:
            assert await effects(app) == [0, 1, 2]

    @scenario("X9")
    async def test_a_key_that_is_too_long_for_the_broker_is_refused_and_harms_no_other(self) -> None:
        journal = Journal()
        async with self.app(journal.service) as app:
            long = "k" * (app.runtime.transport.caps.max_key + 1)
            async with journal.service.transaction() as tx:
                with pytest.raises(PublishError, match="key"):
                    tx.publish(Noted(who=long, step=0))
                tx.publish(Noted(who=long[:-1], step=0))
                tx.publish(Noted(who="a", step=0))
            await app.until_quiet()
            assert await effects(app) == await effects(app, long[:-1]) == [0]
            async with operator(app) as catalogue:
                assert not (await catalogue.lag()).stuck

    @scenario("X9", "K3")
    async def test_a_renamed_handler_is_found_out_at_the_start(self, tmp_path: Path) -> None:
        journal = Journal()
        async with self.app(journal.service, folder=tmp_path) as app:
            await app.publish(*noted(1))
            await app.until_quiet()
        renamed = Service("journal", schema=SCHEMA)

        @renamed.on(Noted)
        async def take_note(event: Noted, tx: Transaction) -> None: ...

        with pytest.raises(ConfigurationError, match='name="note"'):
            async with self.app(renamed, folder=tmp_path):
                pass


async def _at_least(app: Harness, number: int) -> bool:
    return await count(app) >= number
