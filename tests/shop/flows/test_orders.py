"""What becomes of an order: one flow, one test. At the end of each, the ledger has to balance (see conftest.py)."""

from __future__ import annotations

import asyncio
import random
from decimal import Decimal

import pytest

from shop import settings
from tests.shop.kit import Shop

WELL = ["placed", "reserved", "paid", "shipped", "confirmed"]


@pytest.fixture
def step_timeout(monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds after which an order that nobody answers goes back."""
    monkeypatch.setattr(settings, "STEP_TIMEOUT", 30.0)
    return 30.0


async def test_an_order_is_reserved_paid_shipped_and_confirmed(it: Shop) -> None:
    await it.place("A", "mug", "cap", amount=19.0)
    await it.until_quiet()
    assert await it.life("A") == WELL
    assert await it.rows("payments", "select order_id, amount from payments") == [("A", Decimal(19))]
    sold = "select sku, sold from stock where sold > 0 order by sku"
    assert await it.rows("inventory", sold) == [("cap", 1), ("mug", 1)]
    assert await it.rows("loyalty", "select user_id, points from accounts") == [("USR1", 19)]
    assert [mail["subject"] for mail in it.outside.mails()] == ["Your order A is on its way"]


async def test_a_new_user_is_welcomed_with_a_mail_and_points_and_hears_of_an_order(it: Shop) -> None:
    async with it.client("users") as client:
        await client.post("/users", json={"user_id": "USR1", "name": "Ann", "email": "ann@mail.example"})
    await it.until_quiet()
    await it.place("A", "mug", amount=7.0)
    await it.until_quiet()
    assert await it.rows("loyalty", "select points from accounts") == [(107,)]
    mails = [(mail["to"], mail["subject"]) for mail in it.outside.mails()]
    assert mails == [("ann@mail.example", "Your order A is on its way"), ("ann@mail.example", "Welcome")]


async def test_an_order_for_what_is_not_there_is_rejected_and_costs_nothing(it: Shop) -> None:
    await it.place("A", "mug", "unicorn")
    await it.until_quiet()
    assert await it.life("A") == ["placed", "rejected"]
    assert await it.rows("payments", "select count(*) from charges") == [(0,)]
    assert "not enough of 'unicorn'" in it.outside.mails()[0]["text"]


async def test_a_declined_payment_frees_the_stock(it: Shop) -> None:
    it.outside.mode("declines")
    await it.place("A", "mug")
    await it.until_quiet()
    assert await it.life("A") == ["placed", "reserved", "releasing", "rejected"]
    assert await it.rows("inventory", "select free - initial, held from stock where sku = 'mug'") == [(0, 0)]


async def test_a_provider_that_answers_later_is_heard_by_its_webhook(it: Shop) -> None:
    it.outside.mode("slow")
    await it.place("A", "mug")
    await it.until("A", "confirmed")
    await it.until_quiet()
    assert await it.life("A") == WELL


async def test_a_provider_that_times_out_and_answers_late_and_twice_charges_once(it: Shop) -> None:
    it.outside.mode("times out")
    await it.place("A", "mug")
    await it.until("A", "confirmed")
    it.outside.mode("normal")
    await it.until_quiet()
    assert await it.life("A") == WELL
    assert await it.rows("payments", "select count(*), sum(amount) from payments") == [(1, 10)]


async def test_an_answer_after_the_timeout_is_given_back(it: Shop, step_timeout: float) -> None:
    it.outside.mode("slow")
    await it.place("A", "mug")
    await it.until("A", "reserved")
    it.advance(step_timeout + 1)
    await it.until("A", "rejected")
    await it.until_quiet()
    assert await it.life("A") == ["placed", "reserved", "refunding", "releasing", "rejected"]
    assert await it.rows("payments", "select amount from payments order by amount desc") == [(10,), (-10,)]
    assert "payments did not answer in time" in it.outside.mails()[0]["text"]


async def test_an_order_that_everybody_answers_hears_no_timeout(it: Shop, step_timeout: float) -> None:
    await it.place("A", "mug")
    await it.until("A", "confirmed")
    it.advance(10 * step_timeout)
    await it.until_quiet()
    assert await it.life("A") == WELL


async def test_what_nobody_ships_is_refunded_and_then_freed(it: Shop) -> None:
    await it.place("A", "anvil", amount=240)
    await it.until_quiet()
    assert await it.life("A") == ["placed", "reserved", "paid", "refunding", "releasing", "rejected"]
    assert await it.rows("payments", "select sum(amount), count(*) from payments") == [(0, 2)]
    assert await it.rows("loyalty", "select count(*) from entries") == [(0,)]


@pytest.mark.parametrize("reached", ["placed", "reserved", "paid", "shipped", "confirmed"])
async def test_an_order_that_is_cancelled_on_its_way_goes_back_in_reverse(it: Shop, reached: str) -> None:
    await it.place("A", "mug", "cap", amount=19.0)
    await it.until("A", reached)
    await it.cancel("A")
    await it.until_quiet()
    life = await it.life("A")
    back = [status for status in life if status not in WELL]
    assert back == [step for step in ("recalling", "refunding", "releasing") if step in back] + ["cancelled"]
    assert life == [status for status in WELL if status in life] + back
    assert await it.rows("inventory", "select count(*) from stock where held > 0 or sold > 0") == [(0,)]
    assert await it.rows("loyalty", "select coalesce(sum(points), 0) from accounts") == [(0,)]


async def test_a_cancellation_that_overtakes_its_order_waits_for_it(it: Shop) -> None:
    await it.cancel("A")
    await it.apps["orders"].raw(
        "order_events", "A", b'{"order_id":"A","user_id":"U","amount":5,"items":[{"sku":"mug"}]}'
    )
    await it.until_quiet()
    assert await it.life("A") == ["cancelled"]
    assert await it.rows("payments", "select count(*) from payments") == [(0,)]


async def test_one_without_items_that_is_cancelled_before_it_comes_costs_nothing_in_the_end(it: Shop) -> None:
    """`payments` hears of it by itself, so the two may meet in any order: what was taken is given back."""
    for number in range(10):
        await it.cancel(f"A{number}")
        body = f'{{"order_id":"A{number}","user_id":"U","amount":5}}'.encode()
        await it.apps["orders"].raw("order_events", f"A{number}", body)
    await it.until_quiet()
    for number in range(10):
        assert (await it.life(f"A{number}"))[-1] == "cancelled"
    assert await it.rows("payments", "select coalesce(sum(amount), 0) from payments") == [(0,)]


async def test_a_foreign_producer_that_writes_three_fields_twice_is_served_once(it: Shop) -> None:
    for amount in (b"99.99", b"99.990"):
        body = b'{"order_id":"A","user_id":"USR001","amount":' + amount + b"}"
        await it.apps["orders"].raw("order_events", "A", body)
    await it.until_quiet()
    assert await it.life("A") == WELL
    assert await it.rows("payments", "select order_id, amount from payments") == [("A", Decimal("99.99"))]


async def test_of_a_hundred_buyers_of_ten_prints_exactly_ten_win(it: Shop) -> None:
    buyers = [it.place(f"A{number:02}", "print", user_id=f"USR{number}", amount=95) for number in range(100)]
    await asyncio.gather(*buyers)
    await it.until_quiet()
    ends = await it.rows("orders", "select status, count(*) from orders group by status order by status")
    assert ends == [("confirmed", 10), ("rejected", 90)]
    assert await it.rows("inventory", "select free, held, sold from stock where sku = 'print'") == [(0, 0, 10)]
    assert await it.rows("payments", "select sum(amount), count(*) from payments") == [(950, 10)]


async def test_fifty_clients_with_one_key_at_once_place_one_order_and_get_fifty_equal_answers(it: Shop) -> None:
    body = {"user_id": "USR1", "amount": 7, "items": [{"sku": "mug"}]}
    async with it.client() as client:
        asked = [client.post("/orders", json=body, headers={"Idempotency-Key": "K"}) for _ in range(50)]
        answers = await asyncio.gather(*asked)
    assert {answer.status_code for answer in answers} == {201}
    assert len({(answer.content, answer.headers["location"]) for answer in answers}) == 1
    await it.until_quiet()
    assert await it.rows("orders", "select status from orders") == [("confirmed",)]


async def test_a_poison_message_is_kept_and_everybody_else_flows(it: Shop) -> None:
    await it.place("A", "mug")
    await it.apps["orders"].raw("order_events", "A", b'{"order_id":"A","user_id":"USR1","amount":"much"}')
    await it.apps["orders"].raw("order_events", "B", b"\x00 no event at all")
    await it.place("C", "cap")
    await it.until_quiet()
    assert await it.life("A") == await it.life("C") == WELL
    kept = "select cast(state as text), reason from eventkeel_held order by reason"
    for service in ("orders", "payments"):
        assert [state for state, _ in await it.rows(service, kept)] == ["dead", "dead"]
    assert it.ledger().dead == 4


async def test_deliveries_twice_and_shuffled_change_nothing(it: Shop) -> None:
    for number in range(6):
        await it.place(f"A{number}", "mug", "cap")
    await it.place("B", "anvil")
    await it.until_quiet()
    counted = it.ledger()
    topics = ["order_events", "order_status_events", "inventory_events", "payment_events", "shipping_events"]
    topics += ["payment_requests", "mail_requests"]
    random.Random(1).shuffle(topics)
    for topic in topics:
        await it.apps["orders"].redeliver(topic, times=2)
    await it.until_quiet()
    assert it.ledger() == counted


@pytest.mark.parametrize("name", ["orders", "inventory", "payments", "shipping", "notifications", "loyalty"])
async def test_a_service_that_is_killed_at_any_moment_goes_on_where_it_was(it: Shop, name: str) -> None:
    dice = random.Random(name)
    for turn in range(3):
        placing = [it.place(f"A{turn}{number}", "mug", amount=10 + number) for number in range(8)]
        if name == "orders":  # its API is in the same process here
            await asyncio.gather(*placing)
            placing = []
        killing = asyncio.ensure_future(_kill(it, name, dice.random() * 0.15))
        await asyncio.gather(*placing)
        await killing
    await it.until_quiet()
    assert await it.rows("orders", "select status, count(*) from orders group by status") == [("confirmed", 24)]


async def _kill(it: Shop, name: str, after: float) -> None:
    await asyncio.sleep(after)
    await it.crash(name)
