"""Orders that all want the same few rows: what batches are worth where they get in each other's way.

    python -m tests.hot_rows --skus 50 --lanes 1,2,4 --workers 2

Each order takes one piece of one of the SKUs; their keys are spread, so that all lanes of all workers meet at the
same rows. Rates are taken from commit times in the database. Exit 0: the stock is exact, and with the most lanes the
rate is at least 0.8 of that of one delivery per transaction with the same lanes; 1: not so.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from eventkeel import Event, Service, Transaction
from eventkeel.testing.fleet import Fleet
from shop.brokers import client_options
from shop.databases import Unreadable, reading
from shop.running import Place
from tests.crash.places import Where, place

TOPIC = os.environ.get("HOT_ROWS_TOPIC", "stock_orders")
NAME = os.environ.get("HOT_ROWS_SERVICE", "stock")
"""Every measurement is a service of its own, which reads the same orders from their beginning."""
SKUS = int(os.environ.get("HOT_ROWS_SKUS", "50"))
FREE = 1_000_000
"""Pieces of each SKU before the first order."""
PARTITIONS = 8
PATIENCE = 60.0
NEEDED = 0.8

STOCK = "select sku, free from stock"
PACE = """
    select count(*), extract(epoch from max(at) - min(at))
    from (select pg_xact_commit_timestamp(cast(tx as xid)) as at from eventkeel_inbox) as rows"""


class StockOrdered(Event, topic=TOPIC, key="order_id", identity="order_id", accept="plain"):
    order_id: str
    sku: int


service = Service(
    NAME,
    schema=[
        "create table if not exists stock (sku integer primary key, free integer not null)",
        *(f"insert into stock (sku, free) values ({sku}, {FREE}) on conflict do nothing" for sku in range(SKUS)),
    ],
)


@service.on(StockOrdered)
async def take(order: StockOrdered, tx: Transaction) -> None:
    tx.write("update stock set free = free - 1 where sku = :sku", order, rows=1)


class Measured:
    """One service that handles all the orders; ``rate`` in orders per second."""

    def __init__(self, where: Where, folder: Path, topic: str, wanted: list[int], workers: int) -> None:
        self._where, self._folder, self._topic, self._wanted = where, folder, topic, wanted
        self._workers = workers

    def rate(self, **settings: int) -> tuple[float, bool]:
        """And whether the stock is exact."""
        name = f"stock-{uuid.uuid4().hex[:8]}"
        told = {"HOT_ROWS_TOPIC": self._topic, "HOT_ROWS_SERVICE": name, "HOT_ROWS_SKUS": str(len(self._wanted))}
        os.environ.update(told)
        here = Place(self._folder, self._where.broker, self._where.store)
        options = {**here.settings(), "log_level": "warning", **{key: str(value) for key, value in settings.items()}}
        fleet = Fleet(self._folder / name, settings=options)
        fleet.add("tests.hot_rows:service", workers=self._workers)
        with fleet:
            self._await_all(here.store(name), fleet)
        with reading(here.store(name)) as database:
            ((number, seconds),) = database.rows(PACE)
            stock = dict(database.rows(STOCK))
        exact = stock == {sku: FREE - wanted for sku, wanted in enumerate(self._wanted)}
        return number / float(seconds), exact

    def _await_all(self, store: str, fleet: Fleet) -> None:
        total, last, since = sum(self._wanted), -1, time.monotonic()
        while last < total:
            try:
                with reading(store) as database:
                    now = database.number("select count(*) from eventkeel_inbox")
            except Unreadable:
                now = -1
            if now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                raise TimeoutError(f"{now} of {total} orders, and no more in {PATIENCE:.0f} s: {fleet.unable()}")
            time.sleep(0.2)


def hot_rows(where: Where, folder: Path, skus: int, lanes: list[int], workers: int, orders: int) -> list[str]:
    """Measure and print; what is wrong."""
    topic = f"stock-orders-{uuid.uuid4().hex[:8]}"
    wanted = _publish(where.broker, topic, skus, orders)
    measured = Measured(where, folder, topic, wanted, workers)
    wrong: list[str] = []

    def one(label: str, **settings: int) -> float:
        rate, exact = measured.rate(**settings)
        print(f"{label:34} {rate:8.0f} orders/s{'' if exact else '   STOCK IS NOT EXACT'}", flush=True)
        if not exact:
            wrong.append(f"{label}: the stock is not exact")
        return rate

    print(f"{orders} orders for {skus} SKUs, {workers} workers")
    together = {number: one(f"{number} lanes, batches", lanes=number) for number in lanes}
    most = max(lanes)
    each = one(f"{most} lanes, one per transaction", lanes=most, batch_size=1)
    ratio = together[most] / each
    print(f"{most} lanes: {ratio:.2f} x the rate of one delivery per transaction (at least {NEEDED})")
    return wrong + [f"{ratio:.2f} is below {NEEDED}"] * (ratio < NEEDED)


def _publish(url: str, topic: str, skus: int, orders: int) -> list[int]:
    """How many pieces of each SKU are wanted."""
    admin = AdminClient(client_options(url))
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)
    safe = {"partitioner": "murmur2_random", "enable.idempotence": True, "log_level": 2}
    producer = Producer({**client_options(url), **safe})
    dice, wanted, refused = random.Random(1), [0] * skus, []

    def confirmed(error: Any, _: Any) -> None:
        if error is not None:
            refused.append(error)

    for number in range(orders):
        sku = dice.randrange(skus)
        wanted[sku] += 1
        body = f'{{"order_id":"ORD{number:06}","sku":{sku}}}'
        producer.produce(topic, body, f"ORD{number:06}", on_delivery=confirmed)
        producer.poll(0)
    producer.flush(60)
    if refused or len(producer):
        raise TimeoutError(f"the orders could not be published: {refused[:1]}")
    return wanted


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.hot_rows", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--skus", type=int, default=50)
    parser.add_argument("--lanes", type=lambda text: [int(part) for part in text.split(",")], default=[1, 2, 4])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--orders", type=int, default=20_000)
    parser.add_argument("--broker", default="kafka", help="kafka (own server), or its URL")
    parser.add_argument("--store", default="postgres", help="postgres (own server), or its URL with {service}")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="eventkeel-hot-rows-") as folder, place(given.broker, given.store) as where:
        wrong = hot_rows(where, Path(folder), given.skus, given.lanes, given.workers, given.orders)
    print(f"BROKEN: {'; '.join(wrong)}" if wrong else "holds")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
