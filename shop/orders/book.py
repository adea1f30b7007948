"""The book of orders: the row of each one's process, moved on by one fact inside a transaction."""

from __future__ import annotations

import typing
import uuid
from decimal import Decimal

import msgspec

from eventkeel import Transaction
from shop import settings
from shop.orders.events import Item, OrderStatusChanged, StepTimedOut
from shop.orders.process import WAITING, Fact, Process, advance

# Makes the row, or takes the one that is there; either way it is ours until the commit, so that two facts of one order
# never pass each other. `timer` comes last: it is no part of the process.
TAKE = """
    insert into orders (order_id) values (:order_id)
    on conflict (order_id) do update set order_id = excluded.order_id
    returning user_id, amount, items, status, sequence, stock, money, shipment, ending, reason, timer"""
WRITE = """
    update orders set user_id = :user_id, amount = :amount, items = :items, status = :status, sequence = :sequence,
        stock = :stock, money = :money, shipment = :shipment, ending = :ending, reason = :reason, timer = :timer,
        changed_at = current_timestamp
    where order_id = :order_id"""

_items = msgspec.json.Decoder(tuple[Item, ...]).decode


async def move_on(order_id: str, fact: Fact, tx: Transaction) -> tuple[Process, Process]:
    """Take a fact into an order's process, and say what follows. What was known before, and what is known now."""
    row = await tx.fetch_one(TAKE, {"order_id": order_id})
    assert row is not None
    before, timer = read(row), row[-1]
    now, said = advance(before, fact)
    if now == before:
        return before, now
    for reached in said:
        tx.publish(_told(order_id, reached))
    if said:
        timer = await _set_timer(order_id, now, timer, tx)
    values = msgspec.structs.asdict(now)
    items = msgspec.json.encode(now.items).decode()
    tx.write(WRITE, {**values, "items": items, "timer": timer, "order_id": order_id}, rows=1)
    return before, now


async def is_heard(order_id: str, tx: Transaction) -> bool:
    """The order itself has arrived; once it has, that stays so."""
    heard = "select 1 from orders where order_id = :order_id and status <> 'unheard'"
    return await tx.fetch_value(heard, {"order_id": order_id}) is not None


def read(row: typing.Sequence[typing.Any]) -> Process:
    """The columns of a process, in its order."""
    user_id, amount, items, status, sequence, stock, money, shipment, ending, reason = row[:10]
    return Process(user_id, Decimal(amount), _items(items), status, sequence, stock, money, shipment, ending, reason)


def _told(order_id: str, process: Process) -> OrderStatusChanged:
    assert process.status != "unheard"
    return OrderStatusChanged(
        order_id=order_id,
        status=process.status,
        sequence=process.sequence,
        user_id=process.user_id,
        amount=process.amount,
        items=process.items,
        reason=process.reason,
    )


async def _set_timer(order_id: str, now: Process, running: str, tx: Transaction) -> str:
    """The order has moved: nobody waits for the last answer any more, and perhaps for another one."""
    if running:
        await tx.cancel(uuid.UUID(running))
    if now.status not in WAITING or not settings.STEP_TIMEOUT:
        return ""
    late = StepTimedOut(order_id=order_id, sequence=now.sequence)
    return str(tx.publish(late, delay=settings.STEP_TIMEOUT))
