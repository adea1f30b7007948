"""What could lose an event or make one effect happen twice on a SQLite file, found by thinking like an enemy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import threading
from collections.abc import AsyncIterator, Generator
from pathlib import Path

import apsw
import pytest
import pytest_asyncio

from eventkeel.drive import drive_sync
from eventkeel.errors import StoreUnavailable, TransactionAborted, TransactionClosed
from eventkeel.ports.store import Mark, PipelineFailed, Reply, Statement, Store, Verdict
from eventkeel.stores.sqlite import SQLiteStore
from eventkeel.stores.sqlite.unit import SQL
from eventkeel.testing.store_kit import (
    FIRST,
    GROUP,
    ME,
    NOW,
    PATIENCE,
    PAY,
    TTL,
    Driver,
    Transacted,
    Workbench,
    claim,
    held,
)
from eventkeel.testing.store_suite import INSERT, NOTES

LONG_AGO = NOW - 10_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite3"


@pytest_asyncio.fixture(params=["async", "sync"])
async def bench(path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Workbench]:
    async def make(service: str) -> Store:
        return SQLiteStore(path, service)

    driver: Driver = request.param
    async with contextlib.AsyncExitStack() as stack:
        yield Workbench(make, stack, driver)


async def test_two_processes_that_purge_at_once_forget_nothing_new(bench: Workbench) -> None:
    """An inbox that was emptied gives its first number again: the slower one must not purge what has it now."""
    store, slower = await bench.store(), await bench.store()
    assert isinstance(slower, SQLiteStore)
    async with bench.unit(store) as unit:
        await unit.run(unit.unit.claim(PAY, [claim(number) for number in range(5)], LONG_AGO))
    await slower._queue.acquire()
    purging = asyncio.create_task(slower.purge(before=NOW - 1000, limit=100))
    await asyncio.sleep(0)  # it has chosen, and waits for its transaction
    assert await store.purge(before=NOW - 1000, limit=100) == 5
    async with bench.unit(store) as unit:
        assert await unit.claim(claim(77)) == [Verdict.NEW]
    slower._queue.release()
    assert await purging == 0
    async with bench.unit(store) as unit:
        assert await unit.claim(claim(77)) == [Verdict.DONE]


async def test_a_new_topic_from_which_nothing_came_yet_is_not_begun_in_its_middle(bench: Workbench) -> None:
    store = await bench.store()
    (mine,) = await bench.owned(store, FIRST)
    await store.progress(GROUP, [Mark(FIRST, mine.epoch, 500, "a")], release=False, now=NOW)
    await store.progress(GROUP, [Mark(FIRST, mine.epoch, None, "b")], release=False, now=NOW)
    (again,) = await store.take(GROUP, ME, [FIRST], ttl=TTL, now=NOW)
    assert (again.position, again.incarnation) == (500, "a")


async def test_one_waiting_key_among_many_is_found_in_one_question(bench: Workbench) -> None:
    store = await bench.store()
    await bench.park(store, 1, key=b"7")
    await bench.park(store, 2, key=b"9")
    async with bench.unit(store) as unit:
        claims = [claim(100 + number, key=b"%d" % (number % 10)) for number in range(30)]
        told = await unit.claim(*claims, claim(500, key=None))
        assert [verdict is Verdict.WAITING for verdict in told] == [number % 10 in (7, 9) for number in range(30)] + [
            False
        ]


async def test_the_next_due_head_is_found_behind_leased_ones_and_among_many(bench: Workbench) -> None:
    store = await bench.store()
    for number in range(5):
        async with bench.unit(store) as unit:
            await unit.park(held(number, key=b"%d" % number), due=NOW + number)
    await bench.alive(store, ttl=1000)
    assert await store.next_due(NOW) == NOW
    leased = await store.due([PAY], ME, limit=3, ttl=TTL, now=NOW + 2)
    assert len(leased) == 3
    assert await store.next_due(NOW + 2) == NOW + 3
    await store.due([PAY], ME, limit=3, ttl=TTL, now=NOW + 10)
    assert await store.next_due(NOW + 10) == NOW + 2 + TTL


async def test_who_kept_a_closed_unit_never_writes_into_another_ones_transaction(bench: Workbench) -> None:
    """A handler's thread goes on after its timeout, while its connection would be the next unit's."""
    store = await bench.store()
    unit = store.unit()
    inside, go_on = threading.Event(), threading.Event()

    def program() -> Generator[Statement, Reply, None]:
        yield from unit.begin(speculative=False)
        inside.set()
        go_on.wait(PATIENCE)
        yield store.prepare(INSERT, {"number": 1, "note": "zombie"})

    running = asyncio.create_task(asyncio.to_thread(drive_sync, program(), unit.sync_connection))
    await asyncio.to_thread(inside.wait, PATIENCE)
    unit.close()
    async with bench.unit(store) as other:
        await other.sql(INSERT, {"number": 2, "note": "mine"})
        go_on.set()
        with pytest.raises((TransactionClosed, TransactionAborted)):
            await running
    assert await bench.rows(store, NOTES) == [(2, "mine")]


async def test_a_handler_that_swallows_its_interruption_and_ends_frees_the_file(bench: Workbench) -> None:
    store = await bench.store()
    unit = store.unit()
    inside = threading.Event()

    def tell(*_: object) -> int:
        inside.set()
        return 1

    connection = unit.native  # kept: its end must not be left to the garbage collector
    assert isinstance(connection, apsw.Connection)
    connection.create_scalar_function("inside", tell, 0)
    forever = "with recursive n(i) as (select inside() union all select i + 1 from n) select count(*) from n"

    def program() -> Generator[Statement, Reply, None]:
        yield from unit.begin(speculative=False)
        with contextlib.suppress(apsw.InterruptError):
            yield store.prepare(forever, {})

    running = asyncio.create_task(asyncio.to_thread(drive_sync, program(), unit.sync_connection))
    await asyncio.to_thread(inside.wait, PATIENCE)
    unit.close(discard=True)
    await running
    async with asyncio.timeout(PATIENCE):
        assert await bench.rows(store, NOTES) == []


def open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except FileNotFoundError:
        return 0  # not on this system


async def test_units_that_wait_for_the_writer_have_no_files_open(path: Path) -> None:
    """An API under load has hundreds of them."""

    async def make(service: str) -> Store:
        return SQLiteStore(path, service)

    async with contextlib.AsyncExitStack() as stack:
        bench = Workbench(make, stack, "async")
        store = await bench.store()
        before = open_files()

        async def one(number: int) -> None:
            async with bench.unit(store) as unit:
                await asyncio.sleep(0)
                await unit.sql(INSERT, {"number": number, "note": ""})

        tasks = [asyncio.create_task(one(number)) for number in range(300)]
        await asyncio.sleep(0.01)
        assert open_files() - before < 20
        await asyncio.gather(*tasks)
        assert len(await bench.rows(store, NOTES)) == 300


async def test_a_file_that_cannot_be_opened_is_no_deliverys_fault(bench: Workbench) -> None:
    store = await bench.store()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        unit = Transacted(store, store.unit(), bench.driver)
        with pytest.raises(StoreUnavailable):
            await unit.run(unit.unit.begin(speculative=False))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        unit.unit.close()
    assert await bench.rows(store, NOTES) == []


async def test_a_full_disk_in_the_middle_of_queued_writes_blames_nobody(bench: Workbench) -> None:
    store = await bench.store()
    async with bench.begun(store) as unit:
        db = unit.unit.native
        assert isinstance(db, apsw.Connection)
        await unit.run(unit.unit.rollback())
        (pages,) = db.execute("pragma page_count").fetchall()[0]
        db.execute(f"pragma max_page_count={int(str(pages)) + 2}")
        await unit.run(unit.unit.begin(speculative=False))
        big = {"number": 2, "note": "x" * 1_000_000}
        with pytest.raises(PipelineFailed) as failed:
            await unit.pipeline((INSERT, {"number": 1, "note": ""}), (INSERT, big))
        assert failed.value.index == 1 and isinstance(failed.value.__cause__, StoreUnavailable)
        await unit.run(unit.unit.rollback())
        db.execute("pragma max_page_count=1000000")


async def test_a_statement_that_touches_nothing_says_so_whatever_came_before(bench: Workbench) -> None:
    store = await bench.store()
    async with bench.unit(store) as unit:
        rows = await unit.pipeline(
            (INSERT, {"number": 1, "note": ""}),
            ("select number from paid where number = 99", {}),
            ("create table if not exists late (number integer)", {}),
        )
        assert rows == [(1,), (0,), (0,)]
        reply = await unit.run(_one(store.prepare("select number from paid where number = 99", {})))
        assert reply == Reply([], 0)


def _one(statement: Statement) -> Generator[Statement, Reply, Reply]:
    return (yield statement)


async def test_the_next_due_head_is_found_by_an_index_however_many_keys_wait(bench: Workbench, path: Path) -> None:
    await bench.store()
    db = apsw.Connection(str(path))
    plan = [str(row[3]) for row in db.execute(f"explain query plan {SQL['next_due']}", ("[1]",))]
    db.close()
    assert any("eventkeel_gate_due" in step for step in plan), plan
    assert any("eventkeel_gate_leased" in step for step in plan), plan
    assert not any("TEMP B-TREE" in step for step in plan), plan
