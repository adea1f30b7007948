"""segmentio/kafka-go, as a widespread tutorial has it, beside the shop."""

from __future__ import annotations

import json
from contextlib import closing
from decimal import Decimal

import pytest

from eventkeel.testing.fleet import free_port
from interop.programs import Programs
from shop.placing import Api
from tests.interop.kit import PARTITIONS, PAYMENTS, Program, Street, run

pytestmark = [pytest.mark.timeout(900)]  # the first test may have to bring and build the programs
ORDERS = 60


def test_an_order_that_a_go_program_sends_twice_is_paid_once(programs: Programs, street: Street) -> None:
    # It reads three topics: four workers have at most five partitions each, so no one has all six of this one.
    with street.services("shop.payments:service", "--workers", "4") as payments:
        street.until_there(payments, "order_events", "payment_events")
        street.until_owned(payments, "order_events", PAYMENTS, "payment-service", 2)
        said = run(
            [*programs.produce, "-broker", street.address, "-topic", street.topic("order_events"),
             "-orders", str(ORDERS), "-twice"]
        )  # fmt: skip
        assert said == f"sent {2 * ORDERS} orders\n"
        payments.until(
            lambda: street.rows("select count(distinct order_id) from payments", "payment-service") == [(ORDERS,)],
            "every order is paid",
        )
        street.until_handled(payments, PAYMENTS, "order_events")
        street.until_sent(payments, "payment-service")

        sent = street.messages("order_events")
        assert {message.headers for message in sent} == {()}
        assert sorted(street.copies("order_events").values()) == [2] * ORDERS
        scattered = [key for key, places in street.partitions_of("order_events").items() if len(places) == 2]
        assert len(scattered) > ORDERS / 2, "the two copies of an order lie together: nothing is proved"
        apart = _handled_by_two_workers(street, scattered)
        assert apart, "no order was seen by two workers: nothing is proved"

        paid = street.rows("select order_id, amount from payments order by order_id", "payment-service")
        assert paid == sorted((f"ORD{each}", Decimal(each) + Decimal("99.99")) for each in range(1, ORDERS + 1))
        assert sorted(street.copies("payment_events").values()) == [1] * ORDERS
        assert street.rows("select count(*) from eventkeel_held", "payment-service") == [(0,)]


def _handled_by_two_workers(street: Street, keys: list[bytes]) -> list[bytes]:
    """Of these keys, those whose partitions belong to different processes."""
    owners = dict(
        street.rows(
            "select partition, owner from eventkeel_owner where grp = ? and topic = ?",
            "payment-service",
            PAYMENTS,
            "order_events",
        )
    )
    places = street.partitions_of("order_events")
    return [key for key in keys if len({owners[each] for each in places[key]}) == 2]


def test_a_go_consumer_gets_every_order_of_the_api_and_nothing_else(programs: Programs, street: Street) -> None:
    port = free_port()
    services = [f"shop.{name}:service" for name in ("orders", "inventory", "payments")]
    with street.services(*services, "--http", f"orders=127.0.0.1:{port}") as shop:
        street.until_there(shop, "order_events", "order_status_events", "payment_events")
        placed = [{"order_id": f"API{each}", "user_id": "Ünï 1", "amount": each + 0.05} for each in range(1, 31)]
        with closing(Api("127.0.0.1", port)) as api:
            for order in placed:
                api.post("/orders", json.dumps(order))
        paid = "select count(*) from orders where status = 'paid'"
        shop.until(lambda: street.rows(paid, "orders") == [(len(placed),)], "every order is paid")
        history = "select count(*) from order_history where status = 'paid'"
        shop.until(lambda: street.rows(history, "orders") == [(len(placed),)], "every payment is told")

        # One more order at the end of each partition: whoever has read these has read all that was before.
        last = [{"order_id": f"LAST{each}", "user_id": "U", "amount": 1} for each in range(PARTITIONS)]
        for number, order in enumerate(last):
            street.put("order_events", json.dumps(order).encode(), key=str(order["order_id"]), partition=number)
        go = [*programs.consume, "-broker", street.address, "-topic", street.topic("order_events")]
        with Program([*go, "-group", street.topic("analytics")]) as consumer:
            ends = {order["order_id"] for order in last}
            consumer.until(lambda: ends <= {each.get("order_id") for each in consumer.json}, "it has read to the end")
            got = sorted(consumer.json, key=lambda order: str(order))
        assert got == sorted(placed + last, key=lambda order: str(order))
        street.until_handled(shop, PAYMENTS, "order_events")
        paid = "select count(*) from payments"
        shop.until(lambda: street.rows(paid, "payment-service") == [(len(placed) + PARTITIONS,)], "all are paid, once")
