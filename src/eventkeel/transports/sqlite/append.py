"""Appending to the log, inside the writer's transaction."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import apsw
import msgspec

from eventkeel._sql import load_queries
from eventkeel.message import Outgoing
from eventkeel.ports.transport import Caps, Outcome, Refused, Sent

SQL = load_queries("eventkeel.transports.sqlite", "queries.sql")
SHIFT = 40
"""A slot's ids begin at ``slot << SHIFT``."""

_SENT = Sent()
_json = msgspec.json.Encoder().encode
_LARGEST_INSERT = 256


class Appender:
    """Gives each message its partition and position. One for each transaction and the topics in it."""

    def __init__(self, connection: apsw.Connection, topics: Iterable[str], turn: int = 0) -> None:
        """``turn`` says where messages without a key begin to go round."""
        self._connection, self._turn = connection, turn
        self._slots: dict[str, list[int]] = {}
        self._next: dict[int, int] = {}
        for topic, _, slot, next in connection.execute(SQL["slots"], (_names(topics),)):
            self._slots.setdefault(topic, []).append(slot)
            self._next[slot] = next
        self._before = dict(self._next)
        self._rows: list[tuple[int, bytes | None, bytes, bytes | None, float]] = []

    def knows(self, topic: str) -> bool:
        return topic in self._slots

    def add(self, topic: str, key: bytes | None, headers: bytes, body: bytes | None, now: float) -> None:
        slots = self._slots[topic]
        if key is None:
            self._turn += 1
            slot = slots[self._turn % len(slots)]
        else:
            slot = slots[zlib.crc32(key) % len(slots)]
        position = self._next[slot]
        self._next[slot] = position + 1
        self._rows.append(((slot << SHIFT) + position, key, headers, body, now))

    def write(self) -> None:
        """Put everything added into the file."""
        if not self._rows:
            return
        rows = sorted(self._rows)  # ids are unique, so nothing behind them is compared
        _insert(self._connection, rows)
        moved = {slot: next for slot, next in self._next.items() if next != self._before[slot]}
        self._connection.execute(SQL["advance"], (_json({str(slot): next for slot, next in moved.items()}).decode(),))


def _names(topics: Iterable[str]) -> str:
    """A JSON list; a name that is no Unicode text (a lone surrogate) is left out: no topic has it."""
    return _json(
        [topic for topic in topics if topic.isascii() or topic.encode("utf-8", "ignore").decode() == topic]
    ).decode()


def _insert(connection: apsw.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Many rows in each statement; sizes are powers of two, so that few statements are prepared."""
    start, size = 0, _LARGEST_INSERT
    while start < len(rows):
        while size > len(rows) - start:
            size //= 2
        values = ",".join(["(?,?,?,?,?)"] * size)
        flat = [value for row in rows[start : start + size] for value in row]
        connection.execute(f"insert into log (id, key, headers, body, time) values {values}", flat)
        start += size


def append_wave(
    connection: apsw.Connection, wave: Sequence[Outgoing], now: float, caps: Caps, turn: int
) -> list[Outcome]:
    """Append a wave in order; what cannot be stored, and what follows it on its key, is refused alone."""
    appender = Appender(connection, {message.topic for message in wave}, turn)
    outcomes: list[Outcome] = []
    held: set[tuple[str, bytes]] = set()
    for message in wave:
        refused = _refusal(appender, message, caps)
        if refused is None and held and message.key is not None and (message.topic, message.key) in held:
            refused = Refused("an earlier message of its key in this wave was refused", final=False)
        if refused is None:
            appender.add(message.topic, message.key, message.headers.packed, message.body, now)
            outcomes.append(_SENT)
        else:
            if message.key is not None:
                held.add((message.topic, message.key))
            outcomes.append(refused)
    appender.write()
    return outcomes


def _refusal(appender: Appender, message: Outgoing, caps: Caps) -> Refused | None:
    try:
        message.headers.packed  # noqa: B018 - packed once and kept; here, so that a bad one harms no neighbour
    except (TypeError, ValueError, OverflowError) as error:
        return Refused(f"its headers cannot be written: {error}")
    if not appender.knows(message.topic):
        return Refused(
            f"topic {message.topic!r} does not exist on this broker; it is created when a service that publishes "
            "or handles it is started",
            final=False,
        )
    if len(message.body) > caps.max_body:
        return Refused(f"its body has {len(message.body):,} bytes; this broker takes {caps.max_body:,}")
    if message.key is not None and len(message.key) > caps.max_key:
        return Refused(f"its key has {len(message.key):,} bytes; this broker takes {caps.max_key:,}")
    return None
