"""The services that the benchmarks run: ordinary users of the public door.

``payments`` is the reference job. ``latency`` times it: with EVENTKEEL_BENCHMARK_TIMES set, the
moment after each commit of a unit is written to that file. ``spread`` says which process handled what.
"""

from __future__ import annotations

import os
import time
from decimal import Decimal

from eventkeel import Event, Service, Transaction
from eventkeel.engine import faults


class OrderCreated(Event, topic="reference_orders", key="order_id"):
    order_id: str
    user_id: str
    amount: Decimal


class PaymentSucceeded(Event, topic="reference_payments", key="order_id"):
    order_id: str
    amount: Decimal


class Tick(Event, topic="ticks", key="name"):
    name: str
    number: int


PAYMENTS = "create table if not exists payments (order_id text primary key, amount numeric not null)"

orders = Service(
    "order-service", schema="create table if not exists orders (order_id text primary key, amount numeric not null)"
)
payments = Service("payment-service", group="payment-service-group", schema=PAYMENTS)
timed = Service("timed-payment-service", schema=PAYMENTS)
spread = Service(
    "spread", schema="create table if not exists handled (name text, number integer, worker integer, at real)"
)

_running: list[str] = []


@payments.on(OrderCreated)
async def take_payment(order: OrderCreated, tx: Transaction) -> None:
    tx.write("insert into payments (order_id, amount) values (:order_id, :amount)", order)
    tx.publish(PaymentSucceeded(order_id=order.order_id, amount=order.amount))


@timed.on(OrderCreated)
async def take_timed_payment(order: OrderCreated, tx: Transaction) -> None:
    await take_payment(order, tx)
    _running.append(order.order_id)


@spread.on(Tick)
async def note_worker(tick: Tick, tx: Transaction) -> None:
    tx.write(
        "insert into handled values (:name, :number, :worker, :at)",
        {"name": tick.name, "number": tick.number, "worker": os.getpid(), "at": time.monotonic()},
    )


def _note_commits(path: str) -> None:
    """After each commit: one line ``order monotonic-seconds`` for each delivery in it."""
    lines = open(path, "a", buffering=1)  # noqa: SIM115 - as long as the process

    def hook(name: str) -> None:
        if name == "unit.committed":
            now = time.monotonic()
            lines.write("".join(f"{order} {now}\n" for order in _running))
            _running.clear()

    faults.install(hook)


if path := os.environ.get("EVENTKEEL_BENCHMARK_TIMES"):
    _note_commits(path)
