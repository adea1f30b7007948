"""The HTTP API of orders: what it takes, what it refuses, and in which words."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx2
import msgspec
import pytest

from eventkeel.testing.harness import Harness, harness
from shop.inventory.events import StockRefused
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
        assert answer.json() == {**ORDER, "items": [], "status": "placed", "reason": ""}
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
        (b'{"user_id": "u", "amount": 1, "items": [{"sku": ""}]}', 422, "sku is empty"),
        (b'{"user_id": "u", "amount": 1, "items": [{"sku": "mug", "quantity": 0}]}', 422, "quantity has to be"),
        (b'{"user_id": "u", "amount": 1, "items": [{"sku": "mug", "quantity": 1.5}]}', 422, "int"),
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


async def test_what_is_ordered_goes_along_with_the_order() -> None:
    async with shop() as (client, app):
        items = [{"sku": "mug", "quantity": 2}, {"sku": "cap", "quantity": 1}]
        answer = await client.post("/orders", json={**ORDER, "items": [{"sku": "mug", "quantity": 2}, {"sku": "cap"}]})
        assert answer.json()["items"] == items
        await app.until_quiet()
        (message,) = await app.messages("order_events")
        assert message.body is not None
        assert msgspec.json.decode(message.body)["items"] == items


# ------------------------------------------------------------------ Idempotency-Key

UNNAMED = {"user_id": "USR001", "amount": 5}


async def test_fifty_clients_at_once_with_one_key_place_one_order_and_get_fifty_equal_answers() -> None:
    async with shop() as (client, app):
        asked = [client.post("/orders", json=UNNAMED, headers={"Idempotency-Key": "K"}) for _ in range(50)]
        answers = await asyncio.gather(*asked)
        assert {answer.status_code for answer in answers} == {201}
        assert len({(answer.content, answer.headers["location"]) for answer in answers}) == 1
        await app.until_quiet()
        assert len(await app.messages("order_events")) == 1
        assert await app.rows("select count(*) from orders") == [(1,)]


async def test_a_key_keeps_its_answer_whatever_becomes_of_the_order() -> None:
    async with shop() as (client, app):
        first = await client.post("/orders", json=UNNAMED, headers={"Idempotency-Key": "K"})
        await client.post(first.headers["location"] + "/cancellation")
        await app.until_quiet()
        again = await client.post("/orders", json=UNNAMED, headers={"Idempotency-Key": "K"})
        assert again.content == first.content


async def test_a_key_for_another_order_is_refused() -> None:
    async with shop() as (client, app):
        await client.post("/orders", json=UNNAMED, headers={"Idempotency-Key": "K"})
        answer = await client.post("/orders", json={**UNNAMED, "amount": 6}, headers={"Idempotency-Key": "K"})
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:shop:problem:idempotency-key-reused")
        assert await app.rows("select count(*) from orders") == [(1,)]


async def test_a_key_whose_order_was_refused_can_be_used_again() -> None:
    async with shop() as (client, _):
        await client.post("/orders", json=ORDER)
        refused = await client.post("/orders", json={**ORDER, "amount": 1}, headers={"Idempotency-Key": "K"})
        assert refused.status_code == 409
        answer = await client.post("/orders", json=UNNAMED, headers={"Idempotency-Key": "K"})
        assert answer.status_code == 201


async def test_a_key_that_cannot_be_one_is_a_problem() -> None:
    async with shop() as (client, _):
        answer = await client.post("/orders", json=ORDER, headers={"Idempotency-Key": "x" * 101})
        assert (answer.status_code, "101 characters" in answer.json()["detail"]) == (400, True)


# ------------------------------------------------------------------ cancellation, lists, a life as it happens


async def test_a_cancelled_order_says_so_and_cancelling_it_again_is_the_same() -> None:
    async with shop() as (client, _):
        await client.post("/orders", json={**ORDER, "items": [{"sku": "mug"}]})
        for _ in range(2):
            answer = await client.post("/orders/ORD12345/cancellation")
            assert (answer.status_code, answer.json()["status"]) == (202, "releasing")


async def test_an_order_can_be_cancelled_before_it_has_arrived() -> None:
    async with shop() as (client, app):
        assert (await client.post("/orders/ORD12345/cancellation")).status_code == 202
        assert (await client.get("/orders/ORD12345")).status_code == 404
        assert (await client.get("/orders")).json()["orders"] == []
        body = b'{"order_id":"ORD12345","user_id":"U","amount":5,"items":[{"sku":"mug"}]}'
        await app.raw("order_events", "ORD12345", body)
        await app.until_quiet()
        assert (await client.get("/orders/ORD12345")).json()["status"] == "cancelled"


async def test_a_rejected_order_cannot_be_cancelled() -> None:
    async with shop() as (client, app):
        await client.post("/orders", json={**ORDER, "items": [{"sku": "mug"}]})
        await app.publish(StockRefused(order_id="ORD12345", reason="not enough of 'mug'"))
        await app.until_quiet()
        answer = await client.post("/orders/ORD12345/cancellation")
        assert (answer.status_code, answer.json()["type"]) == (409, "urn:shop:problem:order-not-cancellable")
        assert "not enough of 'mug'" in answer.json()["detail"]


async def test_orders_are_listed_page_by_page() -> None:
    async with shop() as (client, _):
        placed = [f"ORD{number}" for number in range(7)]
        for order_id in placed:
            await client.post("/orders", json={**ORDER, "order_id": order_id})
        await client.post("/orders/ORD3/cancellation")
        seen, before = list[str](), dict[str, str]()
        while True:
            page = (await client.get("/orders", params={"limit": 3, **before})).json()
            seen += [order["order_id"] for order in page["orders"]]
            if page["next"] is None:
                break
            before = {"before": page["next"]}
        assert sorted(seen) == placed
        assert len(seen) == len(placed)
        only = (await client.get("/orders", params={"status": "refunding"})).json()
        assert [order["order_id"] for order in only["orders"]] == ["ORD3"]
        assert (await client.get("/orders?limit=0")).status_code == 422


async def test_a_life_is_told_as_it_happens_and_can_be_gone_on_with() -> None:
    async with shop() as (client, app):
        await client.post("/orders", json={**ORDER, "items": [{"sku": "mug"}]})
        listening = asyncio.ensure_future(client.get("/orders/ORD12345/events"))
        await app.publish(StockRefused(order_id="ORD12345", reason="none left"))
        told = await asyncio.wait_for(listening, 20)
        assert told.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in told.text.splitlines() if line.startswith("data: ")]
        assert [msgspec.json.decode(event)["status"] for event in events] == ["placed", "rejected"]
        rest = await client.get("/orders/ORD12345/events", headers={"Last-Event-ID": "1"})
        assert rest.text == (
            "id: 2\nevent: status\n"
            'data: {"order_id":"ORD12345","sequence":2,"status":"rejected","reason":"none left"}\n\n'
        )
