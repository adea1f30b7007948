"""What the two say. The names are the shop's: never import both in one process."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from eventkeel import Event


class OrderCreated(Event, topic="order_events", key="order_id", identity="order_id", accept="plain"):
    order_id: str
    user_id: str
    amount: Decimal


class OrderStatusChanged(Event, topic="order_status_events", key="order_id"):
    """``sequence`` counts the changes of one order, from 1."""

    order_id: str
    status: Literal["placed", "paid"]
    sequence: int


class PaymentSucceeded(Event, topic="payment_events", key="order_id"):
    order_id: str
    amount: Decimal
