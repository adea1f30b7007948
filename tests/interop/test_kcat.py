"""kcat writes what we read, and reads what we write."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest

from interop.programs import Programs
from tests.interop.kit import PAYMENTS, Street, run

pytestmark = [pytest.mark.timeout(900)]  # the first test may have to bring and build the programs
ORDER = '{"order_id":"K1","user_id":"U1","amount":20}'
KEYLESS = '{"order_id":"K2","user_id":"U1","amount":0.10}'
BROKEN = '{"order_id":"K3","user_id":"U1","amount":"much"}'


def test_kcat_writes_orders_and_reads_payments(programs: Programs, street: Street) -> None:
    orders, payments = street.topic("order_events"), street.topic("payment_events")
    with street.services("shop.payments:service") as shop:
        street.until_there(shop, "order_events", "payment_events")
        write = [*programs.kcat, "-P", "-b", street.address, "-t", orders]
        run([*write, "-K", "|"], f"K1|{ORDER}\nK1|{ORDER}\nK3|{BROKEN}\n")
        run(write, f"{KEYLESS}\n")
        paid = "select order_id, amount from payments order by order_id"
        expected = [("K1", Decimal(20)), ("K2", Decimal("0.10"))]
        shop.until(lambda: street.rows(paid, "payment-service") == expected, "K1 and K2 are paid")
        street.until_handled(shop, PAYMENTS, "order_events")
        street.until_sent(shop, "payment-service")
        assert street.rows(paid, "payment-service") == expected
        held = street.rows("select state, reason, body from eventkeel_held", "payment-service")
        assert [(state, reason, bytes(body)) for state, reason, body in held] == [
            ("dead", "wrong-fields", BROKEN.encode())
        ]

    shown = run([*programs.kcat, "-C", "-e", "-q", "-b", street.address, "-t", payments, "-f", "%k\t%h\t%s\n"])
    lines = [line.split("\t") for line in shown.splitlines()]
    assert {key: json.loads(body) for key, _, body in lines} == {
        "K1": {"order_id": "K1", "amount": 20},
        "K2": {"order_id": "K2", "amount": 0.1},
    }
    assert len(lines) == 2
    for key, shown_headers, _ in lines:
        headers = dict(pair.split("=", 1) for pair in shown_headers.split(","))
        UUID(headers.pop("ce_id"))
        age = datetime.now(UTC) - datetime.fromisoformat(headers.pop("ce_time"))
        assert timedelta(0) < age < timedelta(minutes=10)
        order, request = UUID(headers.pop("ce_correlationid")), UUID(headers.pop("ce_causationid"))
        assert order != request, "the payment was caused by a request of the service's own, which the order caused"
        assert headers == {
            "content-type": "application/json",
            "ce_specversion": "1.0",
            "ce_type": "PaymentSucceeded",
            "ce_source": "/payment-service",
            "ce_subject": key,
        }
