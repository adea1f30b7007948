"""Events for later, published around a session's own savepoints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from eventkeel import Service, Transaction
from eventkeel.testing.harness import Harness, harness

from .tables import PATIENT, SCHEMA, Ordered, Paid, ordered

Open = Callable[[Service], AbstractAsyncContextManager[Harness]]


@pytest.fixture
def running(database: str) -> Open:
    @asynccontextmanager
    async def run(service: Service) -> AsyncIterator[Harness]:
        async with harness(service, store=f"{database}?schema={{service}}") as app:
            yield app

    return run


async def test_what_was_scheduled_in_a_rolled_back_begin_nested_is_never_sent(running: Open) -> None:
    service = Service("paying", schema=SCHEMA, retry=PATIENT)

    @service.on(Ordered)
    async def pay(order: Ordered, session: AsyncSession, tx: Transaction) -> None:
        tx.publish(Paid(number="before", customer="a"), delay=60)
        with pytest.raises(ZeroDivisionError):
            async with session.begin_nested():
                tx.publish(Paid(number="in it", customer="b"), delay=60)
                raise ZeroDivisionError
        async with session.begin_nested():
            tx.publish(Paid(number="kept", customer="c"), delay=60)
        with pytest.raises(ZeroDivisionError):
            async with tx.savepoint():
                tx.publish(Paid(number="in that", customer="d"), delay=60)
                raise ZeroDivisionError

    async with running(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        await app.advance(61)
        assert sorted(paid.number for paid in await app.published(Paid)) == ["before", "kept"]


async def test_what_was_scheduled_before_a_begin_nested_outlives_its_rollback(running: Open) -> None:
    service = Service("paying", schema=SCHEMA, retry=PATIENT)

    @service.on(Ordered)
    async def pay(order: Ordered, session: AsyncSession, tx: Transaction) -> None:
        tx.publish(Paid(number="before", customer="a"), delay=60)
        with pytest.raises(ZeroDivisionError):
            async with session.begin_nested():
                await tx.cancel(uuid4())
                raise ZeroDivisionError

    async with running(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        await app.advance(61)
        assert await app.rows("select error from eventkeel_held") == []
        assert [paid.number for paid in await app.published(Paid)] == ["before"]
