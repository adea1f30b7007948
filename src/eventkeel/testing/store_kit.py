"""What the store suite is made of: a database, its services' stores, and one of the two drivers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any, Literal, TypeVar
from uuid import NAMESPACE_OID, uuid5

import pytest

from eventkeel import fingerprint
from eventkeel.drive import drive, drive_sync
from eventkeel.message import Slice
from eventkeel.ports.store import (
    Claim,
    ConsumerName,
    Gone,
    Head,
    HeadOutcome,
    Held,
    Kind,
    Mark,
    Owned,
    Parked,
    Record,
    Row,
    Schema,
    Statement,
    Store,
    Unit,
    Verdict,
)

T = TypeVar("T")

Driver = Literal["async", "sync"]

NOW = 1_750_000_000.0
"""Time as the tests tell it. No store looks at a clock."""
TTL = 30.0
scenario = pytest.mark.scenario
"""Says which scenarios of the catalogue a test proves: eventkeel.testing.conformance."""

PATIENCE = 20.0
"""Seconds after which something that has to happen counts as not happening."""

SERVICE, GROUP, ME, OTHER = "billing", "billing-group", "member-1", "member-2"
PAY, MAIL, ANYBODY = "billing/pay", "billing/mail", "billing/*"
CONSUMERS = (ConsumerName(PAY, ("orders/OrderCreated",)), ConsumerName(MAIL, ("orders/OrderCreated",)))
TABLE = "create table if not exists paid (number integer primary key, note text not null)"

FIRST, SECOND = Slice("orders", 0), Slice("orders", 1)
OUTBOX = Slice("$outbox", 0)


def event_id(number: int) -> bytes:
    return uuid5(NAMESPACE_OID, str(number)).bytes


def facts(amount: int, *, version: int = 1) -> bytes:
    """The fingerprint of an event that has this amount."""
    members = {"amount": fingerprint.Number(str(amount))}
    return fingerprint.compute(members, version=version, content_type="application/json")


def claim(number: int, *, key: bytes | None = b"k", slice: Slice = FIRST, amount: int | None = None) -> Claim:
    return Claim(event_id(number), slice, number, 1, key, None if amount is None else facts(amount))


def held(number: int, *, key: bytes | None = b"k", reason: str = "error", amount: int | None = None) -> Held:
    return Held(
        event_id=event_id(number),
        slice=FIRST,
        position=number,
        key=key,
        headers=b"\x91\x92\xa1n\xc4\x011",
        body=b"%d" % number,
        time=NOW - 5,
        type="OrderCreated",
        fingerprint=None if amount is None else facts(amount),
        attempts=1,
        reason=reason,
        error="it did not work",
    )


def record(number: int, *, key: bytes = b"k", topic: str = "payments", body: bytes | None = None) -> Record:
    return Record(event_id(number), topic, key, b"\x90", b"%d" % number if body is None else body)


APPLIED = HeadOutcome("applied")


def later(due: float, attempts: int = 2) -> HeadOutcome:
    return HeadOutcome("retry", attempts=attempts, due=due, reason="error", error="again")


def dead(attempts: int = 3) -> HeadOutcome:
    return HeadOutcome("dead", attempts=attempts, reason="final", error="no use")


class Transacted:
    """An open unit of work, run by one of the two drivers."""

    def __init__(self, store: Store, unit: Unit, driver: Driver) -> None:
        self.store, self.unit, self._driver = store, unit, driver

    async def run(self, program: Generator[Any, Any, T]) -> T:
        if self._driver == "async":
            return await drive(program, self.unit.connection)
        return await asyncio.to_thread(drive_sync, program, self.unit.sync_connection)

    @property
    def alive(self) -> bool:
        return self.unit.connection.alive if self._driver == "async" else self.unit.sync_connection.alive

    # -- shorter to say

    async def claim(self, *claims: Claim, consumer: str = PAY) -> list[Verdict]:
        return await self.run(self.unit.claim(consumer, claims, NOW))

    async def fence(self, epochs: Mapping[Slice, int]) -> tuple[Slice, ...]:
        return await self.run(self.unit.fence(GROUP, epochs))

    async def append(self, *records: Record) -> None:
        await self.run(self.unit.append(records, NOW))

    async def park(
        self,
        what: Held,
        *,
        opens: bool = True,
        due: float = NOW + 1,
        consumer: str = PAY,
        now: float = NOW,
        cap: int = 0,
    ) -> Parked:
        return await self.run(self.unit.park(consumer, what, due=due, opens=opens, epoch=1, now=now, cap=cap))

    async def bury(self, what: Held, *, blocks: bool = True, consumer: str = PAY, now: float = NOW) -> None:
        await self.run(self.unit.bury(consumer, what, blocks=blocks, epoch=1, now=now))

    async def finish(self, head: Head, outcome: HeadOutcome, *, what: Held | None = None, now: float = NOW) -> Gone:
        return await self.run(self.unit.finish_head(head.lease, what or head.held, outcome, now))

    async def sql(self, sql: str, params: Any = ()) -> list[Row]:
        statement = self.store.prepare(sql, params)

        def program() -> Generator[Statement, Any, list[Row]]:
            return (yield statement).rows  # type: ignore[no-any-return]

        return await self.run(program())

    async def pipeline(self, *statements: tuple[str, Any]) -> list[Row]:
        prepared = [self.store.prepare(sql, params) for sql, params in statements]

        def program() -> Generator[Statement, Any, list[Row]]:
            return (yield Statement("", prepared, Kind.PIPELINE)).rows  # type: ignore[no-any-return]

        return await self.run(program())


class Workbench:
    """Opens stores on the one database of a test, and closes them."""

    def __init__(
        self, make: Callable[[str], Awaitable[Store]], stack: contextlib.AsyncExitStack, driver: Driver
    ) -> None:
        self._make, self._stack, self.driver = make, stack, driver

    async def closed(self, service: str = SERVICE) -> Store:
        return await self._make(service)

    async def open(self, service: str = SERVICE) -> Store:
        store = await self.closed(service)
        await store.open()
        self._stack.push_async_callback(store.close)
        return store

    async def store(self, *, consumers: Sequence[ConsumerName] = CONSUMERS, ddl: Sequence[str] = (TABLE,)) -> Store:
        """A store that is ready for work; each is another process to the database."""
        store = await self.open()
        await store.migrate(wanted(consumers=consumers, ddl=ddl), apply=True)
        return store

    @contextlib.asynccontextmanager
    async def begun(self, store: Store) -> AsyncIterator[Transacted]:
        """A unit whose end is left to the test."""
        unit = store.unit()
        transacted = Transacted(store, unit, self.driver)
        try:
            await transacted.run(unit.begin(speculative=False))
            yield transacted
        finally:
            unit.close()

    @contextlib.asynccontextmanager
    async def unit(self, store: Store) -> AsyncIterator[Transacted]:
        """A unit that commits, or rolls back when its block raises."""
        async with self.begun(store) as transacted:
            try:
                yield transacted
                await transacted.run(transacted.unit.commit())
            except BaseException:
                await transacted.run(transacted.unit.rollback())
                raise

    async def rows(self, store: Store, sql: str, params: Any = ()) -> list[Row]:
        async with self.unit(store) as unit:
            return await unit.sql(sql, params)

    async def park(self, store: Store, *numbers: int, key: bytes = b"k", due: float = NOW + 1) -> None:
        """The first fails, and the others wait behind it."""
        for index, number in enumerate(numbers):
            async with self.unit(store) as unit:
                assert await unit.park(held(number, key=key), opens=index == 0, due=due) is Parked.KEPT

    async def alive(self, store: Store, member: str = ME, *, now: float = NOW, ttl: float = TTL) -> None:
        await store.lease(GROUP, member, {}, ttl=ttl, now=now)

    async def head(self, store: Store, *, member: str = ME, now: float = NOW + 2, consumer: str = PAY) -> Head:
        """The one head that is due now, leased."""
        await self.alive(store, member, now=now)
        (head,) = await store.due([consumer], member, limit=10, ttl=TTL, now=now)
        return head

    async def finish(self, store: Store, head: Head, outcome: HeadOutcome, *, what: Held | None = None) -> Gone:
        async with self.unit(store) as unit:
            return await unit.finish(head, outcome, what=what, now=NOW + 2)

    async def fire(self, store: Store, now: float, *, limit: int = 100) -> int:
        """Send what is due."""
        async with self.unit(store) as unit:
            return await unit.run(unit.unit.fire(now, limit))

    async def owned(self, store: Store, *slices: Slice, member: str = ME, now: float = NOW) -> list[Owned]:
        return await store.take(GROUP, member, slices, ttl=TTL, now=now)


def wanted(
    *, service: str = SERVICE, consumers: Sequence[ConsumerName] = CONSUMERS, ddl: Sequence[str] = (TABLE,)
) -> Schema:
    return Schema(service=service, group=GROUP, ddl=tuple(ddl), consumers=tuple(consumers))


def mark(owned: Owned, position: int | None, incarnation: str = "a", *, epoch: int | None = None) -> Mark:
    return Mark(owned.slice, owned.epoch if epoch is None else epoch, position, incarnation)


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` gives something true."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)
