"""Who owns a slice on PostgreSQL: old owners that are still at work, that were stopped, and that wake up late."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator

import psycopg
import pytest

from eventkeel.errors import StoreUnavailable, TransactionAborted
from eventkeel.ports.store import Mark, Verdict
from eventkeel.stores.postgres import PostgresStore
from eventkeel.testing.store_kit import (
    FIRST,
    GROUP,
    ME,
    NOW,
    OTHER,
    OUTBOX,
    PATIENCE,
    SECOND,
    TTL,
    Workbench,
    claim,
    record,
)
from eventkeel.testing.store_suite import INSERT
from tests.stores.postgres_kit import Place, ended, until

NEW = Verdict.NEW
LATER = NOW + TTL + 1
"""When a lease of NOW has run out."""


async def test_after_a_take_nothing_of_the_old_owner_is_committed(pg: Workbench, place: Place) -> None:
    """Late commit: the take waits for the unit that is open, and so comes after its commit."""
    store, other = await pg.store(), await pg.store()
    (mine,) = await pg.owned(store, FIRST)
    async with pg.begun(store) as unit:
        assert await unit.fence({FIRST: mine.epoch}) == ()
        assert await unit.claim(claim(1)) == [NEW]
        taking = asyncio.create_task(pg.owned(other, FIRST, member=OTHER, now=LATER))
        done, _ = await asyncio.wait({taking}, timeout=0.5)
        assert not done
        await unit.run(unit.unit.commit())
        (theirs,) = await taking
    async with pg.begun(store) as late:
        assert await late.fence({FIRST: mine.epoch}) == (FIRST,)
    async with pg.unit(other) as unit:
        assert await unit.fence({FIRST: theirs.epoch}) == ()
        assert await unit.claim(claim(1), claim(2)) == [Verdict.DONE, NEW]


async def test_a_unit_that_asks_while_its_slice_is_taken_finds_the_new_epoch(pg: Workbench, place: Place) -> None:
    """Its question waits behind the take, and must not be answered from before it."""
    store, other = await pg.store(), await pg.store()
    (mine,) = await pg.owned(store, FIRST)
    assert isinstance(other, PostgresStore)
    lock = other._locks.slice(GROUP, FIRST)
    with place.raw() as taker:
        taker.execute("begin")
        taker.execute("select pg_advisory_xact_lock(%s)", [lock])
        async with pg.begun(store) as unit:
            asking = asyncio.create_task(unit.fence({FIRST: mine.epoch}))
            await until(place.waiting)
            taker.execute("update eventkeel_owner set epoch = epoch + 1, owner = 'x' where topic = 'orders'")
            taker.execute("commit")
            assert await asking == (FIRST,)


async def test_takeover_under_load_is_quick_and_nothing_old_comes_after_it(pga: Workbench, place: Place) -> None:
    """Two processes with busy units over both slices; a third takes them, again and again."""
    stores = [await pga.store() for _ in range(3)]
    epochs: dict[str, dict[object, int]] = {ME: {}, OTHER: {}}
    slowest = 0.0
    stop = asyncio.Event()
    number = iter(range(1, 1_000_000))

    async def work(store: PostgresStore, member: str) -> None:
        while not stop.is_set():
            held = dict(epochs[member])
            if not held:
                await asyncio.sleep(0.001)
                continue
            async with pga.begun(store) as unit:
                if await unit.fence(held):  # type: ignore[arg-type]
                    await unit.run(unit.unit.rollback())
                    await asyncio.sleep(0)
                    continue
                claims = [
                    claim(next(number), key=None, slice=slice)._replace(epoch=epoch)  # type: ignore[arg-type]
                    for slice, epoch in held.items()
                ]
                assert await unit.claim(*claims) == [NEW] * len(claims)
                await asyncio.sleep(0.005)
                await unit.run(unit.unit.commit())

    async def move() -> None:
        nonlocal slowest
        for turn in range(12):
            member = (ME, OTHER)[turn % 2]
            began = time.monotonic()
            owned = await stores[turn % 2].take(GROUP, member, [FIRST, SECOND], ttl=TTL, now=NOW, force=True)
            slowest = max(slowest, time.monotonic() - began)
            assert {one.slice for one in owned} == {FIRST, SECOND}
            epochs[member] = {one.slice: one.epoch for one in owned}  # the other one is told nothing
            await asyncio.sleep(0.05)
        stop.set()

    assert all(isinstance(store, PostgresStore) for store in stores)
    async with asyncio.TaskGroup() as group:
        for store, member in zip(stores, (ME, OTHER), strict=False):
            for _ in range(4):
                group.create_task(work(store, member))  # type: ignore[arg-type]
        group.create_task(move())
    assert slowest < 2.0
    per_slice = place.ask(
        """select count(*) filter (where epoch < highest), count(*), count(distinct epoch) from (
             select epoch, max(epoch) over (partition by partition order by pg_xact_commit_timestamp(tx::text::xid),
               epoch) as highest from eventkeel_inbox) as i"""
    )
    old_after_new, rows, different = per_slice[0]
    assert old_after_new == 0
    assert rows > 20 and different > 4


HOLDER = """
import asyncio, sys
from eventkeel.drive import drive
from eventkeel.stores.postgres import PostgresStore
from eventkeel.testing.store_kit import *

async def main(rest, doing):
    store = PostgresStore(rest, SERVICE, shards=1)
    await store.open()
    await store.migrate(wanted(), apply=True)
    owned = await store.take(GROUP, ME, [FIRST, SECOND], ttl=TTL, now=NOW)
    unit = store.unit()
    await drive(unit.begin(speculative=False), unit.connection)
    assert await drive(unit.fence(GROUP, {one.slice: one.epoch for one in owned}), unit.connection) == ()
    await drive(unit.claim(PAY, [claim(1)], NOW), unit.connection)
    print("ready", flush=True)
    if doing == "sending":
        handle = unit._seat.handle
        handle.wire.pg.send_query_params(b"select 1", None)
        handle.wire.pg.send_flush_request()
        handle.wire.pg.flush()  # and never its end
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await drive(unit.commit(), unit.connection)
    print("committed", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@contextlib.asynccontextmanager
async def holder(place: Place, doing: str = "nothing") -> AsyncIterator[subprocess.Popen[str]]:
    """Another process with an open unit over both slices."""
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", textwrap.dedent(HOLDER), place.url().partition(":")[2], doing],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = await asyncio.to_thread(process.stdout.readline)
        assert said == "ready\n", process.communicate()[1]
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("doing", ["nothing", "sending"])
async def test_the_slices_of_a_stopped_process_are_taken_within_seconds(
    pga: Workbench, place: Place, doing: str
) -> None:
    """Idle in transaction: its server process is ended, wherever in its conversation it was stopped."""
    async with holder(place, doing) as process:
        store = await pga.store()
        os.kill(process.pid, signal.SIGSTOP)
        began = time.monotonic()
        taken: list[object] = []
        while len(taken) < 2 and time.monotonic() - began < PATIENCE:
            left = [slice for slice in (FIRST, SECOND) if slice not in taken]
            taken += [one.slice for one in await store.take(GROUP, OTHER, left, ttl=TTL, now=LATER)]
        assert set(taken) == {FIRST, SECOND}
        assert time.monotonic() - began < 8
        async with pga.unit(store) as unit:
            assert await unit.claim(claim(1)) == [NEW]  # nothing of it was committed
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("go on\n")
            process.stdin.flush()
        out, err = await asyncio.to_thread(process.communicate)
        assert "committed" not in out
        assert "CommitUnknown" in err or "StoreUnavailable" in err or "TransactionAborted" in err, err
    assert place.ask("select count(*) from eventkeel_inbox") == [(1,)]


async def test_a_killed_process_holds_up_nobody(pga: Workbench, place: Place) -> None:
    async with holder(place) as process:
        store = await pga.store()
        process.kill()
        began = time.monotonic()
        assert len(await store.take(GROUP, OTHER, [FIRST, SECOND], ttl=TTL, now=LATER)) == 2
        assert time.monotonic() - began < 3


async def test_a_unit_at_work_is_not_ended_and_holds_up_its_own_slice_only(pg: Workbench, place: Place) -> None:
    """The taker comes back within seconds, with the others; its own leases must not run out meanwhile."""
    store, other = await pg.store(), await pg.store()
    (mine, _) = await pg.owned(store, FIRST, SECOND)
    async with pg.begun(store) as unit:
        assert await unit.fence({FIRST: mine.epoch}) == ()
        assert await unit.claim(claim(1)) == [NEW]
        working = asyncio.create_task(unit.sql("select pg_sleep(6)"))
        began = time.monotonic()
        for force in (False, True):
            owned = await other.take(GROUP, OTHER, [FIRST, SECOND], ttl=TTL, now=LATER, force=force)
            assert [one.slice for one in owned] == [SECOND]
            if not force:
                assert time.monotonic() - began < 4.5
        await working
        await unit.run(unit.unit.commit())
    assert [one.slice for one in await pg.owned(other, FIRST, member=OTHER, now=LATER)] == [FIRST]


async def test_many_busy_slices_hold_up_a_taker_no_longer_than_one(pga: Workbench) -> None:
    store, other = await pga.store(), await pga.store()
    slices = [FIRST._replace(partition=number) for number in range(12)]
    owned = await pga.owned(store, *slices)
    async with pga.begun(store) as unit:
        assert await unit.fence({one.slice: one.epoch for one in owned}) == ()
        working = asyncio.create_task(unit.sql("select pg_sleep(9)"))
        began = time.monotonic()
        assert await other.take(GROUP, OTHER, slices, ttl=TTL, now=LATER) == []
        assert time.monotonic() - began < 8
        working.cancel()
        await ended(working)


async def test_renewing_a_lease_waits_for_no_unit_and_no_take(pga: Workbench) -> None:
    store, other = await pga.store(), await pga.store()
    (mine,) = await pga.owned(store, FIRST)
    async with pga.begun(store) as unit:
        assert await unit.fence({FIRST: mine.epoch}) == ()
        await unit.claim(claim(1))
        taking = asyncio.create_task(pga.owned(other, FIRST, member=OTHER, now=LATER))
        async with asyncio.timeout(1):
            await store.lease(GROUP, ME, {FIRST: mine.epoch}, ttl=TTL, now=NOW)
            await other.lease(GROUP, OTHER, {}, ttl=TTL, now=NOW)
            await store.progress(GROUP, [Mark(FIRST, mine.epoch, 5, "a")], release=False, now=NOW)
        await unit.run(unit.unit.commit())
        await taking


async def test_two_takers_of_one_slice_get_different_epochs_and_one_keeps_it(pga: Workbench) -> None:
    stores = [await pga.store() for _ in range(4)]
    for turn in range(5):
        taken = await asyncio.gather(
            *(
                store.take(GROUP, f"m{number}", [FIRST], ttl=TTL, now=NOW + 100 * turn)
                for number, store in enumerate(stores)
            )
        )
        assert sum(map(len, taken)) == 1
        forced = await asyncio.gather(
            *(
                store.take(GROUP, f"m{number}", [FIRST], ttl=TTL, now=NOW + 100 * turn, force=True)
                for number, store in enumerate(stores)
            )
        )
        assert len({one.epoch for owned in forced for one in owned}) == 4


async def test_a_zombie_relay_removes_and_marks_nothing(pg: Workbench, place: Place) -> None:
    store, other = await pg.store(), await pg.store()
    async with pg.unit(store) as unit:
        await unit.append(*[record(number) for number in range(4)])
    (mine,) = await pg.owned(store, OUTBOX)
    ids = [row.id for row in await store.unsent([0], 10)]
    (theirs,) = await pg.owned(other, OUTBOX, member=OTHER, now=LATER)
    assert await store.sent(GROUP, {OUTBOX: mine.epoch}, ids) == (OUTBOX,)
    assert not await store.stuck(GROUP, OUTBOX, mine.epoch, ids[0], "too large")
    assert [row.id for row in await other.unsent([0], 10)] == ids
    assert await other.sent(GROUP, {OUTBOX: theirs.epoch}, ids[:2]) == ()
    assert await store.sent(GROUP, {OUTBOX: mine.epoch}, ids[2:]) == (OUTBOX,)
    assert [row.id for row in await store.unsent([0], 10)] == ids[2:]


async def test_two_relays_that_remove_the_same_rows_at_once_do_not_stop_each_other(pga: Workbench) -> None:
    store, other = await pga.store(), await pga.store()
    (mine,) = await pga.owned(store, OUTBOX)
    for _ in range(10):
        async with pga.unit(store) as unit:
            await unit.append(*[record(number, key=b"%d" % number) for number in range(200)])
        ids = [row.id for row in await store.unsent([0], 500)]
        told = await asyncio.gather(
            store.sent(GROUP, {OUTBOX: mine.epoch}, ids),
            other.sent(GROUP, {OUTBOX: mine.epoch}, ids[::-1]),
            other.sent(GROUP, {OUTBOX: mine.epoch}, ids[100:] + ids[:100]),
        )
        assert told.count(()) == 3
        assert await store.unsent([0], 500) == []


async def test_a_silent_unit_is_ended_by_the_server_at_last(place: Place) -> None:
    """However little anybody wants its slice: nobody waits for its rows for ever."""
    async with place.bench() as bench:
        store = await bench.store()
        async with bench.begun(store) as unit:
            assert await unit.sql("show idle_in_transaction_session_timeout") == [("45s",)]
            await unit.sql("set local idle_in_transaction_session_timeout = '300ms'")
            await unit.sql(INSERT, {"number": 1, "note": ""})
            await until(lambda: not place.backends(state="idle in transaction"))
            with pytest.raises((StoreUnavailable, TransactionAborted)):
                await unit.claim(claim(1))
            with pytest.raises((StoreUnavailable, TransactionAborted)):
                await unit.run(unit.unit.commit())
        async with bench.unit(store) as unit:
            assert await unit.sql("select count(*) from paid") == [(0,)]


async def test_a_server_without_the_right_to_end_sessions_only_takes_longer(pga: Workbench, place: Place) -> None:
    """The holder is another user's: the slice is left out, and nothing fails."""
    store = await pga.store()
    assert isinstance(store, PostgresStore)
    role = f"{place.name}_poor"
    place.do(f'create role "{role}" login; grant all on schema "{place.name}" to "{role}"')
    place.do(f'grant all on all tables in schema "{place.name}" to "{role}"')
    try:
        with place.raw() as holding:
            holding.execute("begin")
            holding.execute("select pg_advisory_xact_lock_shared(%s)", [store._locks.slice(GROUP, FIRST)])
            poor = place.store(place.server.replace("postgres@", f"{role}@"))
            await poor.open()
            try:
                assert await poor.take(GROUP, OTHER, [FIRST], ttl=TTL, now=LATER) == []
                holding.execute("commit")
                assert len(await poor.take(GROUP, OTHER, [FIRST], ttl=TTL, now=LATER)) == 1
            finally:
                await poor.close()
    finally:
        with psycopg.connect(place.server, autocommit=True) as db:
            db.execute(f'drop owned by "{role}"; drop role "{role}"'.encode())
