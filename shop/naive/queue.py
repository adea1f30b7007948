"""A message queue as clients' defaults make it: a group has a position, which moves on when messages are received.
Here it is a file; on Kafka it is kafka.py."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from shop.naive.database import open_file

SCHEMA = """
create table if not exists messages (id integer primary key autoincrement, topic text, key text, body text);
create table if not exists positions (grp text, topic text, next integer, primary key (grp, topic));
create index if not exists messages_by_topic on messages (topic, id);
"""
MOST = 20
"""Messages that one call receives."""


class Queue(Protocol):
    """What the services use, and what the run looks at; said at the file's below."""

    def publish(self, topic: str, key: str, body: str) -> None: ...
    def consume(self, group: str, topic: str) -> Iterator[str]: ...
    def waiting(self, group: str, topic: str) -> int: ...
    def published(self, topic: str) -> int: ...
    def repeated(self, topic: str) -> int: ...
    def make(self, *topics: str) -> None: ...
    def drop(self, *topics: str) -> None: ...
    def close(self) -> None: ...


def places() -> tuple[str, str]:
    """Broker and store, as the run has put them into the environment: a command line would show their passwords."""
    return os.environ["NAIVE_BROKER"], os.environ["NAIVE_STORE"]


def open_queue(broker: str) -> Queue:
    """``broker``: a folder, or the URL of Kafka."""
    if broker.startswith("kafka:"):
        from shop.naive.kafka import KafkaQueue

        return KafkaQueue(broker)
    return FileQueue(Path(broker))


class FileQueue:
    """One connection; not for several threads."""

    def __init__(self, folder: Path) -> None:
        self._file = open_file(folder / "queue")
        self._file.executescript(SCHEMA)

    def make(self, *topics: str) -> None:
        """Nothing: a topic is there when it is written to."""

    def drop(self, *topics: str) -> None:
        """Nothing: the folder goes."""

    def publish(self, topic: str, key: str, body: str) -> None:
        """Returns when it is durable."""
        self._file.execute("insert into messages (topic, key, body) values (?, ?, ?)", (topic, key, body))

    def receive(self, group: str, topic: str) -> list[str]:
        """The next bodies; from now on they count as done."""
        self._file.execute("begin immediate")
        with contextlib.closing(self._file.cursor()) as cursor:
            cursor.execute("insert or ignore into positions values (?, ?, 0)", (group, topic))
            (at,) = cursor.execute("select next from positions where grp = ? and topic = ?", (group, topic)).fetchone()
            rows = cursor.execute(
                "select id, body from messages where topic = ? and id > ? order by id limit ?", (topic, at, MOST)
            ).fetchall()
            if rows:
                cursor.execute("update positions set next = ? where grp = ? and topic = ?", (rows[-1][0], group, topic))
        self._file.execute("commit")
        return [body for _, body in rows]

    def consume(self, group: str, topic: str) -> Iterator[str]:
        """For ever."""
        while True:
            bodies = self.receive(group, topic)
            yield from bodies
            if not bodies:
                time.sleep(0.02)

    def close(self) -> None:
        self._file.close()

    def waiting(self, group: str, topic: str) -> int:
        """Messages that the group has not received."""
        sql = """select count(*) from messages where topic = ?1
                 and id > coalesce((select next from positions where grp = ?2 and topic = ?1), 0)"""
        return int(self._file.execute(sql, (topic, group)).fetchone()[0])

    def published(self, topic: str) -> int:
        """Messages of the topic."""
        return int(self._file.execute("select count(*) from messages where topic = ?", (topic,)).fetchone()[0])

    def repeated(self, topic: str) -> int:
        """Messages whose key the topic had before."""
        sql = "select count(*) - count(distinct key) from messages where topic = ?"
        return int(self._file.execute(sql, (topic,)).fetchone()[0])
