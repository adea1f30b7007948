"""The one connection that writes to the broker's file.

Statements run on the event loop (microseconds each), the commit with its fsync in a thread. Work that
comes while a commit is on its way to the disk is committed together by the next one (group commit):
one fsync for all of it.

Why not everything in the thread: it would have to win the GIL back after every statement from an event
loop that gives it up thousands of times a second, each time too short for another thread to wake up in
(seconds were measured for one wave). So the thread makes one call, and while it does, ``_yield``
gives it a chance that is long enough.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import apsw

from eventkeel._sqlite import LOCK_PATIENCE, Busy, begin_immediate_async
from eventkeel.errors import BrokerUnavailable, EventkeelError

T = TypeVar("T")
Work = Callable[[apsw.Connection], Any]

_TOGETHER = 1000
"""About how many messages go into one transaction: the event loop stands still while they are inserted."""
_ATTEMPT = 0.25
"""Seconds between two looks at whether anybody still waits for the lock that we wait for."""
_YIELD_EVERY = 0.002
_YIELD_FOR = 0.0001


class NotStored(BrokerUnavailable):
    """The work was rolled back: certainly nothing of it is in the file."""


class MaybeStored(BrokerUnavailable):
    """The disk failed during the commit: it may or may not be in the file."""


class _Job:
    __slots__ = ("future", "news", "weight", "work")

    def __init__(self, work: Work, future: asyncio.Future[Any], weight: int, news: bool) -> None:
        self.work, self.future, self.weight, self.news = work, future, weight, news


class Writer:
    """Runs pieces of work in order, each as a whole or not at all. On one event loop."""

    def __init__(self, connect: Callable[[], apsw.Connection], committed: Callable[[], None]) -> None:
        """``connect`` is called in the thread, ``committed`` after each commit with news in it."""
        self._connect, self._committed = connect, committed
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "eventkeel-broker")
        self._waiting: deque[_Job] = deque()
        self._draining: asyncio.Task[None] | None = None
        self._closing = False
        self._connection: apsw.Connection | None = None

    async def open(self) -> None:
        """Raises what ``connect`` raises."""
        self._connection = await self._loop.run_in_executor(self._thread, self._connect)

    def submit(self, work: Callable[[apsw.Connection], T], *, weight: int = 1, news: bool = False) -> asyncio.Future[T]:
        """Run ``work`` in a transaction. The future is done when it is on the disk.

        It fails with NotStored or MaybeStored; another error that ``work`` raises comes through.
        Cancelled before its turn, ``work`` is not run.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        if self._closing:
            future.set_exception(NotStored("the broker was closed"))
            return future
        self._waiting.append(_Job(work, future, weight, news))
        if self._draining is None or self._draining.done():
            self._draining = self._loop.create_task(self._drain())
        return future

    async def close(self, deadline: float) -> None:
        """Finish what waits, for up to ``deadline`` seconds. Twice is once."""
        if self._closing:
            return
        self._closing = True
        until = time.monotonic() + deadline
        if self._draining is not None:
            await asyncio.wait([self._draining], timeout=deadline)
            self._draining.cancel()
        for job in self._waiting:
            _settle(job, NotStored("the broker was closed"))
        self._waiting.clear()
        closed = self._loop.run_in_executor(self._thread, self._disconnect)  # behind a commit that still runs
        self._thread.shutdown(wait=False)
        await asyncio.wait([closed], timeout=max(0.05, until - time.monotonic()))

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _drain(self) -> None:
        assert self._connection is not None
        while self._waiting:
            try:
                await self._begin(self._connection)
            except Exception as error:  # whatever it is, those who wait are told
                for job in self._waiting:
                    _settle(job, _not_stored(error))
                self._waiting.clear()
                continue
            jobs = self._take()
            try:
                await self._commit_together(self._connection, jobs)
            except Exception as error:  # whatever it is: nobody waits for ever, and the next ones have their turn
                for job in jobs:
                    _settle(job, MaybeStored(f"{type(error).__name__}: {error}"))

    async def _begin(self, connection: apsw.Connection) -> None:
        """Wait for the lock as long as anybody waits for us."""
        until = time.monotonic() + LOCK_PATIENCE
        if connection.in_transaction:  # of work that ended in a way nobody expected
            connection.execute("rollback")
        while True:
            try:
                return await begin_immediate_async(connection, _ATTEMPT)
            except Busy:
                if all(job.future.done() for job in self._waiting) or time.monotonic() > until:
                    raise

    def _take(self) -> list[_Job]:
        jobs, weight = [self._waiting.popleft()], 0
        while self._waiting and (weight := weight + jobs[-1].weight) < _TOGETHER:
            jobs.append(self._waiting.popleft())
        return jobs

    async def _commit_together(self, connection: apsw.Connection, jobs: list[_Job]) -> None:
        answers = _run_all(connection, jobs)
        failed: Exception | None = None
        try:
            failed = await self._commit(connection)
        except asyncio.CancelledError:
            failed = MaybeStored("the broker was closed during the commit")
            raise
        finally:
            for job, answer in zip(jobs, answers, strict=True):
                _settle(job, failed or answer)
        if failed is None and any(job.news for job in jobs):
            self._committed()

    async def _commit(self, connection: apsw.Connection) -> Exception | None:
        if not connection.in_transaction:
            return None  # SQLite ended it, and everybody was told so
        done: asyncio.Future[Exception | None] = self._loop.create_future()
        timer: asyncio.TimerHandle

        def answer(error: Exception | None) -> None:
            if not done.done():
                done.set_result(error)

        def in_thread() -> None:
            error = _commit(connection)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                self._loop.call_soon_threadsafe(answer, error)

        def yield_() -> None:
            nonlocal timer
            time.sleep(_YIELD_FOR)  # the GIL is free meanwhile
            timer = self._loop.call_later(_YIELD_EVERY, yield_)

        timer = self._loop.call_later(_YIELD_EVERY, yield_)
        self._thread.submit(in_thread)
        try:
            return await done
        finally:
            timer.cancel()


def _settle(job: _Job, answer: Any) -> None:
    if job.future.done():
        return
    if isinstance(answer, Exception):
        job.future.set_exception(answer)
    else:
        job.future.set_result(answer)


def _run_all(connection: apsw.Connection, jobs: list[_Job]) -> list[Any]:
    """Run every job in the open transaction; one answer (or exception) for each."""
    answers: list[Any] = []
    for job in jobs:
        answers.append(NotStored("cancelled") if job.future.done() else _run(connection, job.work))
        if not connection.in_transaction:  # SQLite ended all of it by itself (disk full, I/O error)
            return [_not_stored(answers[-1])] * len(jobs)
    return answers


def _run(connection: apsw.Connection, work: Work) -> Any:
    connection.execute("savepoint work")
    try:
        answer = work(connection)
    except Exception as error:  # goes to the one whose work it is, and harms no neighbour
        if connection.in_transaction:
            connection.execute("rollback to work")
            connection.execute("release work")
        return _not_stored(error)
    connection.execute("release work")
    return answer


def _commit(connection: apsw.Connection) -> Exception | None:
    try:
        connection.execute("commit")
    except apsw.Error as error:
        if connection.in_transaction:
            with contextlib.suppress(apsw.Error):
                connection.execute("rollback")
        return MaybeStored(f"the commit to {connection.filename} failed: {type(error).__name__}: {error}")
    return None


def _not_stored(error: Exception) -> Exception:
    if isinstance(error, NotStored):
        return error
    if isinstance(error, (apsw.Error, EventkeelError, OSError)):
        return NotStored(f"{type(error).__name__}: {error}")
    return error
