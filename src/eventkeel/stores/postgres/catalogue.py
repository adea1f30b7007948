"""Operators' questions and actions on a PostgreSQL store. See ports.catalogue."""

from __future__ import annotations

from eventkeel.ports.catalogue import DeadLetter, State, StoreLag, StuckRow, Waiting
from eventkeel.ports.store import Op, Row, Statement
from eventkeel.stores.common import conflict, not_first
from eventkeel.stores.common import letter as letter_row
from eventkeel.stores.common import text as shown
from eventkeel.stores.postgres.arrays import Binary
from eventkeel.stores.postgres.store import PostgresStore
from eventkeel.stores.postgres.unit import PARKED, SKIPPED, SQL, text


class PostgresCatalogue:
    """Works on an opened store; actions are one transaction each, with their audit row in it."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store

    async def dead_letters(
        self, *, consumer: str | None, state: State | None, after: int, limit: int
    ) -> list[DeadLetter]:
        said = (None if consumer is None else consumer.encode(), None if state is None else state.encode())
        rows = await self._store.rows("letters", b"%d" % after, *said, b"%d" % limit)
        return [letter_row(row, with_body=False) for row in rows]

    async def dead_letter(self, number: int) -> DeadLetter | None:
        rows = await self._store.rows("letter", b"%d" % number)
        return letter_row(rows[0], with_body=True) if rows else None

    async def redrive(self, number: int, *, actor: str, now: float) -> DeadLetter | None:
        letter = await self._store.run(self._redrive(number, actor, now))
        self._store.notify()
        return letter

    def _redrive(self, number: int, actor: str, now: float) -> Op[DeadLetter | None]:
        row = yield from self._locked(number)
        if row is None or row[1] == "parked":
            return None
        letter = letter_row(row, with_body=False)
        if letter.state == "conflict":
            raise conflict(number)
        at, which = b"%r" % now, b"%d" % number
        yield Statement(SQL["revive"], (at, which))
        yield Statement(SQL["set_state"], (b"%d" % PARKED, at, Binary(row[3].bytes), b"%d" % row[18]))
        yield Statement(SQL["reopen_gate"], (*_place(row), at))
        yield from _audit(row, actor, "redrive", "", now)
        return letter

    async def skip(self, number: int, *, actor: str, note: str, now: float) -> DeadLetter | None:
        letter = await self._store.run(self._skip(number, actor, note, now))
        self._store.notify()
        return letter

    def _skip(self, number: int, actor: str, note: str, now: float) -> Op[DeadLetter | None]:
        row = yield from self._locked(number)
        if row is None:
            return None
        letter, place, at = letter_row(row, with_body=False), _place(row), b"%r" % now
        if letter.state == "parked":
            first = (yield Statement(SQL["first_queued"], place)).rows
            if first != [(number,)]:
                raise not_first(number)
        yield Statement(SQL["drop_held"], (b"%d" % number,))
        yield Statement(SQL["set_state"], (b"%d" % SKIPPED, at, Binary(row[3].bytes), b"%d" % row[18]))
        if row[17]:
            if (yield Statement(SQL["next_state"], place)).rows:
                yield Statement(SQL["reopen_gate"], (*place, at))
            else:
                yield Statement(SQL["drop_gate"], place)
        yield from _audit(row, actor, "skip", note, now)
        return letter

    def _locked(self, number: int) -> Op[Row | None]:
        """The letter, its gate locked first: in that order everybody takes them."""
        asked = Statement(SQL["letter"], (b"%d" % number,))
        rows = (yield asked).rows
        if not rows:
            return None
        consumer, topic, key = _place(rows[0])
        yield Statement(SQL["lock_gate"], (topic, key, consumer))
        rows = (yield asked).rows  # as it is now: somebody may have been faster
        return rows[0] if rows else None

    async def waiting(self, *, after: int, limit: int) -> list[Waiting]:
        rows = await self._store.rows("waiting", b"%d" % limit, b"%d" % after)
        return [
            Waiting(consumer, topic, shown(key) or "", state, count, attempts, due, reason)
            for consumer, topic, key, state, count, attempts, due, reason in rows
        ]

    async def lag(self) -> StoreLag:
        unsent, oldest, waiting, blocked, parked, dead = (await self._store.rows("lag"))[0]
        stuck = [
            StuckRow(id, topic, shown(key) or "", reason)
            for id, topic, key, reason in await self._store.rows("stuck_rows")
        ]
        return StoreLag(unsent, oldest, waiting, blocked, parked, dead, stuck)


def _place(row: Row) -> tuple[bytes, bytes, bytes]:
    return b"%d" % row[18], row[4].encode(), Binary(row[7])


def _audit(row: Row, actor: str, action: str, note: str, now: float) -> Op[None]:
    what = (b"%d" % row[0], row[2].encode(), Binary(row[3].bytes), text(note))
    yield Statement(SQL["audit"], (b"%r" % now, text(actor), action.encode(), *what))
