"""A FastStream service on confluent, beside payments: each reads as its own models what the other writes."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from decimal import Decimal
from typing import Any

import pytest

from eventkeel.testing.fleet import free_port
from interop.programs import Programs
from shop.placing import Api
from tests.interop.kit import PAYMENTS, Program, Street

pytestmark = [pytest.mark.timeout(900)]  # the first test may have to bring and build the programs
ORDERS = 12


def heard(program: Program, model: str) -> Counter[str]:
    """Order id -> how often the service printed a model of this name with it."""
    return Counter(line[model]["order_id"] for line in program.json if model in line)


def test_orders_of_a_faststream_service_are_paid_once_and_it_hears_of_each_payment(
    programs: Programs, street: Street
) -> None:
    everybody = [f"FS{number}" for number in range(1, ORDERS + 1)]
    with street.services("shop.payments:service", "--workers", "2") as shop:
        street.until_there(shop, "order_events", "payment_events")
        with Program(_service(programs, street, "--orders", str(ORDERS), "--twice")) as service:
            service.until(
                lambda: heard(service, "PaymentSucceeded").keys() == {*everybody}, "it heard of every payment"
            )
            service.until(
                lambda: heard(service, "OrderCreated") == dict.fromkeys(everybody, 2), "and of its own orders"
            )
            street.until_handled(shop, PAYMENTS, "order_events")
            street.until_sent(shop, "payment-service")
            lines: list[dict[str, Any]] = service.json
        paid = street.rows("select order_id, amount from payments order by amount", "payment-service")
        assert paid == [(f"FS{number}", number + Decimal("0.5")) for number in range(1, ORDERS + 1)]
        assert street.rows("select count(*) from eventkeel_held", "payment-service") == [(0,)]
        assert street.copies("payment_events") == {each.encode(): 1 for each in everybody}
    payments = [line["PaymentSucceeded"] for line in lines if "PaymentSucceeded" in line]
    assert {each["order_id"]: Decimal(each["amount"]) for each in payments} == dict(paid)


def test_a_faststream_service_hears_of_orders_as_its_pydantic_model(programs: Programs, street: Street) -> None:
    port, order = free_port(), {"order_id": "API-ä", "user_id": "Ü", "amount": 0.1}
    with street.services("shop.orders:service", "--http", f"127.0.0.1:{port}") as shop:
        street.until_there(shop, "order_events", "payment_events")
        with closing(Api("127.0.0.1", port)) as api:
            api.post("/orders", json.dumps(order))
        street.until_sent(shop, "orders")
        with Program(_service(programs, street)) as service:
            service.until(lambda: heard(service, "OrderCreated")["API-ä"], "it heard of the order")
            assert service.json == [{"OrderCreated": order}]


def _service(programs: Programs, street: Street, *more: str) -> list[str]:
    place = ["--broker", street.address, "--prefix", street.prefix, "--group", street.topic("faststream")]
    return [*programs.faststream, *place, *more]
