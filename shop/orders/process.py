"""The life of an order, as a pure function: what is known, and one more fact, give what is known now and what to say.

        placed ──────► reserved ──────► paid ──────► shipped ──────► confirmed
          │ StockReserved │ PaymentSucceeded │ ShipmentBooked │ StockSold
          ▼               ▼                  ▼
      (refused, declined, timed out, cancelled: undo in reverse what was begun)
                        recalling ──────► refunding ──────► releasing ──────► rejected or cancelled

Facts come from several topics, so in any order: an order may be paid, or cancelled, before it is heard of. So a fact
only marks its part (stock, money, shipment), and what to do next follows from the parts alone. A late answer needs no
rule of its own: it marks its part, and a part that is taken while the order goes back is undone.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Literal, NamedTuple

import msgspec

from shop.inventory.events import StockRefused, StockReleased, StockReserved, StockSold
from shop.orders.events import Item, OrderCreated, Status, StepTimedOut
from shop.payments.events import PaymentDeclined, PaymentRefunded, PaymentSucceeded, PaymentVoided
from shop.shipping.events import ShipmentBooked, ShipmentRecalled, ShipmentRefused

Stock = Literal["", "asked", "held", "refused", "sold", "released"]
Money = Literal["", "asked", "paid", "declined", "voided", "refunded"]
Shipment = Literal["", "asked", "booked", "refused", "recalled"]

TAKEN = ("asked", "held", "sold", "paid", "booked")
"""A part that has to be undone when the order goes back. Asked counts: the answer may be yes."""
WAITING = {"placed": "inventory", "reserved": "payments", "paid": "shipping"}
"""Statuses in which somebody is asked who may fail to answer, and who that is."""


class CancelAsked(NamedTuple):
    """The customer wants no more of it."""


Heard = (
    OrderCreated
    | StockReserved
    | StockRefused
    | StockSold
    | StockReleased
    | PaymentSucceeded
    | PaymentDeclined
    | PaymentRefunded
    | PaymentVoided
    | ShipmentBooked
    | ShipmentRefused
    | ShipmentRecalled
    | StepTimedOut
)
"""The events that move an order on."""
Fact = Heard | CancelAsked


class Process(msgspec.Struct, frozen=True):
    """What `orders` knows of one order. ``status`` is what it has said last."""

    user_id: str = ""
    amount: Decimal = Decimal(0)
    items: tuple[Item, ...] = ()
    status: Status | Literal["unheard"] = "unheard"
    sequence: int = 0
    stock: Stock = ""
    money: Money = ""
    shipment: Shipment = ""
    ending: Literal["", "rejected", "cancelled"] = ""
    """Where it goes back to; empty: it goes forward."""
    reason: str = ""

    @property
    def heard(self) -> bool:
        """The order itself is known, not only what others say of it."""
        return self.user_id != ""


def advance(process: Process, fact: Fact) -> tuple[Process, list[Process]]:
    """One more fact: what is known then, and each status that was reached on the way, to be said in this order."""
    process = _learn(process, fact)
    said = []
    while (status := _next(process)) is not None:
        process = _enter(process, status)
        said.append(process)
    return process, said


def _learn(process: Process, fact: Fact) -> Process:
    change = msgspec.structs.replace
    match fact:
        case OrderCreated() if not process.heard:
            known = change(process, user_id=fact.user_id, amount=fact.amount, items=fact.items)
            # An order without items needs no stock, so `payments` takes its money as soon as it hears of it.
            return known if fact.items or known.money else change(known, money="asked")
        case StockReserved():
            return change(process, stock="held")
        case StockRefused():
            return _go_back(change(process, stock="refused"), "rejected", fact.reason)
        case StockSold():
            return change(process, stock="sold")
        case StockReleased():
            return change(process, stock="released")
        case PaymentSucceeded():
            return change(process, money="paid")
        case PaymentDeclined():
            return _go_back(change(process, money="declined"), "rejected", fact.reason)
        case PaymentVoided():
            return change(process, money="voided")
        case PaymentRefunded():
            return change(process, money="refunded")
        case ShipmentBooked():
            return change(process, shipment="booked")
        case ShipmentRefused():
            return _go_back(change(process, shipment="refused"), "rejected", fact.reason)
        case ShipmentRecalled():
            return change(process, shipment="recalled")
        case StepTimedOut(sequence=sequence) if sequence == process.sequence and process.status in WAITING:
            return _go_back(process, "rejected", f"{WAITING[process.status]} did not answer in time")
        case CancelAsked():
            return _go_back(process, "cancelled", "cancelled by the customer")
    return process


def _go_back(process: Process, ending: Literal["rejected", "cancelled"], reason: str) -> Process:
    """The first reason counts."""
    if process.ending:
        return process
    return msgspec.structs.replace(process, ending=ending, reason=reason)


def _next(process: Process) -> Status | None:
    """The status that follows from what is known, if it is not the one that was said last."""
    if not process.heard:
        return None
    status = _backward(process) if process.ending else _forward(process)
    return None if status == process.status else status


def _forward(process: Process) -> Status | None:
    match process:
        case Process(status="unheard"):
            return "placed"
        case Process(status="placed", stock="held"):
            return "reserved"
        case Process(status="reserved", money="paid"):
            return "paid"
        case Process(status="paid", shipment="booked"):
            return "shipped"
        case Process(status="shipped", stock="sold"):
            return "confirmed"
    return None


def _backward(process: Process) -> Status:
    if process.shipment in TAKEN:
        return "recalling"
    if process.money in TAKEN:
        return "refunding"
    if process.stock in TAKEN:
        return "releasing"
    return process.ending or "rejected"


def _enter(process: Process, status: Status) -> Process:
    """Say it; whom it asks is asked from now on."""
    process = msgspec.structs.replace(process, status=status, sequence=process.sequence + 1)
    match status:
        case "placed":
            return msgspec.structs.replace(process, stock="asked")
        case "reserved" if not process.money:
            return msgspec.structs.replace(process, money="asked")
        case "paid":
            return msgspec.structs.replace(process, shipment="asked")
    return process
