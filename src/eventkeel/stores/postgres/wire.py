"""Many statements in one round trip, on psycopg's own libpq layer: strictly in order, without cursors.

An exchange is a generator that yields what it waits for (``READ``, or ``READ | WRITE``) and is sent what
the socket is ready for: two runners of a few lines wait on the event loop or in a thread. Protocol:
postgresql.org/docs/current/libpq-pipeline-mode.html.
"""

from __future__ import annotations

import asyncio
import itertools
import select
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg import pq
from psycopg.abc import AdaptContext
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result

from eventkeel.errors import Contention, StoreUnavailable
from eventkeel.ports.store import Reply, Row
from eventkeel.stores.postgres.arrays import Binary

T = TypeVar("T")

READ, WRITE = 1, 2
Exchange = Generator[int, int, T]

_MOST_PLANS = 400
"""Prepared statements of a connection: SQL that is put together anew each time is sent unprepared after that."""
_PIECES = 32
"""Of a long answer, taken one after another while they are there; then others on the event loop have their turn, which
may be a long one: a relay's page would else wait for a unit of work with each of its pieces."""
_OFF = pq.PipelineStatus.OFF
_SYNC = pq.ExecStatus.PIPELINE_SYNC
_ABORTED = pq.ExecStatus.PIPELINE_ABORTED
_ROWS = pq.ExecStatus.TUPLES_OK
_FAILED = frozenset({pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE})
_BAD = pq.ConnStatus.BAD

_STALE = frozenset({"RevalidateCachedQuery", "FetchPreparedStatement"})
"""Where the server says that a prepared statement is out of date: a table was altered behind it, or somebody has
thrown it away. The SQLSTATE of the first (0A000) is also that of SQL which it does not support at all."""
_AWAY = ("08", "57P")
"""SQLSTATEs of a server that goes or comes; beside them 53: it has no room (disk, memory, connections)."""
_IN_THE_WAY = frozenset({"55P03", "40P01", "40001"})
"""Lock timeout, deadlock, serialization failure: nobody's fault."""


class Item(NamedTuple):
    """A statement as the protocol wants it."""

    sql: str
    params: Sequence[bytes | None]


class Failed(Exception):
    """Item ``index`` of an exchange failed, with ``__cause__``; none after it took effect."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


class Wire:
    """One connection in pipeline mode. ``own``: statements of ours, whose rows come in binary form."""

    def __init__(self, connection: psycopg.BaseConnection[Any], context: AdaptContext | None, own: frozenset[str]):
        self.connection = connection
        self.pg: pq.abc.PGconn = connection.pgconn
        self.pg.nonblocking = 1
        self._plans: dict[str, bytes] = {}
        self._names = itertools.count()
        self._own = own
        self._transformer = Transformer(context)
        self.busy = False
        """An exchange is under way: whoever cut it off leaves the connection in doubt."""
        self.cut = False
        """It was cut off, and nobody is inside any more."""
        self.most_plans = _MOST_PLANS
        self._listening = select.poll()
        self._listening.register(self.pg.socket, select.POLLIN)
        self.lent = False
        """A user has psycopg's own connection too, which wants no pipeline mode between our exchanges."""

    @property
    def lost(self) -> bool:
        return self.pg.status == _BAD

    @property
    def stale(self) -> bool:
        """The server has said something since the last exchange: usually goodbye."""
        return bool(self._listening.poll(0))

    def lend(self) -> None:
        self.lent = True
        if self.pg.pipeline_status != _OFF:
            self.pg.exit_pipeline_mode()

    def exchange(self, items: Sequence[Item]) -> Exchange[list[pq.abc.PGresult]]:
        """Send all, one result each. Raises Failed, and StoreUnavailable where the connection is lost."""
        pg = self.pg
        self.busy = True
        try:
            slots = self._send(items)
            while pg.flush():
                if (yield READ | WRITE) & READ:
                    pg.consume_input()
            results = yield from self._results(items, slots)
        except psycopg.OperationalError as error:
            raise StoreUnavailable(f"the connection to the database was lost: {_brief(error)}") from error
        self.busy = False
        if self.lent:
            pg.exit_pipeline_mode()
        return results

    def _send(self, items: Sequence[Item]) -> list[int]:
        """What the results will belong to: the number of an item, or ~number where it is prepared."""
        pg, plans = self.pg, self._plans
        if pg.pipeline_status == _OFF:
            pg.enter_pipeline_mode()
        slots: list[int] = []
        for number, (sql, params) in enumerate(items):
            formats = [1 if param.__class__ is Binary else 0 for param in params]
            binary = 1 if sql in self._own else 0
            name = plans.get(sql)
            if name is None and len(plans) < self.most_plans:
                name = plans[sql] = b"e%d" % next(self._names)  # never one that was used before
                pg.send_prepare(name, sql.encode())
                slots.append(~number)
            if name is None:
                pg.send_query_params(sql.encode(), params, None, formats, binary)
            else:
                pg.send_query_prepared(name, params, formats, binary)
            slots.append(number)
        pg.pipeline_sync()
        return slots

    def _results(self, items: Sequence[Item], slots: list[int]) -> Exchange[list[pq.abc.PGresult]]:
        pg = self.pg
        results: list[pq.abc.PGresult] = []
        failed: tuple[int, pq.abc.PGresult] | None = None
        place = 0
        while True:
            while pg.is_busy():
                yield READ
                pg.consume_input()
                pieces = _PIECES
                while pieces and pg.is_busy() and self._listening.poll(0):
                    pg.consume_input()
                    pieces -= 1
            result = pg.get_result()
            if result is None:
                if pg.status == _BAD:
                    raise psycopg.OperationalError("the server closed the connection")
                continue
            status = result.status
            if status == _SYNC:
                break
            if status in _FAILED and pg.status == _BAD:
                raise psycopg.OperationalError(result.get_error_message())
            slot = slots[place]
            place += 1
            if status in _FAILED or status == _ABORTED:
                if slot < 0:
                    self._plans.pop(items[~slot].sql, None)
                if failed is None and status != _ABORTED:
                    failed = (slot if slot >= 0 else ~slot, result)
            elif slot >= 0:
                results.append(result)
        if failed is not None:
            self.busy = False
            if self.lent:
                pg.exit_pipeline_mode()
            index, result = failed
            raise Failed(index) from self._error(items[index].sql, result)
        return results

    def _error(self, sql: str, result: pq.abc.PGresult) -> Exception:
        error = error_from_result(result, "utf-8")
        code = error.sqlstate or ""
        if (judged := judge(error)) is not error:
            return judged
        if code in ("0A000", "26000") and error.diag.source_function in _STALE:
            if code == "26000":
                self._plans.clear()  # somebody has thrown all of them away
            self._plans.pop(sql, None)
            return _chained(StoreUnavailable(f"a prepared statement is out of date: {_brief(error)}"), error)
        return error

    def reply(self, result: pq.abc.PGresult) -> Reply:
        rows: list[Row] = []
        if result.status == _ROWS and (count := result.ntuples):
            self._transformer.set_pgresult(result)
            rows = self._transformer.load_rows(0, count, tuple)
        return Reply(rows, result.command_tuples or 0)


def judge(error: psycopg.Error) -> Exception:
    """The error itself, unless it is nobody's statement that is at fault."""
    code = error.sqlstate or ""
    if code.startswith(_AWAY) or code.startswith("53") or code == "25006":
        return _chained(StoreUnavailable(f"the database cannot be used now: {_brief(error)}"), error)
    if code in _IN_THE_WAY:
        return _chained(Contention(f"another transaction was in the way: {_brief(error)}"), error)
    return error


def _chained(made: Exception, cause: Exception) -> Exception:
    made.__cause__ = cause
    return made


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def run_sync(wire: Wire, exchange: Exchange[T]) -> T:
    """In a thread."""
    poll = select.poll()
    try:
        wanted = next(exchange)
        fd = wire.pg.socket
        poll.register(fd, select.POLLIN)
        while True:
            poll.modify(fd, select.POLLIN | (select.POLLOUT if wanted & WRITE else 0))
            events = poll.poll()[0][1]
            ready = (READ if events & ~select.POLLOUT else 0) | (WRITE if events & select.POLLOUT else 0)
            wanted = exchange.send(ready)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    except BaseException:
        wire.cut = wire.busy
        raise


async def run_async(wire: Wire, exchange: Exchange[T], loop: asyncio.AbstractEventLoop) -> T:
    """On the event loop. Cancelled, it leaves the wire busy: the connection has to be thrown away."""
    try:
        wanted = next(exchange)
        while True:
            wanted = exchange.send(await _ready(wire.pg.socket, wanted, loop))
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    except BaseException:
        wire.cut = wire.busy
        raise


async def _ready(fd: int, wanted: int, loop: asyncio.AbstractEventLoop) -> int:
    waiter: asyncio.Future[int] = loop.create_future()
    wake: Callable[[int], None] = lambda flag: None if waiter.done() else waiter.set_result(flag)  # noqa: E731
    loop.add_reader(fd, wake, READ)
    if wanted & WRITE:
        loop.add_writer(fd, wake, WRITE)
    try:
        return await waiter
    finally:
        loop.remove_reader(fd)
        if wanted & WRITE:
            loop.remove_writer(fd)
