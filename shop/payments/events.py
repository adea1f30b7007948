"""What `payments` says to the world, and to itself."""

from __future__ import annotations

from decimal import Decimal

from eventkeel import Event
from shop.protos import protobuf

TOPIC = "payment_events"


class PaymentSucceeded(Event, topic=TOPIC, key="order_id", protobuf=protobuf(TOPIC, "PaymentSucceeded")):
    """The money for an order was taken."""

    order_id: str
    amount: Decimal


class PaymentDeclined(Event, topic=TOPIC, key="order_id", protobuf=protobuf(TOPIC, "PaymentDeclined")):
    """The provider will not take the money for an order."""

    order_id: str
    reason: str


class PaymentRefunded(Event, topic=TOPIC, key="order_id", protobuf=protobuf(TOPIC, "PaymentRefunded")):
    """The money for an order was given back."""

    order_id: str
    amount: Decimal


class PaymentVoided(Event, topic=TOPIC, key="order_id", protobuf=protobuf(TOPIC, "PaymentVoided")):
    """The money for an order was not taken, and will not be."""

    order_id: str


class ChargeDue(Event, topic="payment_requests", key="order_id"):
    """`payments` has decided to take money: its next handler calls the provider, with no transaction open."""

    order_id: str
    amount: Decimal


class RefundDue(Event, topic="payment_requests", key="order_id"):
    """`payments` has decided to give money back."""

    order_id: str
    amount: Decimal
