"""Services of ours and programs of others as processes, on one Kafka and one PostgreSQL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from shop.brokers import KafkaBroker, Message, client_options, with_options
from shop.databases import Unreadable, reading
from tests.outside import Outside

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 90.0
"""Seconds after which something that has to happen counts as not happening."""
PARTITIONS = 6
PAYMENTS = "payment-service-group"


def until(true: Callable[[], object], what: str | Callable[[], object]) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.1)


class Program:
    """A process of somebody else's program, and the lines that it has printed."""

    def __init__(self, command: Sequence[str], *, env: dict[str, str] | None = None) -> None:
        self.lines: list[str] = []
        self.errors: list[str] = []
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
            cwd=ROOT,
        )
        self._readers = [
            threading.Thread(target=self._read, args=(stream, into), daemon=True)
            for stream, into in ((self.process.stdout, self.lines), (self.process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str], into: list[str]) -> None:
        for line in stream:
            into.append(line.rstrip("\n"))  # noqa: PERF401 - others read it meanwhile

    @property
    def json(self) -> list[Any]:
        return [json.loads(line) for line in self.lines]

    def until(self, true: Callable[[], object], what: str) -> None:
        """Wait for a condition, for as long as the program runs."""

        def met() -> object:
            ended = self.process.poll()
            if found := true():
                return found
            assert ended is None, f"ended with {ended} before {what}: {self._tail()}"
            return False

        until(met, lambda: f"{what}; it said {self._tail()}")

    def _tail(self) -> str:
        return " | ".join([*self.lines[-5:], *self.errors[-10:]])

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for reader in self._readers:
            reader.join(5)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def run(command: Sequence[str], stdin: str | bytes = b"") -> str:
    """A program that ends by itself: what it printed. Fails where it failed."""
    given = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(command, input=given, capture_output=True, timeout=PATIENCE, check=False, cwd=ROOT)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{(done.stdout + done.stderr).decode()}"
    return done.stdout.decode()


class Street:
    """One broker with a prefix of this test's own, and one database: where services and programs meet."""

    def __init__(self, kafka_url: str, database: str, prefix: str, folder: Path) -> None:
        self.prefix, self._folder = prefix, folder
        self.broker_url = with_options(kafka_url, {"prefix": prefix})
        self.address = str(client_options(kafka_url)["bootstrap.servers"])
        self._store = database + ("&" if "?" in database else "?") + "schema={service}"
        self._options = client_options(kafka_url)
        self.broker = KafkaBroker(self.broker_url)

    def topic(self, name: str) -> str:
        """As it is called on the broker."""
        return self.prefix + name

    # -- our services

    @contextmanager
    def services(self, *words: str) -> Iterator[Program]:
        """``eventkeel run WORDS``, ended afterwards; beside them, the third parties that the shop's services call."""
        settings = {
            "EVENTKEEL_BROKER": self.broker_url,
            "EVENTKEEL_STORE": self._store,
            "EVENTKEEL_PARTITIONS": str(PARTITIONS),
            "EVENTKEEL_DATA": str(self._folder),
        }
        with (
            Outside(self._folder) as outside,
            Program(
                [sys.executable, "-m", "eventkeel", "run", *words], env={**settings, **outside.environment}
            ) as program,
        ):
            yield program

    def until_there(self, services: Program, *topics: str) -> None:
        """The services have made their topics."""
        with closing(_Quiet(self._options)) as admin:
            services.until(lambda: {*map(self.topic, topics)} <= admin.topics(), f"there are topics {topics}")

    def until_owned(self, services: Program, topic: str, group: str, service: str, owners: int) -> None:
        """At least that many processes share the partitions of the topic."""
        sql = "select count(distinct owner), count(*) from eventkeel_owner where grp = ? and topic = ? and owner <> ''"
        services.until(
            lambda: any(n >= owners and all_ == PARTITIONS for n, all_ in self.rows(sql, service, group, topic)),
            f"{owners} processes own {topic}",
        )

    def rows(self, sql: str, service: str, *parameters: object) -> list[tuple[Any, ...]]:
        """What a service's database says; nothing while it is still being made."""
        try:
            with reading(self._store.replace("{service}", service)) as reader:
                return reader.rows(sql, parameters)
        except Unreadable:
            return []

    def until_handled(self, services: Program, group: str, *topics: str) -> None:
        """The group has settled everything that lies on the topics now."""
        services.until(lambda: self.broker.waiting({group: topics}) == 0, f"{group} is through with {topics}")

    def until_sent(self, services: Program, service: str) -> None:
        """The service's outbox is empty."""
        services.until(
            lambda: self.rows("select count(*) from eventkeel_outbox", service) == [(0,)], f"{service} has sent all"
        )

    # -- what lies on the broker

    def messages(self, topic: str) -> list[Message]:
        return list(self.broker.messages(topic))

    def partitions_of(self, topic: str) -> dict[bytes, set[int]]:
        """Key -> partitions on which it lies."""
        found: dict[bytes, set[int]] = {}
        for message in self.messages(topic):
            found.setdefault(message.key or b"", set()).add(message.partition)
        return found

    def copies(self, topic: str) -> Counter[bytes]:
        """Key -> messages with it."""
        return Counter(message.key or b"" for message in self.messages(topic))

    def put(
        self,
        topic: str,
        body: bytes,
        *,
        key: str | bytes | None = None,
        headers: dict[str, bytes] | None = None,
        partition: int = -1,
    ) -> None:
        """As any producer would; returns when the broker has it."""
        outcome: list[Any] = []
        producer = Producer(self._options)
        told: list[tuple[str, str | bytes | None]] = [*(headers or {}).items()]
        producer.produce(
            self.topic(topic), body, key, partition, headers=told, on_delivery=lambda error, _: outcome.append(error)
        )
        producer.flush(PATIENCE)
        assert outcome == [None]

    def close(self) -> None:
        """Takes the topics away."""
        self.broker.close()
        with closing(_Quiet(self._options)) as admin:
            admin.delete(sorted(name for name in admin.topics() if name.startswith(self.prefix)))


class _Quiet:
    """An admin client."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._admin: AdminClient | None = AdminClient({**options, "log_level": 2})

    def topics(self) -> set[str]:
        assert self._admin is not None
        return set(self._admin.list_topics(timeout=PATIENCE).topics)

    def delete(self, names: list[str]) -> None:
        assert self._admin is not None
        for deleted in self._admin.delete_topics(names).values() if names else ():
            deleted.result(PATIENCE)

    def close(self) -> None:
        self._admin = None
