"""Operators' questions and actions on a SQLite store. See ports.catalogue."""

from __future__ import annotations

from eventkeel.ports.catalogue import DeadLetter, State, StoreLag, StuckRow, Waiting
from eventkeel.stores.common import conflict, not_first
from eventkeel.stores.common import letter as letter_row
from eventkeel.stores.common import text as shown
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
        return [letter_row(row, with_body=False) for row in rows]

    async def dead_letter(self, number: int) -> DeadLetter | None:
        rows = self._store._ask("letter", (number,))
        return letter_row(rows[0], with_body=True) if rows else None

    async def redrive(self, number: int, *, actor: str, now: float) -> DeadLetter | None:
        async with self._store._transaction(durable=True) as db:
            rows = fetch(db, SQL["letter"], (number,))
            if not rows or rows[0][1] == "parked":
                return None
            letter, row = letter_row(rows[0], with_body=False), rows[0]
            if letter.state == "conflict":
                raise conflict(number)
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
            letter, row = letter_row(rows[0], with_body=False), rows[0]
            event_id, key, queued, consumer = row[3], row[7], row[17], row[18]
            place = (consumer, letter.topic, key)
            if letter.state == "parked" and fetch(db, SQL["first_queued"], place) != [(number,)]:
                raise not_first(number)
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
            Waiting(consumer, topic, shown(key) or "", state, count, attempts, due, reason)
            for consumer, topic, key, state, count, attempts, due, reason in rows
        ]

    async def lag(self) -> StoreLag:
        unsent, oldest, waiting, blocked, parked, dead = self._store._ask("lag")[0]
        stuck = [
            StuckRow(id, topic, shown(key) or "", reason) for id, topic, key, reason in self._store._ask("stuck_rows")
        ]
        return StoreLag(unsent, oldest, waiting, blocked, parked, dead, stuck)
