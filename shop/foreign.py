"""A program that does not know Eventkeel and writes into the same broker: duplicates on purpose.

    python -m shop.foreign BROKER < lines          each line: {"topic": …, "key": …, "body": …}

On Kafka and RabbitMQ it is an ordinary producer. On SQLite it uses what the broker promises to such programs:
``insert into inbound (topic, key, headers, body)``; in a process of its own, because a file must not be open in two
SQLite libraries of one process; by apsw, because it brings a SQLite without the WAL-reset bug, which any other
program should look for too.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import apsw

from shop.brokers import client_options, is_kafka, prefix
from shop.databases import file_of
from shop.rabbit import is_rabbit, writing_to_rabbit

VARIABLE = "SHOP_FOREIGN_BROKER"
"""Names the broker where the command line does not."""
INSERT = "insert into inbound (topic, key, headers, body) values (?, ?, ?, ?)"


Write = Callable[[str, str, dict[str, str] | None, str], None]
"""(topic, key, headers, body): returns when the message is durable on the broker."""


class ForeignerGone(Exception):
    """The program that writes past Eventkeel has ended; it has said why."""


class Foreigner:
    """The same from Python: a child process that takes messages one by one."""

    def __init__(self, broker: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "shop.foreign"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, VARIABLE: broker},  # no command line: it would show a password
            start_new_session=True,
        )

    def append(self, topic: str, key: str, body: str, headers: dict[str, str] | None = None) -> None:
        """Returns when the message is durable on the broker. Raises ForeignerGone."""
        assert self._process.stdin is not None and self._process.stdout is not None
        line = json.dumps({"topic": topic, "key": key, "headers": headers, "body": body})
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ForeignerGone from None
        if not self._process.stdout.readline():
            raise ForeignerGone

    def close(self) -> None:
        self._process.communicate()


@contextmanager
def writing_to_sqlite(path: str, patience: float = 30.0) -> Iterator[Write]:
    """Waits until a service has made the broker's file. Raises SystemExit."""
    connection = _open(path, patience)
    connection.execute("pragma synchronous=full")

    def write(topic: str, key: str, headers: dict[str, str] | None, body: str) -> None:
        connection.execute(INSERT, (topic, key, json.dumps(headers) if headers else None, body))

    try:
        yield write
    finally:
        connection.close()


def _open(path: str, patience: float) -> apsw.Connection:
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(apsw.Error):
            connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
            connection.set_busy_timeout(30_000)
            if connection.execute("select 1 from sqlite_schema where name = 'inbound'").fetchall():
                return connection
            connection.close()
        if time.monotonic() > deadline:
            raise SystemExit(f"{path} is no broker: start a service first")
        time.sleep(0.05)


@contextmanager
def writing_to_kafka(url: str, patience: float = 120.0) -> Iterator[Write]:
    """A producer with the partitioner of Java's clients: a key lands where everybody's does. Raises SystemExit
    for a message that the broker does not take within ``patience`` seconds."""
    from confluent_kafka import Producer

    if not client_options(url).get("bootstrap.servers"):
        raise SystemExit(f"{url!r} names no broker; write kafka://host:port")
    settings = {"partitioner": "murmur2_random", "enable.idempotence": True, "linger.ms": 0}
    more = {"message.timeout.ms": int(patience * 1000), "topic.metadata.refresh.interval.ms": 1000, "log_level": 2}
    producer = Producer({**client_options(url), **settings, **more})
    before = prefix(url)

    def write(topic: str, key: str, headers: dict[str, str] | None, body: str) -> None:
        outcome: list[Any] = []
        told: list[tuple[str, str | bytes | None]] = [*(headers or {}).items()]
        producer.produce(before + topic, body, key, headers=told, on_delivery=lambda error, _: outcome.append(error))
        while not outcome:
            producer.poll(0.5)
        if outcome[0] is not None:
            raise SystemExit(f"the broker did not take a message for {topic}: {outcome[0]}")

    yield write


def _writing_to(broker: str) -> contextlib.AbstractContextManager[Write]:
    if is_rabbit(broker):
        return writing_to_rabbit(broker, prefix(broker))
    return writing_to_kafka(broker) if is_kafka(broker) else writing_to_sqlite(str(file_of(broker)))


def main() -> int:
    broker = sys.argv[1] if len(sys.argv) > 1 else os.environ[VARIABLE]
    with _writing_to(broker) as write:
        for number, line in enumerate(sys.stdin, 1):
            message = json.loads(line)
            write(message["topic"], message["key"], message.get("headers"), message["body"])
            print(number, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
