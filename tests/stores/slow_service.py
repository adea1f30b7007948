"""A service whose units are nearly always open: for processes that are stopped in the middle of one."""

from __future__ import annotations

import asyncio

from eventkeel import Event, Service, Transaction


class Slow(Event, topic="slow", key="customer", identity="number"):
    number: int
    customer: str


service = Service(
    "slow",
    schema="""create table if not exists done (number integer primary key, customer text not null,
      at bigint generated always as identity)""",
)


@service.on(Slow)
async def take(event: Slow, tx: Transaction) -> None:
    await tx.execute("insert into done (number, customer) values (:number, :customer)", event)
    await asyncio.sleep(0.02)
