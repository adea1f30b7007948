"""A program on confluent-kafka and protobuf, beside a service: each reads the bodies that the other writes."""

from __future__ import annotations

import sys
from decimal import Decimal

from tests.interop.kit import Program, Street

ORDERS = 12
HELD = "select reason, key from eventkeel_held order by number"


def test_a_program_writes_protobuf_that_is_paid_once_and_reads_the_payments(street: Street) -> None:
    everybody = {f"PB{number}": number + Decimal("0.1") for number in range(1, ORDERS + 1)}
    with street.services("tests.interop.bodies:service", "--workers", "2") as services:
        street.until_there(services, "bodies_orders", "bodies_payments")
        street.put("bodies_orders", b'{"order_id":"JSON","user_id":"U","amount":1.50}', key="JSON")
        with Program(program(street)) as other:
            other.until(lambda: len(other.lines) == ORDERS + 1, "it read every payment")
            street.until_handled(services, "bodies", "bodies_orders")
            street.until_sent(services, "bodies")
            payments = other.json
    assert {each["order_id"]: Decimal(each["amount"]) for each in payments} == {**everybody, "JSON": Decimal("1.5")}
    assert {(each["type"], each["content_type"]) for each in payments} == {("OrderPaid", "application/protobuf")}
    assert len(street.messages("bodies_payments")) == ORDERS + 1
    assert dict(street.rows("select order_id, amount from paid", "bodies")) == {**everybody, "JSON": Decimal("1.5")}
    assert street.rows(HELD, "bodies") == [("wrong-schema", b"PB-text")]


def program(street: Street) -> list[str]:
    return [
        *(sys.executable, "-m", "interop.python.protobuf_program"),
        *("--broker", street.address, "--group", street.topic("protobuf"), "--orders", str(ORDERS)),
        *("--orders-topic", street.topic("bodies_orders"), "--payments-topic", street.topic("bodies_payments")),
    ]
