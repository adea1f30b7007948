"""Orders and payments: what each makes of the other's events."""

from __future__ import annotations

from decimal import Decimal

import pytest

from eventkeel.testing.harness import harness
from shop.orders import service as orders
from shop.orders.events import OrderCreated, OrderStatusChanged
from shop.payments import service as payments
from shop.payments.events import PaymentSucceeded

ORDER = OrderCreated(order_id="ORD1", user_id="USR1", amount=Decimal("99.99"))


async def test_an_order_is_paid_once_however_often_it_is_delivered() -> None:
    async with harness(payments) as app:
        await app.publish(ORDER)
        await app.raw("order_events", "ORD1", b'{"order_id":"ORD1","user_id":"USR1","amount":99.990}')
        await app.redeliver("order_events", times=2)
        await app.until_quiet()
        assert await app.rows("select order_id, amount from payments") == [("ORD1", Decimal("99.99"))]
        assert await app.published(PaymentSucceeded) == [PaymentSucceeded(order_id="ORD1", amount=Decimal("99.99"))]


async def test_the_same_order_with_another_amount_is_not_paid_again() -> None:
    async with harness(payments) as app:
        await app.publish(ORDER)
        await app.raw("order_events", "ORD1", b'{"order_id":"ORD1","user_id":"USR1","amount":1}')
        await app.until_quiet()
        assert await app.rows("select amount from payments") == [(Decimal("99.99"),)]


@pytest.mark.parametrize("amount", [b"0", b"-1", b"0.001", b"1e9", b"1e999", b'"x"', b"null", b"[]"])
async def test_an_order_over_no_amount_of_money_is_kept_as_a_dead_letter(amount: bytes) -> None:
    async with harness(payments) as app:
        await app.raw("order_events", "ORD1", b'{"order_id":"ORD1","user_id":"USR1","amount":' + amount + b"}")
        await app.raw("order_events", "ORD2", b'{"order_id":"ORD2","user_id":"USR1","amount":5}')
        await app.until_quiet()
        assert await app.rows("select order_id from payments") == [("ORD2",)]


async def test_a_paid_order_knows_it_and_its_history_is_in_order() -> None:
    async with harness(orders) as app:
        async with orders.transaction() as tx:
            tx.write("insert into orders (order_id, user_id, amount) values ('ORD1', 'USR1', 5)")
            tx.publish(OrderStatusChanged(order_id="ORD1", status="placed", sequence=1))
        await app.publish(PaymentSucceeded(order_id="ORD1", amount=Decimal(5)))
        await app.redeliver("payment_events")
        await app.until_quiet()
        assert await app.rows("select status from orders") == [("paid",)]
        history = await app.rows("select sequence, status from order_history order by number")
        assert history == [(1, "placed"), (2, "paid")]


async def test_a_payment_for_an_order_from_elsewhere_changes_nothing() -> None:
    async with harness(orders) as app:
        await app.publish(PaymentSucceeded(order_id="FOREIGN", amount=Decimal(5)))
        await app.until_quiet()
        assert await app.rows("select count(*) from orders") == [(0,)]
        assert await app.published(OrderStatusChanged) == []
