"""What the scenarios over a broker and a store are made of: a small domain, and the real engine in its own place."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Mapping
from decimal import Decimal
from typing import Any

import pytest

from eventkeel import Delivery, Event, Retry, Service, Transaction
from eventkeel.app import Runtime, open_catalogue, open_store
from eventkeel.engine.outside import OpenDoor
from eventkeel.ports.catalogue import Catalogue, DeadLetter
from eventkeel.testing.harness import Harness, harness

scenario = pytest.mark.scenario
"""Says which scenarios of the catalogue a test proves."""

PARTITIONS = 4
SCHEMA = """
create table if not exists effects (
    who text not null, line integer not null, step integer not null, handler text not null)"""
WRITE = """
insert into effects (who, line, step, handler) values
(:who, (select count(*) from effects where who = :who and handler = :handler), :step, :handler)"""
"""Each effect says how many its key had before: so the order is that of the commits, whatever the database."""

PATIENT = Retry(attempts=4, first=1.0, in_place=())
"""No retries in place: the first failure parks."""
STUBBORN = Retry(attempts=0, first=60.0, in_place=())
"""The same, and it never gives up; what waits does so until the test lets time pass."""


class Noted(Event, topic="conformance_noted", key="who"):
    who: str
    step: int


class Echoed(Event, topic="conformance_echoed", key="who"):
    who: str
    step: int


class Carried(Event, topic="conformance_carried", key="who"):
    who: str
    items: list[int]


class Bought(Event, topic="conformance_bought", key="buyer", identity="number", accept="plain"):
    number: str
    buyer: str
    amount: Decimal


def noted(count: int, who: str = "a", first: int = 0) -> list[Noted]:
    return [Noted(who=who, step=step) for step in range(first, first + count)]


def bought(number: int | str, amount: str = "9.99") -> Bought:
    return Bought(number=str(number), buyer="b", amount=Decimal(amount))


class Journal:
    """A service that writes down every step of every key, and fails or waits where it is told to."""

    def __init__(self, name: str = "journal", retry: Retry = PATIENT, *, echoes: bool = False) -> None:
        self.calls: list[tuple[str, int]] = []
        self.attempts: dict[tuple[str, int], list[int]] = {}
        self.failing: dict[tuple[str, int], int] = {}
        """(who, step) -> up to which attempt it fails. Not how often: a body may run more often than it is tried."""
        self.held: dict[tuple[str, int], asyncio.Event] = {}
        """(who, step) -> what it waits for."""
        self.waiting = asyncio.Event()
        """Set when a handler waits."""
        self.service = Service(name, schema=SCHEMA, retry=retry)

        @self.service.on(Noted)
        async def note(noted: Noted, tx: Transaction, delivery: Delivery) -> None:
            place = (noted.who, noted.step)
            self.calls.append(place)
            self.attempts.setdefault(place, []).append(delivery.attempt)
            write(tx, noted)
            if echoes:
                tx.publish(Echoed(who=noted.who, step=noted.step))
            if place in self.held:
                self.waiting.set()
                await self.held[place].wait()
            if delivery.attempt <= self.failing.get(place, 0):
                raise RuntimeError(f"{place} fails")


def write(tx: Transaction, event: Noted | Echoed, handler: str = "note") -> None:
    tx.write(WRITE, {"who": event.who, "step": event.step, "handler": handler})


async def effects(app: Harness, who: str = "a", handler: str = "note") -> list[int]:
    """The steps of a key as they took effect, in the order of their commits."""
    sql = "select step from effects where who = :who and handler = :handler order by line"
    return [step for (step,) in await app.rows(sql, {"who": who, "handler": handler})]


async def count(app: Harness, handler: str = "note") -> int:
    ((found,),) = await app.rows("select count(*) from effects where handler = :handler", {"handler": handler})
    return int(found)


async def kept(app: Harness) -> list[tuple[str, str]]:
    """(state, reason) of what is dead or waits, in its order."""
    rows = await app.rows("select state, reason from eventkeel_held order by number")
    return [(state, reason) for state, reason in rows]


async def unsent(app: Harness) -> int:
    store = app.runtime.store
    return len(await store.unsent(range(store.caps.relay_shards), 1000))


@contextlib.asynccontextmanager
async def operator(app: Harness) -> AsyncIterator[Catalogue]:
    """What somebody asks and does from outside, with a connection of their own."""
    config, service = app.runtime.config, app.service
    store = open_store(config.store_url(service.name), service.name)
    await store.open()
    try:
        yield open_catalogue(service, config, store)
    finally:
        await store.close()


async def letters(app: Harness) -> list[DeadLetter]:
    async with operator(app) as catalogue:
        return await catalogue.dead_letters(consumer=None, state=None, after=0, limit=100)


async def redrive(app: Harness, number: int) -> None:
    async with operator(app) as catalogue:
        assert await catalogue.redrive(number, actor="the suite", now=app.clock.now()) is not None
    assert app.runtime.due is not None
    app.runtime.due.wake()


async def shared(*runtimes: Runtime, slices: int = PARTITIONS) -> bool:
    """Every member has its fair share of one topic's slices, and all of them have an owner."""
    owned = [len(runtime.ownership.shares) for runtime in runtimes if runtime.ownership is not None]
    for runtime in runtimes:
        assert runtime.ownership is not None
        await runtime.ownership.balance()
    return sum(owned) == slices and max(owned) - min(owned) <= 1


async def leave(app: Harness, member: Runtime, *, dying: bool = False) -> None:
    """End a process that ``app.another`` made; the service's door leads to the first one again."""
    await (member.abandon() if dying else member.stop())
    app.service.opened(OpenDoor(app.runtime.context))


class ServiceScenarios:
    """The part that every group of scenarios shares."""

    broker = ""
    """What the broker is called on the page."""
    store = ""
    """What the store is called on the page."""

    def settings(self) -> Mapping[str, str]:
        """``broker`` and ``store`` URLs, as in the configuration; ``{place}`` stands for a name that belongs to one
        test and ``{service}`` for the service's. One that is left out means files."""
        raise NotImplementedError

    @contextlib.asynccontextmanager
    async def app(self, service: Service, **options: Any) -> AsyncIterator[Harness]:
        """A process of ``service``. Give two of them the same ``folder``, and they are in the same place."""
        async with harness(service, **{"partitions": PARTITIONS, **self.settings(), **options}) as app:
            yield app


async def in_time(waiting: Awaitable[Any], patience: float = 30.0) -> None:
    async with asyncio.timeout(patience):
        await waiting
