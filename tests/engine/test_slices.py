"""Slices that come and go at bad moments: nothing of them is skipped, and none holds up the others."""

from __future__ import annotations

import asyncio
import glob
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from zlib import crc32

import apsw
import pytest
from msgspec import structs

from eventkeel import ConfigurationError, Retry, StoreUnavailable
from eventkeel.engine.work import Share
from eventkeel.message import Slice
from eventkeel.testing.harness import harness

from .domain import STEPS, Journal, Noted, ordered, partition_of, paying


def at_once(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run a coroutine that has nothing to wait for within this very step of the event loop."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


@pytest.mark.sqlite_only
async def test_what_was_handed_over_before_a_slice_began_anew_counts_for_the_old_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slice is lost and taken again while deliveries of before are on their way to intake."""
    journal = Journal()
    async with harness(journal.service) as app:
        await app.publish(*[Noted(customer="c", step=n) for n in range(3)])
        await app.until_quiet()
        ownership = app.runtime.ownership
        assert ownership is not None
        slice = Slice("noted", crc32(b"c") % 8)
        await app.runtime.lanes[0].stop()  # what arrives stays in the queue
        subscription: Any = app.runtime._subscription.current  # type: ignore[union-attr]
        take, moved = subscription._take, asyncio.Event()

        def again() -> None:
            async def lose_and_take() -> None:
                await ownership.lost([slice])
                await ownership.assigned([slice], force=True)

            at_once(lose_and_take())
            moved.set()

        def taking() -> Any:
            page = take()
            if page is not None and page.slice == slice and not moved.is_set():
                asyncio.get_running_loop().call_soon(again)
            return page

        monkeypatch.setattr(subscription, "_take", taking)
        await app.publish(Noted(customer="c", step=3))
        await app.until(moved.is_set)
        share = ownership.shares[slice]
        await app.until(lambda: bool(share.watermark.running))
        assert list(share.watermark._open) == sorted(set(share.watermark._open))


@pytest.mark.knows_partitions
async def test_a_slice_that_could_not_be_given_back_takes_no_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal()
    async with harness(journal.service, budget_count=50) as app:
        ownership, store = app.runtime.ownership, app.runtime.store
        assert ownership is not None
        given, kept = crc32(b"a") % 8, crc32(b"b") % 8
        assert given != kept
        progress = type(store).progress

        async def unavailable(self: Any, *args: Any, release: bool, now: float) -> Any:
            if release:
                raise StoreUnavailable("locked")
            return await progress(self, *args, release=release, now=now)

        monkeypatch.setattr(type(store), "progress", unavailable)
        with pytest.raises(StoreUnavailable):
            await ownership.release([Slice("noted", given)])
        monkeypatch.setattr(ownership, "balance", lambda: asyncio.sleep(0))  # and it is not taken again
        await app.publish(*[Noted(customer="a", step=n) for n in range(100)])
        other = next(name for name in "bcdefgh" if partition_of(name, 8) != partition_of("a", 8))
        await app.publish(*[Noted(customer=other, step=n) for n in range(100)])

        async def others_went_on() -> bool:
            return len(await app.rows(STEPS, {"customer": other})) == 100

        await app.until(others_went_on, 5.0)
        monkeypatch.undo()


@pytest.mark.knows_partitions
async def test_a_partition_that_waits_for_a_dead_key_leaves_room_for_the_others() -> None:
    journal = Journal(Retry(attempts=1, in_place=()))
    journal.failing = {("a", 0): 1}
    async with harness(journal.service, budget_count=50, batch_size=1) as app:
        app.runtime.context.numbers = structs.replace(app.runtime.context.numbers, key_cap=10)
        await app.publish(*[Noted(customer="a", step=n) for n in range(200)])

        async def full() -> bool:
            assert app.runtime.ownership is not None
            paused = any(share.stalled or share in app.runtime.ownership._paused for share in shares())
            return paused and await app.rows("select count(*) from eventkeel_held") == [(10,)]

        def shares() -> list[Share]:
            assert app.runtime.ownership is not None
            return list(app.runtime.ownership.shares.values())

        await app.until(full)
        other = next(name for name in "bcdefgh" if partition_of(name, 8) != partition_of("a", 8))
        await app.publish(*[Noted(customer=other, step=n) for n in range(100)])

        async def others_went_on() -> bool:
            return len(await app.rows(STEPS, {"customer": other})) == 100

        await app.until(others_went_on, 5.0)


@pytest.mark.sqlite_only
async def test_a_group_goes_on_where_the_broker_says_it_stood(tmp_path: Path) -> None:
    async with harness(paying(), folder=tmp_path) as app:
        await app.publish(*[ordered(n, f"c{n}") for n in range(20)])
        await app.until_quiet()
    db = apsw.Connection(str(tmp_path / "paying.sqlite3"))
    db.execute("delete from eventkeel_owner; delete from eventkeel_inbox; delete from payments")
    db.close()
    async with harness(paying(), folder=tmp_path, start="group") as app:
        await app.until_quiet()
        assert await app.rows("select count(*) from payments") == [(0,)]
        await app.publish(ordered("new", "c1"))
        await app.until_quiet()
        assert await app.rows("select number from payments") == [("new",)]


@pytest.mark.sqlite_broker
async def test_a_broker_that_was_made_anew_is_read_from_its_beginning_when_asked(tmp_path: Path) -> None:
    async with harness(paying(), folder=tmp_path) as app:
        await app.publish(*[ordered(n, "c") for n in range(20)])
        await app.until_quiet()
    for file in filter(os.path.isfile, glob.glob(f"{tmp_path}/broker.sqlite3*")):
        os.unlink(file)
    with pytest.raises(ConfigurationError, match="--start earliest"):
        async with harness(paying(), folder=tmp_path):
            pass
    async with harness(paying(), folder=tmp_path, start="earliest") as app:
        await app.publish(*[ordered(f"new{n}", "c") for n in range(3)])
        await app.until_quiet()
        assert await app.rows("select count(*) from payments") == [(23,)]
        await app.publish(*[ordered(f"newer{n}", "c") for n in range(3)])
        await app.until_quiet()
    async with harness(paying(), folder=tmp_path) as app:
        await app.publish(ordered("last", "c"))
        await app.until_quiet()
        assert await app.rows("select count(*) from payments") == [(27,)]


@pytest.mark.sqlite_broker
async def test_leases_from_before_the_clock_was_put_back_hold_nobody_up() -> None:
    journal = Journal(Retry(attempts=0, first=1.0, in_place=()))
    journal.failing = {("b", 0): 3}
    async with harness(journal.service, lease=1.0) as app:
        await app.publish(Noted(customer="b", step=0))
        await app.until_quiet(retries=False)
        ownership, store, group = app.runtime.ownership, app.runtime.store, app.service.group
        assert ownership is not None
        later = app.clock.now() + 3600
        await store.lease(group, "of yesterday", {}, ttl=1.0, now=later)
        await store.take(group, "of yesterday", [*ownership.shares, *ownership.relays], ttl=1.0, now=later, force=True)
        await store.due(["journal/note"], "of yesterday", limit=9, ttl=1.0, now=later)
        await app.publish(Noted(customer="a", step=0))
        await app.until_quiet()
        assert await app.rows(STEPS, {"customer": "a"}) == [(0,)]
        assert await app.rows(STEPS, {"customer": "b"}) == [(0,)]
