"""A service's database in PostgreSQL, in one schema, for any number of processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import psycopg

from eventkeel.drive import drive
from eventkeel.errors import ConfigurationError, Contention, StoreUnavailable
from eventkeel.message import Slice
from eventkeel.ports.store import (
    GateLease,
    Head,
    Held,
    Kind,
    LeaseView,
    Mark,
    Op,
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
from eventkeel.stores.postgres.arrays import Binary, int4s, int8s, texts
from eventkeel.stores.postgres.connection import AsyncSide, Handle, Seat
from eventkeel.stores.postgres.join import JoinedUnit
from eventkeel.stores.postgres.migrate import apply_ddl, ask, framework_tables, register
from eventkeel.stores.postgres.pool import Dial, Pool, closed
from eventkeel.stores.postgres.unit import OWN, SQL, Locks, PostgresUnit, text
from eventkeel.stores.postgres.url import Address, parse
from eventkeel.stores.postgres.values import bind
from eventkeel.stores.postgres.wake import Wake
from eventkeel.stores.postgres.wire import Failed, Item, run_async

T = TypeVar("T")

SHARDS = 16
"""Of the outbox: as many relays can share it."""
PATIENCE = 10.0
"""Seconds that a transaction of the store's own may take: a server that is stopped must not stop us for ever."""
ZOMBIES = 3.0
"""Seconds that a takeover waits for the open units of the old owner before it ends those that do nothing."""
OWN_CONNECTIONS = 4
"""At most, beside those of the units: leases, relay, due heads and housekeeping, each at its own pace."""
BY_INDEX = dict.fromkeys(("enable_seqscan", "enable_bitmapscan", "enable_sort", "jit"), "off")
"""Settings of the store's own connections. Our statements have an index each, and tables that fill and empty within
seconds have no statistics: without this the planner sorts the whole outbox for each wave of the relay."""
_BRIEFLY = 0.2
_BEGIN = Statement("begin isolation level read committed", (), Kind.BEGIN)
_OPEN, _CLOSE = Item(_BEGIN.sql, ()), Item("commit", ())
_COMMIT, _ROLLBACK = Statement("commit", (), Kind.COMMIT), Statement("rollback", (), Kind.ROLLBACK)
_QUICK = "set local synchronous_commit = off"
"""For what may safely be done twice (leases, progress): a commit that a crash undoes costs a duplicate, which the
inboxes absorb, and no wait for the disk."""


class PostgresStore:
    """The store at a ``postgresql://`` URL (``rest``: what follows the scheme). Implements ``ports.store.Store``.

    What a unit has committed is as durable as the server's ``synchronous_commit`` makes it; ``off`` is refused.
    """

    def __init__(self, rest: str | Address, service: str, *, shards: int = SHARDS, dial: Dial | None = None) -> None:
        self.address, self.service = rest if isinstance(rest, Address) else parse(rest), service
        self._dial = dial
        self.caps = StoreCaps(parallel_units=True, relay_shards=shards)
        self.store_id = ""
        self._locks = Locks(self.address.schema)
        self._pool: Pool | None = None
        """For units."""
        self._own: Pool | None = None
        """For the store itself: however many units wait for a connection, leases are renewed."""
        self._wake: Wake | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._consumers: dict[str, int] = {}
        self._served: tuple[int, ...] = ()
        self._names: dict[int, str] = {}
        self._prepared = Prepared(bind, "$", shared=False)
        self._wakers: list[tuple[Callable[[], None], Callable[[], None]]] = []

    # -- life ----------------------------------------------------------------------------------

    async def open(self) -> None:
        """Raises StoreUnavailable where the server does not answer, ConfigurationError where it cannot be used."""
        if self._pool is not None:
            return
        pool = Pool(self.address, OWN, self.address.pool, self._dial)
        connection = await pool.connect()
        try:
            await self._alone(connection, lambda: framework_tables(connection, self.address))
            self.store_id = (await ask(connection, "get_meta", "store_id"))[0][0]
        finally:
            await closed(connection)
        self._pool, self._loop = pool, asyncio.get_running_loop()
        self._own = Pool(self.address, OWN, OWN_CONNECTIONS, self._dial, settings=BY_INDEX)
        self._wake = Wake(pool, self.address.schema, self._wake_all)

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        if self._wake is not None:
            await self._wake.close()
            self._wake = None
        self._wakers.clear()
        pool.close()
        if self._own is not None:
            self._own.close()

    async def migrate(self, want: Schema, *, apply: bool) -> None:
        connection = await self._opened().connect()

        async def work() -> None:
            await framework_tables(connection, self.address)
            await register(connection, want, self.address, apply)
            if apply:
                await apply_ddl(connection, want)

        try:
            await self._alone(connection, work)
            rows = await ask(connection, "consumers")
        finally:
            await closed(connection)
        self._consumers = {name: number for number, name, *_ in rows}
        self._names = {number: name for number, name, *_ in rows}
        self._served = self._numbers((f"{want.service}/*", *(consumer.name for consumer in want.consumers)))

    async def _alone(self, connection: psycopg.AsyncConnection[Any], work: Callable[[], Awaitable[None]]) -> None:
        """In one transaction, one process after another. Locks of tables come within 5 s or not at all: who waits for
        one makes everybody behind it wait too. Who meets the units of a running service in a deadlock tries again."""
        try:
            for last in (False, False, True):
                try:
                    async with connection.transaction():
                        await connection.execute("set local lock_timeout = '60s'; set local statement_timeout = '70s'")
                        await connection.execute(f"select pg_advisory_xact_lock({self._locks.number(b'migrate')})")
                        await connection.execute("set local lock_timeout = '5s'; set local statement_timeout = '10min'")
                        return await work()
                except psycopg.errors.DeadlockDetected:
                    if last:
                        raise
        except psycopg.errors.InsufficientPrivilege as error:
            raise ConfigurationError(
                f"{self.address.shown}: this user may not make what is missing ({_line(error)}). Grant it create on "
                "the database or the schema, or make the schema for it"
            ) from error
        except psycopg.OperationalError as error:
            raise StoreUnavailable(f"{self.address.shown} cannot be used now: {_line(error)}") from error

    def _numbers(self, consumers: Iterable[str]) -> tuple[int, ...]:
        return tuple(self._consumers[name] for name in consumers if name in self._consumers)

    def _opened(self) -> Pool:
        if self._pool is None:
            raise ConfigurationError(f"the store {self.address.shown} is not open in this process")
        return self._pool

    def _ours(self) -> Pool:
        self._opened()
        assert self._own is not None
        return self._own

    # -- transactions of the store's own ---------------------------------------------------------

    async def run(self, body: Op[T], *, quick: bool = False) -> T:
        """``body`` in a transaction; ``quick``: whose commit does not wait for the disk."""

        def whole() -> Generator[Statement, Any, T]:
            yield _BEGIN._replace(params=(_QUICK,)) if quick else _BEGIN
            try:
                result = yield from body
                yield _COMMIT
            except BaseException:
                yield _ROLLBACK
                raise
            return result

        seat = Seat(self._ours())
        try:
            async with asyncio.timeout(PATIENCE + ZOMBIES):
                return await drive(whole(), AsyncSide(seat))
        except TimeoutError as error:
            raise self._silent(PATIENCE + ZOMBIES) from error
        finally:
            handle = seat.leave()
            if handle is not None:
                handle.doubtful |= handle.begun is not False
                seat.pool.give_back(handle)

    async def rows(self, name: str, *params: bytes | None, write: bool = False) -> list[Row]:
        """One statement, in one round trip. ``write``: it changes what may safely be done twice."""
        asked = Item(SQL[name], params)
        items = [_OPEN, Item(_QUICK, ()), asked, _CLOSE] if write else [asked]
        pool = self._ours()
        handle: Handle | None = None
        try:
            async with asyncio.timeout(PATIENCE):
                handle = await pool.take()
                results = await run_async(handle.wire, handle.wire.exchange(items), asyncio.get_running_loop())
            return handle.wire.reply(results[2 if write else 0]).rows
        except Failed as failed:
            assert handle is not None
            handle.doubtful = write  # its transaction is still open
            cause = failed.__cause__
            assert isinstance(cause, Exception)
            raise cause from cause.__cause__
        except TimeoutError as error:
            raise self._silent(PATIENCE) from error
        finally:
            if handle is not None:
                pool.give_back(handle)

    def _silent(self, seconds: float) -> StoreUnavailable:
        return StoreUnavailable(f"{self.address.shown} did not answer within {seconds:g} s")

    # -- units ---------------------------------------------------------------------------------

    def unit(self) -> PostgresUnit:
        undecided = self._consumers.get(f"{self.service}/*", 0)
        pool = self._opened()
        return PostgresUnit(pool, self._locks, self.caps.relay_shards, self._id, undecided, self.notify)

    def join(self, native: Any) -> JoinedUnit:
        """A unit on a user's psycopg connection (or on anything that runs statements as ``Connection`` does)."""
        self._opened()
        return JoinedUnit(native, self.address.schema, self._locks, self.caps.relay_shards, self._id)

    def _id(self, consumer: str) -> int:
        number = self._consumers.get(consumer)
        if number is None:
            raise ConfigurationError(f"no consumer {consumer!r} is registered in {self.address.shown}")
        return number

    def prepare(self, sql: str, params: Any) -> Statement:
        return self._prepared.statement(sql, params)

    # -- wake-ups ------------------------------------------------------------------------------

    def on_commit(self, *, outbox: Callable[[], None], gates: Callable[[], None]) -> None:
        assert self._wake is not None
        self._wake.start(listen=True)
        self._wakers.append((outbox, gates))

    def _wake_all(self, outbox: bool, gates: bool) -> None:
        for wake_relay, wake_due in self._wakers:
            if outbox:
                wake_relay()
            if gates:
                wake_due()

    def notify(self, outbox: bool = True, gates: bool = True) -> None:
        """After a commit: this process at once, the others by NOTIFY. From any thread."""
        if self._loop is None:
            return
        try:
            inside = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            inside = False
        if inside:
            self._told(outbox, gates)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to wake here
                self._loop.call_soon_threadsafe(self._told, outbox, gates)

    def _told(self, outbox: bool, gates: bool) -> None:
        if self._wake is not None:
            self._wake.start(listen=False)
            self._wake.tell(outbox, gates)
        self._wake_all(outbox, gates)

    # -- ownership -----------------------------------------------------------------------------

    async def take(
        self, group: str, member: str, slices: Sequence[Slice], *, ttl: float, now: float, force: bool = False
    ) -> list[Owned]:
        """One transaction per slice, in order. Waits for the open units of the old owner, ``ZOMBIES`` seconds for all
        slices together; a unit that does nothing then (its process was stopped) is ended: what it held could not have
        been committed any more. A slice whose units still work after that is left out, forced or not: ask again.

        Durable before it is believed: an epoch that a crash of the server gave out twice would fence nobody."""
        loop = asyncio.get_running_loop()
        until = loop.time() + ZOMBIES
        taken: list[Owned] = []
        for slice in sorted(slices):
            for patience in (_BRIEFLY, max(_BRIEFLY, until - loop.time()), _BRIEFLY):
                try:
                    one = await self.run(self._take(group, member, slice, ttl, now, force, patience))
                except Contention:
                    if not await self._end_idle(group, slice) and loop.time() > until:
                        break
                    continue
                if one is not None:
                    taken.append(one)
                break
        return taken

    async def _end_idle(self, group: str, slice: Slice) -> bool:
        """End the units that keep this slice's fence and do nothing; whether there were any."""
        try:
            return bool(await self.rows("holders", int8s([self._locks.slice(group, slice)])))
        except psycopg.Error:  # they belong to a user whose sessions we may not end: the server will, in time
            return False

    def _take(
        self, group: str, member: str, slice: Slice, ttl: float, now: float, force: bool, patience: float
    ) -> Op[Owned | None]:
        asked = Statement(SQL["owner"], _place(group, slice))
        if _leave(_owner_of((yield asked).rows), member, ttl, now, force):
            return None
        yield Statement(SQL["patience"], (b"%d" % (patience * 1000),), Kind.LATER)
        yield Statement(SQL["locks"], (int8s([self._locks.slice(group, slice)]),))
        found = _owner_of((yield asked).rows)
        if _leave(found, member, ttl, now, force):
            return None
        owner, epoch, position, incarnation, _ = found
        yield Statement(SQL["take"], (*_place(group, slice), member.encode(), b"%d" % (epoch + 1), b"%r" % (now + ttl)))
        return Owned(slice, epoch + 1, position, incarnation, owner not in ("", member))

    async def lease(self, group: str, member: str, held: Mapping[Slice, int], *, ttl: float, now: float) -> LeaseView:
        """Renews the member's row only: an owner row that a unit has locked must not hold up the renewal."""
        name, who = group.encode(), member.encode()

        def body() -> Op[tuple[list[Row], list[Row]]]:
            yield Statement(SQL["alive"], (name, who, b"%r" % (now + ttl)), Kind.LATER)
            yield Statement(SQL["bury_members"], (name, b"%r" % (now - 100 * ttl)), Kind.LATER)
            members = (yield Statement(SQL["members"], (name, b"%r" % now, b"%r" % latest(now, ttl)))).rows
            return members, (yield Statement(SQL["owners"], (name,))).rows

        members, rows = await self.run(body(), quick=True)
        owners = tuple(
            OwnerRow(Slice(topic, partition, generation), owner, epoch, until, position)
            for topic, partition, generation, owner, epoch, until, position in rows
        )
        mine = {row.slice: row.epoch for row in owners if row.owner == member}
        lost = tuple(slice for slice, epoch in held.items() if mine.get(slice) != epoch)
        return LeaseView(tuple(name for (name,) in members), owners, lost)

    async def leave(self, group: str, member: str) -> None:
        def body() -> Op[None]:
            yield Statement(SQL["leave"], (group.encode(), member.encode()))
            yield Statement(SQL["free"], (group.encode(), member.encode()))

        await self.run(body(), quick=True)
        self.notify()

    async def progress(self, group: str, marks: Sequence[Mark], *, release: bool, now: float) -> tuple[Slice, ...]:
        def body() -> Op[tuple[Slice, ...]]:
            refused: list[Slice] = []
            for slice, epoch, position, incarnation in sorted(marks, key=lambda mark: mark.slice):
                params = (
                    None if position is None else b"%d" % position,
                    incarnation.encode(),
                    group.encode(),
                    slice.topic.encode(),
                    b"%d" % slice.partition,
                    b"%d" % slice.generation,
                    b"%d" % epoch,
                    b"true" if release else b"false",
                )
                if not (yield Statement(SQL["progress"], params)).rows:
                    refused.append(slice)
            return tuple(refused)

        refused = await self.run(body(), quick=True)
        if release:
            self.notify()
        return refused

    # -- outbox --------------------------------------------------------------------------------

    async def unsent(self, shards: Sequence[int], limit: int, *, heads_only: bool = False) -> list[Unsent]:
        if not shards:
            return []
        params = int4s(shards), b"%d" % limit
        rows = [Unsent(*row) for row in await self.rows("unsent", *params)]
        if not heads_only:
            return rows
        heads: dict[tuple[str, bytes], Unsent] = {}
        for row in rows:
            heads.setdefault((row.topic, row.key), row)
        if len(rows) == limit > 1 and 2 * len(heads) <= limit:  # few keys lie before all others: look at everything
            return [Unsent(*row) for row in await self.rows("unsent_heads", *params)]
        return list(heads.values())

    async def sent(self, group: str, epochs: Mapping[Slice, int], ids: Sequence[int]) -> tuple[Slice, ...]:
        if not ids:
            return ()
        params = (
            group.encode(),
            texts([shard.topic for shard in epochs]),
            int4s([shard.partition for shard in epochs]),
            int4s([shard.generation for shard in epochs]),
            int8s(list(epochs.values())),
            int8s(ids),
        )
        mine = set((await self.rows("sent", *params, write=True))[0][0] or ())
        return tuple(shard for shard in epochs if shard.partition not in mine)

    async def stuck(self, group: str, shard: Slice, epoch: int, id: int, reason: str) -> bool:
        params = (*_place(group, shard), b"%d" % epoch, b"%d" % id, text(reason))
        return bool(await self.rows("stuck", *params, write=True))

    # -- gates ---------------------------------------------------------------------------------

    async def due(self, consumers: Sequence[str], member: str, *, limit: int, ttl: float, now: float) -> list[Head]:
        mine = int4s(self._numbers(consumers))
        if not await self.rows("any_due", b"%r" % now, mine):
            return []
        return await self.run(self._lease_heads(mine, member, limit, ttl, now))

    def _lease_heads(self, mine: bytes, member: str, limit: int, ttl: float, now: float) -> Op[list[Head]]:
        heads: list[Head] = []
        asked = (b"%r" % now, b"%d" % limit, mine, b"%r" % latest(now, ttl))
        for consumer, topic, key, owner in (yield Statement(SQL["due"], asked)).rows:
            place = (b"%d" % consumer, topic.encode(), Binary(key))
            rows = (yield Statement(SQL["head"], place)).rows
            if not rows:
                yield Statement(SQL["drop_gate"], place)
                continue
            held, state = held_row(rows[0])
            if state == "dead":
                why = (b"%d" % held.attempts, text(held.reason))
                yield Statement(SQL["set_gate"], (b"blocked", b"0", *why, *place))
                continue
            reply = yield Statement(SQL["lease_gate"], (member.encode(), b"%r" % (now + ttl), *place))
            leased = GateLease(self._names[consumer], topic, key, reply.rows[0][0])
            heads.append(Head(leased, held, now + ttl, suspect=owner not in ("", member)))
        return heads

    async def next_due(self, now: float) -> float | None:
        due: float | None = (await self.rows("next_due", int4s(self._served)))[0][0]
        return due

    async def next_head(self, lease: GateLease) -> Held | None:
        place = (b"%d" % self._id(lease.consumer), lease.topic.encode(), Binary(lease.key))

        def body() -> Op[list[Row]]:
            if not (yield Statement(SQL["gate_ours"], (*place, b"%d" % lease.epoch))).rows:
                return []
            return (yield Statement(SQL["head"], place)).rows

        rows = await self.run(body(), quick=True)
        if not rows:
            return None
        held, state = held_row(rows[0])
        return held if state == "parked" else None

    # -- the rest ------------------------------------------------------------------------------

    async def next_timer(self) -> float | None:
        due: float | None = (await self.rows("next_timer"))[0][0]
        return due

    async def purge(self, *, before: float, limit: int) -> int:
        def body() -> Op[int]:
            yield Statement(SQL["purge_attempts"], (b"%r" % before,))
            yield Statement(SQL["purge_steps"], (b"%r" % before,))
            return (yield Statement(SQL["purge"], (b"%r" % before, b"%d" % limit))).affected

        return await self.run(body())


def _owner_of(rows: list[Row]) -> tuple[str, int, int | None, str, float]:
    return rows[0] if rows else ("", 0, None, "", 0.0)


def _leave(found: tuple[str, int, int | None, str, float], member: str, ttl: float, now: float, force: bool) -> bool:
    """It is somebody else's, who lives."""
    owner, _, _, _, until = found
    return owner not in ("", member) and now < until < latest(now, ttl) and not force


def _place(group: str, slice: Slice) -> tuple[bytes, bytes, bytes, bytes]:
    return group.encode(), slice.topic.encode(), b"%d" % slice.partition, b"%d" % slice.generation


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
