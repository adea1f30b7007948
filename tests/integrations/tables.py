"""What the tests of this folder share: events, tables, and a service's harness on a real PostgreSQL."""

from __future__ import annotations

from decimal import Decimal

from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventkeel import Event, Retry

SCHEMA = """
create table if not exists payments (number text primary key, customer text not null, amount numeric not null);
create table if not exists notes (id bigint generated always as identity primary key, text text not null unique);
"""

PATIENT = Retry(attempts=4, first=1.0, in_place=())


class Ordered(Event, topic="sa_ordered", key="customer", identity="number", accept="plain"):
    number: str
    customer: str
    amount: Decimal


class Paid(Event, topic="sa_paid", key="customer"):
    number: str
    customer: str


class Base(AsyncAttrs, DeclarativeBase):
    pass


class Payment(Base):
    __tablename__ = "payments"
    number: Mapped[str] = mapped_column(primary_key=True)
    customer: Mapped[str]
    amount: Mapped[Decimal]


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(unique=True)


def ordered(number: int | str, customer: str = "c", amount: str = "9.99") -> Ordered:
    return Ordered(number=str(number), customer=customer, amount=Decimal(amount))


def payment(order: Ordered) -> Payment:
    return Payment(number=order.number, customer=order.customer, amount=order.amount)
