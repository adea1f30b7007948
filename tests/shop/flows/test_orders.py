"""What becomes of an order: one flow, one test."""

from __future__ import annotations

from decimal import Decimal

from tests.shop.kit import Shop


async def test_an_order_is_reserved_paid_shipped_and_confirmed(it: Shop) -> None:
    await it.place("A", "mug", "cap", amount=19.0)
    await it.until_quiet()
    assert await it.life("A") == ["placed", "reserved", "paid", "shipped", "confirmed"]
    assert await it.rows("payments", "select order_id, amount from payments") == [("A", Decimal(19))]
    assert await it.rows("inventory", "select sku, sold from stock where sold > 0 order by sku") == [
        ("cap", 1),
        ("mug", 1),
    ]
    assert await it.rows("loyalty", "select user_id, points from accounts") == [("USR1", 19)]
    assert [mail["subject"] for mail in it.outside.mails()] == ["Your order A is on its way"]
