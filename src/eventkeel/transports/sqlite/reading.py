"""Reading the log: one connection, used on the event loop only. A reader never waits for a writer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import apsw
import msgspec

from eventkeel.errors import BrokerUnavailable
from eventkeel.message import Delivery, Headers, Slice
from eventkeel.ports.transport import SliceLag
from eventkeel.transports.sqlite.append import SHIFT, SQL

_json = msgspec.json.Encoder().encode
_RECOVERY = 50
"""Milliseconds to wait while another process repairs the file after a crash: all that a reader ever waits for."""


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


class Unreadable(BrokerUnavailable):
    """The file could not be read. ``fatal``: nor will it be, until somebody repairs it."""

    def __init__(self, path: str, error: apsw.Error) -> None:
        super().__init__(f"the broker's file {path} cannot be read: {type(error).__name__}: {error}")
        self.fatal = isinstance(error, (apsw.CorruptError, apsw.NotADBError))
        self.busy = isinstance(error, apsw.BusyError)


class _Asking:
    """Turns what SQLite raises into ours."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, apsw.Error):
            raise Unreadable(self._path, error) from error


class Reader:
    """Every question raises Unreadable where the file cannot be read."""

    def __init__(self, connection: apsw.Connection) -> None:
        connection.set_busy_timeout(_RECOVERY)
        self._connection = connection
        self._asking = _Asking(connection.filename)

    def close(self) -> None:
        self._connection.close()

    def version(self) -> int:
        """Another number after every commit to the file, by whomever. The cheapest question there is."""
        with self._asking:
            version: int = self._connection.pragma("data_version")
            return version

    def place(self, topic: str, partition: int) -> Place | None:
        with self._asking:
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
        with self._asking:
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
        packed = Headers.from_packed
        with self._asking:
            cursor = self._connection.execute(SQL["page"], (base + first, base + last, count))
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
        with self._asking:
            rows: list[Any] = self._connection.execute(SQL["lag"], (group,)).fetchall()
        return [
            SliceLag(Slice(topic, partition), settled, end, incarnation, oldest)
            for topic, partition, settled, end, incarnation, oldest in rows
        ]

    def newest_slot(self) -> int:
        """Grows with every topic that is made."""
        with self._asking:
            (slot,) = self._connection.execute(SQL["newest_slot"]).fetchone() or (0,)
            return int(slot)

    def inbound_waits(self, after: int) -> bool:
        """Whether somebody put a row with a larger id than ``after`` into the table ``inbound``."""
        with self._asking:
            (waits,) = self._connection.execute(SQL["inbound_waits"], (after,)).fetchone() or (0,)
            return bool(waits)
