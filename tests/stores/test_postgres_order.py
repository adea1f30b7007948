"""Order of a key in the outbox of PostgreSQL = order of id = order of commit, however many publish at once."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Callable

import pytest

from eventkeel.errors import CommitUnknown, StoreUnavailable
from eventkeel.stores.postgres import unit as unit_module
from eventkeel.stores.postgres.unit import MOST_KEYS
from eventkeel.testing.store_kit import GROUP, OUTBOX, Workbench, record
from tests.stores.postgres_kit import Place, ended, until
from tools.realservers import Server

COMMITS = """
select key, id, pg_xact_commit_timestamp(xmin) as at from eventkeel_outbox order by id
"""
"""Nothing updates these rows, so xmin is the transaction that wrote them."""


def disorder(rows: list[tuple[bytes, int, object]]) -> list[tuple[bytes, int, int]]:
    """Pairs of a key's neighbours of which the lower id was committed later."""
    last: dict[bytes, tuple[int, object]] = {}
    found = []
    for key, number, at in rows:
        before = last.get(key)
        if before is not None and at < before[1]:  # type: ignore[operator]
            found.append((key, before[0], number))
        last[key] = (number, at)
    return found


async def test_ids_of_a_key_are_committed_in_their_order_by_eight_at_once(pga: Workbench, place: Place) -> None:
    stores = [await pga.store(), await pga.store()]
    keys = [b"k%d" % number for number in range(6)]
    numbers = itertools.count(1)

    async def publish(worker: int) -> None:
        dice = random.Random(worker)
        for _ in range(40):
            async with pga.unit(stores[worker % 2]) as unit:
                if dice.random() < 0.3:
                    await unit.sql("select pg_sleep(:s::float8)", {"s": dice.random() * 0.01})
                chosen = [dice.choice(keys) for _ in range(dice.randrange(1, 5))]
                await unit.append(*[record(next(numbers), key=key) for key in chosen])
                if dice.random() < 0.3:
                    await unit.sql("select pg_sleep(:s::float8)", {"s": dice.random() * 0.01})

    await asyncio.gather(*(publish(worker) for worker in range(8)))
    rows = place.ask(COMMITS)
    assert len(rows) > 500
    assert disorder(rows) == []


async def test_a_relay_that_reads_by_id_never_meets_a_lower_one_of_a_key_later(pga: Workbench) -> None:
    """Imports of many keys (which take whole shards) among ordinary transactions, and a reader all the while."""
    writers = [await pga.store(), await pga.store()]
    reader = await pga.store()
    (mine,) = await pga.owned(reader, OUTBOX)
    keys = [b"%d" % number for number in range(MOST_KEYS + 100)]
    numbers = itertools.count(1)
    done = asyncio.Event()
    seen: dict[bytes, list[int]] = defaultdict(list)
    written: dict[bytes, int] = defaultdict(int)

    async def publish(worker: int) -> None:
        dice = random.Random(worker)
        for _ in range(30):
            chosen = [dice.choice(keys[:20]) for _ in range(3)]
            async with pga.unit(writers[worker % 2]) as unit:
                await unit.append(*[record(next(numbers), key=key) for key in chosen])
                await asyncio.sleep(dice.random() * 0.005)
            for key in chosen:
                written[key] += 1

    async def import_all(worker: int) -> None:
        for _ in range(4):
            async with pga.unit(writers[worker % 2]) as unit:
                await unit.append(*[record(next(numbers), key=key) for key in keys])
                await asyncio.sleep(0.005)
            for key in keys:
                written[key] += 1
            await asyncio.sleep(0.05)

    async def relay() -> None:
        while True:
            ending = done.is_set()
            rows = await reader.unsent([0], 400)
            for row in rows:
                seen[row.key].append(row.id)
            if rows:
                assert await reader.sent(GROUP, {OUTBOX: mine.epoch}, [row.id for row in rows]) == ()
            elif ending:
                return
            else:
                await asyncio.sleep(0.002)

    reading = asyncio.create_task(relay())
    await asyncio.gather(*(publish(worker) for worker in range(6)), *(import_all(worker) for worker in range(2)))
    done.set()
    await reading
    assert {key: len(ids) for key, ids in seen.items()} == dict(written)
    assert [key for key, ids in seen.items() if ids != sorted(ids)] == []


async def test_an_import_waits_for_an_open_ordinary_append_and_the_other_way_round(pg: Workbench) -> None:
    store, other = await pg.store(), await pg.store()
    many = [record(number, key=b"%d" % number) for number in range(MOST_KEYS + 1)]
    for first, second in ((many, [record(9999, key=b"7")]), ([record(9998, key=b"7")], many)):
        async with pg.begun(store) as ahead, pg.begun(other) as behind:
            await ahead.append(*first)
            await ahead.sql("select 1")  # it has reached the database
            await behind.append(*second)
            asking = asyncio.create_task(behind.sql("select 1"))
            done, _ = await asyncio.wait({asking}, timeout=0.3)
            assert not done
            await ahead.run(ahead.unit.commit())
            await asking
            await behind.run(behind.unit.commit())
    rows = [row for row in await store.unsent([0], 5000) if row.key == b"7"]
    assert [row.body for row in rows] == [b"7", b"9999", b"9998", b"7"]


async def test_different_keys_wait_for_nobody(pg: Workbench) -> None:
    store, other = await pg.store(), await pg.store()
    async with pg.begun(store) as first, pg.begun(other) as second:
        await first.append(record(1, key=b"a"))
        await first.sql("select 1")
        async with asyncio.timeout(3):
            await second.append(record(2, key=b"b"))
            await second.run(second.unit.commit())
        await first.run(first.unit.commit())
    assert [row.body for row in await store.unsent([0], 10)] == [b"1", b"2"]


async def test_an_import_of_thousands_of_keys_takes_few_locks(pg: Workbench, place: Place) -> None:
    store = await pg.store()
    async with pg.begun(store) as unit:
        await unit.append(*[record(number, key=b"%d" % number) for number in range(5000)])
        await unit.sql("select 1")
        rows = place.ask(
            "select count(*) from pg_locks l join pg_stat_activity a using (pid) "
            "where a.application_name = %s and locktype = 'advisory'",
            place.name,
        )
        assert rows[0][0] <= 16
        await unit.run(unit.unit.commit())
    assert len(await store.unsent([0], 9999)) == 5000


async def test_where_lock_memory_runs_out_nothing_is_lost_and_later_it_works(
    own_postgres: Server, place_for: Callable[[str], Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a server of its own: this is felt by all who are connected."""
    place = place_for(own_postgres.url)
    monkeypatch.setattr(unit_module, "MOST_KEYS", 1_000_000)
    async with place.bench() as bench:
        store = await bench.store()
        (most,) = place.ask(
            "select current_setting('max_locks_per_transaction')::int * (current_setting('max_connections')::int + "
            "current_setting('max_prepared_transactions')::int)"
        )[0]
        async with bench.begun(store) as unit:
            await unit.append(*[record(number, key=b"%d" % number) for number in range(2 * most + 10_000)])
            with pytest.raises(StoreUnavailable, match="shared memory") as told:
                await unit.run(unit.unit.commit())
            assert not isinstance(told.value, CommitUnknown)
        monkeypatch.undo()
        async with bench.unit(store) as unit:
            await unit.append(*[record(number, key=b"%d" % number) for number in range(2000)])
        assert len(await store.unsent([0], 5000)) == 2000


async def test_order_within_one_append_is_that_of_its_list(pg: Workbench) -> None:
    store = await pg.store()
    bodies = [b"%d" % number for number in range(3000)]
    async with pg.unit(store) as unit:
        await unit.append(*[record(n, key=b"%d" % (n % 700), body=body) for n, body in enumerate(bodies)])
    assert [row.body for row in await store.unsent([0], 5000)] == bodies


async def test_two_imports_and_ordinary_ones_never_deadlock(place: Place) -> None:
    """Sixteen shards, taken sorted by all."""
    async with place.bench() as bench:
        stores = [await bench.store(), await bench.store()]
        for store in stores:
            store.caps = type(store.caps)(parallel_units=True, relay_shards=16)  # type: ignore[misc]

        async def publish(worker: int) -> None:
            dice = random.Random(worker)
            for _ in range(6):
                most = MOST_KEYS + 50 if worker < 3 else 40
                chosen = [b"%d" % dice.randrange(2000) for _ in range(2 * most)]
                async with bench.unit(stores[worker % 2]) as unit:
                    await unit.append(*[record(n, key=key) for n, key in enumerate(chosen)])

        await asyncio.gather(*(publish(worker) for worker in range(8)))
        assert len(await stores[0].unsent(range(16), 99_999)) == 6 * (3 * 2 * (MOST_KEYS + 50) + 5 * 2 * 40)
        assert disorder(place.ask(COMMITS)) == []


async def test_the_sequence_of_the_outbox_hands_out_single_numbers(place: Place, pga: Workbench) -> None:
    """A session that kept a few in hand would give a later event a lower id."""
    await pga.store()
    (cache,) = place.ask(
        "select seqcache from pg_sequence where seqrelid = pg_get_serial_sequence('eventkeel_outbox', 'id')::regclass"
    )[0]
    assert cache == 1


async def test_a_publisher_that_waits_for_a_key_may_be_cancelled(pga: Workbench, place: Place) -> None:
    store, other = await pga.store(), await pga.store()
    async with pga.begun(store) as first:
        await first.append(record(1))
        await first.sql("select 1")
        async with pga.begun(other) as second:
            await second.append(record(2))
            asking = asyncio.create_task(second.sql("select 1"))
            await until(place.waiting)
            asking.cancel()
            assert isinstance(await ended(asking), asyncio.CancelledError)
        await first.run(first.unit.commit())
    async with pga.unit(other) as third:
        await third.append(record(3))
    assert [row.body for row in await store.unsent([0], 10)] == [b"1", b"3"]
