"""A service for the tests of the command line: what it does with an order depends on a file beside its data."""

from __future__ import annotations

import os
from pathlib import Path

from eventkeel import Event, FinalError, Service, Transaction


class Booked(Event, topic="cli_bookings", key="seat"):
    seat: str
    guest: str = ""


service = Service(
    "bookings", schema="create table if not exists seats (number integer primary key, seat text, guest text)"
)


def mended() -> bool:
    return Path(os.environ.get("SAMPLE_MENDED", "/nonexistent")).exists()


@service.on(Booked)
async def book(booked: Booked, tx: Transaction) -> None:
    if booked.guest == "trouble" and not mended():
        raise FinalError("the seat is broken")
    tx.write("insert into seats (seat, guest) values (:seat, :guest)", booked)


twin = Service("bookings-twin")
