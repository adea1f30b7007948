"""The operations of one unit of work, each a generator that yields SQL and receives rows.

What has no answer that decides anything is yielded as ``Kind.LATER`` and travels with the next statement:
a unit of one delivery takes four round trips, and so does one of five hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from zlib import crc32

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
from eventkeel.stores.postgres.arrays import Binary, byteas, float8s, int4s, int8s, texts, uuids
from eventkeel.stores.postgres.connection import AsyncSide, Seat, SyncSide

if TYPE_CHECKING:
    from eventkeel.stores.postgres.pool import Pool

SQL = load_queries("eventkeel.stores.postgres", "queries.sql")
OWN = frozenset(SQL.values())

APPLIED, PARKED, DEAD, SKIPPED, CONFLICT = range(5)
"""States of an inbox row."""

MOST_KEYS = 500
"""Keys that one append locks one by one; beyond that it takes whole shards, so that lock memory cannot run out."""

_BEGIN = "begin isolation level read committed"
_ALONE = Statement(_BEGIN, (), Kind.BEGIN)
_SPECULATIVE = Statement(_BEGIN, ("set local lock_timeout = '20ms'",), Kind.BEGIN)
"""In company a lock is not worth waiting for: one by one the deliveries wait properly."""
_COMMIT = Statement("commit", (), Kind.COMMIT)
_ROLLBACK = Statement("rollback", (), Kind.ROLLBACK)


class Locks:
    """Numbers of advisory locks: 64 bits of a hash, in spaces apart from each other and from other services
    in the same database."""

    def __init__(self, schema: str) -> None:
        self._schema = schema.encode()

    def number(self, space: bytes, *parts: bytes) -> int:
        digest = blake2b(b"\0".join((self._schema, *parts)), digest_size=8, person=space)
        return int.from_bytes(digest.digest(), "big", signed=True)

    @cache  # noqa: B019  # as many as there are slices, for as long as the store lives
    def slice(self, group: str, slice: Slice) -> int:
        return self.number(b"fence", group.encode(), repr(tuple(slice)).encode())

    @cache  # noqa: B019
    def shard(self, shard: int) -> int:
        return self.number(b"shard", b"%d" % shard)

    @cache  # noqa: B019
    def topic(self, topic: str) -> int:
        """The upper half of the numbers of its keys; the lower half is the key's CRC-32. Keys that share one wait for
        each other, and nothing else."""
        return self.number(b"outbox", topic.encode()) & ~0xFFFFFFFF


class PostgresUnit:
    """See ports.store.Unit."""

    def __init__(
        self,
        pool: Pool,
        locks: Locks,
        shards: int,
        consumer_id: Callable[[str], int],
        undecided: int,
        committed: Callable[[bool, bool], None],
    ) -> None:
        self._seat = Seat(pool)
        self.connection = AsyncSide(self._seat)
        self.sync_connection = SyncSide(self._seat)
        self._locks, self._shards = locks, shards
        self._id, self._undecided, self._committed = consumer_id, undecided, committed
        self._news = self._gates_changed = False

    @property
    def native(self) -> Any:
        handle = self._seat.take()
        if handle is None:
            return self._seat.nothing_begun(Kind.RUN)
        return handle.lend(sync=self._seat.sync)

    # -- the transaction -----------------------------------------------------------------------

    def begin(self, *, speculative: bool) -> Op[None]:
        self._news = self._gates_changed = False
        yield _SPECULATIVE if speculative else _ALONE

    def commit(self) -> Op[None]:
        yield _COMMIT
        if self._news or self._gates_changed:
            self._committed(self._news, self._gates_changed)

    def rollback(self) -> Op[None]:
        yield _ROLLBACK

    def savepoint(self, name: str) -> Op[None]:
        yield Statement(f"savepoint {name}", (), Kind.LATER)

    def release(self, name: str) -> Op[None]:
        yield Statement(f"release {name}")

    def rollback_to(self, name: str) -> Op[None]:
        yield Statement(f"rollback to {name}", ())

    def close(self, *, discard: bool = False) -> None:
        handle = self._seat.leave()
        if handle is None:
            return
        if discard or handle.begun is not False:
            handle.doubtful = True  # an open transaction ends with its connection
        self._seat.pool.give_back(handle)

    # -- fence and claim -----------------------------------------------------------------------

    def fence(self, group: str, epochs: Mapping[Slice, int]) -> Op[tuple[Slice, ...]]:
        """Two statements in one round trip: a statement's snapshot is older than its wait for a lock."""
        if not epochs:
            return ()
        slices = list(epochs)
        numbers = sorted(self._locks.slice(group, slice) for slice in slices)
        yield Statement(SQL["shared_locks"], (int8s(numbers),), Kind.LATER)
        params = (
            group.encode(),
            texts([slice.topic for slice in slices]),
            int4s([slice.partition for slice in slices]),
            int4s([slice.generation for slice in slices]),
            int8s(list(epochs.values())),
        )
        reply = yield Statement(SQL["fence"], params)
        return tuple(slices[n - 1] for (n,) in reply.rows)

    def exclude(self, consumer: str, keys: Sequence[bytes]) -> Op[None]:
        name = consumer.encode()
        numbers = sorted({self._locks.number(b"exclude", name, key) for key in keys})
        yield Statement(SQL["locks"], (int8s(numbers),), Kind.LATER)

    def claim(self, consumer: str, claims: Sequence[Claim], now: float) -> Op[list[Verdict]]:
        if not claims:
            return []
        mine = self._id(consumer)
        reply = yield Statement(SQL["claim"], self._claim_params(mine, claims, now))
        count, inserted, waiting = reply.rows[0]
        if count == len(claims):
            return [Verdict.NEW] * count
        new = {each.bytes for each in inserted or ()}
        behind = {n - 1 for n in waiting or ()}
        verdicts: list[Verdict | None] = []
        for index, claim in enumerate(claims):
            if index not in behind and claim.event_id in new:
                new.remove(claim.event_id)
                verdicts.append(Verdict.NEW)
            else:
                verdicts.append(None)
        return (yield from self._compared(mine, claims, verdicts, behind))

    def _claim_params(self, mine: int, claims: Sequence[Claim], now: float) -> tuple[bytes, ...]:
        places: dict[tuple[Slice, int], int] = {}
        of = [places.setdefault((claim.slice, claim.epoch), len(places) + 1) for claim in claims]
        return (
            b"%d" % mine,
            uuids([claim.event_id for claim in claims]),
            int4s(of),
            int8s([claim.position for claim in claims]),
            byteas([claim.key for claim in claims]),
            byteas([claim.fingerprint for claim in claims]),
            texts([slice.topic for slice, _ in places]),
            int4s([slice.partition for slice, _ in places]),
            int8s([epoch for _, epoch in places]),
            b"%d" % self._undecided,
            b"%r" % now,
        )

    def _compared(
        self, mine: int, claims: Sequence[Claim], verdicts: list[Verdict | None], behind: set[int]
    ) -> Op[list[Verdict]]:
        """What the inbox knows already is a duplicate, gate or no gate. A statement of its own: its snapshot is
        younger than what the claim may have waited for."""
        asked = [claim.event_id for claim, verdict in zip(claims, verdicts, strict=True) if verdict is None]
        reply = yield Statement(SQL["known"], (uuids(asked), b"%d" % mine, b"%d" % self._undecided))
        known: dict[bytes, list[tuple[int, bytes | None]]] = {}
        for event_id, fingerprint, consumer in reply.rows:
            known.setdefault(event_id.bytes, []).append((consumer, fingerprint))
        ahead: dict[bytes, bytes | None] = {}
        found: list[Verdict] = []
        for index, (claim, verdict) in enumerate(zip(claims, verdicts, strict=True)):
            if verdict is not None:
                found.append(verdict)
                continue
            rows = [
                fingerprint
                for consumer, fingerprint in known.get(claim.event_id, ())
                if consumer == mine or index in behind
            ]
            if index not in behind or rows or claim.event_id in ahead:
                first = rows[0] if rows else ahead.get(claim.event_id)
                found.append(_compare(first, claim.fingerprint))
            else:
                ahead[claim.event_id] = claim.fingerprint
                found.append(Verdict.WAITING)
        return found

    def unclaim(self, consumer: str, event_ids: Sequence[bytes]) -> Op[None]:
        yield Statement(SQL["unclaim"], (uuids(event_ids), b"%d" % self._id(consumer)), Kind.LATER)

    # -- outbox --------------------------------------------------------------------------------

    def append(self, records: Sequence[Record], now: float) -> Op[None]:
        """Locks on the keys, held to the commit, make order of a key = order of id = order of commit."""
        if not records:
            return
        of_topic, shards = self._locks.topic, self._shards
        keys = [of_topic(record.topic) | crc32(record.key) for record in records]
        of = [key % shards for key in keys]
        whole = sorted({self._locks.shard(shard) for shard in of})
        distinct = sorted(set(keys))
        if len(distinct) > MOST_KEYS:
            yield Statement(SQL["locks"], (int8s(whole),), Kind.LATER)
        else:
            yield Statement(SQL["shared_locks"], (int8s(whole),), Kind.LATER)
            yield Statement(SQL["locks"], (int8s(distinct),), Kind.LATER)
        topics: dict[str, int] = {}
        which = [topics.setdefault(record.topic, len(topics) + 1) for record in records]
        params = (
            uuids([record.event_id for record in records]),
            int4s(of),
            texts(list(topics)),
            byteas([record.key for record in records]),
            byteas([record.headers for record in records]),
            byteas([record.body for record in records]),
            b"%r" % now,
            int4s(which),
        )
        yield Statement(SQL["append"], params, Kind.LATER)
        self._news = True

    # -- timers --------------------------------------------------------------------------------

    def schedule(self, records: Sequence[Record], due: Sequence[float]) -> Op[None]:
        params = (
            uuids([record.event_id for record in records]),
            texts([record.topic for record in records]),
            byteas([record.key for record in records]),
            byteas([record.headers for record in records]),
            byteas([record.body for record in records]),
            float8s(due),
        )
        yield Statement(SQL["schedule"], params, Kind.LATER)
        self._gates_changed = True

    def cancel(self, event_id: bytes) -> Op[bool]:
        return bool((yield Statement(SQL["cancel"], (Binary(event_id),))).rows)

    def fire(self, now: float, limit: int) -> Op[int]:
        """Under one lock for all: two processes at once would append what is due in any order."""
        if not (yield Statement(SQL["try_lock"], (b"%d" % self._locks.number(b"timers"),))).rows[0][0]:
            return 0
        rows = (yield Statement(SQL["due_timers"], (b"%r" % now, b"%d" % limit))).rows
        if rows:
            yield Statement(SQL["drop_timers"], (int8s([number for number, *_ in rows]),), Kind.LATER)
            yield from self.append([Record(event_id.bytes, *row) for _, event_id, *row in rows], now)
        return len(rows)

    # -- steps ---------------------------------------------------------------------------------

    def recall(self, consumer: str, event_id: bytes) -> Op[dict[str, bytes]]:
        return dict((yield Statement(SQL["recall"], (Binary(event_id), b"%d" % self._id(consumer)))).rows)

    def journal(self, consumer: str, event_id: bytes, step: str, result: bytes, now: float) -> Op[bytes]:
        """Two statements: the second one's snapshot is younger than what the first may have waited for."""
        place = (Binary(event_id), b"%d" % self._id(consumer), text(step))
        yield Statement(SQL["journal"], (*place, Binary(result), b"%r" % now), Kind.LATER)
        counts: bytes = (yield Statement(SQL["journalled"], place)).rows[0][0]
        return counts

    def forget_steps(self, consumer: str, event_id: bytes) -> Op[None]:
        yield Statement(SQL["forget_steps"], (Binary(event_id), b"%d" % self._id(consumer)), Kind.LATER)

    # -- gates and dead letters ----------------------------------------------------------------

    def park(
        self, consumer: str, held: Held, *, due: float, opens: bool, epoch: int, now: float, cap: int = 0
    ) -> Op[Parked]:
        target = self._id(consumer)
        topic, key = held.slice.topic.encode(), Binary(_place(held))
        if not opens:
            queue = yield from self._queue_of(target, topic, key)
            if queue is None:
                return Parked.GONE
            target = queue
            if cap:
                waiting = yield Statement(SQL["count_queued"], (b"%d" % target, topic, key, b"%d" % cap))
                if waiting.rows[0][0] >= cap:
                    return Parked.FULL
        if not (yield from self._remember(target, held, PARKED, epoch, now)):
            return Parked.KEPT
        if opens:
            yield from self._open_gate(target, held, "waiting", due)
        yield from self._hold(target, held, "parked", True, now)
        self._gates_changed = True
        return Parked.KEPT

    def _queue_of(self, consumer: int, topic: bytes, key: bytes) -> Op[int | None]:
        """Behind which gate a delivery waits, locked: one for all consumers comes first."""
        for target in (self._undecided, consumer):
            if (yield Statement(SQL["lock_gate"], (topic, key, b"%d" % target))).rows:
                return target
        return None

    def _open_gate(self, target: int, held: Held, state: str, due: float) -> Op[None]:
        gate = (b"%d" % target, held.slice.topic.encode(), Binary(_place(held)), state.encode(), b"%r" % due)
        yield Statement(SQL["open_gate"], (*gate, b"%d" % held.attempts, text(held.reason)))

    def bury(self, consumer: str, held: Held, *, blocks: bool, epoch: int, now: float) -> Op[None]:
        target = self._id(consumer)
        conflict = held.reason == "identity-conflict"
        if not (yield from self._remember(target, held, CONFLICT if conflict else DEAD, epoch, now)):
            return
        if blocks:
            yield from self._open_gate(target, held, "blocked", 0.0)
        yield from self._hold(target, held, "conflict" if conflict else "dead", blocks, now)

    def _remember(self, consumer: int, held: Held, state: int, epoch: int, now: float) -> Op[bool]:
        row = (
            b"%d" % consumer,
            Binary(held.event_id),
            b"%d" % state,
            held.slice.topic.encode(),
            b"%d" % held.slice.partition,
            b"%d" % held.position,
            b"%d" % epoch,
            _binary(held.fingerprint),
            b"%r" % now,
        )
        return bool((yield Statement(SQL["remember"], row)).rows)

    def _hold(self, consumer: int, held: Held, state: str, queued: bool, now: float) -> Op[None]:
        where = (
            b"%d" % consumer,
            held.slice.topic.encode(),
            b"%d" % held.slice.partition,
            b"%d" % held.slice.generation,
            b"%d" % held.position,
            Binary(_place(held)),
            Binary(held.event_id),
            state.encode(),
            b"true" if queued else b"false",
        )
        what = (Binary(held.headers), _binary(held.body), b"%r" % held.time, text(held.type), _binary(held.fingerprint))
        why = (b"%d" % held.attempts, text(held.reason), text(held.error[:4096]), b"%r" % now)
        yield Statement(SQL["hold"], where + what + why)

    def hold_gate(self, lease: GateLease, until: float) -> Op[bool]:
        place = (b"%d" % self._id(lease.consumer), lease.topic.encode(), Binary(lease.key), b"%d" % lease.epoch)
        return bool((yield Statement(SQL["hold_gate"], (b"%r" % until, *place))).rows)

    def finish_head(self, lease: GateLease, held: Held, outcome: HeadOutcome, now: float) -> Op[Gone]:
        consumer = self._id(lease.consumer)
        place = (b"%d" % consumer, lease.topic.encode(), Binary(lease.key))
        if not (yield Statement(SQL["lock_gate_ours"], (*place, b"%d" % lease.epoch))).rows:
            return Gone.LOST
        self._gates_changed = True
        if outcome.kind == "applied":
            return (yield from self._applied(consumer, place, held, now))
        number, why = b"%d" % held.number, (b"%d" % outcome.attempts, text(outcome.reason))
        error, at = text(outcome.error[:4096]), b"%r" % now
        if outcome.kind == "retry":
            if not (yield Statement(SQL["retry_held"], (*why, error, at, number))).rows:
                return Gone.LOST
            yield Statement(SQL["set_gate"], (b"waiting", b"%r" % outcome.due, *why, *place))
            return Gone.MORE
        # What still cannot be read is no longer waited for: its key goes on, a recorded gap.
        loose = consumer == self._undecided
        kill = (b"false" if loose else b"true", *why, error, at, number)
        if not (yield Statement(SQL["kill_held"], kill)).rows:
            return Gone.LOST
        yield Statement(SQL["set_state"], (b"%d" % DEAD, at, Binary(held.event_id), b"%d" % consumer))
        if loose:
            gone = yield from self._pass_on(place)
            if gone is Gone.MORE:
                yield Statement(SQL["let_gate_go"], place)
            return gone
        yield Statement(SQL["set_gate"], (b"blocked", b"0", *why, *place))
        return Gone.MORE

    def _applied(self, consumer: int, place: tuple[bytes, bytes, bytes], held: Held, now: float) -> Op[Gone]:
        # A gate may have gone and come again under the same epoch; a number never does.
        if not (yield Statement(SQL["pop_held"], (b"%d" % held.number,))).rows:
            return Gone.LOST
        who = (Binary(held.event_id), b"%d" % consumer)
        if consumer == self._undecided:
            yield Statement(SQL["forget"], who)  # its consumers' own rows know it now
        else:
            yield Statement(SQL["set_state"], (b"%d" % APPLIED, b"%r" % now, *who))
        return (yield from self._pass_on(place))

    def _pass_on(self, place: tuple[bytes, bytes, bytes]) -> Op[Gone]:
        """To what waits behind a head that is gone: a dead one there blocks its key from now on."""
        rows = (yield Statement(SQL["next_state"], place)).rows
        if not rows:
            yield Statement(SQL["drop_gate"], place)
            return Gone.EMPTY
        state, attempts, reason = rows[0]
        if state == "dead":
            yield Statement(SQL["set_gate"], (b"blocked", b"0", b"%d" % attempts, text(reason), *place))
        return Gone.MORE

    # -- suspects ------------------------------------------------------------------------------

    def mark_attempt(self, consumer: str, event_id: bytes, now: float) -> Op[int]:
        params = (b"%d" % self._id(consumer), Binary(event_id), b"%r" % now)
        starts: int = (yield Statement(SQL["mark_attempt"], params)).rows[0][0]
        return starts

    def clear_attempt(self, consumer: str, event_id: bytes) -> Op[None]:
        yield Statement(SQL["clear_attempt"], (b"%d" % self._id(consumer), Binary(event_id)), Kind.LATER)


def text(value: str) -> bytes:
    """Text of ours or of a foreign message, in characters that the database takes."""
    return value.replace("\0", "\\x00").encode("utf-8", "backslashreplace")


def _binary(value: bytes | None) -> Binary | None:
    return None if value is None else Binary(value)


def _compare(first: bytes | None, second: bytes | None) -> Verdict:
    if first is None or second is None or not conflicts(first, second):
        return Verdict.DONE
    return Verdict.CONFLICT


def _place(held: Held) -> bytes:
    """The key under which it waits; what has none waits alone, under its own id."""
    return held.event_id if held.key is None else held.key
