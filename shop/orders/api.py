"""The HTTP API of `orders`.

    POST /orders        {"order_id": "ORD1", "user_id": "USR1", "amount": 99.99}    order_id is optional
    GET  /orders/{id}

The same order sent again is the same order: same answer, no second event. So a client that got no
answer just asks again.
"""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from eventkeel import StoreUnavailable, Transaction
from shop.orders.events import CENT, OrderCreated, OrderStatusChanged, check_amount, check_name
from shop.problems import Problem, json_response, on_anything, on_busy, on_http_exception, on_problem

LARGEST_BODY = 64 * 1024
LARGEST_DRAIN = 16 * 1024 * 1024
"""A body that is too large is read to its end up to here, so that the client hears our answer."""


class NewOrder(msgspec.Struct):
    """What a client sends. Amount and names are looked at one by one, for an error that helps."""

    user_id: str
    amount: msgspec.Raw
    order_id: str | None = None


_decode = msgspec.json.Decoder(NewOrder).decode
_decode_amount = msgspec.json.Decoder(Decimal).decode


async def place_order(request: Request) -> Response:
    """Take an order: its row and its events in one transaction."""
    order = _read_order(await _body(request))
    async with _service().transaction() as tx:
        placed = await tx.execute(
            "insert into orders (order_id, user_id, amount) values (:order_id, :user_id, :amount) "
            "on conflict (order_id) do nothing",
            order,
        )
        if placed:
            tx.publish(order)
            tx.publish(OrderStatusChanged(order_id=order.order_id, status="placed", sequence=1))
        user_id, amount = await _known(tx, order)
    if (user_id, amount) != (order.user_id, order.amount):
        raise Problem(
            409,
            f"order {order.order_id!r} was placed before with another user or amount; it stays as it was",
            type="urn:shop:problem:order-conflict",
            order_id=order.order_id,
        )
    where = f"/orders/{quote(order.order_id, safe='')}"
    answer = {"order_id": order.order_id, "user_id": order.user_id, "amount": order.amount, "status": "placed"}
    return json_response(answer, 201, {"location": where})


async def _known(tx: Transaction, order: OrderCreated) -> tuple[str, Decimal]:
    row = await tx.fetch_one("select user_id, amount from orders where order_id = :order_id", order)
    assert row is not None
    return row[0], row[1]


async def show_order(request: Request) -> Response:
    """An order as it stands now."""
    order_id = request.path_params["order_id"]
    async with _service().transaction() as tx:
        row = await tx.fetch_one(
            "select order_id, user_id, amount, status from orders where order_id = :order_id", {"order_id": order_id}
        )
    if row is None:
        raise Problem(404, f"there is no order {order_id!r}")
    return json_response({"order_id": row[0], "user_id": row[1], "amount": row[2].quantize(CENT), "status": row[3]})


def _service() -> Any:
    from shop.orders import service  # the service holds this application: they know each other

    return service


async def _body(request: Request) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > LARGEST_DRAIN:
        raise Problem(
            413, f"a body of {declared} bytes; at most {LARGEST_BODY} are read", headers={"connection": "close"}
        )
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > LARGEST_DRAIN:
            raise Problem(413, f"at most {LARGEST_BODY} bytes are read", headers={"connection": "close"})
        if size <= LARGEST_BODY:
            chunks.append(chunk)
    if size > LARGEST_BODY:
        raise Problem(413, f"a body of {size} bytes; at most {LARGEST_BODY} are read")
    return b"".join(chunks)


def _read_order(body: bytes) -> OrderCreated:
    try:
        new = _decode(body)
    except RecursionError:
        raise Problem(400, "the body is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise Problem(422, f"the body is not an order: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, f"the body is not JSON: {error}") from None
    amount = _read_amount(bytes(new.amount))
    order_id = f"ORD-{uuid.uuid4().hex}" if new.order_id is None else new.order_id
    try:
        check_name("order_id", order_id)
        check_name("user_id", new.user_id)
        return OrderCreated(order_id=order_id, user_id=new.user_id, amount=amount)
    except ValueError as error:
        raise Problem(422, str(error)) from None


def _read_amount(raw: bytes) -> Decimal:
    if raw[:1] not in b"-0123456789":
        raise Problem(422, 'amount has to be a number, such as "amount": 99.99')
    try:
        amount = _decode_amount(raw)
        check_amount(amount)
    except (ValueError, ArithmeticError) as error:
        raise Problem(422, str(error)) from None
    return amount.quantize(CENT)


app = Starlette(
    routes=[
        Route("/orders", place_order, methods=["POST"]),
        Route("/orders/{order_id:path}", show_order, methods=["GET"]),
    ],
    exception_handlers={
        Problem: on_problem,
        StoreUnavailable: on_busy,
        HTTPException: on_http_exception,
        Exception: on_anything,
    },
)
