"""`orders`: ``POST /orders`` takes one, however often it is asked to; a payment makes it paid."""

from __future__ import annotations

from importlib.resources import files

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from eventkeel import Service, StoreUnavailable, Transaction
from tests.crash.pair.events import OrderCreated, OrderStatusChanged, PaymentSucceeded


async def place_order(request: Request) -> JSONResponse:
    order = msgspec.json.decode(await request.body(), type=OrderCreated)
    async with service.transaction() as tx:
        placed = await tx.execute(
            "insert into orders (order_id, user_id, amount) values (:order_id, :user_id, :amount) "
            "on conflict (order_id) do nothing",
            order,
        )
        if placed:
            tx.publish(order)
            tx.publish(OrderStatusChanged(order_id=order.order_id, status="placed", sequence=1))
    return JSONResponse({"order_id": order.order_id}, 201)


async def busy(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 503)


service = Service(
    "orders",
    schema=files("tests.crash.pair").joinpath("orders.sql").read_text("utf-8"),
    http=Starlette(
        routes=[Route("/orders", place_order, methods=["POST"])], exception_handlers={StoreUnavailable: busy}
    ),
)


@service.on(PaymentSucceeded)
async def mark_paid(payment: PaymentSucceeded, tx: Transaction) -> None:
    sequence = await tx.fetch_value(
        "update orders set status = 'paid', sequence = sequence + 1 "
        "where order_id = :order_id and status = 'placed' returning sequence",
        payment,
    )
    if sequence is not None:
        tx.publish(OrderStatusChanged(order_id=payment.order_id, status="paid", sequence=sequence))


@service.on(OrderStatusChanged)
async def write_history(change: OrderStatusChanged, tx: Transaction) -> None:
    tx.write(
        "insert into order_history (order_id, sequence, status, number) values (:order_id, :sequence, :status, "
        "(select count(*) from order_history where order_id = :order_id))",
        change,
    )
