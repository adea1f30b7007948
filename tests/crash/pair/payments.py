"""`payment-service`: every order that it hears of is paid."""

from __future__ import annotations

from importlib.resources import files

from eventkeel import Service, Transaction
from tests.crash.pair.events import OrderCreated, PaymentSucceeded

service = Service(
    "payment-service",
    group="payment-service-group",
    schema=files("tests.crash.pair").joinpath("payments.sql").read_text("utf-8"),
)


@service.on(OrderCreated)
async def take_payment(order: OrderCreated, tx: Transaction) -> None:
    tx.write("insert into payments (order_id, user_id, amount) values (:order_id, :user_id, :amount)", order)
    tx.publish(PaymentSucceeded(order_id=order.order_id, amount=order.amount))
