"""The HTTP API of orders: what it takes, what it refuses, and in which words."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx2
import pytest

from eventkeel.testing.harness import Harness, harness
from shop.orders import service
from shop.orders.events import OrderCreated, OrderStatusChanged

ORDER = {"order_id": "ORD12345", "user_id": "USR001", "amount": 99.99}


@contextlib.asynccontextmanager
async def shop() -> AsyncIterator[tuple[httpx2.AsyncClient, Harness]]:
    async with harness(service) as app:
        transport = httpx2.ASGITransport(app=service.http)
        async with httpx2.AsyncClient(transport=transport, base_url="http://shop") as client:
            yield client, app


async def test_an_order_is_stored_and_told_in_one_transaction() -> None:
    async with shop() as (client, app):
        answer = await client.post("/orders", json=ORDER)
        assert answer.status_code == 201
        assert answer.headers["location"] == "/orders/ORD12345"
        assert answer.json() == {**ORDER, "status": "placed"}
        await app.until_quiet()
        assert await app.published(OrderCreated) == [
            OrderCreated(order_id="ORD12345", user_id="USR001", amount=Decimal("99.99"))
        ]
        assert [change.sequence for change in await app.published(OrderStatusChanged)] == [1]


async def test_what_lies_on_the_topic_is_three_plain_fields() -> None:
    async with shop() as (client, app):
        await client.post("/orders", json=ORDER)
        await app.until_quiet()
        (message,) = await app.messages("order_events")
        assert message.key == b"ORD12345"
        assert message.body == b'{"order_id":"ORD12345","user_id":"USR001","amount":99.99}'


async def test_the_same_order_twice_is_one_order_with_one_answer() -> None:
    async with shop() as (client, app):
        first = await client.post("/orders", json=ORDER)
        second = await client.post(
            "/orders", content=b'{"amount": 9.999e1, "user_id": "USR001", "order_id": "ORD12345"}'
        )
        assert (second.status_code, second.content) == (first.status_code, first.content)
        await app.until_quiet()
        assert len(await app.messages("order_events")) == 1


async def test_the_same_order_with_another_amount_is_a_conflict() -> None:
    async with shop() as (client, app):
        await client.post("/orders", json=ORDER)
        answer = await client.post("/orders", json={**ORDER, "amount": 100})
        assert answer.status_code == 409
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "urn:shop:problem:order-conflict"
        assert (await client.get("/orders/ORD12345")).json()["amount"] == 99.99
        await app.until_quiet()
        assert len(await app.messages("order_events")) == 1


async def test_an_order_without_an_id_gets_one() -> None:
    async with shop() as (client, _):
        answer = await client.post("/orders", json={"user_id": "USR001", "amount": 5})
        assert answer.status_code == 201
        shown = await client.get(answer.headers["location"])
        assert shown.content == answer.content


@pytest.mark.parametrize("order_id", ["a/b", "a?b=c", "100 %", "ä/"])
async def test_any_id_can_be_looked_up_where_the_answer_says(order_id: str) -> None:
    async with shop() as (client, _):
        answer = await client.post("/orders", json={**ORDER, "order_id": order_id, "amount": 12.5})
        shown = await client.get(answer.headers["location"])
        assert shown.content == answer.content


async def test_an_order_nobody_placed_is_a_problem() -> None:
    async with shop() as (client, _):
        answer = await client.get("/orders/NONE")
        assert (answer.status_code, answer.json()["title"]) == (404, "Not Found")


DEEP = b'{"user_id": "u", "amount": 1, "x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[]", 422, "not an order"),
        (b"null", 422, "not an order"),
        (b"{}", 422, "user_id"),
        (b'{"user_id": "u"}', 422, "amount"),
        (b'{"user_id": 7, "amount": 1}', 422, "user_id"),
        (b'{"user_id": "u", "amount": "99.99"}', 422, "number"),
        (b'{"user_id": "u", "amount": null}', 422, "number"),
        (b'{"user_id": "u", "amount": 0}', 422, "above 0"),
        (b'{"user_id": "u", "amount": -1}', 422, "above 0"),
        (b'{"user_id": "u", "amount": 0.001}', 422, "two decimals"),
        (b'{"user_id": "u", "amount": 1000000000}', 422, "below"),
        (b'{"user_id": "u", "amount": 1e999}', 422, "below"),
        (b'{"user_id": "u", "amount": 1e-999}', 422, "two decimals"),
        (b'{"user_id": "u", "amount": 1e999999999999999999999}', 422, ""),
        (b'{"user_id": "u", "amount": ' + b"9" * 5000 + b"}", 422, "below"),
        (b'{"user_id": "u", "amount": NaN}', 400, "not JSON"),
        (b'{"user_id": "", "amount": 1}', 422, "user_id is empty"),
        (b'{"user_id": "u", "amount": 1, "order_id": ""}', 422, "order_id is empty"),
        (b'{"user_id": "u", "amount": 1, "order_id": "a\\u0000b"}', 422, "printed"),
        (b'{"user_id": "u", "amount": 1, "order_id": "' + b"x" * 101 + b'"}', 422, "101 characters"),
        (b'{"user_id": "u", "amount": 1, "order_id": "\\ud800"}', 400, "not JSON"),
        (DEEP, 400, "nested too deeply"),
        (b"x" * (5 * 1024 * 1024), 413, "5242880 bytes"),
    ],
)
async def test_a_bad_body_is_a_clear_problem_and_no_order(body: bytes, status: int, words: str) -> None:
    async with shop() as (client, app):
        answer = await client.post("/orders", content=body)
        problem: dict[str, Any] = answer.json()
        assert (answer.status_code, problem["status"]) == (status, status), problem
        assert answer.headers["content-type"] == "application/problem+json"
        assert words in problem["detail"]
        assert await app.rows("select count(*) from orders") == [(0,)]


async def test_a_path_and_a_method_that_do_not_exist_are_problems_too() -> None:
    async with shop() as (client, _):
        for answer in (await client.get("/nothing"), await client.delete("/orders")):
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["status"] == answer.status_code
