"""Operators' questions and actions on a PostgreSQL store. See ports.catalogue."""

from __future__ import annotations

from uuid import UUID

import msgspec

from eventkeel.errors import ConfigurationError
from eventkeel.message import Headers
from eventkeel.ports.catalogue import DeadLetter, State, StoreLag, StuckRow, Waiting
from eventkeel.ports.store import Op, Row, Statement
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
        return [_letter(row, with_body=False) for row in rows]

    async def dead_letter(self, number: int) -> DeadLetter | None:
        rows = await self._store.rows("letter", b"%d" % number)
        return _letter(rows[0], with_body=True) if rows else None

    async def redrive(self, number: int, *, actor: str, now: float) -> DeadLetter | None:
        letter = await self._store.run(self._redrive(number, actor, now))
        self._store.notify()
        return letter

    def _redrive(self, number: int, actor: str, now: float) -> Op[DeadLetter | None]:
        row = yield from self._locked(number)
        if row is None or row[1] == "parked":
            return None
        letter = _letter(row, with_body=False)
        if letter.state == "conflict":
            raise ConfigurationError(
                f"dead letter {number} is an event with the identity of another one and other facts: it can never "
                "be applied. Publish a correction under an identity of its own, then skip this one"
            )
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
        letter, place, at = _letter(row, with_body=False), _place(row), b"%r" % now
        if letter.state == "parked":
            first = (yield Statement(SQL["first_queued"], place)).rows
            if first != [(number,)]:
                raise ConfigurationError(f"delivery {number} waits behind another one of its key; skip the head first")
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
            Waiting(consumer, topic, _text(key) or "", state, count, attempts, due, reason)
            for consumer, topic, key, state, count, attempts, due, reason in rows
        ]

    async def lag(self) -> StoreLag:
        unsent, oldest, waiting, blocked, parked, dead = (await self._store.rows("lag"))[0]
        stuck = [
            StuckRow(id, topic, _text(key) or "", reason)
            for id, topic, key, reason in await self._store.rows("stuck_rows")
        ]
        return StoreLag(unsent, oldest, waiting, blocked, parked, dead, stuck)


def _place(row: Row) -> tuple[bytes, bytes, bytes]:
    return b"%d" % row[18], row[4].encode(), Binary(row[7])


def _audit(row: Row, actor: str, action: str, note: str, now: float) -> Op[None]:
    what = (b"%d" % row[0], row[2].encode(), Binary(row[3].bytes), text(note))
    yield Statement(SQL["audit"], (b"%r" % now, text(actor), action.encode(), *what))


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
        event_id=str(UUID(bytes=event_id.bytes)),
        topic=topic,
        partition=partition,
        position=position,
        key=None if key == event_id.bytes else _text(key),  # what came without a key waits under its id
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
