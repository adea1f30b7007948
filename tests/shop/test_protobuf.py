"""``SHOP_PROTOBUF``: one variable gives a topic Protobuf bodies, and no service's code knows of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest

from shop.brokers import open_broker
from shop.protos import shop_pb2

SWITCHED = {**os.environ, "SHOP_PROTOBUF": "payment_events order_events"}

FOREIGN = """
import asyncio
from eventkeel.testing.harness import harness
from shop.orders import service
from shop.protos import shop_pb2

async def main():
    order = shop_pb2.OrderCreated(order_id="A", user_id="U", amount="99.99", items=[shop_pb2.Item(sku="mug")])
    headers = {"content-type": "application/protobuf"}
    async with harness(service) as app:
        for _ in range(2):
            await app.raw("order_events", "A", order.SerializeToString(), headers)
        await app.raw("order_events", "A", b'{"order_id":"A","user_id":"U","amount":99.99,"items":[{"sku":"mug"}]}')
        await app.raw("order_events", "B", shop_pb2.PaymentVoided(order_id="B").SerializeToString(), headers)
        await app.until_quiet()
        print(await app.rows("select order_id, amount, items, status, sequence from orders"))
        print(await app.rows("select state, reason from eventkeel_held"))

asyncio.run(main())
"""


@pytest.mark.slow
def test_payments_are_written_as_protobuf_and_the_ledger_balances(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shop", "--orders", "30", "--seed", "2", "--json", "--data", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=SWITCHED)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    assert said["confirmed"] > 10
    with closing(open_broker(f"sqlite:///{tmp_path / 'broker.sqlite3'}")) as broker:
        payments, orders = list(broker.messages("payment_events")), list(broker.messages("order_events"))
    kinds = {dict(message.headers)["content-type"] for message in payments}
    assert kinds == {b"application/protobuf"}
    taken = sum(
        Decimal(shop_pb2.PaymentSucceeded.FromString(message.body or b"").amount)
        for message in payments
        if dict(message.headers)["ce_type"] == b"PaymentSucceeded"
    )
    assert taken * 100 == said["charged"]
    assert {"order_id", "user_id", "amount"} <= json.loads(orders[0].body or b"").keys(), "still plain JSON"


def test_an_order_that_a_foreign_producer_writes_as_protobuf_is_served_once_and_a_wrong_one_is_kept() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FOREIGN], capture_output=True, text=True, timeout=60, check=False, env=SWITCHED
    )
    assert ran.returncode == 0, ran.stderr
    orders, held = ran.stdout.splitlines()
    assert orders == """[('A', Decimal('99.99'), '[{"sku":"mug","quantity":1}]', 'placed', 1)]"""
    assert held.startswith("[('dead', "), held
