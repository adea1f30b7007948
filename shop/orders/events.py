"""What `orders` says to the world."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from eventkeel import Event

HIGHEST = Decimal(1_000_000_000)
"""Amounts are below this: a bound of the business, and 11 digits, which every database keeps exactly."""
CENT = Decimal("0.01")
LONGEST_NAME = 100
"""Characters in an order id or a user id."""


def check_amount(amount: Decimal) -> None:
    """Raises ValueError unless ``amount`` is money: above 0, below a billion, at most two decimals."""
    if not amount.is_finite():
        raise ValueError("amount has to be a finite number")
    if amount <= 0:
        raise ValueError("amount has to be above 0")
    if amount >= HIGHEST:
        raise ValueError("amount has to be below 1000000000")
    if amount != amount.quantize(CENT):
        raise ValueError("amount may have at most two decimals")


def check_name(what: str, name: str) -> None:
    """Raises ValueError unless ``name`` can be an id: 1 to 100 printable characters."""
    if not name:
        raise ValueError(f"{what} is empty")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"{what} has {len(name)} characters; at most {LONGEST_NAME} are allowed")
    if not name.isprintable():
        raise ValueError(f"{what} contains characters that cannot be printed")


class OrderCreated(Event, topic="order_events", key="order_id", identity="order_id", accept="plain"):
    """An order was accepted. Plain JSON fields, so that a program that knows just these three can
    write and read them; two with the same order_id are the same fact."""

    order_id: str
    user_id: str
    amount: Decimal

    def __post_init__(self) -> None:
        check_name("order_id", self.order_id)
        check_name("user_id", self.user_id)
        check_amount(self.amount)


Status = Literal["placed", "paid"]


class OrderStatusChanged(Event, topic="order_status_events", key="order_id"):
    """An order reached a status. ``sequence`` counts the changes of one order, from 1."""

    order_id: str
    status: Status
    sequence: int
