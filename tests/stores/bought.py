"""What the tests of the engine on PostgreSQL sell."""

from __future__ import annotations

from typing import Any

from eventkeel import Event, Retry, Service
from eventkeel.testing.harness import Harness


class Bought(Event, topic="bought", key="customer"):
    number: int
    customer: str
    first: str = ""
    second: str = ""


class Told(Event, topic="told", key="customer"):
    number: int
    customer: str


SCHEMA = """
create table if not exists bought (number integer primary key, customer text not null,
  at bigint generated always as identity);
create table if not exists stock (sku text primary key, sold integer not null default 0);
create table if not exists parent (id integer primary key);
create table if not exists child (id integer primary key,
  parent integer references parent deferrable initially deferred);
"""
INSERT = "insert into bought (number, customer) values (:number, :customer)"
NUMBERS = "select number from bought order by at"
HELD = "select state, reason, attempts, error from eventkeel_held order by number"
ONCE = Retry(attempts=1, in_place=())
PATIENT = Retry(attempts=4, first=1.0, in_place=())


def shop(retry: Retry = ONCE, **options: Any) -> Service:
    return Service("shop", schema=SCHEMA, retry=retry, **options)


def bought(number: int, customer: str = "", **more: str) -> Bought:
    return Bought(number=number, customer=customer or f"c{number}", **more)


async def numbers(app: Harness) -> list[int]:
    return [number for (number,) in await app.rows(NUMBERS)]


async def held(app: Harness) -> list[tuple[Any, ...]]:
    return await app.rows(HELD)
