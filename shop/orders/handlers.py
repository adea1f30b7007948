"""The service `orders`: its tables, and what it does when it hears of a payment."""

from __future__ import annotations

from importlib.resources import files

from eventkeel import Service, Transaction
from shop.orders.api import app
from shop.orders.events import OrderStatusChanged
from shop.payments.events import PaymentSucceeded

service = Service("orders", schema=files("shop.orders").joinpath("schema.sql").read_text("utf-8"), http=app)


@service.on(PaymentSucceeded)
async def mark_paid(payment: PaymentSucceeded, tx: Transaction) -> None:
    """Placed becomes paid. An order that came from elsewhere, past our API, is not in our books."""
    sequence = await tx.fetch_value(
        "update orders set status = 'paid', sequence = sequence + 1 "
        "where order_id = :order_id and status = 'placed' returning sequence",
        payment,
    )
    if sequence is not None:
        tx.publish(OrderStatusChanged(order_id=payment.order_id, status="paid", sequence=sequence))


@service.on(OrderStatusChanged)
async def write_history(change: OrderStatusChanged, tx: Transaction) -> None:
    """The history is written from the events, as anybody else would see them."""
    tx.write(
        "insert into order_history (order_id, sequence, status, number) values (:order_id, :sequence, :status, "
        "(select count(*) from order_history where order_id = :order_id))",
        change,
    )
