"""What could lose an event or make one effect happen twice on a SQLite file, found by thinking like an enemy."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from eventkeel.ports.store import Mark, Store, Verdict
from eventkeel.stores.sqlite import SQLiteStore
from eventkeel.testing.store_kit import FIRST, GROUP, ME, NOW, PAY, TTL, Driver, Workbench, claim, held

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
