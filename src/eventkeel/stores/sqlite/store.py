"""A service's database in one SQLite file, for any number of processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw

from eventkeel._sqlite import Wake, begin_immediate_async, connect
from eventkeel.errors import ConfigurationError
from eventkeel.message import Slice
from eventkeel.ports.store import (
    GateLease,
    Head,
    Held,
    LeaseView,
    Mark,
    Owned,
    OwnerRow,
    Row,
    Schema,
    Statement,
    StoreCaps,
    Unsent,
)
from eventkeel.stores.common import Prepared, latest
from eventkeel.stores.common import held as held_row
from eventkeel.stores.sqlite.connection import Handle, fetch
from eventkeel.stores.sqlite.migrate import apply_ddl, framework_tables, register
from eventkeel.stores.sqlite.unit import APPLIED, SKIPPED, SQL, SQLiteUnit
from eventkeel.stores.sqlite.values import bind

_MOST_FREE = 16
"""Connections kept open that nobody uses."""
_FRESH_IN_A_ROW = 100
"""Rows too young to be purged, one after another, after which only younger ones are expected."""


class SQLiteStore:
    """The store in the file at ``path`` (made if missing). Implements ``ports.store.Store``.

    What a unit has committed is on the disk. Every process opens its own.
    """

    def __init__(self, path: str | Path, service: str) -> None:
        self.path, self.service = Path(path), service
        self.caps = StoreCaps(parallel_units=False, relay_shards=1)
        self.store_id = ""
        self._free: list[Handle] = []
        self._private: apsw.Connection | None = None
        self._consumers: dict[str, int] = {}
        self._served: tuple[int, ...] = ()
        self._names: dict[int, str] = {}
        self._prepared = Prepared(bind)
        self._queue = asyncio.Lock()
        self._wake: Wake | None = None
        self._wakers: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    # -- life ----------------------------------------------------------------------------------

    async def open(self) -> None:
        if self._private is not None:
            return
        self._pid, self._loop = os.getpid(), asyncio.get_running_loop()
        self._queue = asyncio.Lock()
        self._private = connect(self.path)
        try:
            async with self._transaction(durable=True) as db:
                framework_tables(db, str(self.path))
                self.store_id = fetch(db, SQL["get_meta"], ("store_id",))[0][0]
        except BaseException:
            self._private.close()
            self._private = None
            raise
        self._wake = Wake(self.path)

    async def close(self) -> None:
        if self._private is None:
            return
        if self._wake is not None:
            self._wake.close()
            self._wake = None
        for handle in self._free:
            handle.close()
        self._free.clear()
        self._wakers.clear()
        private, self._private = self._private, None
        with contextlib.suppress(apsw.Error):
            private.close()

    async def migrate(self, want: Schema, *, apply: bool) -> None:
        async with self._transaction(durable=True) as db:
            register(db, want, str(self.path), apply)
            if apply:
                apply_ddl(db, want)
            rows = fetch(db, SQL["consumers"])
        self._consumers = {name: number for number, name, *_ in rows}
        self._names = {number: name for number, name, *_ in rows}
        served = (f"{want.service}/*", *(consumer.name for consumer in want.consumers))
        self._served = self._numbers(served)

    def _numbers(self, consumers: Iterable[str]) -> tuple[int, ...]:
        return tuple(self._consumers[name] for name in consumers if name in self._consumers)

    @contextlib.asynccontextmanager
    async def _transaction(self, *, durable: bool = False) -> AsyncIterator[apsw.Connection]:
        """A short transaction of the store's own.

        Not ``durable``: for what may safely be done twice (leases, progress, removing what was sent).
        A commit that a power failure undoes then costs a duplicate, which the inboxes absorb, and
        not an fsync each time.
        """
        private, queue = self._opened(), self._queue
        async with queue:
            if private is not self._private:
                raise ConfigurationError(f"the store {self.path} was closed")
            private.execute(f"pragma synchronous={'full' if durable else 'normal'}")
            await begin_immediate_async(private)
            try:
                yield private
                private.execute("commit")
            finally:
                if private.in_transaction:
                    private.execute("rollback")

    def _opened(self) -> apsw.Connection:
        if self._private is None or self._pid != os.getpid():
            raise ConfigurationError(
                f"the store {self.path} is not open in this process"
                f"{', which was forked from the one that opened it' if self._private is not None else ''}"
            )
        return self._private

    def _ask(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        rows: list[Row] = self._opened().execute(SQL[sql], params).fetchall()
        return rows

    # -- units ---------------------------------------------------------------------------------

    def unit(self) -> SQLiteUnit:
        self._opened()
        undecided = self._consumers.get(f"{self.service}/*", 0)
        return SQLiteUnit(self._lend, self._queue, self._id, undecided, self._notify, self._take_back)

    def _lend(self) -> Handle:
        self._opened()
        try:
            return self._free.pop()
        except IndexError:  # threads take from it too
            return Handle(str(self.path))

    def _take_back(self, handle: Handle, discard: bool) -> None:
        doubtful = discard or handle.doubtful or handle.begun is not False
        if doubtful or self._private is None or len(self._free) >= _MOST_FREE:
            handle.close()
        else:
            self._free.append(handle)

    def _id(self, consumer: str) -> int:
        number = self._consumers.get(consumer)
        if number is None:
            raise ConfigurationError(f"no consumer {consumer!r} is registered in {self.path}")
        return number

    def prepare(self, sql: str, params: Any) -> Statement:
        return self._prepared.statement(sql, params)

    # -- wake-ups ------------------------------------------------------------------------------

    def on_commit(self, *, outbox: Callable[[], None], gates: Callable[[], None]) -> None:
        assert self._loop is not None and self._wake is not None
        if not self._wakers:
            self._wake.listen(self._loop, lambda: self._wake_all(True, True))
        self._wakers.append((outbox, gates))

    def _wake_all(self, outbox: bool, gates: bool) -> None:
        for wake_relay, wake_due in self._wakers:
            if outbox:
                wake_relay()
            if gates:
                wake_due()

    def _notify(self, outbox: bool = True, gates: bool = True) -> None:
        """After a commit: this process at once, the others by datagram. From any thread."""
        if self._wake is not None:
            self._wake.notify()
        if self._wakers and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to wake here
                self._loop.call_soon_threadsafe(self._wake_all, outbox, gates)

    # -- ownership -----------------------------------------------------------------------------

    def join(self, native: Any) -> SQLiteUnit:
        raise ConfigurationError(
            "nobody's own connection can be joined on SQLite: one file never passes through two SQLite libraries in "
            "one process. Use service.transaction(), or give the service a postgresql:// store"
        )

    async def take(
        self, group: str, member: str, slices: Sequence[Slice], *, ttl: float, now: float, force: bool = False
    ) -> list[Owned]:
        taken: list[Owned] = []
        async with self._transaction() as db:
            for slice in slices:
                rows = fetch(db, SQL["owner"], (group, *slice))
                owner, epoch, position, incarnation, until = rows[0] if rows else ("", 0, None, "", 0.0)
                if owner not in ("", member) and now < until < latest(now, ttl) and not force:
                    continue
                db.execute(SQL["take"], (group, *slice, member, epoch + 1, now + ttl))
                suspect = owner not in ("", member)
                taken.append(Owned(slice, epoch + 1, position, incarnation, suspect))
        return taken

    async def lease(self, group: str, member: str, held: Mapping[Slice, int], *, ttl: float, now: float) -> LeaseView:
        async with self._transaction() as db:
            db.execute(SQL["alive"], (group, member, now + ttl))
            db.execute(SQL["bury_members"], (group, now - 100 * ttl))
            lost = [
                slice
                for slice, epoch in held.items()
                if not fetch(db, SQL["renew"], (now + ttl, group, *slice, member, epoch))
            ]
            members = tuple(name for (name,) in db.execute(SQL["members"], (group, now, latest(now, ttl))))
            owners = tuple(
                OwnerRow(Slice(topic, partition, generation), owner, epoch, until, position)
                for topic, partition, generation, owner, epoch, until, position in db.execute(SQL["owners"], (group,))
            )
        return LeaseView(members, owners, tuple(lost))

    async def leave(self, group: str, member: str) -> None:
        async with self._transaction() as db:
            db.execute(SQL["leave"], (group, member))
            db.execute(SQL["free"], (group, member))
        self._notify()

    async def progress(self, group: str, marks: Sequence[Mark], *, release: bool, now: float) -> tuple[Slice, ...]:
        refused: list[Slice] = []
        async with self._transaction() as db:
            for slice, epoch, position, incarnation in marks:
                params = (position, incarnation, group, *slice, epoch)
                if not fetch(db, SQL["progress"], params):
                    refused.append(slice)
                elif release:
                    db.execute(SQL["release"], (group, *slice, epoch))
        if release:
            self._notify()
        return tuple(refused)

    # -- outbox --------------------------------------------------------------------------------

    async def unsent(self, shards: Sequence[int], limit: int, *, heads_only: bool = False) -> list[Unsent]:
        if 0 not in shards:
            return []
        if heads_only:
            return self._unsent_heads(limit)
        return [Unsent(*row) for row in self._ask("unsent", (limit,))]

    def _unsent_heads(self, limit: int) -> list[Unsent]:
        """The first of each key, by one walk in order: an index of keys would cost every append."""
        ids: list[int] = []
        seen: set[tuple[str, bytes]] = set()
        for id, topic, key, stuck in self._opened().execute(SQL["unsent_places"]):
            if (topic, key) not in seen:
                seen.add((topic, key))
                if not stuck:
                    ids.append(id)
                    if len(ids) == limit:
                        break
        return [Unsent(*row) for id in ids for row in self._ask("unsent_one", (id,))]

    async def sent(self, group: str, epochs: Mapping[Slice, int], ids: Sequence[int]) -> tuple[Slice, ...]:
        if not ids:
            return ()
        async with self._transaction() as db:
            lost = tuple(shard for shard, epoch in epochs.items() if not self._owns(db, group, shard, epoch))
            if lost:
                return lost
            first, last = min(ids), max(ids)
            if last - first + 1 == len(ids):
                db.execute(SQL["sent_range"], (first, last))
            else:
                db.executemany(SQL["sent_each"], [(id,) for id in ids])
        return ()

    async def stuck(self, group: str, shard: Slice, epoch: int, id: int, reason: str) -> bool:
        async with self._transaction() as db:
            if not self._owns(db, group, shard, epoch):
                return False
            db.execute(SQL["stuck"], (reason, id))
        return True

    def _owns(self, db: apsw.Connection, group: str, shard: Slice, epoch: int) -> bool:
        return fetch(db, SQL["fence"], (group, *shard)) == [(epoch,)]

    # -- gates ---------------------------------------------------------------------------------

    async def due(self, consumers: Sequence[str], member: str, *, limit: int, ttl: float, now: float) -> list[Head]:
        mine = json.dumps(self._numbers(consumers))
        if not self._ask("due", (now, 1, mine, latest(now, ttl))):
            return []
        heads: list[Head] = []
        async with self._transaction() as db:
            for consumer, topic, key, owner in fetch(db, SQL["due"], (now, limit, mine, latest(now, ttl))):
                rows = fetch(db, SQL["head"], (consumer, topic, key))
                if not rows:
                    db.execute(SQL["drop_gate"], (consumer, topic, key))
                    continue
                held, state = held_row(rows[0])
                if state == "dead":
                    db.execute(SQL["set_gate"], ("blocked", 0.0, held.attempts, held.reason, consumer, topic, key))
                    continue
                lease = (member, now + ttl, consumer, topic, key)
                epoch = fetch(db, SQL["lease_gate"], lease)[0][0]
                leased = GateLease(self._names[consumer], topic, key, epoch)
                heads.append(Head(leased, held, now + ttl, suspect=owner not in ("", member)))
        return heads

    async def next_due(self, now: float) -> float | None:
        due: float | None = self._ask("next_due", (json.dumps(self._served),))[0][0]
        return due

    async def next_head(self, lease: GateLease) -> Held | None:
        place = (self._id(lease.consumer), lease.topic, lease.key)
        if not self._ask("gate_ours", (*place, lease.epoch)):
            return None
        rows = self._ask("head", place)
        if not rows:
            return None
        held, state = held_row(rows[0])
        return held if state == "parked" else None

    # -- the rest ------------------------------------------------------------------------------

    async def next_timer(self) -> float | None:
        due: float | None = self._ask("next_timer")[0][0]
        return due

    async def purge(self, *, before: float, limit: int) -> int:
        """From the old end, until only younger rows come."""
        old: list[int] = []
        fresh = 0
        for id, state, at in self._opened().execute(SQL["inbox_ages"]):
            if at >= before:
                fresh += 1
            elif state in (APPLIED, SKIPPED):
                fresh = 0
                old.append(id)
            if fresh == _FRESH_IN_A_ROW or len(old) == limit:
                break
        async with self._transaction() as db:
            db.execute(SQL["purge_attempts"], (before,))
            db.execute(SQL["purge_steps"], (before,))
            at_first = db.total_changes()
            # With the age once more: another process may have purged meanwhile, and a new event have the number.
            db.executemany(SQL["purge"], [(id, before) for id in old])
            return db.total_changes() - at_first
