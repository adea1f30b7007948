"""A program that does not know Eventkeel and writes into the same broker: duplicates on purpose.

    python -m shop.foreign BROKER_FILE < lines          each line: {"topic": …, "key": …, "body": …}

It uses what the broker promises to such programs: ``insert into inbound (topic, key, headers, body)``.
A process of its own, because a file must not be open in two SQLite libraries of one process; apsw,
because it brings a SQLite without the WAL-reset bug, which any other program should look for too.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import apsw

INSERT = "insert into inbound (topic, key, headers, body) values (?, ?, ?, ?)"


def send(connection: apsw.Connection, lines: Iterable[str]) -> int:
    """Append each line's message in a transaction of its own; how many."""
    count = 0
    for line in lines:
        message = json.loads(line)
        headers = message.get("headers")
        row = (message["topic"], message["key"], json.dumps(headers) if headers else None, message["body"])
        connection.execute(INSERT, row)
        count += 1
        print(count, flush=True)
    return count


class ForeignerGone(Exception):
    """The program that writes past Eventkeel has ended; it has said why."""


class Foreigner:
    """The same from Python: a child process that takes messages one by one."""

    def __init__(self, broker: Path) -> None:
        command = [sys.executable, "-m", "shop.foreign", str(broker)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def append(self, topic: str, key: str, body: str, headers: dict[str, str] | None = None) -> None:
        """Returns when the message is durable in ``inbound``."""
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


def open_broker(path: str, patience: float = 30.0) -> apsw.Connection:
    """Wait until a service has made the broker's file; raises SystemExit after ``patience`` seconds."""
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


def main() -> int:
    connection = open_broker(sys.argv[1])
    connection.execute("pragma synchronous=full")
    send(connection, sys.stdin)
    connection.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
