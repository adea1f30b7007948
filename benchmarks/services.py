"""The services that the benchmarks run: ordinary users of the public door.

``payments`` is the reference job. ``latency`` times it: with EVENTKEEL_BENCHMARK_TIMES set, the
moment after each commit of a unit is written to that file. ``spread`` says which process handled what. ``bulk`` does
the reference job in one statement per batch, on PostgreSQL; ``idle`` does nothing, so that only the engine is seen.

With EVENTKEEL_BENCHMARK_TAG set, topics and groups end in it: on servers every run has its own.
"""

from __future__ import annotations

import os
import time
from decimal import Decimal

import msgspec

from eventkeel import Event, Service, Transaction
from eventkeel.engine import faults

TAG = os.environ.get("EVENTKEEL_BENCHMARK_TAG", "")
_END = f"_{TAG}" if TAG else ""


class OrderCreated(Event, topic=f"reference_orders{_END}", key="order_id"):
    order_id: str
    user_id: str
    amount: Decimal


class PaymentSucceeded(Event, topic=f"reference_payments{_END}", key="order_id"):
    order_id: str
    amount: Decimal


class Tick(Event, topic=f"ticks{_END}", key="name"):
    name: str
    number: int


PAYMENTS = "create table if not exists payments (order_id text primary key, amount numeric not null)"

orders = Service(
    "order-service",
    group=f"order-service{_END}",
    schema="create table if not exists orders (order_id text primary key, amount numeric not null)",
)
payments = Service("payment-service", group=f"payment-service-group{_END}", schema=PAYMENTS)
bulk = Service("payment-service", group=f"payment-service-group{_END}", schema=PAYMENTS)
timed = Service("timed-payment-service", group=f"timed-payment-service{_END}", schema=PAYMENTS)
idle = Service("idle-service", group=f"idle-service{_END}")
spread = Service(
    "spread", schema="create table if not exists handled (name text, number integer, worker integer, at real)"
)

_running: list[str] = []
encode = msgspec.json.Encoder(decimal_format="number").encode


@payments.on(OrderCreated)
async def take_payment(order: OrderCreated, tx: Transaction) -> None:
    tx.write("insert into payments (order_id, amount) values (:order_id, :amount)", order)
    tx.publish(PaymentSucceeded(order_id=order.order_id, amount=order.amount))


@bulk.on(OrderCreated)
async def take_payments(orders: list[OrderCreated], tx: Transaction) -> None:
    tx.write(
        "insert into payments (order_id, amount) "
        "select order_id, amount from json_to_recordset(:rows::json) as t (order_id text, amount numeric)",
        {"rows": as_json(orders)},
    )
    for order in orders:
        tx.publish(PaymentSucceeded(order_id=order.order_id, amount=order.amount))


@idle.on(OrderCreated)
async def pass_by(order: OrderCreated) -> None:
    pass


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


def as_json(orders: list[OrderCreated]) -> str:
    """Rows for one statement."""
    return encode([{"order_id": order.order_id, "amount": order.amount} for order in orders]).decode()


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
