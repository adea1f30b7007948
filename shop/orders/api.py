"""The HTTP API of `orders`.

    POST /orders                      {"user_id": "USR1", "amount": 7.00, "items": [{"sku": "mug"}]}
    GET  /orders                      the latest; ?status=confirmed&limit=20&before=ORDER_ID
    GET  /orders/{id}
    POST /orders/{id}/cancellation    also before the order itself has arrived
    GET  /orders/{id}/events          its life as server-sent events

`order_id` may be given, else it is made. The same order sent again is the same order: same answer, no second event. So
is the same `Idempotency-Key`, which also keeps a made-up id the same. A client that got no answer just asks again.
"""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from eventkeel import Transaction
from shop.bodies import decode, read_body
from shop.names import check_name
from shop.orders.answers import Answer, earlier, keep
from shop.orders.book import move_on, read
from shop.orders.events import CENT, Item, OrderCreated, check_amount
from shop.orders.life import life
from shop.orders.process import CancelAsked, Process
from shop.problems import HANDLERS, Problem, encode, json_response

COLUMNS = "user_id, amount, items, status, sequence, stock, money, shipment, ending, reason"
MOST = 200
"""Orders on one page."""


class NewOrder(msgspec.Struct):
    """What a client sends. Amount and names are looked at one by one, for an error that helps."""

    user_id: str
    amount: msgspec.Raw
    order_id: str | None = None
    items: tuple[Item, ...] = ()


async def place_order(request: Request) -> Response:
    """Take an order: its row, its events and the answer in one transaction."""
    order, named = _read_order(await read_body(request))
    key = request.headers.get("idempotency-key")
    async with _service().transaction() as tx:
        wish = encode(order if named else msgspec.structs.replace(order, order_id="-"))
        answer = await earlier(key, wish, tx) if key is not None else None
        if answer is None:
            answer = await _place(order, tx)
            if key is not None:
                keep(key, answer, tx)
    return Response(answer.body, answer.status, {"location": answer.location}, "application/json")


async def _place(order: OrderCreated, tx: Transaction) -> Answer:
    before, now = await move_on(order.order_id, order, tx)
    if not before.heard:
        tx.publish(order)
    if (now.user_id, now.amount, now.items) != (order.user_id, order.amount, order.items):
        raise Problem(
            409,
            f"order {order.order_id!r} was placed before with another user, amount or items; it stays as it was",
            type="urn:shop:problem:order-conflict",
            order_id=order.order_id,
        )
    placed = msgspec.structs.replace(now, status="placed", reason="")  # as it was when it was first answered
    return Answer(201, f"/orders/{quote(order.order_id, safe='')}", encode(_shown(order.order_id, placed)))


async def cancel_order(request: Request) -> Response:
    """What was done for it is undone, which takes a while. One that has not arrived yet is cancelled when it comes."""
    order_id = request.path_params["order_id"]
    try:
        check_name("order_id", order_id)
    except ValueError as error:
        raise Problem(422, str(error)) from None
    async with _service().transaction() as tx:
        _, now = await move_on(order_id, CancelAsked(), tx)
    if now.ending != "cancelled":
        raise Problem(
            409,
            f"order {order_id!r} is rejected already: {now.reason}",
            type="urn:shop:problem:order-not-cancellable",
            order_id=order_id,
        )
    return json_response(_shown(order_id, now), 202)


async def show_order(request: Request) -> Response:
    """An order as it stands now."""
    order_id = request.path_params["order_id"]
    async with _service().transaction() as tx:
        row = await tx.fetch_one(f"select {COLUMNS} from orders where order_id = :order_id", {"order_id": order_id})
    if row is None or not (process := read(row)).heard:
        raise Problem(404, f"there is no order {order_id!r}")
    return json_response(_shown(order_id, process))


async def list_orders(request: Request) -> Response:
    """The latest orders, a page at a time: ``next`` is where the following page begins."""
    asked = request.query_params
    limit = asked.get("limit", "50")
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= MOST:
        raise Problem(422, f"limit has to be 1 to {MOST}")
    wanted = {"before": asked.get("before", ""), "status": asked.get("status", ""), "limit": int(limit)}
    async with _service().transaction() as tx:
        rows = await tx.fetch_all(
            f"""
            select {COLUMNS}, order_id from orders
            where status <> 'unheard' and (:status = '' or status = :status)
              and (:before = '' or (placed_at, order_id) <
                                   (select placed_at, order_id from orders where order_id = :before))
            order by placed_at desc, order_id desc limit :limit""",
            wanted,
        )
    shown = [_shown(row[-1], read(row)) for row in rows]
    return json_response({"orders": shown, "next": rows[-1][-1] if len(rows) == int(limit) else None})


async def stream_life(request: Request) -> Response:
    """Every change of its status as it is said, from the first one on, or behind ``Last-Event-ID``."""
    last = request.headers.get("last-event-id", "0")
    events = life(request.path_params["order_id"], int(last) if last.isascii() and last.isdigit() else 0, _service())
    return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})


def _shown(order_id: str, process: Process) -> dict[str, Any]:
    return {
        "order_id": order_id,
        "user_id": process.user_id,
        "amount": process.amount.quantize(CENT),
        "items": process.items,
        "status": process.status,
        "reason": process.reason,
    }


def _service() -> Any:
    from shop.orders import service  # the service holds this application: they know each other

    return service


def _read_order(body: bytes) -> tuple[OrderCreated, bool]:
    """The order, and whether the client has named it."""
    new = decode(body, NewOrder, "an order")
    amount = _read_amount(bytes(new.amount))
    order_id = f"ORD-{uuid.uuid4().hex}" if new.order_id is None else new.order_id
    try:
        order = OrderCreated(order_id=order_id, user_id=new.user_id, amount=amount, items=new.items)
    except ValueError as error:
        raise Problem(422, str(error)) from None
    return order, new.order_id is not None


def _read_amount(raw: bytes) -> Decimal:
    if raw[:1] not in b"-0123456789":
        raise Problem(422, 'amount has to be a number, such as "amount": 99.99')
    try:
        amount = msgspec.json.decode(raw, type=Decimal)
        check_amount(amount)
    except (ValueError, ArithmeticError) as error:
        raise Problem(422, str(error)) from None
    return amount.quantize(CENT)


app = Starlette(
    routes=[
        Route("/orders", place_order, methods=["POST"]),
        Route("/orders", list_orders, methods=["GET"]),
        Route("/orders/{order_id:path}/cancellation", cancel_order, methods=["POST"]),
        Route("/orders/{order_id:path}/events", stream_life, methods=["GET"]),
        Route("/orders/{order_id:path}", show_order, methods=["GET"]),
    ],
    exception_handlers=HANDLERS,
)
