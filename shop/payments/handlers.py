"""The service `payment-service`: every order it hears of is paid."""

from __future__ import annotations

from importlib.resources import files

from eventkeel import Service, Transaction
from shop.orders.events import OrderCreated
from shop.payments.events import PaymentSucceeded

service = Service(
    "payment-service",
    group="payment-service-group",
    schema=files("shop.payments").joinpath("schema.sql").read_text("utf-8"),
)


@service.on(OrderCreated)
async def take_payment(order: OrderCreated, tx: Transaction) -> None:
    """Row and event commit together, or neither does."""
    tx.write("insert into payments (order_id, user_id, amount) values (:order_id, :user_id, :amount)", order)
    tx.publish(PaymentSucceeded(order_id=order.order_id, amount=order.amount))
