"""A third party for the tests of steps, and a service that calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from eventkeel import (
    Retry,
    Service,
    Steps,
)

from .domain import PATIENT, SCHEMA, Ordered, Paid

PAYMENTS = "select number from payments order by number"
JOURNALLED = "select step from eventkeel_journal order by step"
INSERT = "insert into payments values (:number, :customer, :amount)"


class Receipt(msgspec.Struct):
    number: str
    cents: int


class Gateway:
    """A third party: remembers every call, by its idempotency key, and charges each key once."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.charged: dict[str, Receipt] = {}
        self.failing = 0
        self.before: Callable[[], Any] = lambda: None
        self.running = self.most = 0

    async def charge(self, number: str, key: str) -> Receipt:
        self.calls.append((number, key))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            made = self.before()
            if made is not None:
                await made
        finally:
            self.running -= 1
        if self.failing:
            self.failing -= 1
            raise TimeoutError("no answer")
        return self.charged.setdefault(key, Receipt(number, len(self.charged)))

    @property
    def keys(self) -> set[str]:
        return {key for _, key in self.calls}


def charging(gateway: Gateway, retry: Retry = PATIENT, **options: Any) -> Service:
    """One call, one row and one event per order."""
    service = Service("charging", schema=SCHEMA, retry=retry, **options)

    @service.on(Ordered)
    async def charge(order: Ordered, steps: Steps) -> None:
        await steps.run("charge", gateway.charge, order.number, key=steps.key("charge"))
        async with steps.transaction() as tx:
            tx.write(INSERT, order)
            tx.publish(Paid(number=order.number, customer=order.customer))

    return service
