"""Connections that break, servers that die, tasks that are cancelled: nothing twice, nothing poisoned, back soon."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Generator
from typing import Any

import psycopg
import pytest

from eventkeel.drive import drive, drive_sync
from eventkeel.errors import (
    CommitUnknown,
    ConfigurationError,
    EventkeelError,
    StoreUnavailable,
    TransactionAborted,
    TransactionClosed,
)
from eventkeel.ports.store import Reply, Statement, Unit, Verdict
from eventkeel.stores.postgres import PostgresStore
from eventkeel.stores.postgres import pool as pool_module
from eventkeel.stores.postgres import wake as wake_module
from eventkeel.testing.store_kit import (
    FIRST,
    GROUP,
    ME,
    NOW,
    PATIENCE,
    PAY,
    TTL,
    Driver,
    Workbench,
    claim,
    eventually,
    record,
    wanted,
)
from eventkeel.testing.store_suite import INSERT, NOTES
from tests.stores.postgres_kit import Place, Proxy, ended, one, until
from tools.realservers import Server

NEW, DONE = Verdict.NEW, Verdict.DONE


def work(store: PostgresStore, unit: Unit, number: int, epoch: int) -> Generator[Any, Any, list[Verdict]]:
    """A whole unit, as the engine runs it."""
    yield from unit.begin(speculative=False)
    try:
        assert (yield from unit.fence(GROUP, {FIRST: epoch})) == ()
        told = yield from unit.claim(PAY, [claim(number)], NOW)
        if told == [NEW]:
            yield store.prepare(INSERT, {"number": number, "note": ""})
            yield from unit.savepoint("eventkeel_0")
            yield from unit.release("eventkeel_0")
            yield from unit.append([record(number)], NOW)
        yield from unit.commit()
    except BaseException:
        yield from unit.rollback()
        raise
    return told


STATE = """select (select count(*) from paid), (select count(*) from eventkeel_inbox),
  (select count(*) from eventkeel_outbox)"""


@pytest.mark.parametrize("driver", ["async", "sync"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_wire_cut_at_any_statement_leaves_all_or_nothing_and_says_which_it_may_be(
    place: Place, driver: Driver, when: str
) -> None:
    """Cut before the n-th message of a unit reaches the server, or before its answer comes back."""
    async with place.bench() as straight, Proxy(place.server) as proxy:
        await straight.store()
        async with place.bench(driver, server=proxy.url) as bench:
            store = await bench.store()
            assert isinstance(store, PostgresStore)
            (mine,) = await bench.owned(store, FIRST)
            expected = 0
            unknown = 0
            for number in itertools.count(1):
                unit = store.unit()
                count = itertools.count(1)

                def now(data: bytes, number: int = number, count: itertools.count[int] = count) -> bool:
                    return next(count) == number

                run: Any = drive if driver == "async" else drive_sync
                side = unit.connection if driver == "async" else unit.sync_connection
                if driver == "sync":
                    store_unit = asyncio.to_thread(run, work(store, unit, number, mine.epoch), side)
                else:
                    store_unit = run(work(store, unit, number, mine.epoch), side)
                # A connection first, so that only the unit's own messages count.
                async with bench.unit(store) as other:
                    await other.sql("select 1")
                setattr(proxy, f"cut_{'when' if when == 'before' else 'after'}", now)
                error = await ended(store_unit)
                proxy.cut_when = proxy.cut_after = lambda data: False
                unit.close(discard=error is not None)
                (state,) = place.ask(STATE)
                assert len(set(state)) == 1, state
                if error is None:
                    break
                assert isinstance(error, StoreUnavailable | CommitUnknown), error
                committed = state[0] > expected
                if committed:
                    assert isinstance(error, CommitUnknown)
                unknown += isinstance(error, CommitUnknown)
                expected = state[0]
                # The inbox tells: the same again has its effect once.
                again = store.unit()
                told = await straight_run(driver, work(store, again, number, mine.epoch), again)
                again.close()
                assert told == ([DONE] if committed else [NEW])
                expected += not committed
                assert place.ask(STATE) == [(expected,) * 3]
            assert number > 3
            assert unknown >= 1


async def straight_run(driver: Driver, program: Generator[Any, Any, Any], unit: Unit) -> Any:
    if driver == "async":
        return await drive(program, unit.connection)
    return await asyncio.to_thread(drive_sync, program, unit.sync_connection)


async def test_a_session_that_is_ended_between_two_statements(pg: Workbench, place: Place) -> None:
    store = await pg.store()
    for at_commit in (False, True):
        async with pg.begun(store) as unit:
            assert await unit.claim(claim(1)) == [NEW]
            place.terminate(*place.backends(state="idle in transaction"))
            with pytest.raises(CommitUnknown if at_commit else StoreUnavailable):
                await (unit.run(unit.unit.commit()) if at_commit else unit.sql("select 1"))
            assert not unit.alive
            await unit.run(unit.unit.rollback())
            await unit.run(unit.unit.begin(speculative=False))  # on another connection
            assert await unit.claim(claim(1)) == [NEW]


async def test_a_killed_server_comes_back_and_so_does_the_store(own_postgres: Server, place_for: Any) -> None:
    place = place_for(own_postgres.url)
    async with place.bench() as bench:
        store = await bench.store()
        assert isinstance(store, PostgresStore)
        (mine,) = await bench.owned(store, FIRST)
        woken: list[str] = []
        store.on_commit(outbox=lambda: woken.append("outbox"), gates=lambda: None)
        units = [store.unit() for _ in range(8)]
        for number, unit in enumerate(units):  # as many connections, all to be stale
            await drive(unit.begin(speculative=False), unit.connection)
            await drive(unit.claim(PAY, [claim(1000 + number)], NOW), unit.connection)
        for unit in units[:4]:
            await drive(unit.commit(), unit.connection)
        for unit in units:
            unit.close()
        committed = 0
        for kill in (own_postgres.kill9, own_postgres.restart):
            await asyncio.to_thread(kill)
            if kill == own_postgres.kill9:
                error = await ended(drive(work(store, (dead := store.unit()), 1, mine.epoch), dead.connection))
                dead.close()
                assert isinstance(error, StoreUnavailable)
                with pytest.raises(StoreUnavailable):
                    await store.lease(GROUP, ME, {}, ttl=TTL, now=NOW)
                await asyncio.to_thread(own_postgres.start)
            failures = 0
            for number in range(committed, committed + 10):
                while True:
                    unit = store.unit()
                    error = await ended(drive(work(store, unit, number, mine.epoch), unit.connection))
                    unit.close(discard=error is not None)
                    if error is None:
                        break
                    assert isinstance(error, StoreUnavailable), error
                    failures += 1
            committed += 10
            assert failures == 0  # nobody is given a connection on which the server has said goodbye
            await store.lease(GROUP, ME, {}, ttl=TTL, now=NOW)
            woken.clear()
            store._loop = None  # what it tells itself does not count
            await until(lambda: place.backends(query="listen %"))
            store._loop = asyncio.get_running_loop()
            other = place.store()
            await other.open()
            await other.migrate(wanted(), apply=True)
            other_unit = other.unit()
            await drive(work(other, other_unit, 500 + committed, mine.epoch), other_unit.connection)
            other_unit.close()
            await eventually(lambda: woken)
            await other.close()
        assert place.ask(STATE) == [(22, 26, 22)]


async def test_a_stopped_server_is_told_within_seconds(
    own_postgres: Server, place_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes connections and says nothing: what the store does for itself gives up, and goes on afterwards."""
    monkeypatch.setattr("eventkeel.stores.postgres.store.PATIENCE", 1.0)
    monkeypatch.setattr("eventkeel.stores.postgres.store.ZOMBIES", 0.5)
    place = place_for(own_postgres.url)
    async with place.bench() as bench:
        store = await bench.store()
        await bench.alive(store)
        await asyncio.to_thread(own_postgres.pause)
        try:
            for asked in (store.lease(GROUP, ME, {}, ttl=TTL, now=NOW), store.unsent([0], 10)):
                async with asyncio.timeout(4):
                    with pytest.raises(StoreUnavailable, match="did not answer within"):
                        await asked
        finally:
            await asyncio.to_thread(own_postgres.resume)
        await store.lease(GROUP, ME, {}, ttl=TTL, now=NOW)
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(1)) == [NEW]


# ------------------------------------------------------------------ cancelled


class Stops:
    """Lets a coroutine take ``n`` steps of the event loop and cancels it then."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    async def run(self, work: Any) -> BaseException | None:
        task = asyncio.ensure_future(work)
        for _ in range(self.steps):
            if task.done():
                break
            await asyncio.sleep(0)
        if not task.done():
            task.cancel()
        return await ended(task)


@pytest.mark.parametrize("speculative", [False, True])
async def test_cancelled_at_any_moment_a_unit_poisons_no_connection(place: Place, speculative: bool) -> None:
    """Whoever has a connection of the pool after it finds it as good as new."""
    async with place.bench(pool=2) as bench:
        store = await bench.store()
        assert isinstance(store, PostgresStore)
        (mine,) = await bench.owned(store, FIRST)
        cancelled = finished = 0
        for number, steps in enumerate(itertools.chain(range(60), itertools.count(60, 15))):
            unit = store.unit()

            def cut(unit: Unit = unit, number: int = number) -> Generator[Any, Any, Any]:
                return work(store, unit, number, mine.epoch)

            error = await Stops(steps).run(drive(cut(), unit.connection))
            unit.close()
            cancelled += isinstance(error, asyncio.CancelledError)
            assert error is None or isinstance(error, asyncio.CancelledError), error
            async with asyncio.timeout(PATIENCE):
                for _ in range(2):
                    async with bench.unit(store) as other:
                        assert await other.sql("select pg_current_xact_id_if_assigned() is null") == [(True,)]
                        assert await other.claim(claim(100_000 + number)) in ([NEW], [DONE])
            if error is None:
                finished += 1
                if finished > 5:
                    break
            assert steps < 20_000
        assert cancelled > 20
        pool = store._pool
        assert pool is not None and pool._count == len(pool._free) <= 2
        rows = place.ask(
            "select (select count(*) from paid), (select count(*) from eventkeel_inbox where position < 100000), "
            "(select count(*) from eventkeel_outbox)"
        )
        assert len(set(rows[0])) == 1


@pytest.mark.parametrize("what", ["lease", "unsent", "take", "progress", "sent"])
async def test_cancelled_at_any_moment_the_stores_own_work_poisons_nothing(place: Place, what: str) -> None:
    async with place.bench() as bench:
        store = await bench.store()
        assert isinstance(store, PostgresStore)
        asked: dict[str, Callable[[], Any]] = {
            "lease": lambda: store.lease(GROUP, ME, {}, ttl=TTL, now=NOW),
            "unsent": lambda: store.unsent([0], 10),
            "take": lambda: store.take(GROUP, ME, [FIRST], ttl=TTL, now=NOW),
            "progress": lambda: store.progress(GROUP, [], release=False, now=NOW),
            "sent": lambda: store.sent(GROUP, {FIRST: 1}, [1, 2]),
        }
        for steps in itertools.chain(range(40), itertools.count(40, 20)):
            error = await Stops(steps).run(asked[what]())
            assert error is None or isinstance(error, asyncio.CancelledError), error
            async with asyncio.timeout(PATIENCE):
                await store.lease(GROUP, ME, {}, ttl=TTL, now=NOW)
            if error is None:
                break
            assert steps < 20_000
        pool = store._own
        assert pool is not None and pool._count == len(pool._free)
        assert place.backends(state="idle in transaction%") == []


async def test_a_task_cancelled_during_its_commit_waits_for_the_answer(place: Place) -> None:
    async with place.bench() as straight, Proxy(place.server) as proxy:
        await straight.store()
        async with place.bench(server=proxy.url) as bench:
            store = await bench.store()
            async with bench.begun(store) as unit:
                assert await unit.claim(claim(1)) == [NEW]
                proxy.deaf = True
                committing = asyncio.create_task(unit.run(unit.unit.commit()))
                await until(lambda: place.ask("select count(*) from eventkeel_inbox") == [(1,)])
                committing.cancel()
                done, _ = await asyncio.wait({committing}, timeout=0.3)
                assert not done
                proxy.deaf = False
                assert isinstance(await ended(committing), asyncio.CancelledError)
            async with bench.unit(store) as unit:
                assert await unit.claim(claim(1)) == [DONE]


# ------------------------------------------------------------------ the pool


async def test_a_pool_that_is_used_up_says_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "PATIENCE", 0.3)
    drivers: tuple[Driver, ...] = ("async", "sync")
    for driver in drivers:
        async with place.bench(driver, pool=2) as bench:
            store = await bench.store()
            async with bench.begun(store) as first, bench.begun(store) as second:
                await first.sql("select 1")
                await second.sql("select 1")
                with pytest.raises(StoreUnavailable, match=r"all 2 connections .* pool=4"):
                    async with bench.begun(store):
                        pass
            async with bench.unit(store) as unit:
                await unit.sql("select 1")


async def test_leases_are_renewed_however_many_units_wait(place: Place) -> None:
    async with place.bench(pool=2) as bench:
        store = await bench.store()
        async with bench.begun(store) as first, bench.begun(store) as second:
            await first.sql("select 1")
            await second.sql("select 1")
            waiting = [asyncio.create_task(ended(_touch(bench, store))) for _ in range(50)]
            await asyncio.sleep(0.05)
            async with asyncio.timeout(2):
                await store.lease(GROUP, ME, {}, ttl=TTL, now=NOW)
                await store.unsent([0], 10)
                assert len(await store.take(GROUP, ME, [FIRST], ttl=TTL, now=NOW)) == 1
        assert await asyncio.gather(*waiting) == [None] * 50


async def _touch(bench: Workbench, store: Any) -> None:
    async with bench.unit(store) as unit:
        await unit.sql("select 1")


async def test_two_hundred_transactions_share_sixteen_connections(place: Place) -> None:
    async with place.bench(pool=16) as bench:
        store = await bench.store()
        assert isinstance(store, PostgresStore) and store._pool is not None
        pool, most = store._pool, 0

        async def write(number: int) -> None:
            nonlocal most
            async with bench.unit(store) as unit:
                await unit.sql(INSERT, {"number": number, "note": ""})
                most = max(most, pool._count)

        await asyncio.gather(*(write(number) for number in range(200)))
        assert len(await bench.rows(store, NOTES)) == 200
        assert most <= 16


async def test_who_stops_waiting_for_a_connection_keeps_none_and_passes_the_turn_on(place: Place) -> None:
    """The one that is told that there is room may be gone at that moment: the next one has to hear of it."""
    async with place.bench(pool=2) as bench:
        store = await bench.store()
        for discard in (False, True):
            units = [store.unit(), store.unit()]
            for unit in units:
                await drive(unit.begin(speculative=False), unit.connection)
                await drive(one(Statement("select 1")), unit.connection)
            waiting = [asyncio.create_task(_touch(bench, store)) for _ in range(6)]
            await asyncio.sleep(0.02)
            units[0].close(discard=discard)  # its turn comes to the first …
            waiting[0].cancel()  # … which goes away in the same moment
            waiting[1].cancel()
            async with asyncio.timeout(5):
                assert await asyncio.gather(*waiting[2:]) == [None] * 4
            for task in waiting[:2]:
                assert isinstance(await ended(task), asyncio.CancelledError | None)
            units[1].close()
        pool = store._pool  # type: ignore[attr-defined]
        assert pool._count == len(pool._free)


async def test_closing_a_store_ends_who_waits_for_its_connections(place: Place) -> None:
    async with place.bench(pool=2) as bench:
        store = await bench.store()
        units = [store.unit(), store.unit()]
        for unit in units:
            await drive(unit.begin(speculative=False), unit.connection)
            await drive(one(Statement("select 1")), unit.connection)
        waiting = [asyncio.create_task(_touch(bench, store)) for _ in range(3)]
        await asyncio.sleep(0.02)
        waiting[0].cancel()
        await store.close()
        told = [await ended(task) for task in waiting]
        assert isinstance(told[0], asyncio.CancelledError)
        assert all(isinstance(error, StoreUnavailable | ConfigurationError) for error in told[1:])
        for unit in units:
            unit.close()
        await until(lambda: place.backends() == [])


async def test_many_threads_share_the_connections(place: Place) -> None:
    async with place.bench("sync", pool=5) as bench:
        store = await bench.store()
        errors: list[BaseException] = []

        def program(unit: Unit, number: int) -> Generator[Statement, Reply, None]:
            yield from unit.begin(speculative=False)
            yield store.prepare(INSERT, {"number": number, "note": "x"})
            yield from unit.append([record(number, key=b"%d" % number)], NOW)
            yield from unit.commit()

        def thread(worker: int) -> None:
            try:
                for number in range(20):
                    unit = store.unit()
                    drive_sync(program(unit, worker * 100 + number), unit.sync_connection)
                    unit.close()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=thread, args=(worker,)) for worker in range(20)]
        for each in threads:
            each.start()
        for each in threads:
            await asyncio.to_thread(each.join, PATIENCE)
        assert errors == []
        assert place.ask("select count(*) from paid") == [(400,)]
        assert len(place.backends()) <= 5 + 4 + 2


async def test_a_lost_listener_comes_back_and_tells_what_it_may_have_missed(
    pga: Workbench, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wake_module, "AGAIN", 0.05)
    store, other = await pga.store(), await pga.store()
    heard: list[str] = []
    other.on_commit(outbox=lambda: heard.append("outbox"), gates=lambda: None)
    for _ in range(3):
        await until(lambda: place.backends(query="listen %"))
        heard.clear()
        place.terminate(*place.backends(query="listen %"))
        await eventually(lambda: heard)  # it listens again: whatever was told meanwhile
        heard.clear()
        async with pga.unit(store) as unit:
            await unit.append(record(1))
        await eventually(lambda: heard)


async def test_a_server_that_is_full_is_nobodys_fault(own_postgres: Server, place_for: Any) -> None:
    """Too many connections: said so, and well again when there is room."""
    place = place_for(own_postgres.url)
    async with place.bench() as bench:
        store = await bench.store()
        with contextlib.ExitStack() as stack:
            with pytest.raises(psycopg.OperationalError):
                while True:
                    stack.enter_context(psycopg.connect(place.server))
            error = await ended(_touch(bench, store))
            assert isinstance(error, EventkeelError) and isinstance(error, StoreUnavailable)
        await _touch(bench, store)


async def test_a_unit_outlived_by_its_store_is_closed(pg: Workbench) -> None:
    store = await pg.store()
    async with pg.begun(store) as unit:
        await unit.claim(claim(1))
        unit.unit.close()
        with pytest.raises((TransactionClosed, TransactionAborted)):
            await unit.claim(claim(2))
        with pytest.raises((TransactionClosed, TransactionAborted)):
            await unit.run(unit.unit.begin(speculative=False))
