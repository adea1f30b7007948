"""Troubles of the machine: a full disk, files that vanish, deliveries that kill, tasks that are cancelled."""

from __future__ import annotations

import asyncio
import os
import random
import resource
from pathlib import Path
from typing import Any

import apsw
import pytest

from eventkeel import Delivery, Retry, Service, Transaction
from eventkeel.errors import StoreUnavailable
from eventkeel.ports.store import Head
from eventkeel.stores.sqlite import SQLiteCatalogue, SQLiteStore
from eventkeel.testing.harness import harness
from tests.observing import Recorder

from .domain import SCHEMA, STEPS, Journal, Noted, Paid, die_until_quiet, ordered, paying

HELD = "select state, reason, attempts, error from eventkeel_held order by number"


@pytest.mark.sqlite_only
async def test_a_full_disk_uses_up_no_attempt() -> None:
    service = Service("full", schema=SCHEMA, retry=Retry(attempts=1, in_place=()))
    runs: list[int] = []

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction) -> None:
        runs.append(1)
        await tx.execute("insert into payments values (:n, 'x', 1)", {"n": f"{noted.step:09}" * 200_000})
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with harness(service) as app:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit[1]))
        try:
            await app.publish(Noted(customer="c", step=1))
            await app.until(lambda: len(runs) > 2)
            assert await app.rows("select count(*) from steps") == [(0,)]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        await app.until_quiet()
        assert await app.rows(HELD) == []
        assert await app.rows("select step from steps") == [(1,)]


async def test_a_retry_that_kills_its_process_is_dead_after_three_deaths() -> None:
    service = Service("mortal", schema=SCHEMA, retry=Retry(attempts=0, first=1.0, in_place=()))
    runs: list[int] = []
    deaths = asyncio.Event()

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction, delivery: Delivery) -> None:
        if noted.step == 1:
            if delivery.attempt == 1:
                raise RuntimeError("parks")
            runs.append(1)
            deaths.set()
            await asyncio.sleep(3600)
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)

    async with harness(service) as app:
        await app.publish(*[Noted(customer=f"c{n}", step=n) for n in range(3)])
        await die_until_quiet(app, deaths, 6)
        assert await app.rows("select reason from eventkeel_held") == [("kills-its-process",)]
        assert sorted(await app.rows("select step from steps")) == [(0,), (2,)]


@pytest.mark.sqlite_broker
async def test_a_broker_whose_file_was_taken_away_confirms_nothing(tmp_path: Path) -> None:
    async with harness(paying(), folder=tmp_path) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        os.unlink(tmp_path / "broker.sqlite3")
        async with app.service.transaction() as tx:
            tx.publish(Paid(number="x", customer="c"))
        await asyncio.sleep(1.0)
        left = await app.rows("select count(*) from eventkeel_outbox")
        assert left == [(1,)]


async def test_transactions_outside_that_are_cancelled_leave_the_store_free() -> None:
    service = paying()
    async with harness(service) as app:

        async def client(n: int) -> None:
            async with service.transaction() as tx:
                tx.write("insert into payments values (:n, 'c', 1)", {"n": str(n)})
                await asyncio.sleep(0.001)
                tx.publish(Paid(number=str(n), customer="c"))
                await tx.fetch_all("select 1")

        rng = random.Random(1)
        done = 0
        for n in range(300):
            task = asyncio.ensure_future(client(n))
            for _ in range(rng.randrange(8)):
                await asyncio.sleep(0)
            if rng.random() < 0.7:
                task.cancel()
            (result,) = await asyncio.gather(task, return_exceptions=True)
            done += result is None
        await app.until_quiet()
        assert await app.rows("select count(*) from payments") == [(done,)]
        assert len(await app.published(Paid)) == done


async def test_many_transactions_at_once_leave_no_crowd_of_connections() -> None:
    service = paying()
    async with harness(service):

        async def client(n: int) -> None:
            async with service.transaction() as tx:
                tx.write("insert into payments values (:n, 'c', 1)", {"n": str(n)})

        await asyncio.gather(*[client(n) for n in range(200)])
        assert len(os.listdir("/proc/self/fd")) < 120


@pytest.mark.sqlite_only
async def test_a_commit_on_the_drivers_connection_is_refused() -> None:
    service = Service("native", schema=SCHEMA, retry=Retry(attempts=1, in_place=()))

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction) -> None:
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)
        native = await tx.native()
        native.execute(["commit; begin immediate", "rollback; begin immediate", "commit", "rollback"][noted.step])
        tx.publish(Paid(number="1", customer="c"))
        raise RuntimeError("fails")

    async with harness(service) as app:
        await app.publish(*[Noted(customer=f"c{n}", step=n) for n in range(4)])
        await app.until_quiet()
        assert [row[0] for row in await app.rows(HELD)] == ["dead"] * 4
        assert await app.rows("select count(*) from steps") == [(0,)]


async def test_a_write_inside_a_savepoint_can_be_caught_when_a_read_sends_it() -> None:
    service = Service("saving", schema=SCHEMA, retry=Retry(attempts=1, in_place=()))
    caught: list[BaseException] = []

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction) -> None:
        try:
            async with tx.savepoint():
                tx.write("insert into payments values (null, null, null)")
                await tx.fetch_all("select 1")
        except Exception as error:
            caught.append(error)
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)

    async with harness(service) as app:
        await app.publish(Noted(customer="c", step=1))
        await app.until_quiet()
        assert caught
        assert await app.rows("select step from steps") == [(1,)]


@pytest.mark.sqlite_only
async def test_senseless_rows_in_the_brokers_log_are_dead_letters_that_can_be_listed() -> None:
    journal = Journal(Retry(attempts=1, in_place=()))
    rows: list[tuple[str | bytes | int, bytes | str, bytes | str | int, float | str]] = [
        ("text", b"\x90", b'{"customer":"c","step":2}', 1.0),
        (b"c", "text", b"{}", 1.0),
        (b"c", b"\xff\xff", b"{}", 1.0),
        (b"c", b"\x90", "text", 1.0),
        (b"c", b"\x90", 5, 1.0),
        (5, b"\x90", b"{}", 1.0),
        (b"c", b"\x90", b"{}", "yesterday"),
        (b"", b"\x90", b"", 1e300),
    ]
    async with harness(journal.service, partitions=1) as app:
        await app.publish(Noted(customer="c", step=1))
        await app.until_quiet()
        log = apsw.Connection(str(app.folder / "broker.sqlite3"))
        log.set_busy_timeout(5000)
        with log:
            for row in rows:
                log.execute(
                    "insert into log select (slot << 40) + next, ?, ?, ?, ? from partitions where topic = 'noted'", row
                )
                log.execute("update partitions set next = next + 1 where topic = 'noted'")
        log.close()
        await app.publish(Noted(customer="c", step=3))
        await app.until_quiet()
        assert await app.rows(STEPS, {"customer": "c"}) == [(1,), (3,)]
        catalogue = SQLiteCatalogue(SQLiteStore(app.folder / "journal.sqlite3", "journal"))
        await catalogue._store.open()
        letters = await catalogue.dead_letters(consumer=None, state=None, after=0, limit=100)
        assert len(letters) == len(rows)
        assert all([await catalogue.dead_letter(letter.number) for letter in letters])
        await catalogue._store.close()


async def test_a_stray_cancellation_does_not_end_a_part() -> None:
    """It comes out of what a loop awaits (a library's own task, say), and nobody meant the loop."""
    journal, seen = Journal(), Recorder()
    async with harness(journal.service, observers=[seen]) as app:
        due = app.runtime.due
        assert due is not None
        original, strays = app.runtime.store.next_timer, [1, 1]

        async def stray() -> float | None:
            if strays:
                strays.pop()
                raise asyncio.CancelledError
            return await original()

        app.runtime.store.next_timer = stray  # type: ignore[method-assign]
        due.wake()
        await app.until(lambda: not strays)
        app.runtime.store.next_timer = original  # type: ignore[method-assign]
        journal.failing = {("c", 0): 1}
        await app.publish(Noted(customer="c", step=0))
        await app.until_quiet()
        assert await app.rows(STEPS, {"customer": "c"}) == [(0,)]
        assert [type(error) for _, error in seen.troubles] == [asyncio.CancelledError]  # the same again is not told


async def test_a_head_whose_outcome_could_not_be_stored_has_killed_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken over from another process, it is counted once by one that lives, however often the database goes away."""
    service, tries = Service("patient", schema=SCHEMA, retry=Retry(in_place=(), first=1.0)), 0

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ValueError("not yet")
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)

    async with harness(service) as app:
        store, leased = app.runtime.store, app.runtime.store.due
        away = 6

        async def due(*args: Any, **options: Any) -> list[Head]:
            return [Head(head.lease, head.held, head.until, suspect=True) for head in await leased(*args, **options)]

        unit = type(store.unit())
        finish = unit.finish_head

        def lost(self: Any, *args: Any) -> Any:
            nonlocal away
            if tries > 0 and away:
                away -= 1
                raise StoreUnavailable("gone")
            return (yield from finish(self, *args))

        monkeypatch.setattr(store, "due", due)
        monkeypatch.setattr(unit, "finish_head", lost)
        await app.publish(Noted(customer="c", step=1))
        for _ in range(12):
            await app.until_quiet(retries=False)
            app.clock.advance(100)
            assert app.runtime.due is not None
            app.runtime.due.wake()
            await asyncio.sleep(0.01)
        await app.until_quiet()
        assert away == 0
        assert await app.rows("select reason from eventkeel_held") == []
        assert await app.rows("select step from steps") == [(1,)]
