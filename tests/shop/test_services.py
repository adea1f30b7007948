"""Each service by itself: what it makes of what the others say."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest

from eventkeel import Event
from eventkeel.testing.harness import Harness, harness
from shop import settings, signing
from shop.inventory import service as inventory
from shop.inventory.events import StockRefused, StockReleased, StockReserved, StockSold
from shop.loyalty import service as loyalty
from shop.notifications import service as notifications
from shop.notifications.events import MailDue
from shop.orders.events import Item, OrderCreated, OrderStatusChanged, Status
from shop.payments import service as payments
from shop.payments.events import PaymentDeclined, PaymentRefunded, PaymentSucceeded, PaymentVoided
from shop.shipping import service as shipping
from shop.shipping.events import ShipmentBooked, ShipmentRecalled, ShipmentRefused
from shop.users import service as users
from shop.users.events import UserRegistered
from tests.outside import Outside

PLAIN = OrderCreated(order_id="ORD1", user_id="USR1", amount=Decimal("99.99"))


def status(
    status: Status, sequence: int = 1, *items: tuple[str, int], order_id: str = "ORD1", **more: Any
) -> OrderStatusChanged:
    given: dict[str, Any] = {"user_id": "USR1", "amount": Decimal("99.99"), **more}
    basket = tuple(Item(sku, quantity) for sku, quantity in items)
    return OrderStatusChanged(order_id=order_id, status=status, sequence=sequence, items=basket, **given)


async def said(app: Harness, *kinds: type[Event]) -> list[str]:
    """Names of what was published of these, in order (of one key)."""
    topic = {kind: await app.published(kind) for kind in kinds}
    return [kind.__name__ for kind, events in topic.items() for _ in events]


# ------------------------------------------------------------------ inventory


async def test_stock_is_held_for_a_placed_order_and_sold_when_it_is_shipped() -> None:
    async with harness(inventory) as app:
        await app.publish(status("placed", 1, ("mug", 2), ("cap", 1)))
        await app.until_quiet()
        shelves = "select sku, free - initial, held, sold from stock where sku in ('cap', 'mug') order by sku"
        assert await app.rows(shelves) == [("cap", -1, 1, 0), ("mug", -2, 2, 0)]
        await app.publish(status("shipped", 2))
        await app.redeliver("order_status_events", times=2)
        await app.until_quiet()
        assert await app.rows(shelves) == [("cap", -1, 0, 1), ("mug", -2, 0, 2)]
        assert await said(app, StockReserved, StockSold) == ["StockReserved", "StockSold"]


async def test_nothing_is_held_for_an_order_that_cannot_have_all_of_it() -> None:
    async with harness(inventory) as app:
        await app.publish(status("placed", 1, ("mug", 1), ("print", 11)))
        await app.publish(status("placed", 1, ("unheard-of", 1), order_id="ORD2"))
        await app.until_quiet()
        assert await app.rows("select count(*) from stock where held > 0 or free < initial") == [(0,)]
        reasons = {refused.reason for refused in await app.published(StockRefused)}
        assert reasons == {"not enough of 'print'", "not enough of 'unheard-of'"}
        assert await app.published(StockReserved) == []


@pytest.mark.parametrize("sold", [False, True])
async def test_what_was_held_or_sold_is_free_again_when_the_order_goes_back(sold: bool) -> None:
    async with harness(inventory) as app:
        await app.publish(status("placed", 1, ("print", 3)))
        if sold:
            await app.publish(status("shipped", 2))
        await app.publish(status("releasing", 3))
        await app.until_quiet()
        assert await app.rows("select free, held, sold from stock where sku = 'print'") == [(10, 0, 0)]
        assert len(await app.published(StockReleased)) == 1


# ------------------------------------------------------------------ payments


@contextlib.asynccontextmanager
async def paying(folder: Path) -> AsyncIterator[tuple[Harness, Outside]]:
    with Outside(folder) as outside:
        settings.PROVIDER, settings.WEBHOOK = outside.environment["SHOP_PROVIDER"], "http://127.0.0.1:9/nobody"
        async with harness(payments) as app:
            yield app, outside


async def test_an_order_without_items_is_paid_once_however_often_it_is_delivered(tmp_path: Path) -> None:
    async with paying(tmp_path) as (app, _):
        await app.publish(PLAIN)
        await app.raw("order_events", "ORD1", b'{"order_id":"ORD1","user_id":"USR1","amount":99.990}')
        await app.redeliver("order_events", times=2)
        await app.until_quiet()
        assert await app.rows("select order_id, amount from payments") == [("ORD1", Decimal("99.99"))]
        assert await app.published(PaymentSucceeded) == [PaymentSucceeded(order_id="ORD1", amount=Decimal("99.99"))]


async def test_one_with_items_is_paid_when_they_are_reserved(tmp_path: Path) -> None:
    async with paying(tmp_path) as (app, _):
        await app.raw("order_events", "ORD1", b'{"order_id":"ORD1","user_id":"U","amount":5,"items":[{"sku":"mug"}]}')
        await app.publish(status("placed", 1, ("mug", 1)))
        await app.until_quiet()
        assert await app.rows("select count(*) from charges") == [(0,)]
        await app.publish(status("reserved", 2, ("mug", 1)))
        await app.until_quiet()
        assert await said(app, PaymentSucceeded) == ["PaymentSucceeded"]


async def test_the_same_order_with_another_amount_is_not_paid_again(tmp_path: Path) -> None:
    async with paying(tmp_path) as (app, _):
        await app.publish(PLAIN)
        await app.raw("order_events", "ORD1", b'{"order_id":"ORD1","user_id":"USR1","amount":1}')
        await app.until_quiet()
        assert await app.rows("select amount from payments") == [(Decimal("99.99"),)]


@pytest.mark.parametrize("amount", [b"0", b"-1", b"0.001", b"1e9", b"1e999", b'"x"', b"null", b"[]"])
async def test_an_order_over_no_amount_of_money_is_kept_as_a_dead_letter(amount: bytes) -> None:
    async with harness(payments) as app:
        await app.raw("order_events", "ORD1", b'{"order_id":"ORD1","user_id":"USR1","amount":' + amount + b"}")
        await app.raw("order_events", "ORD2", b'{"order_id":"ORD2","user_id":"USR1","amount":5,"items":[{"sku":"a"}]}')
        await app.until_quiet()
        assert await app.rows("select cast(key as text), state from eventkeel_held") == [("ORD1", "dead")]


async def test_a_refund_is_made_once_and_only_of_what_was_paid(tmp_path: Path) -> None:
    async with paying(tmp_path) as (app, _):
        await app.publish(PLAIN)
        await app.until_quiet()
        await app.publish(status("refunding", 3))
        await app.redeliver("order_status_events")
        await app.until_quiet()
        assert await app.rows("select sum(amount), count(*) from payments") == [(0, 2)]
        assert await said(app, PaymentSucceeded, PaymentRefunded) == ["PaymentSucceeded", "PaymentRefunded"]


async def test_an_order_that_was_called_off_before_it_came_is_never_paid(tmp_path: Path) -> None:
    async with paying(tmp_path) as (app, _):
        await app.publish(status("refunding", 1))
        await app.until_quiet()
        await app.publish(PLAIN)
        await app.until_quiet()
        assert await app.rows("select count(*) from payments") == [(0,)]
        assert await said(app, PaymentVoided, PaymentSucceeded) == ["PaymentVoided"]


async def test_a_declined_charge_is_said_with_its_reason(tmp_path: Path) -> None:
    async with paying(tmp_path) as (app, outside):
        outside.mode("declines")
        await app.publish(PLAIN)
        await app.until_quiet()
        (declined,) = await app.published(PaymentDeclined)
        assert declined.reason == "the bank says no"


@contextlib.asynccontextmanager
async def webhook() -> AsyncIterator[tuple[Harness, httpx2.AsyncClient]]:
    async with harness(payments) as app:
        async with payments.transaction() as tx:
            tx.write("insert into charges (order_id, user_id, amount, state) values ('ORD1', 'U', 5, 'asked')")
        transport = httpx2.ASGITransport(app=payments.http)
        async with httpx2.AsyncClient(transport=transport, base_url="http://payments") as client:
            yield app, client


TOLD = json.dumps({"reference": "ORD1", "status": "succeeded"}).encode()


async def test_a_signed_webhook_settles_a_charge_and_its_double_changes_nothing() -> None:
    async with webhook() as (app, client):
        headers = signing.sign(settings.WEBHOOK_SECRET, "m1", int(time.time()), TOLD)
        asked = [client.post("/webhooks/provider", content=TOLD, headers=headers) for _ in range(5)]
        assert {answer.status_code for answer in await asyncio.gather(*asked)} == {204}
        await app.until_quiet()
        assert await app.rows("select order_id, amount from payments") == [("ORD1", Decimal(5))]
        assert await said(app, PaymentSucceeded) == ["PaymentSucceeded"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        signing.sign(settings.WEBHOOK_SECRET, "m1", int(time.time()) - 3600, TOLD),
        signing.sign("whsec_c29tZWJvZHkgZWxzZQ==", "m1", int(time.time()), TOLD),
        signing.sign(settings.WEBHOOK_SECRET, "m1", int(time.time()), TOLD + b" "),
        {**signing.sign(settings.WEBHOOK_SECRET, "m1", int(time.time()), TOLD), "webhook-id": "m2"},
    ],
    ids=["unsigned", "old", "another secret", "another body", "another id"],
)
async def test_a_webhook_that_the_provider_has_not_signed_is_refused(headers: dict[str, str]) -> None:
    async with webhook() as (app, client):
        answer = await client.post("/webhooks/provider", content=TOLD, headers=headers)
        assert answer.status_code == 401
        assert await app.rows("select state from charges") == [("asked",)]


# ------------------------------------------------------------------ shipping, loyalty, notifications, users


async def test_a_paid_order_is_shipped_and_called_back_when_it_goes_back() -> None:
    async with harness(shipping) as app:
        await app.publish(status("paid", 3, ("mug", 1)), status("recalling", 4))
        await app.redeliver("order_status_events")
        await app.until_quiet()
        assert await app.rows("select order_id, state from shipments") == [("ORD1", "recalled")]
        assert await said(app, ShipmentBooked, ShipmentRecalled) == ["ShipmentBooked", "ShipmentRecalled"]


async def test_what_is_too_heavy_is_refused() -> None:
    async with harness(shipping) as app:
        await app.publish(status("paid", 3, ("mug", 1), ("anvil", 1)))
        await app.until_quiet()
        (refused,) = await app.published(ShipmentRefused)
        assert refused.reason == "nobody carries 'anvil'"
        assert await app.rows("select count(*) from shipments") == [(0,)]


async def test_points_are_given_for_a_confirmed_order_and_taken_back_when_it_is_cancelled() -> None:
    async with harness(loyalty) as app:
        await app.publish(status("confirmed", 5))
        await app.redeliver("order_status_events", times=2)
        await app.until_quiet()
        assert await app.rows("select points from accounts") == [(99,)]
        await app.publish(status("cancelled", 9), status("cancelled", 2, order_id="ORD2"))
        await app.until_quiet()
        assert await app.rows("select user_id, points from accounts") == [("USR1", 0)]
        await app.publish(UserRegistered(user_id="USR1", name="Ann", email="ann@mail.example"))
        await app.until_quiet()
        assert await app.rows("select points from accounts") == [(100,)]


async def test_a_mail_is_sent_to_whoever_registered_and_once_for_an_end(tmp_path: Path) -> None:
    with Outside(tmp_path) as outside:
        settings.SMTP = outside.environment["SHOP_SMTP"]
        async with harness(notifications) as app:
            await app.publish(UserRegistered(user_id="USR1", name="Änn", email="ann@mail.example"))
            await app.until_quiet()
            await app.publish(status("paid", 3), status("rejected", 4, reason="not enough of 'mug'"))
            await app.redeliver("order_status_events", times=2)
            await app.until_quiet()
            rejected, welcome = outside.mails()
            assert (welcome["to"], welcome["subject"]) == ("ann@mail.example", "Welcome")
            assert "Hello Änn" in welcome["text"]
            assert rejected["to"] == "ann@mail.example"
            assert "not enough of 'mug'" in rejected["text"]
            assert await app.rows("select mail_id from mails order by mail_id") == [
                ("order ORD1 4",),
                ("welcome USR1",),
            ]


async def test_a_mail_waits_for_a_mail_server_that_is_down(tmp_path: Path) -> None:
    outside = Outside(tmp_path)
    settings.SMTP = outside.environment["SHOP_SMTP"]
    async with harness(notifications) as app:
        await app.publish(MailDue(mail_id="m", to="a@mail.example", subject="s", text=".a line with a dot\nend"))
        await app.until_quiet(retries=False)
        assert await app.rows("select count(*) from mails") == [(0,)]
        with outside:
            await app.until_quiet()
            assert [mail["text"] for mail in outside.mails()] == [".a line with a dot\nend\n"]


async def test_a_user_registers_once() -> None:
    async with harness(users) as app:
        transport = httpx2.ASGITransport(app=users.http)
        async with httpx2.AsyncClient(transport=transport, base_url="http://users") as client:
            ann = {"user_id": "USR1", "name": "Ann", "email": "ann@mail.example"}
            answers = [await client.post("/users", json=ann) for _ in range(2)]
            assert [(answer.status_code, answer.json()) for answer in answers] == [(201, ann)] * 2
            assert (await client.get("/users/USR1")).json() == ann
            other = await client.post("/users", json={**ann, "name": "Bob"})
            assert (other.status_code, other.json()["type"]) == (409, "urn:shop:problem:user-conflict")
            assert (await client.post("/users", json={"name": "Ann", "email": "nowhere"})).status_code == 422
            assert (await client.get("/users/USR2")).status_code == 404
        await app.until_quiet()
        assert await app.published(UserRegistered) == [UserRegistered(**ann)]
