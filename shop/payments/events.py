"""What `payments` says to the world."""

from __future__ import annotations

from decimal import Decimal

from eventkeel import Event


class PaymentSucceeded(Event, topic="payment_events", key="order_id"):
    """The money for an order was taken."""

    order_id: str
    amount: Decimal
