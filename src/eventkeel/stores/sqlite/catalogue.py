"""Operators' questions and actions on a SQLite store. See ports.catalogue."""

from __future__ import annotations

from uuid import UUID

import msgspec

from eventkeel.errors import ConfigurationError
from eventkeel.message import Headers
from eventkeel.ports.catalogue import DeadLetter, State, StoreLag, StuckRow, Waiting
from eventkeel.ports.store import Row
from eventkeel.stores.sqlite.connection import fetch
from eventkeel.stores.sqlite.store import SQLiteStore
from eventkeel.stores.sqlite.unit import PARKED, SKIPPED, SQL


class SQLiteCatalogue:
    """Works on an opened store; actions are one transaction each, with their audit row in it."""

    def __init__(self, store: SQLiteStore) -> None:
        self._store = store

    async def dead_letters(
        self, *, consumer: str | None, state: State | None, after: int, limit: int
    ) -> list[DeadLetter]:
        rows = self._store._ask("letters", (after, consumer, state, limit))
        return [_letter(row, with_body=False) for row in rows]

    async def dead_letter(self, number: int) -> DeadLetter | None:
        rows = self._store._ask("letter", (number,))
        return _letter(rows[0], with_body=True) if rows else None

    async def redrive(self, number: int, *, actor: str, now: float) -> DeadLetter | None:
        async with self._store._transaction(durable=True) as db:
            rows = fetch(db, SQL["letter"], (number,))
            if not rows or rows[0][1] == "parked":
                return None
            letter, row = _letter(rows[0], with_body=False), rows[0]
            if letter.state == "conflict":
                raise ConfigurationError(
                    f"dead letter {number} is an event with the identity of another one and other facts: it can never "
                    "be applied. Publish a correction under an identity of its own, then skip this one"
                )
            event_id, key, consumer = row[3], row[7], row[18]
            db.execute(SQL["revive"], (now, number))
            db.execute(SQL["set_state"], (PARKED, now, event_id, consumer))
            db.execute(SQL["reopen_gate"], (consumer, letter.topic, key, now))
            db.execute(SQL["audit"], (now, actor, "redrive", number, letter.consumer, event_id, ""))
        self._store._notify()
        return letter

    async def skip(self, number: int, *, actor: str, note: str, now: float) -> DeadLetter | None:
        async with self._store._transaction(durable=True) as db:
            rows = fetch(db, SQL["letter"], (number,))
            if not rows:
                return None
            letter, row = _letter(rows[0], with_body=False), rows[0]
            event_id, key, queued, consumer = row[3], row[7], row[17], row[18]
            place = (consumer, letter.topic, key)
            if letter.state == "parked" and fetch(db, SQL["first_queued"], place) != [(number,)]:
                raise ConfigurationError(f"delivery {number} waits behind another one of its key; skip the head first")
            db.execute(SQL["drop_held"], (number,))
            db.execute(SQL["set_state"], (SKIPPED, now, event_id, consumer))
            if queued:
                if fetch(db, SQL["next_state"], place):
                    db.execute(SQL["reopen_gate"], (*place, now))
                else:
                    db.execute(SQL["drop_gate"], place)
            db.execute(SQL["audit"], (now, actor, "skip", number, letter.consumer, event_id, note))
        self._store._notify()
        return letter

    async def waiting(self, *, after: int, limit: int) -> list[Waiting]:
        rows = self._store._ask("waiting", (limit, after))
        return [
            Waiting(consumer, topic, _text(key) or "", state, count, attempts, due, reason)
            for consumer, topic, key, state, count, attempts, due, reason in rows
        ]

    async def lag(self) -> StoreLag:
        unsent, oldest, waiting, blocked, parked, dead = self._store._ask("lag")[0]
        stuck = [
            StuckRow(id, topic, _text(key) or "", reason) for id, topic, key, reason in self._store._ask("stuck_rows")
        ]
        return StoreLag(unsent, oldest, waiting, blocked, parked, dead, stuck)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")


def _headers(packed: bytes) -> tuple[tuple[str, str], ...]:
    try:
        pairs = Headers.from_packed(packed).pairs
    except msgspec.MsgspecError:  # whatever they are, the other letters have to be listed
        pairs = (("unreadable", packed),)
    return tuple((name, value.decode("utf-8", "backslashreplace")) for name, value in pairs)


def _letter(row: Row, *, with_body: bool) -> DeadLetter:
    (number, state, consumer, event_id, topic, partition, position, key, type, reason, error) = row[:11]
    attempts, first_failed, last_failed, blocked, headers, body = row[11:17]
    return DeadLetter(
        number=number,
        state=state,
        consumer=consumer,
        event_id=str(UUID(bytes=event_id)),
        topic=topic,
        partition=partition,
        position=position,
        key=None if key == event_id else _text(key),  # what came without a key waits under its id
        type=type,
        reason=reason,
        error=error,
        attempts=attempts,
        first_failed=first_failed,
        last_failed=last_failed,
        blocked=blocked,
        headers=_headers(headers),
        body=body if with_body else None,
    )
