"""A small domain for the engine's tests: orders come in, payments are made, receipts go out."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from zlib import crc32

from eventkeel import Event, Retry, Service, Transaction
from eventkeel.testing import harness
from eventkeel.testing.harness import Harness


class Ordered(Event, topic="ordered", key="customer", identity="number", accept="plain"):
    number: str
    customer: str
    amount: Decimal


class Paid(Event, topic="paid", key="customer"):
    number: str
    customer: str


class Noted(Event, topic="noted", key="customer"):
    customer: str
    step: int


SCHEMA = """
create table if not exists payments (number text primary key, customer text not null, amount numeric not null);
create table if not exists steps (id integer primary key, customer text not null, step integer not null);
"""

PATIENT = Retry(attempts=4, first=1.0, in_place=())
"""No retries in place: the first failure parks."""


def ordered(number: int | str, customer: str = "c", amount: str = "9.99") -> Ordered:
    return Ordered(number=str(number), customer=customer, amount=Decimal(amount))


def paying() -> Service:
    """The reference: one row and one event per order."""
    service = Service("paying", schema=SCHEMA, retry=PATIENT)

    @service.on(Ordered)
    async def pay(order: Ordered, tx: Transaction) -> None:
        tx.write("insert into payments values (:number, :customer, :amount)", order)
        tx.publish(Paid(number=order.number, customer=order.customer))

    return service


def partition_of(key: str, count: int) -> int:
    """Where the broker of this test puts a key: Kafka's clients by murmur2, the embedded one by CRC-32."""
    hashed = murmur2(key.encode()) if "broker" in harness.ELSEWHERE else crc32(key.encode())
    return hashed % count


def murmur2(key: bytes) -> int:
    """As org.apache.kafka.common.utils.Utils.murmur2 has it, without its sign."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = (0x9747B28C ^ len(key)) & mask
    whole = len(key) // 4 * 4
    for at in range(0, whole, 4):
        k = int.from_bytes(key[at : at + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = h * m & mask ^ k
    if tail := key[whole:]:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return (h ^ h >> 15) & 0x7FFFFFFF


class Journal:
    """A service that keeps, per customer, the steps it has applied; ``fail`` decides who fails."""

    def __init__(self, retry: Retry = PATIENT) -> None:
        self.calls: list[tuple[str, int]] = []
        self.failing: dict[tuple[str, int], int] = {}
        """(customer, step) -> how many more times it fails."""
        self.service = Service("journal", schema=SCHEMA, retry=retry)

        @self.service.on(Noted)
        async def note(noted: Noted, tx: Transaction) -> None:
            place = (noted.customer, noted.step)
            self.calls.append(place)
            tx.write("insert into steps (customer, step) values (:customer, :step)", noted)
            if self.failing.get(place, 0):
                self.failing[place] -= 1
                raise RuntimeError(f"{place} fails")


STEPS = "select step from steps where customer = :customer order by id"


async def die_until_quiet(app: Harness, deaths: asyncio.Event, tries: int) -> None:
    """The process dies wherever a handler sets ``deaths`` and is started again, until all is quiet."""
    for _ in range(tries):
        waiting = asyncio.ensure_future(deaths.wait())
        quiet = asyncio.ensure_future(app.until_quiet())
        await asyncio.wait({waiting, quiet}, return_when=asyncio.FIRST_COMPLETED)
        if quiet.done():
            waiting.cancel()
            break
        quiet.cancel()
        deaths.clear()
        await app.crash()
        await app.restart()
