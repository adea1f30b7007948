"""What `orders` says to the world."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

import msgspec

from eventkeel import Event
from shop.names import check_name
from shop.protos import protobuf

HIGHEST = Decimal(1_000_000_000)
"""Amounts are below this: a bound of the business, and 11 digits, which every database keeps exactly."""
CENT = Decimal("0.01")
MOST = 1000
"""Pieces of one item, and items of one order."""


class Item(msgspec.Struct, frozen=True, order=True):
    """So many pieces of something."""

    sku: str
    quantity: int = 1

    def __post_init__(self) -> None:
        check_name("sku", self.sku)
        if not 1 <= self.quantity <= MOST:
            raise ValueError(f"quantity has to be 1 to {MOST}, not {self.quantity}")


class OrderCreated(
    Event,
    topic="order_events",
    key="order_id",
    identity="order_id",
    accept="plain",
    omit_defaults=True,
    protobuf=protobuf("order_events", "OrderCreated"),
    content="json",
):
    """An order was accepted. Plain JSON fields, so that a program that knows just the first three can
    write and read them; two with the same order_id are the same fact."""

    order_id: str
    user_id: str
    amount: Decimal
    items: tuple[Item, ...] = ()
    """What to take from stock; an order without any needs nothing from there."""

    def __post_init__(self) -> None:
        check_name("order_id", self.order_id)
        check_name("user_id", self.user_id)
        check_amount(self.amount)
        if len(self.items) > MOST:
            raise ValueError(f"an order has at most {MOST} items, not {len(self.items)}")


Status = Literal[
    # forward: what has been reached; whoever comes next acts on it
    "placed",  # inventory reserves
    "reserved",  # payments takes the money
    "paid",  # shipping books a parcel
    "shipped",  # inventory sells
    "confirmed",  # loyalty gives points, notifications writes
    # backward: what is to be undone, one after the other
    "recalling",  # shipping takes the parcel back
    "refunding",  # payments gives the money back
    "releasing",  # inventory frees the stock
    # and the end of it
    "rejected",
    "cancelled",
]
ENDS = ("confirmed", "rejected", "cancelled")


class OrderStatusChanged(Event, topic="order_status_events", key="order_id", omit_defaults=True):
    """An order reached a status. ``sequence`` counts the changes of one order, from 1; with them goes all that
    anybody needs to do its part."""

    order_id: str
    status: Status
    sequence: int
    user_id: str
    amount: Decimal
    items: tuple[Item, ...] = ()
    reason: str = ""
    """Why it goes back, or ended so."""


class StepTimedOut(Event, topic="order_timeouts", key="order_id"):
    """Published with a delay when an order begins to wait: nobody has answered in time, unless its ``sequence`` has
    gone on since."""

    order_id: str
    sequence: int


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
