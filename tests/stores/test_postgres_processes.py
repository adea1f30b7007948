"""Several processes on one PostgreSQL, some of them zombies, and a server that dies: effects once, in order."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import psycopg

from eventkeel import Transaction
from eventkeel.app import Runtime
from eventkeel.config import Config
from eventkeel.testing.fleet import Fleet
from eventkeel.testing.harness import Harness, harness
from tests.observing import Recorder
from tests.stores.bought import INSERT, Bought, Told, bought, shop
from tests.stores.postgres_kit import Place, until
from tests.stores.slow_service import Slow
from tests.stores.slow_service import service as slow_service
from tools.realservers import Server


async def second(app: Harness, **options: Any) -> Runtime:
    """Another process of the same service, on the same broker and database."""
    config = app.runtime.config
    made = Runtime(app.service, config, clock=app.clock, observers=options.pop("observers", ()))
    await made.start()
    return made


VIOLATIONS = """select count(*) from (
  select epoch, max(epoch) over (partition by topic, partition
    order by pg_xact_commit_timestamp(tx::text::xid), epoch) as highest from eventkeel_inbox) as i
where epoch < highest"""


async def test_a_zombie_with_busy_units_commits_nothing_after_the_takeover(place: Place) -> None:
    """It stops renewing its lease but not its work; another process takes everything under load."""
    service, seen = shop(), Recorder()

    @service.on(Bought)
    async def take(event: Bought, tx: Transaction) -> None:
        tx.write(INSERT, event)
        await asyncio.sleep(0.001)
        tx.publish(Told(number=event.number, customer=event.customer))

    async with harness(service, store=place.url(), lanes=4, lease=1.0, observers=[seen]) as app:
        stop = asyncio.Event()

        async def load() -> int:
            number = 0
            while not stop.is_set():
                await app.publish(*[bought(number + n, f"c{n % 7}") for n in range(20)])
                number += 20
                await asyncio.sleep(0.02)
            return number

        loading = asyncio.create_task(load())
        zombie = app.runtime
        assert zombie.ownership is not None
        await app.until(lambda: counted_at_least(place, 40))
        zombie.ownership.kill()  # its lanes, intake and relay go on
        began = time.monotonic()
        other = await second(app)
        assert other.ownership is not None
        await app.until(lambda: other.ownership is not None and len(other.ownership.shares) == 8)
        assert time.monotonic() - began < 10
        before = place.ask("select count(*) from bought")[0][0]
        await app.until(lambda: counted_at_least(place, before + 100))
        stop.set()
        sent = await loading
        await app.until(lambda: counted_at_least(place, sent), 60)
        assert place.ask("select count(*), count(distinct number) from bought") == [(sent, sent)]
        assert place.ask(VIOLATIONS) == [(0,)]
        for customer in range(7):
            rows = place.ask("select number from bought where customer = %s order by at", f"c{customer}")
            assert rows == sorted(rows)
        await other.stop()


async def counted_at_least(place: Place, number: int) -> bool:
    rows = await asyncio.to_thread(place.ask, "select count(*) from bought")
    return bool(rows[0][0] >= number)


async def test_the_server_is_killed_under_load_and_nothing_happens_twice(own_postgres: Server, place_for: Any) -> None:
    place = place_for(own_postgres.url)
    service, seen = shop(), Recorder()

    @service.on(Bought)
    async def take(event: Bought, tx: Transaction) -> None:
        tx.write(INSERT, event)
        tx.write("update stock set sold = sold + 1")
        tx.publish(Told(number=event.number, customer=event.customer))

    @service.on(Told)
    async def hear(event: Told, tx: Transaction) -> None:
        tx.write("insert into parent values (:number)", event)

    async with harness(service, store=place.url(), lanes=2, lease=2.0, observers=[seen]) as app:
        place.do("insert into stock values ('a', 0)")
        number = 0
        for turn in range(3):
            await app.publish(*[bought(number + n, f"c{n % 5}") for n in range(100)])
            number += 100
            await asyncio.to_thread(own_postgres.kill9 if turn % 2 else own_postgres.restart)
            if turn % 2:
                await asyncio.to_thread(own_postgres.start)
            await app.until(lambda: server_counts(place, "bought", number), 60)  # noqa: B023
            await app.until(lambda: server_counts(place, "parent", number), 60)  # noqa: B023
        assert place.ask("select sold from stock") == [(300,)]
        assert place.ask("select count(*) from eventkeel_held") == [(0,)]
        assert seen.failures == []
        for customer in range(5):
            rows = place.ask("select number from bought where customer = %s order by at", f"c{customer}")
            assert rows == sorted(rows)


async def server_counts(place: Place, table: str, number: int) -> bool:
    try:
        rows = await asyncio.to_thread(place.ask, f"select count(*) from {table}")
    except psycopg.Error:
        return False
    return bool(rows == [(number,)])


async def test_a_process_stopped_in_its_units_is_taken_over_within_seconds(place: Place, tmp_path: Path) -> None:
    """Idle in transaction, with real processes: SIGSTOP, takeover, SIGCONT; effects once, in order, no late commit."""
    broker = f"sqlite:///{tmp_path}/broker.sqlite3"
    settings = {"data": str(tmp_path), "broker": broker, "store": place.url(), "lease": "2", "lanes": "3"}
    place.make()
    fleet = Fleet(tmp_path / "fleet", settings=settings)
    fleet.add("tests.stores.slow_service:service", workers=2)
    with fleet:
        config = Config.load(settings, environ={}, file=None)
        publisher = Runtime(slow_service, config, mode="publisher")
        await until(lambda: place.ask("select to_regclass('eventkeel_owner') is not null") == [(True,)])
        await until(
            lambda: place.ask("select count(distinct owner) from eventkeel_owner where topic = 'slow'") == [(2,)]
        )
        await publisher.start()
        try:
            numbers = 0
            for _ in range(3):
                async with slow_service.transaction() as tx:
                    for n in range(numbers, numbers + 150):
                        tx.publish(Slow(number=n, customer=f"c{n % 40}"))
                numbers += 150
                seen = place.ask("select count(*) from done")[0][0]
                await until(lambda seen=seen: place.ask("select count(*) from done")[0][0] > seen)  # type: ignore[misc]
                (victim, *_) = fleet.pids("tests.stores.slow_service:service")
                os.kill(victim, signal.SIGSTOP)
                try:
                    await until(lambda n=numbers: place.ask("select count(*) from done") == [(n,)])  # type: ignore[misc]
                finally:
                    os.kill(victim, signal.SIGCONT)
        finally:
            await publisher.stop()
        await until(lambda: place.ask("select count(*) from eventkeel_outbox") == [(0,)])
        assert place.ask("select count(*), count(distinct number) from done") == [(numbers, numbers)]
        assert place.ask(VIOLATIONS) == [(0,)]
        for customer in range(40):
            rows = place.ask("select number from done where customer = %s order by at", f"c{customer}")
            assert rows == sorted(rows)
