"""Rows that programs without Eventkeel put into the table ``inbound``, and how they get into the log.

Whatever such a program wrote is taken as it is; judging it is the consumer's work, where it can be
kept as a dead letter. Only a row that no topic can take stays where it is.
"""

from __future__ import annotations

import json
from typing import Any

import apsw
import msgspec

from eventkeel.message import Headers
from eventkeel.transports.sqlite.append import SQL, Appender

RAW_HEADERS = "eventkeel-inbound-headers"
"""Carries, byte for byte, what stood in the column ``headers`` where that was no JSON object."""

INBOUND_ROWS = 1000
"""Most rows moved in one transaction."""
_BYTES = 16 * 1024 * 1024
_NONE = Headers().packed
_json = msgspec.json.Encoder().encode


class Moved(msgspec.Struct, frozen=True):
    count: int
    """Rows moved."""
    seen: int
    """Every row up to this id was moved or stays."""
    stay: dict[str, int]
    """Why rows stay, and how many."""
    more: bool
    """There may be rows behind ``seen``."""


def move(connection: apsw.Connection, after: int, now: float, max_body: int, turn: int) -> Moved:
    """Move the next rows behind id ``after`` in one transaction, the writer's."""
    rows: list[tuple[Any, ...]] = []
    size, more = 0, False
    cursor = connection.execute(SQL["inbound_rows"], {"after": after, "limit": INBOUND_ROWS, "largest": max_body})
    for row in cursor:
        if rows and size + min(row[5], max_body) > _BYTES:
            more = True
            break
        size += min(row[5], max_body)
        rows.append(row)
    cursor.close()
    appender = Appender(connection, {_text(row[1]) for row in rows}, turn)
    stay: dict[str, int] = {}
    gone: list[int] = []
    for id, raw_topic, key, headers, body, length in rows:
        topic = _text(raw_topic)
        reason = _reason(appender, topic, body, length, max_body)
        if reason:
            stay[reason] = stay.get(reason, 0) + 1
            continue
        appender.add(topic, key, packed_headers(headers), body, now)
        gone.append(id)
    appender.write()
    if gone:
        connection.execute(SQL["inbound_remove"], (_json(gone).decode(),))
    return Moved(len(gone), rows[-1][0] if rows else after, stay, more or len(rows) == INBOUND_ROWS)


def _text(topic: bytes | None) -> str:
    return "" if topic is None else topic.decode("utf-8", "replace")


def _reason(appender: Appender, topic: str, body: bytes | None, length: int, max_body: int) -> str:
    if not appender.knows(topic):
        return f"topic {topic!r} does not exist"
    if body is None and length > max_body:
        return f"larger than {max_body:,} bytes"
    return ""


def packed_headers(raw: bytes | None) -> bytes:
    """Headers from a JSON object of texts; an array is a repeated header. Anything else is kept raw."""
    if not raw:
        return _NONE
    try:
        pairs = json.loads(raw, object_pairs_hook=_Object)
        if isinstance(pairs, _Object):
            return Headers((name, value) for name, each in pairs for value in _values(each)).packed
    except (ValueError, RecursionError):
        pass
    return Headers([(RAW_HEADERS, raw)]).packed


class _Object(list[tuple[str, object]]):
    """A JSON object as its pairs: names may repeat."""


def _values(value: object) -> list[bytes]:
    if isinstance(value, list) and not isinstance(value, _Object):
        return [_bytes(each) for each in value]
    return [_bytes(value)]


def _bytes(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if value is None:
        return b""
    if isinstance(value, _Object):
        raise ValueError("an object is no header value")
    return json.dumps(value).encode()
