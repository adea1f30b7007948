"""The whole engine on PostgreSQL, with handlers as careless as people's: effects once, in order, blame where due."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest

from eventkeel import FinalError, Retry, Service, SyncTransaction, Transaction
from eventkeel.admin.access import Actor
from eventkeel.admin.act import Act
from eventkeel.app import Runtime
from eventkeel.config import Config
from eventkeel.engine import faults
from eventkeel.errors import CommitUnknown, Contention, StoreUnavailable, TransactionAborted
from eventkeel.stores.postgres import PostgresCatalogue, PostgresStore
from eventkeel.testing.harness import Harness, harness
from tests.observing import Recorder
from tests.stores.bought import INSERT, PATIENT, SCHEMA, Bought, Told, bought, held, numbers, shop
from tests.stores.postgres_kit import Place, until

# ------------------------------------------------------------------ what handlers do


async def test_of_a_batch_with_a_swallowed_sql_error_only_its_author_fails(place: Place) -> None:
    service = shop()

    @service.on(Bought)
    async def take(event: Bought, tx: Transaction) -> None:
        await tx.execute(INSERT, event)
        if event.number == 7:
            with contextlib.suppress(psycopg.errors.UniqueViolation):  # "it is there already, fine"
                await tx.execute(INSERT, event)
        tx.publish(Told(number=event.number, customer=event.customer))

    async with harness(service, store=place.url(), lanes=1) as app:
        await app.publish(*[bought(n) for n in range(20)])
        await app.until_quiet()
        assert sorted(await numbers(app)) == [n for n in range(20) if n != 7]
        (letter,) = await held(app)
        assert letter[0] == "dead" and "savepoint" in letter[3]
        assert sorted(told.number for told in await app.published(Told)) == [n for n in range(20) if n != 7]


async def test_a_caught_error_in_a_savepoint_is_nobodys_failure(place: Place) -> None:
    service = shop()

    @service.on(Bought)
    async def take(event: Bought, tx: Transaction) -> None:
        tx.write(INSERT, event)
        try:
            async with tx.savepoint():
                tx.write(INSERT, event)
                tx.publish(Told(number=-1, customer=event.customer))
        except psycopg.errors.UniqueViolation:
            tx.publish(Told(number=event.number, customer=event.customer))

    async with harness(service, store=place.url(), lanes=1) as app:
        await app.publish(*[bought(n) for n in range(20)])
        await app.until_quiet()
        assert sorted(await numbers(app)) == list(range(20))
        assert await held(app) == []
        assert sorted(told.number for told in await app.published(Told)) == list(range(20))


async def test_a_failed_queued_write_is_its_own_deliverys_blame(place: Place) -> None:
    """Failed flush: it is sent by a neighbour's read."""
    service, seen = shop(), Recorder()

    @service.on(Bought)
    async def take(event: Bought, tx: Transaction) -> None:
        tx.write(INSERT, event)
        if event.number == 5:
            tx.write("insert into bought (number, customer) values (:n, null)", {"n": 1000})
        elif event.number % 2:
            assert await tx.fetch_value("select count(*) from bought where number = :number", event) == 1

    async with harness(service, store=place.url(), lanes=1, observers=[seen]) as app:
        await app.publish(*[bought(n) for n in range(20)])
        await app.until_quiet()
        assert sorted(await numbers(app)) == [n for n in range(20) if n != 5]
        (letter,) = await held(app)
        assert letter[0] == "dead" and "null value" in letter[3]


async def test_a_deferred_constraint_fails_one_delivery_of_a_batch(place: Place) -> None:
    """It is found at the commit, where nobody can be blamed: one by one it is found out who it was."""
    service = shop()

    @service.on(Bought)
    async def take(event: Bought, tx: Transaction) -> None:
        tx.write(INSERT, event)
        if event.number == 11:
            tx.write("insert into child values (1, 99)")

    async with harness(service, store=place.url(), lanes=1) as app:
        await app.publish(*[bought(n) for n in range(20)])
        await app.until_quiet()
        assert sorted(await numbers(app)) == [n for n in range(20) if n != 11]
        (letter,) = await held(app)
        assert letter[0] == "dead" and "foreign key" in letter[3]


async def test_crossed_rows_come_to_their_end_and_each_has_its_effect_once(place: Place) -> None:
    """Four lanes update two rows in opposite order: each deadlock costs its loser one try, and nothing else."""
    service = shop(Retry(attempts=0, first=0.01, in_place=()))

    @service.on(Bought)
    async def take(event: Bought, tx: Transaction) -> None:
        for sku in (event.first, event.second):
            await tx.execute("update stock set sold = sold + 1 where sku = :sku", {"sku": sku})
            await asyncio.sleep(0)
        tx.write(INSERT, event)

    async with harness(service, store=place.url(), lanes=4) as app:
        place.do("insert into stock values ('a', 0), ('b', 0)")
        orders = [("a", "b"), ("b", "a")]
        await app.publish(*[bought(n, first=orders[n % 2][0], second=orders[n % 2][1]) for n in range(24)])
        await app.until_quiet()
        assert await app.rows("select sold from stock") == [(24,), (24,)]
        assert await held(app) == []


async def test_a_thread_past_its_deadline_commits_nothing_later(place: Place) -> None:
    service = Service("shop", schema=SCHEMA, retry=Retry(attempts=2, first=1.0, in_place=()), deadline=0.5)
    go, runs = threading.Event(), list[int]()
    late: list[BaseException | None] = []

    @service.on(Bought)
    def take(event: Bought, tx: SyncTransaction) -> None:
        tx.write(INSERT, event)
        if event.number == 1:
            runs.append(1)
            if len(runs) == 1:
                tx.execute("update stock set sold = sold + 1")
                go.wait(20)
                try:
                    tx.execute("update stock set sold = sold + 100")
                except Exception as error:
                    late.append(error)
                    raise
                late.append(None)

    async with harness(service, store=place.url(), lanes=2) as app:
        place.do("insert into stock values ('a', 0)")
        await app.publish(*[bought(n) for n in range(6)])
        await app.until_quiet()
        assert len(runs) == 2
        assert sorted(await numbers(app)) == list(range(6))
        assert place.ask("select sold from stock") == [(0,)]  # its row lock is gone too: the connection was cut
        go.set()
        await app.until(lambda: bool(late))
        assert isinstance(late[0], Exception)
        await app.publish(bought(6))
        await app.until_quiet()
        assert place.ask("select sold from stock") == [(0,)]
        assert place.backends(state="idle in transaction%") == []


async def test_a_thread_stuck_in_a_statement_past_its_deadline_is_cut(place: Place) -> None:
    service = Service("shop", schema=SCHEMA, retry=Retry(attempts=2, first=1.0, in_place=()), deadline=0.5)
    runs: list[int] = []

    @service.on(Bought)
    def take(event: Bought, tx: SyncTransaction) -> None:
        tx.write(INSERT, event)
        runs.append(event.number)
        if len(runs) == 1:
            tx.execute("select pg_sleep(15)")

    began = time.monotonic()
    async with harness(service, store=place.url(), lanes=1) as app:
        await app.publish(bought(1), bought(2))
        await app.until_quiet()
        assert sorted(await numbers(app)) == [1, 2]
    assert time.monotonic() - began < 12  # and the server found out that nobody waits for the answer
    await until(lambda: not place.backends(query="%pg_sleep%", state="active"))


async def test_an_async_handler_past_its_deadline_frees_its_locks_at_once(place: Place) -> None:
    service = Service("shop", schema=SCHEMA, retry=Retry(attempts=2, first=1.0, in_place=()), deadline=0.5)
    runs: list[int] = []

    @service.on(Bought)
    async def take(event: Bought, tx: Transaction) -> None:
        await tx.execute("update stock set sold = sold + 1")
        runs.append(event.number)
        if len(runs) == 1:
            await asyncio.sleep(30)
        tx.write(INSERT, event)

    async with harness(service, store=place.url(), lanes=1) as app:
        place.do("insert into stock values ('a', 0)")
        await app.publish(bought(1))
        await app.until_quiet()
        assert await numbers(app) == [1]
        assert place.ask("select sold from stock") == [(1,)]


async def test_a_statement_nobody_supports_is_a_dead_letter_and_no_endless_loop(place: Place) -> None:
    service, runs = shop(), list[int]()

    @service.on(Bought)
    async def take(event: Bought, tx: Transaction) -> None:
        runs.append(event.number)
        if event.number == 3:
            await tx.execute("select count(*) from bought for update")
        tx.write(INSERT, event)

    async with harness(service, store=place.url(), lanes=1) as app:
        await app.publish(*[bought(n, "c") for n in range(4)])
        await app.until_quiet()
        assert await numbers(app) == [0, 1, 2]
        assert [letter[0] for letter in await held(app)] == ["dead"]
        assert runs.count(3) <= 2


async def test_a_table_altered_under_load_uses_up_no_attempt(place: Place) -> None:
    service, seen = shop(), Recorder()

    @service.on(Bought)
    async def take(event: Bought, tx: Transaction) -> None:
        tx.write(INSERT, event)
        await tx.fetch_all("select * from stock")

    async with harness(service, store=place.url(), lanes=4, observers=[seen]) as app:
        for turn in range(4):
            await app.publish(*[bought(turn * 50 + n) for n in range(50)])
            await asyncio.to_thread(place.do, f"alter table stock add column more_{turn} integer")
        await app.until_quiet()
        assert sorted(await numbers(app)) == list(range(200))
        assert seen.failures == [] and await held(app) == []


async def test_a_handler_that_goes_on_after_a_timeout_of_its_own_is_not_given_the_old_answer(place: Place) -> None:
    service = shop()

    @service.on(Bought)
    async def take(event: Bought, tx: Transaction) -> None:
        if event.number == 2:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await tx.fetch_value("select 'slow' from pg_sleep(0.5)")
        await tx.execute(INSERT, event)
        assert await tx.fetch_value("select 'next'") == "next"

    async with harness(service, store=place.url(), lanes=1) as app:
        await app.publish(*[bought(n) for n in range(5)])
        await app.until_quiet()
        assert sorted(await numbers(app)) == [0, 1, 3, 4]
        (letter,) = await held(app)
        assert letter[0] == "dead" and "cut off" in letter[3]


async def test_a_handler_may_gather_its_statements(place: Place) -> None:
    service = shop()

    @service.on(Bought)
    async def take(event: Bought, tx: Transaction) -> None:
        tx.write(INSERT, event)
        asked = [
            tx.fetch_value("select number + :n from bought where number = :number", {"n": n, "number": event.number})
            for n in range(5)
        ]
        assert await asyncio.gather(*asked) == [event.number + n for n in range(5)]

    async with harness(service, store=place.url(), lanes=2) as app:
        await app.publish(*[bought(n) for n in range(20)])
        await app.until_quiet()
        assert sorted(await numbers(app)) == list(range(20))


# ------------------------------------------------------------------ gates


async def test_a_gate_is_free_while_its_head_runs_and_order_is_kept(place: Place) -> None:
    """Parking behind it, looking at it and other keys' work wait for nobody's handler."""
    service = shop(PATIENT)
    inside, go = asyncio.Event(), asyncio.Event()
    tries: list[int] = []

    @service.on(Bought)
    async def take(event: Bought, tx: Transaction) -> None:
        tx.write(INSERT, event)
        if event.number == 0:
            tries.append(0)
            if len(tries) == 1:
                raise RuntimeError("not yet")
            inside.set()
            await go.wait()

    async with harness(service, store=place.url(), lanes=2) as app:
        await app.publish(bought(0, "k"))
        await app.until_quiet(retries=False)
        app.clock.advance(120)
        assert app.runtime.due is not None
        app.runtime.due.wake()
        async with asyncio.timeout(20):
            await inside.wait()
        # Its unit is open, and its handler waits. Nobody else has to.
        async with asyncio.timeout(10):
            await app.publish(bought(1, "k"), bought(2, "k"), bought(3, "other"))
            await app.until(lambda: counted(app, "select count(*) from eventkeel_held", 3))
            await app.until(lambda: counted(app, "select count(*) from bought", 1))
            store = app.runtime.store
            assert isinstance(store, PostgresStore)
            catalogue = PostgresCatalogue(store)
            assert [(one.key, one.count) for one in await catalogue.waiting(after=0, limit=10)] == [("k", 3)]
        go.set()
        await app.until_quiet()
        assert [n for n in await numbers(app) if n != 3] == [0, 1, 2]
        assert await held(app) == []
        assert place.ask("select count(*) from eventkeel_gate") == [(0,)]


async def counted(app: Harness, sql: str, number: int) -> bool:
    return await app.rows(sql) == [(number,)]


async def test_an_operator_skips_what_runs_and_the_unit_is_undone(place: Place) -> None:
    """Skipped by an operator while its handler runs: its unit finds the head gone, and leaves nothing."""
    service = shop(Retry(attempts=0, first=1.0, in_place=()))
    inside, go = asyncio.Event(), asyncio.Event()
    tries: list[int] = []

    @service.on(Bought)
    async def take(event: Bought, tx: Transaction) -> None:
        tx.write(INSERT, event)
        if event.number == 0:
            tries.append(0)
            if len(tries) == 1:
                raise RuntimeError("not yet")
            inside.set()
            await go.wait()

    async with harness(service, store=place.url(), lanes=1, batch_size=1) as app:
        await app.publish(bought(0, "k"), bought(1, "k"))
        await app.until_quiet(retries=False)
        app.clock.advance(120)
        assert app.runtime.due is not None
        app.runtime.due.wake()
        async with asyncio.timeout(20):
            await inside.wait()
        store = app.runtime.store
        assert isinstance(store, PostgresStore)
        ((number,),) = place.ask("select min(number) from eventkeel_held")
        act = Act("shop", PostgresCatalogue(store), app.clock, Actor("ann", frozenset({"ask", "act"})))
        async with asyncio.timeout(5):
            await act.skip(number, "never mind")
        go.set()
        await app.until_quiet()
        assert await numbers(app) == [1]
        assert await held(app) == []


async def test_what_finds_its_gate_gone_is_claimed_again_and_not_appended(place: Place) -> None:
    """Between its claim (the key waits) and its parking the head succeeds and takes the gate away."""
    service = shop(PATIENT)
    fail = [True]

    @service.on(Bought)
    async def take(event: Bought, tx: Transaction) -> None:
        if event.number == 0 and fail:
            fail.clear()
            raise RuntimeError("not yet")
        tx.write(INSERT, event)

    gone: list[str] = []

    def at(name: str) -> None:
        if name == "unit.claimed" and not gone and place.ask("select count(*) from eventkeel_gate") == [(1,)]:
            # As if its head had just been applied by another process.
            gone.append(name)
            place.do(
                "delete from eventkeel_gate; delete from eventkeel_held; update eventkeel_inbox set state = 0; "
                "insert into bought (number, customer) values (0, 'k')"
            )

    async with harness(service, store=place.url(), lanes=1) as app:
        await app.publish(bought(0, "k"))
        await app.until_quiet(retries=False)
        before = faults.install(at)
        try:
            await app.publish(bought(1, "k"), bought(2, "k"))
            await app.until_quiet(retries=False)
        finally:
            faults.install(before)
        assert gone
        assert await numbers(app) == [0, 1, 2]
        assert await held(app) == []


# ------------------------------------------------------------------ transactions outside handlers


async def test_transactions_outside_say_what_happened_to_them(place: Place) -> None:
    service = shop()
    async with harness(service, store=place.url()) as app:
        with pytest.raises(TransactionAborted):
            async with service.transaction() as tx:
                await tx.execute(INSERT, bought(1))
                with contextlib.suppress(psycopg.errors.UniqueViolation):
                    await tx.execute(INSERT, bought(1))
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            async with service.transaction() as tx:
                tx.write("insert into child values (1, 99)")
                tx.publish(Told(number=1, customer="c"))
        with pytest.raises(psycopg.errors.NotNullViolation):
            async with service.transaction() as tx:
                tx.write("insert into bought (number, customer) values (1, null)")
        with pytest.raises((StoreUnavailable, CommitUnknown)):
            async with service.transaction() as tx:
                await tx.execute(INSERT, bought(1))
                place.terminate(*place.backends(state="idle in transaction%"))
        async with service.transaction() as tx:
            await tx.execute(INSERT, bought(1))
        assert await numbers(app) == [1]
        await app.until_quiet()
        assert await app.published(Told) == []


async def test_an_api_under_load_and_handlers_share_the_store(place: Place) -> None:
    """Two hundred requests at once, each with a transaction; leases hold, and handlers go on."""
    service, seen = shop(), Recorder()

    @service.on(Bought)
    async def take(event: Bought, tx: Transaction) -> None:
        tx.write(INSERT, event)

    async with harness(service, store=place.url(pool=8), lanes=4, lease=2.0, observers=[seen]) as app:

        async def request(number: int) -> None:
            async with service.transaction() as tx:
                await tx.execute("select pg_sleep(0.01)")
                tx.publish(bought(number, f"c{number % 9}"))

        await asyncio.gather(*(request(number) for number in range(200)))
        await app.until_quiet()
        assert sorted(await numbers(app)) == list(range(200))
        assert seen.fences == [] and await held(app) == []


async def test_who_waits_too_long_for_another_transaction_is_told_so(place: Place, tmp_path: Path) -> None:
    service = shop()
    config = Config.load({"data": str(tmp_path), "store": place.url()}, environ={}, file=None)
    runtime = Runtime(service, config, mode="publisher")
    await runtime.start()
    try:
        place.do("insert into stock values ('a', 0)")
        with place.raw() as other:
            other.execute("begin; update stock set sold = 1")
            with pytest.raises(Contention, match="in the way"):
                async with service.transaction() as tx:
                    await tx.execute("set local lock_timeout = '100ms'")
                    await tx.execute("update stock set sold = 2")
            other.execute("rollback")
    finally:
        await runtime.stop()


async def test_a_final_error_beside_a_full_decimal_is_one_dead_letter(place: Place) -> None:
    service = shop()

    @service.on(Bought)
    async def take(event: Bought, tx: Transaction) -> None:
        assert await tx.fetch_value("select :a::numeric", {"a": Decimal(10) ** 300}) == Decimal(10) ** 300
        raise FinalError("no \x00 use \udcff")

    async with harness(service, store=place.url()) as app:
        await app.publish(bought(1))
        await app.until_quiet()
        assert [letter[:3] for letter in await held(app)] == [("dead", "error", 1)]
