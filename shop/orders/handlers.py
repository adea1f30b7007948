"""The service `orders`: every answer of the others moves an order on."""

from __future__ import annotations

from typing import get_args

from eventkeel import Service, Transaction
from shop.orders.api import app
from shop.orders.book import is_heard, move_on
from shop.orders.events import OrderCreated, OrderStatusChanged
from shop.orders.process import Heard
from shop.parts import schema_of

service = Service("orders", schema=schema_of("shop.orders"), http=app)


@service.on(*get_args(Heard))
async def follow(fact: Heard, tx: Transaction) -> None:
    """An order from elsewhere, written past our API, begins its life here; one of ours has begun it already, and is
    left alone: taking its row would only be in the way of those who move it on."""
    if isinstance(fact, OrderCreated) and await is_heard(fact.order_id, tx):
        return
    await move_on(fact.order_id, fact, tx)


@service.on(OrderStatusChanged)
async def write_history(change: OrderStatusChanged, tx: Transaction) -> None:
    """The history is written from the events, as anybody else would see them."""
    tx.write(
        "insert into order_history (order_id, sequence, status, reason, number) values "
        "(:order_id, :sequence, :status, :reason, (select count(*) from order_history where order_id = :order_id))",
        change,
    )
