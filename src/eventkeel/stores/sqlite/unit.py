"""The operations of one unit of work, each a generator that yields SQL and receives rows.

SQLite has one writer: between BEGIN IMMEDIATE and COMMIT nothing of another transaction can come
in, so no row needs a lock of its own here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from eventkeel._sql import load_queries
from eventkeel.fingerprint import conflicts
from eventkeel.message import Slice
from eventkeel.ports.store import (
    Claim,
    GateLease,
    Gone,
    HeadOutcome,
    Held,
    Kind,
    Op,
    Parked,
    Record,
    Statement,
    Verdict,
)
from eventkeel.stores.sqlite.connection import AsyncSide, Handle, Seat, SyncSide

SQL = load_queries("eventkeel.stores.sqlite", "queries.sql")

APPLIED, PARKED, DEAD, SKIPPED, CONFLICT = range(5)
"""States of an inbox row."""

_BEGIN = Statement("begin immediate", (), Kind.BEGIN)
_COMMIT = Statement("commit", (), Kind.COMMIT)
_ROLLBACK = Statement("rollback", (), Kind.ROLLBACK)
_ANY_GATE = Statement(SQL["any_gate"])


class SQLiteUnit:
    """See ports.store.Unit."""

    def __init__(
        self,
        lend: Callable[[], Handle],
        queue: asyncio.Lock,
        consumer_id: Callable[[str], int],
        undecided: int,
        committed: Callable[[bool, bool], None],
        give_back: Callable[[Handle, bool], None],
    ) -> None:
        self._seat = Seat(lend)
        self.connection = AsyncSide(self._seat, queue)
        self.sync_connection = SyncSide(self._seat)
        self._id, self._undecided = consumer_id, undecided
        self._committed, self._give_back = committed, give_back
        self._news = self._gates_changed = False

    @property
    def native(self) -> object:
        return self._handle.lend()

    @property
    def _handle(self) -> Handle:
        return self._seat.take()

    # -- the transaction -----------------------------------------------------------------------

    def begin(self, *, speculative: bool) -> Op[None]:
        """Waits for the file's only write lock."""
        self._news = self._gates_changed = False
        yield _BEGIN

    def commit(self) -> Op[None]:
        yield _COMMIT
        if self._news or self._gates_changed:
            self._committed(self._news, self._gates_changed)

    def rollback(self) -> Op[None]:
        yield _ROLLBACK

    def savepoint(self, name: str) -> Op[None]:
        yield Statement(f"savepoint {name}")

    def release(self, name: str) -> Op[None]:
        yield Statement(f"release {name}")

    def rollback_to(self, name: str) -> Op[None]:
        yield Statement(f"rollback to {name}")

    def close(self, *, discard: bool = False) -> None:
        handle, in_use = self._seat.leave()
        if handle is not None:
            if not discard and not in_use:
                handle.rollback()  # whatever was lent of it is ours again
            self._give_back(handle, discard or in_use)
        self.connection.leave()

    # -- fence and claim -----------------------------------------------------------------------

    def fence(self, group: str, epochs: Mapping[Slice, int]) -> Op[tuple[Slice, ...]]:
        rows = [(group, slice.topic, slice.partition, slice.generation) for slice in epochs]
        reply = yield Statement(SQL["fence"], rows, Kind.MANY)
        if len(reply.rows) == len(epochs):
            found = [epoch for (epoch,) in reply.rows]
            return tuple(slice for (slice, mine), epoch in zip(epochs.items(), found, strict=True) if epoch != mine)
        return tuple(epochs)  # an owner row is gone: whoever removed it, it is not ours

    def exclude(self, consumer: str, keys: Sequence[bytes]) -> Op[None]:
        """Nothing to do: the whole file is ours until the commit."""
        yield from ()

    def claim(self, consumer: str, claims: Sequence[Claim], now: float) -> Op[list[Verdict]]:
        mine = self._id(consumer)
        if not (yield _ANY_GATE).rows:
            return (yield from self._claim_open(mine, claims, now))
        verdicts = yield from self._gates(mine, claims)
        free = [claim for claim, verdict in zip(claims, verdicts, strict=True) if verdict is None]
        found = iter((yield from self._claim_open(mine, free, now)))
        return [verdict or next(found) for verdict in verdicts]

    def _claim_open(self, mine: int, claims: Sequence[Claim], now: float) -> Op[list[Verdict]]:
        """Claims of keys that do not wait, in one statement. Which of them were new is asked only where
        not all were: RETURNING would double the price of each."""
        rows = [
            (mine, event_id, topic, partition, position, epoch, fingerprint, now)
            for event_id, (topic, partition, _), position, epoch, _, fingerprint in claims
        ]
        count = (yield Statement(SQL["claim"], rows, Kind.MANY)).affected if rows else 0
        if count == len(rows):
            return [Verdict.NEW] * count
        inserted = (yield Statement(SQL["claimed"], (count,))).rows  # the last first
        verdicts = []
        for claim in claims:
            if inserted and inserted[-1][0] == claim.event_id:
                inserted.pop()
                verdicts.append(Verdict.NEW)
            else:
                verdicts.append((yield from self._known(mine, claim)))
        return verdicts

    def _gates(self, mine: int, claims: Sequence[Claim]) -> Op[list[Verdict | None]]:
        """Keys that wait; but what the inbox knows already is a duplicate, gate or no gate. None: its key is free."""
        verdicts: list[Verdict | None] = [None] * len(claims)
        places = list({(claim.slice.topic, claim.key): None for claim in claims})
        asked = [(*place, mine, self._undecided, number) for number, place in enumerate(places)]
        reply = yield Statement(SQL["gate_of"], asked, Kind.MANY)
        waiting = {places[number] for (number,) in reply.rows}
        ahead: dict[bytes, bytes | None] = {}
        for index, claim in enumerate(claims):
            if (claim.slice.topic, claim.key) not in waiting:
                continue
            known = (yield Statement(SQL["known"], (claim.event_id, mine, self._undecided))).rows
            if known or claim.event_id in ahead:
                first = known[0][0] if known else ahead[claim.event_id]
                verdicts[index] = _compare(first, claim.fingerprint)
            else:
                ahead[claim.event_id] = claim.fingerprint
                verdicts[index] = Verdict.WAITING
        return verdicts

    def _known(self, mine: int, claim: Claim) -> Op[Verdict]:
        if claim.fingerprint is None:
            return Verdict.DONE
        rows = (yield Statement(SQL["known"], (claim.event_id, mine, mine))).rows
        return _compare(rows[0][0] if rows else None, claim.fingerprint)

    def unclaim(self, consumer: str, event_ids: Sequence[bytes]) -> Op[None]:
        mine = self._id(consumer)
        yield Statement(SQL["unclaim"], [(event_id, mine) for event_id in event_ids], Kind.MANY)

    # -- outbox --------------------------------------------------------------------------------

    def append(self, records: Sequence[Record], now: float) -> Op[None]:
        if records:
            rows = [(r.event_id, r.topic, r.key, r.headers, r.body, now) for r in records]
            yield Statement(SQL["append"], rows, Kind.MANY)
            self._news = True

    # -- timers --------------------------------------------------------------------------------

    def schedule(self, records: Sequence[Record], due: Sequence[float]) -> Op[None]:
        rows = [(r.event_id, r.topic, r.key, r.headers, r.body, at) for r, at in zip(records, due, strict=True)]
        yield Statement(SQL["schedule"], rows, Kind.MANY)
        self._gates_changed = True

    def cancel(self, event_id: bytes) -> Op[bool]:
        return bool((yield Statement(SQL["cancel"], (event_id,))).rows)

    def fire(self, now: float, limit: int) -> Op[int]:
        rows = (yield Statement(SQL["due_timers"], (now, limit))).rows
        if rows:
            yield Statement(SQL["drop_timer"], [(number,) for number, *_ in rows], Kind.MANY)
            yield from self.append([Record(*row) for _, *row in rows], now)
        return len(rows)

    # -- steps ---------------------------------------------------------------------------------

    def recall(self, consumer: str, event_id: bytes) -> Op[dict[str, bytes]]:
        return dict((yield Statement(SQL["recall"], (event_id, self._id(consumer)))).rows)

    def journal(self, consumer: str, event_id: bytes, step: str, result: bytes, now: float) -> Op[bytes]:
        place = (event_id, self._id(consumer), step)
        yield Statement(SQL["journal"], (*place, result, now))
        counts: bytes = (yield Statement(SQL["journalled"], place)).rows[0][0]
        return counts

    def forget_steps(self, consumer: str, event_id: bytes) -> Op[None]:
        yield Statement(SQL["forget_steps"], (event_id, self._id(consumer)))

    # -- gates and dead letters ----------------------------------------------------------------

    def park(
        self, consumer: str, held: Held, *, due: float, opens: bool, epoch: int, now: float, cap: int = 0
    ) -> Op[Parked]:
        target = self._id(consumer)
        if not opens:
            queue = yield from self._queue_of(target, held.slice.topic, _place(held))
            if queue is None:
                return Parked.GONE
            target = queue
            if cap:
                waiting = yield Statement(SQL["count_queued"], (target, held.slice.topic, _place(held), cap))
                if waiting.rows[0][0] >= cap:
                    return Parked.FULL
        if not (yield from self._remember(target, held, PARKED, epoch, now)):
            return Parked.KEPT
        if opens:
            gate = (target, held.slice.topic, _place(held), "waiting", due, held.attempts, held.reason)
            yield Statement(SQL["open_gate"], gate)
        yield from self._hold(target, held, "parked", True, now)
        self._gates_changed = True
        return Parked.KEPT

    def _queue_of(self, consumer: int, topic: str, key: bytes) -> Op[int | None]:
        """Behind which gate a delivery waits: one for all consumers comes first."""
        for target in (self._undecided, consumer):
            if (yield Statement(SQL["gate_exists"], (topic, key, target))).rows:
                return target
        return None

    def bury(self, consumer: str, held: Held, *, blocks: bool, epoch: int, now: float) -> Op[None]:
        target = self._id(consumer)
        conflict = held.reason == "identity-conflict"
        state = CONFLICT if conflict else DEAD
        if not (yield from self._remember(target, held, state, epoch, now)):
            return
        if blocks:
            gate = (target, held.slice.topic, _place(held), "blocked", 0.0, held.attempts, held.reason)
            yield Statement(SQL["open_gate"], gate)
        yield from self._hold(target, held, "conflict" if conflict else "dead", blocks, now)

    def _remember(self, consumer: int, held: Held, state: int, epoch: int, now: float) -> Op[bool]:
        row = (consumer, held.event_id, state, *held.slice[:2], held.position, epoch, held.fingerprint, now)
        return bool((yield Statement(SQL["remember"], row)).rows)

    def _hold(self, consumer: int, held: Held, state: str, queued: bool, now: float) -> Op[None]:
        where = (consumer, *held.slice, held.position, _place(held), held.event_id, state, queued)
        what = (held.headers, held.body, held.time, held.type, held.fingerprint)
        why = (held.attempts, held.reason, held.error[:4096], now, now)
        yield Statement(SQL["hold"], where + what + why)

    def hold_gate(self, lease: GateLease, until: float) -> Op[bool]:
        place = (self._id(lease.consumer), lease.topic, lease.key, lease.epoch)
        return bool((yield Statement(SQL["hold_gate"], (until, *place))).rows)

    def finish_head(self, lease: GateLease, held: Held, outcome: HeadOutcome, now: float) -> Op[Gone]:
        consumer = self._id(lease.consumer)
        place = (consumer, lease.topic, lease.key)
        if not (yield Statement(SQL["gate_ours"], (*place, lease.epoch))).rows:
            return Gone.LOST
        self._gates_changed = True
        error = outcome.error[:4096]
        if outcome.kind == "applied":
            # A gate may have gone and come again under the same epoch; a number never does.
            if not (yield Statement(SQL["pop_held"], (held.number,))).rows:
                return Gone.LOST
            if consumer == self._undecided:
                yield Statement(SQL["forget"], (held.event_id, consumer))  # its consumers' own rows know it now
            else:
                yield Statement(SQL["set_state"], (APPLIED, now, held.event_id, consumer))
            return (yield from self._pass_on(place))
        if outcome.kind == "retry":
            retry = (outcome.attempts, outcome.reason, error, now, held.number)
            if not (yield Statement(SQL["retry_held"], retry)).rows:
                return Gone.LOST
            yield Statement(SQL["set_gate"], ("waiting", outcome.due, outcome.attempts, outcome.reason, *place))
            return Gone.MORE
        # What still cannot be read is no longer waited for: its key goes on, a recorded gap.
        loose = consumer == self._undecided
        kill = (not loose, outcome.attempts, outcome.reason, error, now, held.number)
        if not (yield Statement(SQL["kill_held"], kill)).rows:
            return Gone.LOST
        yield Statement(SQL["set_state"], (DEAD, now, held.event_id, consumer))
        if loose:
            gone = yield from self._pass_on(place)
            if gone is Gone.MORE:
                yield Statement(SQL["let_gate_go"], place)
            return gone
        yield Statement(SQL["set_gate"], ("blocked", 0.0, outcome.attempts, outcome.reason, *place))
        return Gone.MORE

    def _pass_on(self, place: tuple[int, str, bytes]) -> Op[Gone]:
        """To what waits behind a head that is gone: a dead one there blocks its key from now on."""
        rows = (yield Statement(SQL["next_state"], place)).rows
        if not rows:
            yield Statement(SQL["drop_gate"], place)
            return Gone.EMPTY
        state, attempts, reason = rows[0]
        if state == "dead":
            yield Statement(SQL["set_gate"], ("blocked", 0.0, attempts, reason, *place))
        return Gone.MORE

    # -- suspects ------------------------------------------------------------------------------

    def mark_attempt(self, consumer: str, event_id: bytes, now: float) -> Op[int]:
        reply = yield Statement(SQL["mark_attempt"], (self._id(consumer), event_id, now))
        starts: int = reply.rows[0][0]
        return starts

    def clear_attempt(self, consumer: str, event_id: bytes) -> Op[None]:
        yield Statement(SQL["clear_attempt"], (self._id(consumer), event_id))


def _compare(first: bytes | None, second: bytes | None) -> Verdict:
    if first is None or second is None or not conflicts(first, second):
        return Verdict.DONE
    return Verdict.CONFLICT


def _place(held: Held) -> bytes:
    """The key under which it waits; what has none waits alone, under its own id."""
    return held.event_id if held.key is None else held.key
