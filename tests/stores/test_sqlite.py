"""The SQLite store: the suite that every store passes, and what is true of a file only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Any

import apsw
import pytest
import pytest_asyncio

from eventkeel.drive import drive_sync
from eventkeel.errors import (
    CommitUnknown,
    ConfigurationError,
    StatementRefused,
    StoreUnavailable,
    TransactionAborted,
    TransactionClosed,
)
from eventkeel.ports.catalogue import Catalogue
from eventkeel.ports.store import PipelineFailed, Reply, Statement, Store, Verdict
from eventkeel.stores.sqlite import SQLiteCatalogue, SQLiteStore
from eventkeel.stores.sqlite import connection as connection_module
from eventkeel.stores.sqlite.unit import SQL, SQLiteUnit
from eventkeel.testing.store_kit import (
    GROUP,
    ME,
    NOW,
    OUTBOX,
    PATIENCE,
    PAY,
    TABLE,
    TTL,
    Driver,
    Transacted,
    Workbench,
    claim,
    record,
    wanted,
)
from eventkeel.testing.store_suite import INSERT, NOTES, StoreSuite


class TestSQLiteStore(StoreSuite):
    store = "sqlite"

    async def make(self, place: Path, service: str) -> Store:
        return SQLiteStore(place / "store.sqlite3", service)

    def catalogue(self, store: Store) -> Catalogue:
        assert isinstance(store, SQLiteStore)
        return SQLiteCatalogue(store)


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


def native(unit: Transacted) -> apsw.Connection:
    connection = unit.unit.native
    assert isinstance(connection, apsw.Connection)
    return connection


# ------------------------------------------------------------------ transactions that end by themselves


SUICIDAL = (
    "create trigger if not exists no before insert on paid when new.note = 'no' begin select raise(rollback, 'no'); end"
)


async def test_nothing_runs_any_more_in_a_transaction_that_sqlite_has_ended(bench: Workbench) -> None:
    store = await bench.store(ddl=(TABLE, SUICIDAL))
    async with bench.begun(store) as unit:
        await unit.sql(INSERT, {"number": 1, "note": "yes"})
        with pytest.raises(apsw.ConstraintError):
            await unit.sql(INSERT, {"number": 2, "note": "no"})
        assert not unit.alive
        for attempt in (
            unit.sql(INSERT, {"number": 3, "note": "outside of any transaction"}),
            unit.pipeline((INSERT, {"number": 4, "note": "outside of any transaction"})),
            unit.append(record(1)),
            unit.run(unit.unit.commit()),
        ):
            with pytest.raises(TransactionAborted):
                await attempt
        await unit.run(unit.unit.rollback())
    assert await bench.rows(store, NOTES) == []
    assert await store.unsent([0], 9) == []


async def test_a_full_disk_ends_the_transaction_and_spoils_nothing(bench: Workbench) -> None:
    store = await bench.store()
    async with bench.begun(store) as unit:
        db = native(unit)
        await unit.run(unit.unit.rollback())
        (pages,) = db.execute("pragma page_count").fetchall()[0]
        db.execute(f"pragma max_page_count={int(str(pages)) + 2}")
        await unit.run(unit.unit.begin(speculative=False))
        await unit.sql(INSERT, {"number": 1, "note": "small"})
        with pytest.raises(StoreUnavailable, match="full"):
            await unit.sql(INSERT, {"number": 2, "note": "x" * 1_000_000})
        if not unit.alive:
            with pytest.raises(TransactionAborted):
                await unit.run(unit.unit.commit())
        await unit.run(unit.unit.rollback())
        db.execute("pragma max_page_count=1000000")
    assert await bench.rows(store, NOTES) == []


@pytest.mark.parametrize("statement", ["commit", "rollback; begin immediate", "attach ':memory:' as other"])
async def test_the_users_own_connection_cannot_end_our_transaction(bench: Workbench, statement: str) -> None:
    store = await bench.store()
    async with bench.begun(store) as unit:
        await unit.claim(claim(1))
        with pytest.raises(apsw.AuthError):
            native(unit).execute(statement)
        assert unit.alive
        await unit.run(unit.unit.commit())
    async with bench.unit(store) as unit:
        assert await unit.claim(claim(1)) == [Verdict.DONE]


async def test_a_constraint_that_is_checked_at_commit_fails_it_and_applies_nothing(bench: Workbench) -> None:
    child = "create table if not exists child (paid integer references paid(number) deferrable initially deferred)"
    store = await bench.store(ddl=(TABLE, child))
    async with bench.begun(store) as unit:
        await unit.claim(claim(1))
        await unit.sql("insert into child values (77)")
        with pytest.raises(apsw.ConstraintError):
            await unit.run(unit.unit.commit())
        await unit.run(unit.unit.rollback())
    async with bench.unit(store) as unit:
        assert await unit.claim(claim(1)) == [Verdict.NEW]


class FailingCommit:
    """A connection whose disk fails at the commit."""

    def __init__(self, native: apsw.Connection) -> None:
        self._native = native

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def execute(self, sql: str, *more: Any) -> Any:
        if sql == "commit":
            raise apsw.IOError("disk I/O error")
        return self._native.execute(sql, *more)


async def test_a_disk_that_fails_at_the_commit_leaves_its_outcome_unknown(bench: Workbench) -> None:
    store = await bench.store()
    async with bench.begun(store) as unit:
        assert isinstance(unit.unit, SQLiteUnit)
        broken = native(unit)
        unit.unit._handle.native = FailingCommit(broken)  # type: ignore[assignment]
        with pytest.raises(CommitUnknown, match="disk failed"):
            await unit.run(unit.unit.commit())
    async with bench.unit(store) as unit:
        assert native(unit) is not broken  # nobody gets it again


# ------------------------------------------------------------------ units and connections


async def test_a_lane_gets_its_connection_again_unless_it_was_thrown_away(bench: Workbench) -> None:
    store = await bench.store()
    seen = []
    for discard in (False, False, True, False):
        unit = store.unit()
        seen.append(unit.native)
        unit.close(discard=discard)
        unit.close()
    assert seen[0] is seen[1] is seen[2] is not seen[3]


async def test_after_a_timeout_the_thread_can_do_no_more_harm(bench: Workbench) -> None:
    store = await bench.store()
    unit = store.unit()
    inside, go_on = threading.Event(), threading.Event()

    def program() -> Generator[Statement, Reply, None]:
        yield from unit.begin(speculative=False)
        yield store.prepare(INSERT, {"number": 1, "note": ""})
        inside.set()
        go_on.wait(PATIENCE)
        yield store.prepare(INSERT, {"number": 2, "note": ""})
        yield from unit.commit()

    running = asyncio.create_task(asyncio.to_thread(drive_sync, program(), unit.sync_connection))
    await asyncio.to_thread(inside.wait, PATIENCE)
    unit.close(discard=True)
    assert await bench.rows(store, NOTES) == []  # and the file is free
    go_on.set()
    with pytest.raises(TransactionClosed):
        await running
    assert await bench.rows(store, NOTES) == []


async def test_a_statement_under_way_is_interrupted_by_the_timeout(bench: Workbench) -> None:
    store = await bench.store()
    unit = store.unit()
    inside = threading.Event()
    forever = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"

    def program() -> Generator[Statement, Reply, None]:
        yield from unit.begin(speculative=False)
        inside.set()
        try:
            yield store.prepare(forever, {})
        except BaseException:
            yield from unit.rollback()
            raise

    running = asyncio.create_task(asyncio.to_thread(drive_sync, program(), unit.sync_connection))
    await asyncio.to_thread(inside.wait, PATIENCE)
    assert isinstance(unit, SQLiteUnit)
    handle = unit._handle
    unit.close(discard=True)
    while not running.done():  # it may have come between two statements
        handle.close()
        await asyncio.wait({running}, timeout=0.1)
    assert isinstance(running.exception(), apsw.InterruptError | TransactionClosed)
    assert await bench.rows(store, NOTES) == []


async def test_a_unit_that_was_given_up_while_it_waited_does_not_begin(path: Path) -> None:
    store = SQLiteStore(path, "billing")
    await store.open()
    await store.migrate(wanted(), apply=True)
    holder, waiter = store.unit(), store.unit()
    drive_sync(holder.begin(speculative=False), holder.sync_connection)
    running = asyncio.create_task(
        asyncio.to_thread(drive_sync, waiter.begin(speculative=False), waiter.sync_connection)
    )
    await asyncio.sleep(0.02)
    waiter.close(discard=True)
    drive_sync(holder.commit(), holder.sync_connection)
    with pytest.raises((TransactionClosed, apsw.Error)):
        await running
    drive_sync(holder.begin(speculative=False), holder.sync_connection)
    holder.close()
    await store.close()


async def test_whoever_is_cancelled_while_waiting_leaves_the_queue(path: Path) -> None:
    store = SQLiteStore(path, "billing")
    await store.open()
    await store.migrate(wanted(), apply=True)
    holder, waiter = Transacted(store, store.unit(), "async"), Transacted(store, store.unit(), "async")
    await holder.run(holder.unit.begin(speculative=False))
    waiting = asyncio.create_task(waiter.run(waiter.unit.begin(speculative=False)))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    await holder.run(holder.unit.commit())
    await waiter.run(waiter.unit.begin(speculative=False))
    waiter.unit.close()
    await store.purge(before=NOW, limit=1)
    await store.close()


async def test_threads_share_one_store(path: Path) -> None:
    store = SQLiteStore(path, "billing")
    await store.open()
    await store.migrate(wanted(), apply=True)

    def work(worker: int) -> None:
        for number in range(25):
            unit = store.unit()
            drive_sync(unit.begin(speculative=False), unit.sync_connection)
            unit.sync_connection.run(store.prepare(INSERT, {"number": worker * 100 + number, "note": ""}))
            drive_sync(unit.commit(), unit.sync_connection)
            unit.close()

    await asyncio.gather(*[asyncio.to_thread(work, worker) for worker in range(4)])
    unit = Transacted(store, store.unit(), "sync")
    await unit.run(unit.unit.begin(speculative=False))
    assert len(await unit.sql(NOTES)) == 100
    unit.unit.close()
    await store.close()


async def test_a_writer_that_never_lets_go_is_an_error_that_can_be_tried_again(
    bench: Workbench, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await bench.store()
    monkeypatch.setattr("eventkeel._sqlite.begin_immediate.__defaults__", (0.05,))
    monkeypatch.setattr("eventkeel._sqlite.begin_immediate_async.__defaults__", (0.05,))
    foreign = apsw.Connection(str(path))
    foreign.execute("begin immediate")
    with pytest.raises(StoreUnavailable, match="another process"):
        async with bench.unit(store):
            pass
    foreign.execute("rollback")
    assert await bench.rows(store, NOTES) == []
    foreign.close()


async def test_a_table_that_another_process_alters_is_read_on(bench: Workbench, path: Path) -> None:
    dated = "create table if not exists dated (number integer primary key, day timestamp)"
    store = await bench.store(ddl=(dated,))
    unit = Transacted(store, store.unit(), bench.driver)  # one connection, which remembers the columns
    try:
        for more in (0, 1):
            await unit.run(unit.unit.begin(speculative=False))
            await unit.sql("insert into dated (number, day) values (:number, '2026-01-01')", {"number": more})
            for row in await unit.sql("select * from dated"):
                assert row[1].year == 2026 and len(row) == 2 + more
            await unit.run(unit.unit.commit())
            if not more:
                foreign = apsw.Connection(str(path))
                foreign.execute("alter table dated add column more boolean default 1")
                foreign.close()
    finally:
        unit.unit.close()


async def test_columns_are_remembered_for_so_many_statements_only(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_MOST_SHAPES", 5)
    store = await bench.store()
    async with bench.unit(store) as unit:
        for number in range(20):
            assert await unit.sql(f"select {number}") == [(number,)]
        assert isinstance(unit.unit, SQLiteUnit)
        assert len(unit.unit._handle._readers) <= 5


async def test_an_outbox_row_of_a_failed_pipeline_is_not_left_behind(bench: Workbench) -> None:
    store = await bench.store()
    async with bench.begun(store) as unit:
        await unit.append(record(1))
        with pytest.raises(PipelineFailed):
            await unit.pipeline((INSERT, {"number": 1, "note": None}))
        await unit.run(unit.unit.rollback())
    assert await store.unsent([0], 9) == []


# ------------------------------------------------------------------ the file


async def test_a_file_of_before_steps_and_timers_gets_their_tables_and_stays_one_of_its_version(
    bench: Workbench, path: Path
) -> None:
    store = await bench.store()
    await store.close()
    old = apsw.Connection(str(path))
    old.execute("drop table eventkeel_journal; drop table eventkeel_timer")
    old.close()
    store = await bench.store()
    async with bench.unit(store) as unit:
        await unit.run(unit.unit.schedule([record(1)], [NOW]))
        await unit.run(unit.unit.recall(PAY, record(1).event_id))
    assert await bench.rows(store, "select value from eventkeel_meta where name = 'schema'") == [("1",)]


async def test_a_file_of_a_newer_version_is_refused(bench: Workbench, path: Path) -> None:
    store = await bench.store()
    await store.close()
    foreign = apsw.Connection(str(path))
    foreign.execute("update eventkeel_meta set value = '99' where name = 'schema'")
    foreign.close()
    with pytest.raises(ConfigurationError, match="newer Eventkeel"):
        await bench.open()


@pytest.mark.parametrize(
    ("name", "says"), [("", "is a folder"), ("text", "no SQLite database"), ("text/inside", "cannot be made")]
)
async def test_what_cannot_be_a_database_is_refused(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "text").write_text("This is a text, and long enough to be read as one.\n" * 100)
    with pytest.raises(ConfigurationError, match=says):
        await SQLiteStore(tmp_path / name, "orders").open()


async def test_a_fork_of_the_process_may_not_use_the_store(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await bench.store()
    with monkeypatch.context() as forked:
        forked.setattr(os, "getpid", lambda: -1)
        with pytest.raises(ConfigurationError, match="forked"):
            store.unit()
        with pytest.raises(ConfigurationError, match="forked"):
            await store.leave(GROUP, ME)


async def test_a_schema_may_have_triggers_and_may_not_end_the_transaction(bench: Workbench) -> None:
    store = await bench.store(ddl=(TABLE + "; -- a; b\n" + SUICIDAL + ";;",))
    with pytest.raises(ConfigurationError, match="must not say PRAGMA"):
        await store.migrate(wanted(ddl=("pragma journal_mode=delete",)), apply=True)


@pytest.mark.parametrize("verb", ["insert or rollback into", "update or rollback"])
async def test_a_statement_that_would_end_the_transaction_is_refused(bench: Workbench, verb: str) -> None:
    with pytest.raises(StatementRefused):
        (await bench.store()).prepare(f"{verb} paid values (1, '')", {})


HOT = ["fence", "gate_of", "gate_exists", "known", "claim", "unsent", "more_due", "head", "next_state", "due", "renew"]


@pytest.mark.parametrize("name", [name for name in HOT if name in SQL])
async def test_the_statements_of_the_hot_path_find_their_rows_by_an_index(
    bench: Workbench, path: Path, name: str
) -> None:
    await bench.store()
    db = apsw.Connection(str(path))
    marks = max(SQL[name].count("?"), 1)
    plan = [row[3] for row in db.execute(f"explain query plan {SQL[name]}", (None,) * _parameters(SQL[name], marks))]
    scans = [step for step in plan if step.startswith("SCAN") and "json_each" not in step and "member" not in step]
    assert not scans or (name == "unsent" and scans == ["SCAN o"]), plan  # which reads from its old end
    db.close()


def _parameters(sql: str, marks: int) -> int:
    numbered = [int(part[0]) for part in sql.split("?")[1:] if part[:1].isdigit()]
    return max(numbered) if numbered else (marks if "?" in sql else 0)


# ------------------------------------------------------------------ processes


WORKER = """
import asyncio, sys
from eventkeel.stores.sqlite import SQLiteStore
from eventkeel.ports.store import Verdict
from eventkeel.testing.store_kit import PAY, Workbench, claim, event_id, wanted
from eventkeel.testing.store_suite import INSERT

async def main(path, worker):
    store = SQLiteStore(path, "billing")
    await store.open()
    await store.migrate(wanted(), apply=True)
    bench = Workbench(None, None, "async")
    print("ready", flush=True)
    for number in range(200):
        async with bench.unit(store) as unit:
            told = await unit.claim(claim(number, key=b"%d" % number))
            if told == [Verdict.NEW]:
                await unit.sql(INSERT, {"number": number, "note": worker})
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""

VICTIM = """
import asyncio, sys
from eventkeel.stores.sqlite import SQLiteStore
from eventkeel.testing.store_kit import Workbench, claim, held, record, wanted
from eventkeel.testing.store_suite import INSERT

async def main(path):
    store = SQLiteStore(path, "billing")
    await store.open()
    await store.migrate(wanted(), apply=True)
    bench = Workbench(None, None, "async")
    async with bench.unit(store) as unit:
        await unit.claim(claim(1))
        await unit.sql(INSERT, {"number": 1, "note": "committed"})
        await unit.append(record(1))
    async with bench.begun(store) as unit:
        await unit.claim(claim(2, key=b"b"))
        await unit.sql(INSERT, {"number": 2, "note": "never"})
        await unit.append(record(2))
        await unit.park(held(3, key=b"c"))
        print("ready", flush=True)
        await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


def started(script: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def ended(process: subprocess.Popen[str]) -> str:
    out, err = await asyncio.to_thread(process.communicate, None, 60)
    assert process.returncode == 0, err
    return out


async def test_three_processes_on_one_file_take_each_event_once(path: Path) -> None:
    processes = [started(WORKER, str(path), f"w{number}") for number in range(3)]
    for process in processes:
        await ended(process)
    db = apsw.Connection(str(path))
    assert db.execute("select count(*), count(distinct number) from paid").fetchall() == [(200, 200)]
    assert db.execute("select count(*) from eventkeel_inbox").fetchall() == [(200,)]
    assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
    db.close()


async def test_a_process_killed_inside_its_transaction_leaves_nothing_of_it(path: Path) -> None:
    process = started(VICTIM, str(path))
    assert process.stdout is not None
    assert (await asyncio.to_thread(process.stdout.readline)).strip() == "ready"
    process.send_signal(signal.SIGKILL)
    await asyncio.to_thread(process.communicate)

    async def make(service: str) -> Store:
        return SQLiteStore(path, service)

    async with contextlib.AsyncExitStack() as stack:
        bench = Workbench(make, stack, "async")
        store = await bench.store()
        assert await bench.rows(store, NOTES) == [(1, "committed")]
        assert [row.body for row in await store.unsent([0], 9)] == [b"1"]
        async with bench.unit(store) as unit:
            told = await unit.claim(claim(1), claim(2, key=b"b"), claim(3, key=b"c"))
            assert told == [Verdict.DONE, Verdict.NEW, Verdict.NEW]


async def test_a_commit_that_is_on_the_disk_is_synced_and_a_lease_need_not_be(bench: Workbench, path: Path) -> None:
    store = await bench.store()
    assert isinstance(store, SQLiteStore)
    async with bench.unit(store) as unit:
        assert await unit.claim(claim(1), consumer=PAY) == [Verdict.NEW]
    unit_of_store = store.unit()
    assert isinstance(unit_of_store.native, apsw.Connection)
    assert unit_of_store.native.execute("pragma synchronous").fetchall() == [(2,)]
    unit_of_store.close()
    async with store._transaction(durable=True) as db:
        assert db.execute("pragma synchronous").fetchall() == [(2,)]
    await store.take(GROUP, ME, [OUTBOX], ttl=TTL, now=NOW)
    async with store._transaction() as db:
        assert db.execute("pragma synchronous").fetchall() == [(1,)]
