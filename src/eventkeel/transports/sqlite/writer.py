"""The one thread that writes to the broker's file, so that no fsync ever stops the event loop.

Work that waits while a commit is on its way to the disk is committed together by the next one
(group commit): one fsync for all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import apsw

from eventkeel._sqlite import LOCK_PATIENCE, Busy, begin_immediate
from eventkeel.errors import BrokerUnavailable, ConfigurationError, EventkeelError

T = TypeVar("T")
Work = Callable[[apsw.Connection], Any]

_TOGETHER = 64
"""Largest number of pieces of work in one transaction."""
_ATTEMPT = 0.25
"""Seconds between two looks at whether anybody still waits for the lock that we wait for."""


class NotStored(BrokerUnavailable):
    """The work was rolled back: certainly nothing of it is in the file."""


class MaybeStored(BrokerUnavailable):
    """The disk failed during the commit: it may or may not be in the file."""


class _Job:
    __slots__ = ("future", "news", "work")

    def __init__(self, work: Work, future: asyncio.Future[Any], news: bool) -> None:
        self.work, self.future, self.news = work, future, news


class Writer:
    """Runs pieces of work in order, each as a whole or not at all."""

    def __init__(
        self, connect: Callable[[], apsw.Connection], committed: Callable[[], None], notify: Callable[[], None]
    ):
        """``committed`` is called on the event loop, ``notify`` in the thread, after a commit with news in it."""
        self._connect, self._committed, self._notify = connect, committed, notify
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "eventkeel-broker")
        self._lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._scheduled = False
        self._closing = False
        self._connection: apsw.Connection | None = None

    async def open(self) -> None:
        """Raises what ``connect`` raises."""
        self._connection = await self._loop.run_in_executor(self._thread, self._connect)

    def submit(self, work: Callable[[apsw.Connection], T], *, news: bool = False) -> asyncio.Future[T]:
        """Run ``work`` in a transaction. The future is done when it is on the disk.

        It fails with NotStored or MaybeStored; an error of Eventkeel's own that ``work`` raises comes
        through. Cancelled before its turn, ``work`` is not run.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        with self._lock:
            if self._closing:
                future.set_exception(NotStored("the broker's file was closed"))
                return future
            self._waiting.append(_Job(work, future, news))
            if not self._scheduled:
                self._scheduled = True
                self._thread.submit(self._drain)
        return future

    async def close(self, deadline: float) -> None:
        """Finish what waits, for up to ``deadline`` seconds. Twice is once."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        done = self._loop.run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown(wait=False)
        await asyncio.wait([done], timeout=deadline)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _drain(self) -> None:
        while True:
            self._commit_together()
            with self._lock:
                if not self._waiting:
                    self._scheduled = False
                    return

    def _commit_together(self) -> None:
        connection = self._connection
        try:
            assert connection is not None
            self._begin(connection)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait are told
            jobs = self._take(len(self._waiting))
            self._answer(jobs, [_not_stored(error)] * len(jobs))
            return
        jobs = self._take(_TOGETHER)
        answers = _run_all(connection, jobs)
        stored = any(job.news and not isinstance(answer, Exception) for job, answer in zip(jobs, answers, strict=True))
        if stored:
            self._notify()
        self._answer(jobs, answers, stored)

    def _begin(self, connection: apsw.Connection) -> None:
        """Wait for the lock as long as anybody waits for us."""
        until = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                return begin_immediate(connection, _ATTEMPT)
            except Busy:
                unwanted = all(job.future.cancelled() for job in tuple(self._waiting))
                if unwanted or self._closing or time.monotonic() > until:
                    raise

    def _take(self, most: int) -> list[_Job]:
        with self._lock:
            return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def _answer(self, jobs: list[_Job], answers: list[Any], stored: bool = False) -> None:
        def on_loop() -> None:
            for job, answer in zip(jobs, answers, strict=True):
                if job.future.done():
                    continue
                if isinstance(answer, Exception):
                    job.future.set_exception(answer)
                else:
                    job.future.set_result(answer)
            if stored:
                self._committed()

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(on_loop)


def _run_all(connection: apsw.Connection, jobs: list[_Job]) -> list[Any]:
    """Run every job in the open transaction and commit; one answer (or exception) for each."""
    answers: list[Any] = []
    for job in jobs:
        answers.append(NotStored("cancelled") if job.future.cancelled() else _run(connection, job.work))
        if not connection.in_transaction:  # SQLite ended all of it by itself (disk full, I/O error)
            return [_not_stored(answers[-1])] * len(jobs)
    try:
        connection.execute("commit")
    except apsw.Error as error:
        if connection.in_transaction:
            with contextlib.suppress(apsw.Error):
                connection.execute("rollback")
        return [MaybeStored(f"the commit to {connection.filename} failed: {error}")] * len(jobs)
    return answers


def _run(connection: apsw.Connection, work: Work) -> Any:
    connection.execute("savepoint work")
    try:
        answer = work(connection)
    except Exception as error:  # noqa: BLE001 - goes to the one whose work it is, and harms no neighbour
        if connection.in_transaction:
            connection.execute("rollback to work")
            connection.execute("release work")
        return _not_stored(error)
    connection.execute("release work")
    return answer


def _not_stored(error: Exception) -> Exception:
    if isinstance(error, (NotStored, ConfigurationError)):
        return error
    if isinstance(error, (apsw.Error, EventkeelError, OSError)):
        return NotStored(f"{type(error).__name__}: {error}")
    return error
