"""Ordinary use of events, for the type checker: ``mypy --strict`` has to accept every line as it stands,
and to refuse those that say ``type: ignore`` (unused ones are errors)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import assert_type
from uuid import UUID

from eventkeel import Steps, SyncSteps, SyncTransaction, Transaction
from eventkeel.event import Event, EventSpec, declared, event, spec_of, topics


class OrderCreated(Event, topic="typing.orders", key="order_id", identity="order_id", accept="plain"):
    order_id: str
    user_id: str
    amount: Decimal
    note: str = ""


class AccountEvent(Event, key="account", kw_only=True):
    account: str


class Opened(AccountEvent, topic="typing.accounts", type="account.opened", version=2, kw_only=True):
    owner: str | None = None


@event(topic="typing.placed", key="order_id")
@dataclass(frozen=True)
class Placed:
    order_id: str


order = OrderCreated(order_id="ORD12345", user_id="USR001", amount=Decimal("99.99"))
assert_type(order, OrderCreated)
assert_type(order.amount, Decimal)
assert_type(OrderCreated("ORD12345", "USR001", Decimal(1), "note").note, str)
assert_type(Opened(account="1").owner, str | None)
assert_type(Placed("1"), Placed)
assert_type(spec_of(order), EventSpec)
assert_type(declared("typing.orders"), Mapping[str, EventSpec])
assert_type(topics(), tuple[str, ...])


def refused() -> None:
    """Never called: each of these lines is an error to the checker."""
    OrderCreated(order_id="ORD12345", user_id="USR001", amount="99.99")  # type: ignore[arg-type]
    OrderCreated(order_id="ORD12345", user_id="USR001")  # type: ignore[call-arg]
    order.amount = Decimal(1)  # type: ignore[misc]
    Opened("1")  # type: ignore[call-arg]
    event(topic="typing.placed")  # type: ignore[call-arg]


async def charge(cents: int, *, key: str) -> Decimal:
    return Decimal(cents)


def ring(times: int) -> str:
    return "ring" * times


async def with_steps(steps: Steps) -> None:
    """Never called."""
    assert_type(await steps.run("charge", charge, 5, key=steps.key("charge")), Decimal)
    assert_type(await steps.run("ring", ring, 2), str)
    assert_type(await steps.run("said", ring, 2, result_type=Placed), Placed)
    await steps.run("charge", charge, "5", key="k")  # type: ignore[arg-type]
    async with steps.transaction() as tx:
        assert_type(tx, Transaction)
        assert_type(tx.publish(order, delay=5), UUID)
        assert_type(await tx.cancel(tx.publish(order, delay=timedelta(days=1))), bool)


def with_sync_steps(steps: SyncSteps) -> None:
    """Never called."""
    assert_type(steps.run("ring", ring, 2), str)
    with steps.transaction() as tx:
        assert_type(tx, SyncTransaction)
        assert_type(tx.cancel(tx.publish(order, at=datetime(2030, 1, 1, tzinfo=UTC))), bool)
