"""A service that reads orders as JSON or as Protobuf, message by message, and writes its payments as Protobuf."""

from __future__ import annotations

from decimal import Decimal

from eventkeel import Event, Service, Transaction
from interop.python.protos import payments_pb2


class OrderPlaced(
    Event,
    topic="bodies_orders",
    key="order_id",
    identity="order_id",
    accept="plain",
    protobuf=payments_pb2.OrderCreated,
    content="json",
):
    order_id: str
    user_id: str
    amount: Decimal


class OrderPaid(Event, topic="bodies_payments", key="order_id", protobuf=payments_pb2.PaymentSucceeded):
    order_id: str
    amount: Decimal


service = Service(
    "bodies", schema="create table if not exists paid (order_id text primary key, amount numeric not null)"
)


@service.on(OrderPlaced)
async def pay(order: OrderPlaced, tx: Transaction) -> None:
    tx.write("insert into paid values (:order_id, :amount)", order)
    tx.publish(OrderPaid(order_id=order.order_id, amount=order.amount))
