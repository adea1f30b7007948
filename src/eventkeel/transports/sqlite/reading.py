"""Reading the log: one connection, used on the event loop only. A reader never waits for a writer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import apsw
import msgspec

from eventkeel.message import Delivery, Headers, Slice
from eventkeel.ports.transport import SliceLag
from eventkeel.transports.sqlite.append import SHIFT, SQL

_json = msgspec.json.Encoder().encode


class Place(msgspec.Struct, frozen=True):
    """A partition as it is in the file."""

    slot: int
    first: int
    """Position of its oldest message (``end`` where it has none)."""
    end: int
    """Position that the next message will get."""
    incarnation: str
    partitions: int


class Page(NamedTuple):
    items: list[Delivery]
    sizes: list[tuple[int, int]]
    """(position, bytes) of each."""
    fits: bool
    """False: it ends before a delivery for which there was no room."""


class Reader:
    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def close(self) -> None:
        self._connection.close()

    def version(self) -> int:
        """Another number after every commit to the file, by whomever. The cheapest question there is."""
        version: int = self._connection.pragma("data_version")
        return version

    def place(self, topic: str, partition: int) -> Place | None:
        row = self._connection.execute(SQL["place"], (topic, partition)).fetchone()
        if row is None:
            return None
        slot, end, incarnation, partitions, first = row
        return Place(slot, end if first is None else first - (slot << SHIFT), end, incarnation, partitions)

    def partitions(self, topic: str) -> int:
        """How many partitions the topic has; 0 where it does not exist."""
        place = self.place(topic, 0)
        return 0 if place is None else place.partitions

    def ends(self, slots: Sequence[int]) -> dict[int, int]:
        """The next position of each slot that still exists."""
        rows: Any = self._connection.execute(SQL["ends"], (_json(slots).decode(),)).fetchall()
        return dict(rows)

    def page(self, slice: Slice, slot: int, first: int, last: int, *, count: int, size: int, whole: bool) -> Page:
        """Deliveries from ``first`` up to and without ``last``: at most ``count`` of them and ``size`` bytes.

        ``whole``: the first is given whatever its size.
        """
        base = slot << SHIFT
        items: list[Delivery] = []
        sizes: list[tuple[int, int]] = []
        fits = True
        cursor = self._connection.execute(SQL["page"], (base + first, base + last, count))
        packed = Headers.from_packed
        for id, key, headers, body, time in cursor:
            length = len(headers) + (0 if key is None else len(key)) + (0 if body is None else len(body))
            size -= length
            if size < 0 and (items or not whole):
                fits = False
                break
            items.append(Delivery(slice, id - base, key, packed(headers), body, time))
            sizes.append((id - base, length))
        cursor.close()
        return Page(items, sizes, fits)

    def lag(self, group: str) -> list[SliceLag]:
        return [
            SliceLag(Slice(topic, partition), settled, end, incarnation, oldest)
            for topic, partition, settled, end, incarnation, oldest in self._connection.execute(SQL["lag"], (group,))
        ]

    def newest_slot(self) -> int:
        """Grows with every topic that is made."""
        (slot,) = self._connection.execute(SQL["newest_slot"]).fetchone() or (0,)
        return int(slot)

    def inbound_waits(self, after: int) -> bool:
        """Whether somebody put a row with a larger id than ``after`` into the table ``inbound``."""
        (waits,) = self._connection.execute(SQL["inbound_waits"], (after,)).fetchone() or (0,)
        return bool(waits)
