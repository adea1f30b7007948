"""The embedded broker: an append-only log with partitions in one SQLite file, for any number of processes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TypeVar

import apsw

from eventkeel._sqlite import Wake, begin_immediate, connect
from eventkeel.errors import BrokerUnavailable, ConfigurationError
from eventkeel.message import Delivery, Outgoing, Position, Slice
from eventkeel.ports.clock import Clock, SystemClock
from eventkeel.ports.transport import (
    Budget,
    Caps,
    Finding,
    Outcome,
    SliceLag,
    Span,
    Topology,
    Unknown,
)
from eventkeel.transports.sqlite.append import SQL, append_wave
from eventkeel.transports.sqlite.inbound import INBOUND_ROWS, Moved, move
from eventkeel.transports.sqlite.reading import Reader
from eventkeel.transports.sqlite.subscription import SQLiteSubscription
from eventkeel.transports.sqlite.topology import declare
from eventkeel.transports.sqlite.writer import NotStored, Writer

T = TypeVar("T")
MAX_BODY = 8 * 1024 * 1024
POLL = 0.2
"""Seconds between two looks at the file. A datagram makes it much less; the poll is the net."""
_READ_PAGE = 500
_READ_BYTES = 4 * 1024 * 1024
_APPLICATION = 0x45764B6C
_VERSION = 1

log = logging.getLogger("eventkeel.transports.sqlite")


class SQLiteTransport:
    """The broker in the file at ``path`` (made if missing). Implements ``ports.transport.Transport``.

    What ``publish`` has confirmed is on the disk. Every process opens its own; it must not be carried
    through a fork.
    """

    def __init__(self, path: str | Path, *, clock: Clock | None = None, max_body: int = MAX_BODY) -> None:
        self.path = Path(path)
        self._clock = clock or SystemClock()
        self._caps = Caps(settle="prefix", log=True, ordered_pipeline=True, assigns=False, max_body=max_body)
        self._reader: Reader | None = None
        self._writer: Writer | None = None
        self._wake: Wake | None = None
        self._pid = 0
        self._file = (0, 0)
        self._timer: asyncio.TimerHandle | None = None
        self._subscriptions: list[SQLiteSubscription] = []
        self._turn = random.randrange(1 << 16)
        self._looked = -1
        self._newest_slot = 0
        self._inbound_seen = 0
        self._moving: asyncio.Future[Moved] | None = None
        self._move_error = ""
        self._stay: dict[str, int] = {}

    @property
    def caps(self) -> Caps:
        return self._caps

    # -- life

    async def open(self) -> None:
        """Raises ConfigurationError where the file is no broker, or BrokerUnavailable where it cannot be opened."""
        if self._writer is not None:
            return
        self._pid = os.getpid()
        loop = asyncio.get_running_loop()
        self._wake = Wake(self.path)
        writer = Writer(self._connect, self._committed)
        try:
            await writer.open()
            self._reader = Reader(await loop.run_in_executor(None, self._connect))
        except BaseException:
            self._wake.close()
            await writer.close(5.0)
            raise
        self._writer, self._file = writer, self._which()
        with contextlib.suppress(OSError):  # no datagrams here: the poll does it alone
            self._wake.listen(loop, self._on_commit)

    def _connect(self) -> apsw.Connection:
        try:
            connection = connect(self.path)
            begin_immediate(connection)
            _prepare(connection, self.path)
            connection.execute("commit")
        except apsw.NotADBError as error:
            raise ConfigurationError(f"{self.path} is no SQLite file; choose another path for the broker") from error
        except (apsw.Error, OSError) as error:
            raise BrokerUnavailable(f"the broker's file {self.path} cannot be opened: {error}") from error
        return connection

    async def close(self, deadline: float) -> None:
        """Close the subscriptions, finish what is being written, for up to ``deadline`` seconds. Twice is once."""
        if self._writer is None:
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline
        for subscription in tuple(self._subscriptions):
            await subscription.close(until - loop.time())
        writer, self._writer = self._writer, None
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
        if writer is not None:
            await writer.close(max(0.0, until - loop.time()))
        if self._wake is not None:
            self._wake.close()

    def alive(self) -> None:
        """Raises where the transport cannot be used: not open, or inherited through a fork."""
        if self._writer is None:
            raise BrokerUnavailable(f"the broker {self.path} is not open")
        if os.getpid() != self._pid:
            raise ConfigurationError(
                f"the broker {self.path} was opened before a fork; open it in each process (SQLite's locks do not "
                "survive a fork)"
            )

    def _which(self) -> tuple[int, int]:
        """Which file lies at the path now; (0, 0): none."""
        try:
            found = os.stat(self.path)
        except OSError:
            return 0, 0
        return found.st_dev, found.st_ino

    def _check_file(self) -> None:
        """What is written to a file that nobody can open any more is lost. Raises BrokerUnavailable."""
        if self._which() != self._file:
            raise BrokerUnavailable(
                f"the broker's file {self.path} was deleted or replaced while it was in use. Nothing more is sent or "
                "taken; bring the file back, or restart everything that uses it"
            )

    @property
    def reader(self) -> Reader:
        self.alive()
        assert self._reader is not None
        return self._reader

    def _write(self, work: Callable[[apsw.Connection], T], *, weight: int = 1, news: bool = False) -> asyncio.Future[T]:
        self.alive()
        assert self._writer is not None
        return self._writer.submit(work, weight=weight, news=news)

    # -- topology

    async def topology(self, want: Topology, *, apply: bool) -> list[Finding]:
        """See the port. Raises BrokerUnavailable where the file cannot be written."""
        return await self._write(lambda connection: declare(connection, want, apply=apply), news=apply)

    async def slices(self, group: str, topics: Sequence[str]) -> Sequence[Slice]:
        """All partitions of ``topics``. Raises ConfigurationError for a topic that does not exist."""
        found: list[Slice] = []
        for topic in topics:
            count = self.reader.partitions(topic)
            if not count:
                raise ConfigurationError(f"topic {topic!r} does not exist on the broker {self.path}")
            found += [Slice(topic, number) for number in range(count)]
        return found

    # -- sending

    async def publish(self, wave: Sequence[Outgoing], deadline: float) -> Sequence[Outcome]:
        """Append a wave in one transaction. See the port.

        Raises BrokerUnavailable only where the transport is not open.
        """
        if not wave:
            return []
        caps, now = self._caps, self._clock.now()
        self._turn += len(wave)
        turn = self._turn
        stored = self._write(
            lambda connection: append_wave(connection, wave, now, caps, turn), weight=len(wave), news=True
        )
        try:
            async with asyncio.timeout(deadline):  # in Python 3.11 wait_for can swallow a cancellation
                outcomes = await stored
            self._check_file()
            return outcomes
        except TimeoutError:
            return [Unknown(f"the broker's file {self.path} was not written within {deadline:g} s")] * len(wave)
        except NotStored as error:
            return [Unknown(f"nothing of this wave was stored: {error}")] * len(wave)
        except BrokerUnavailable as error:
            return [Unknown(str(error))] * len(wave)

    # -- receiving

    def subscribe(self, group: str, topics: Sequence[str], budget: Budget) -> SQLiteSubscription:
        self.alive()
        subscription = SQLiteSubscription(self, group, topics, budget)
        self._subscriptions.append(subscription)
        if self._timer is None:
            self._poll()
        return subscription

    def forget(self, subscription: SQLiteSubscription) -> None:
        """It was closed."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        if not self._subscriptions and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def settle(self, group: str, marks: Mapping[Slice, Position]) -> asyncio.Future[None]:
        """Write down how far a group is."""

        def work(connection: apsw.Connection) -> None:
            for slice, mark in marks.items():
                connection.execute(
                    SQL["settle"],
                    {
                        "grp": group,
                        "topic": slice.topic,
                        "partition": slice.partition,
                        "position": mark.at,
                        "incarnation": mark.incarnation,
                    },
                )

        return self._write(work)

    def look(self) -> int:
        """The file's version; moves inbound rows on their way where there are new ones."""
        self._check_file()
        version = self.reader.version()
        if version != self._looked and self._moving is None:
            self._looked = version
            slot = self.reader.newest_slot()
            if slot != self._newest_slot:  # rows that waited for a topic may have one now
                self._newest_slot, self._inbound_seen = slot, 0
            if self.reader.inbound_waits(self._inbound_seen):
                self._move()
        return version

    def _move(self) -> None:
        self._turn += 1000
        after, now, max_body, turn = self._inbound_seen, self._clock.now(), self._caps.max_body, self._turn
        self._moving = self._write(
            lambda connection: move(connection, after, now, max_body, turn), weight=INBOUND_ROWS, news=True
        )
        self._moving.add_done_callback(self._moved)

    def _moved(self, future: asyncio.Future[Moved]) -> None:
        self._moving = None
        self._looked = -1  # rows may have come meanwhile
        if future.cancelled():
            return
        if (error := future.exception()) is not None:
            if str(error) != self._move_error:  # said once, not five times a second
                log.warning("rows of the table inbound in %s could not be moved: %s", self.path, error)
            self._move_error = str(error)
            return
        self._move_error = ""
        moved = future.result()
        if moved.stay or self._inbound_seen:
            self._inbound_seen = max(self._inbound_seen, moved.seen)  # do not read again what stays
        for reason, count in moved.stay.items():
            if reason not in self._stay:
                log.warning(
                    "%d row(s) of the table inbound in %s stay there: %s. Start a service that declares the topic, "
                    "or correct or delete the rows",
                    count,
                    self.path,
                    reason,
                )
            self._stay[reason] = self._stay.get(reason, 0) + count
        if moved.more and self._writer is not None:
            self._move()

    def _committed(self) -> None:
        """We have committed news: tell the other processes, and ourselves."""
        if self._wake is not None:
            self._wake.notify()
        self._on_commit()

    def _on_commit(self) -> None:
        for subscription in self._subscriptions:
            subscription.wake()

    def _poll(self) -> None:
        """The net below the datagrams: wakes the subscriptions where the file has changed."""
        try:
            version = self.look()
            for subscription in self._subscriptions:
                if subscription.seen != version:
                    subscription.wake()
        except BrokerUnavailable:
            self._on_commit()  # they meet the error themselves, and say it
        pause = random.uniform(0.9 * POLL, 1.1 * POLL)
        self._timer = asyncio.get_running_loop().call_later(pause, self._poll)

    # -- asking

    async def lag(self, group: str) -> Sequence[SliceLag]:
        """One for each partition of the topics that the group was declared with; none for an unknown group."""
        flushes = [each.flush() for each in self._subscriptions if each.group == group]
        waiting = [each for each in flushes if each is not None]
        if waiting:
            await asyncio.wait(waiting, timeout=1.0)
        return self.reader.lag(group)

    async def read(self, topic: str, span: Span) -> AsyncIterator[Sequence[Delivery]]:
        """Pages of one partition after the other, up to where each ended when it was reached.

        Raises ConfigurationError for a topic or partition that does not exist.
        """
        count = self.reader.partitions(topic)
        if not count or (span.partition is not None and not 0 <= span.partition < count):
            where = "" if span.partition is None else f", partition {span.partition},"
            raise ConfigurationError(f"topic {topic!r}{where} does not exist on the broker {self.path}")
        for partition in range(count) if span.partition is None else (span.partition,):
            place = self.reader.place(topic, partition)
            if place is None:
                continue
            last = place.end if span.last is None else min(span.last, place.end)
            at = max(span.first, place.first)
            while at < last:
                page = self.reader.page(
                    Slice(topic, partition), place.slot, at, last, count=_READ_PAGE, size=_READ_BYTES, whole=True
                )
                if not page.items:
                    break
                at = page.items[-1].position + 1
                yield page.items
                await asyncio.sleep(0)


def _prepare(connection: apsw.Connection, path: Path) -> None:
    application = connection.pragma("application_id")
    (objects,) = connection.execute("select count(*) from sqlite_schema").fetchone() or (0,)
    if objects and application != _APPLICATION:
        raise ConfigurationError(f"{path} is a SQLite file of something else; choose another path for the broker")
    if connection.pragma("user_version") > _VERSION:
        raise ConfigurationError(f"{path} was written by a newer Eventkeel; install that version here too")
    connection.execute(resources.files(__package__).joinpath("schema.sql").read_text("utf-8"))
    connection.execute(f"pragma application_id = {_APPLICATION}")
    connection.execute(f"pragma user_version = {_VERSION}")
