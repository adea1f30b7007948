"""Several processes of one service: owners, epochs, the fence, and relays that wake up too late.

Two runtimes in one test stand for two processes: they share nothing but the files.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from eventkeel import Delivery, Retry, Service, Transaction
from eventkeel.app import Runtime
from eventkeel.message import Slice
from eventkeel.ports.transport import Outcome, Unknown
from eventkeel.testing.harness import Harness, harness

from .domain import SCHEMA, STEPS, Journal, Noted, Paid, die_until_quiet, ordered, paying


async def second(app: Harness) -> Runtime:
    """Another process of the same service on the same files."""
    other = app._make()
    await other.start()
    return other


async def balanced(*runtimes: Runtime) -> bool:
    for runtime in runtimes:
        assert runtime.ownership is not None
        await runtime.ownership.balance()
    counts = [len(runtime.ownership.shares) for runtime in runtimes if runtime.ownership]
    return sum(counts) == 8 and max(counts) - min(counts) <= 1


async def test_two_workers_share_the_partitions_and_every_event_takes_effect_once() -> None:
    async with harness(paying()) as app:
        other = await second(app)
        await app.until(lambda: balanced(app.runtime, other))
        await app.publish(*[ordered(n, f"c{n}") for n in range(100)])
        await app.until(lambda: counted(app, 100))
        await other.stop()
        await app.until(lambda: balanced(app.runtime))


async def test_a_process_that_only_sends_is_given_no_partition() -> None:
    async with harness(paying()) as app:
        sender = Runtime(app.service, app.runtime.config, mode="relay", clock=app.clock)
        await sender.start()
        await app.until(lambda: balanced(app.runtime))
        await sender.stop()


async def counted(app: Harness, wanted: int) -> bool:
    return await app.rows("select count(*), count(distinct number) from payments") == [(wanted, wanted)]


async def test_a_zombies_unit_is_fenced_and_its_successor_applies_it_once() -> None:
    """One process stops between intake and begin for longer than its lease, another takes over."""
    journal = Journal()
    async with harness(journal.service, lease=1.0) as app:
        await app.publish(Noted(customer="c", step=0))
        await app.until_quiet()
        ownership = app.runtime.ownership
        assert ownership is not None
        partition = next(s for s, share in ownership.shares.items() if share.watermark.base)
        old = ownership.shares[partition]
        taken = await app.runtime.store.take(
            app.service.group, "usurper", [partition], ttl=1.0, now=app.clock.now() + 10, force=False
        )
        assert [one.epoch for one in taken] == [old.epoch + 1]
        await app.publish(Noted(customer="c", step=1))  # the zombie still believes that it owns the partition
        await app.until(lambda: not old.live)
        assert [s for (s,) in await app.rows(STEPS, {"customer": "c"})] == [0]
        app.clock.advance(30)  # the usurper is gone; the partition comes back under a new epoch
        await app.until_quiet()
        assert [s for (s,) in await app.rows(STEPS, {"customer": "c"})] == [0, 1]


async def test_the_same_event_on_two_workers_takes_effect_once() -> None:
    """A foreign producer scattered one order over two partitions, which belong to two workers."""
    async with harness(paying()) as app:
        other = await second(app)
        await app.until(lambda: balanced(app.runtime, other))
        body = b'{"number":"1","customer":"c","amount":1}'
        for key in range(16):
            await app.raw("ordered", f"k{key}", body)
        await app.until(lambda: counted(app, 1))
        await app.until(lambda: settled(app, other))
        assert await counted(app, 1)
        assert len(await app.published(Paid)) == 1
        await other.stop()


async def settled(app: Harness, *others: Runtime) -> bool:
    shares = {}
    for runtime in (app.runtime, *others):
        assert runtime.ownership is not None
        shares.update(runtime.ownership.shares)
    if await app.runtime.store.unsent(range(app.runtime.store.caps.relay_shards), 1):
        return False
    if app.broker.caps.settle == "each":  # each of them counts what it holds
        theirs = [await runtime.transport.lag(app.service.group) for runtime in (app.runtime, *others)]
        return all(lag.settled == lag.end for lags in theirs for lag in lags)
    lags = await app.broker.lag(app.service.group)
    return all(lag.slice in shares and (shares[lag.slice].watermark.base or 0) == lag.end for lag in lags)


async def test_a_zombie_relay_repeats_but_never_removes_and_nobody_notices() -> None:
    service = paying()

    @service.on(Paid)
    async def receipt(paid: Paid, tx: Transaction) -> None:
        tx.write("insert into steps (customer, step) values (:customer, :number)", paid)

    async with harness(service) as app:
        relay, ownership = app.runtime.relay, app.runtime.ownership
        assert relay is not None and ownership is not None
        await relay.stop()
        await app.publish(*[ordered(n, "c") for n in range(10)])
        await app.until(lambda: counted(app, 10))
        rows = await app.runtime.store.unsent(range(app.runtime.store.caps.relay_shards), 100)
        assert len(rows) == 10
        (shard,) = [each for each in ownership.relays if each.partition == rows[0].shard]
        taken = await app.runtime.store.take(
            app.service.group, "new-relay", [shard], ttl=1.0, now=app.clock.now() + 60, force=False
        )
        assert taken
        await relay.wave()  # the zombie sends, and is refused when it wants to remove
        assert len(await app.runtime.store.unsent([shard.partition], 100)) == 10
        assert shard not in ownership.relays
        await app.crash()
        app.clock.advance(120)
        await app.restart()
        await app.until_quiet()
        assert await app.rows("select step from steps order by id") == [(n,) for n in range(10)]
        # Where one message of a key may be out, the zombie had sent no more than that.
        assert len(await app.messages("paid")) == (20 if app.broker.caps.ordered_pipeline else 11)


async def test_nothing_is_removed_from_the_outbox_before_the_broker_confirmed_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with harness(paying()) as app:
        transport, answers = app.runtime.transport, asyncio.Event()
        publish = type(transport).publish

        async def unknown(self: object, wave: list[object], deadline: float) -> list[Outcome]:
            if answers.is_set():
                return await publish(self, wave, deadline)  # type: ignore[arg-type,return-value]
            return [Unknown("no answer") for _ in wave]

        monkeypatch.setattr(type(transport), "publish", unknown)
        async with app.service.transaction() as tx:
            tx.publish(Paid(number="1", customer="c"))
        for _ in range(3):
            assert app.runtime.relay is not None
            await app.runtime.relay.wave()
        assert len(await app.runtime.store.unsent(range(app.runtime.store.caps.relay_shards), 10)) == 1
        answers.set()
        await app.until_quiet()
        assert len(await app.published(Paid)) == 1


async def test_a_delivery_that_kills_its_process_is_dead_after_three_deaths() -> None:
    service = Service("mortal", schema=SCHEMA, retry=Retry(in_place=()))
    lethal = True

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction, delivery: Delivery) -> None:
        if noted.step == 1 and lethal:
            deaths.set()
            await asyncio.sleep(3600)
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)

    deaths = asyncio.Event()
    async with harness(service) as app:
        await app.publish(*[Noted(customer=f"c{n}", step=n) for n in range(3)])
        await die_until_quiet(app, deaths, 5)
        assert await app.rows("select reason from eventkeel_held") == [("kills-its-process",)]
        assert sorted(await app.rows("select step from steps")) == [(0,), (2,)]


async def test_a_group_cannot_be_run_on_another_store(tmp_path: Path) -> None:
    from eventkeel import ConfigurationError

    broker = f"sqlite:///{tmp_path}/broker.sqlite3"
    async with harness(paying(), folder=tmp_path / "a", broker=broker):
        with pytest.raises(ConfigurationError, match="group"):
            async with harness(paying(), folder=tmp_path / "b", broker=broker):
                pass


def test_slices_have_names_for_people() -> None:
    assert str(Slice("orders", 3)) == "orders/3"
