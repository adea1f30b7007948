"""Where a run works: on files, on servers of its own (which it may hurt), or on yours, by URL."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator, Mapping
from typing import Protocol

from eventkeel.testing.nemesis import PATIENCE, Killable
from tools.realservers import Servers

BROKERS = ("sqlite", "kafka", "kafka-cluster")
STORES = ("sqlite", "postgres")

STOP = 2.5
"""Seconds for which processes are stopped: well past the lease."""
SESSION = 6.0
"""Seconds after which Kafka gives up a silent member: the least that it allows. Its partitions move then."""
SCHEMA = "schema={service}"


@dataclasses.dataclass(frozen=True)
class Where:
    """What a run works on: files, unless URLs say otherwise."""

    broker: str = ""
    store: str = ""
    servers: Mapping[str, Killable] = dataclasses.field(default_factory=dict)
    """Those that may be killed: "broker", "database"."""
    stop_seconds: float = STOP
    """How long a process has to be stopped so that another one takes its partitions."""
    patience: float = PATIENCE
    """Seconds that a fault may wait for the process to come by."""

    def with_options(self, **options: str) -> Where:
        """The same broker, with further options in its URL."""
        if not self.broker.startswith("kafka:"):
            return self
        return dataclasses.replace(self, broker=with_options(self.broker, options))


class Restartable(Killable, Protocol):
    def wait(self, patience: float = 90.0) -> None: ...


class OneOf:
    """A cluster: each time another of its members is killed."""

    def __init__(self, members: list[Restartable]) -> None:
        self._members, self._dead = members, members[0]

    def kill9(self) -> None:
        self._dead = random.choice([member for member in self._members if member is not self._dead])
        self._dead.kill9()

    def start(self) -> None:
        self._dead.start()


@contextlib.contextmanager
def place(broker: str, store: str) -> Iterator[Where]:
    """``broker`` and ``store``: a kind, whose servers are started here and removed at the end, or a URL.

    Raises tools.realservers.ServersError where they cannot be started.
    """
    kinds = [kind for kind in (broker, store) if kind in ("kafka", "kafka-cluster", "postgres")]
    with Servers.temporary() if kinds else contextlib.nullcontext() as servers:
        killable: dict[str, Killable] = {}
        if servers is not None:
            servers.up(*kinds)
            if broker in kinds:
                killable["broker"] = OneOf([*servers.cluster]) if broker == "kafka-cluster" else servers.kafka
                broker = servers.url(broker)
            if store in kinds:
                killable["database"] = servers.postgres
                store = f"{servers.url(store)}?{SCHEMA}"
        where = Where("" if broker == "sqlite" else broker, "" if store == "sqlite" else store, killable)
        if where.broker.startswith("kafka:"):
            where = dataclasses.replace(where, stop_seconds=SESSION + 3, patience=10.0)
            where = where.with_options(
                **{"session.timeout.ms": f"{SESSION * 1000:.0f}", "heartbeat.interval.ms": "500"}
            )
        yield where


def with_options(url: str, options: Mapping[str, str]) -> str:
    """Those of them that the URL does not say already."""
    missing = [f"{name}={value}" for name, value in options.items() if f"{name}=" not in url]
    return url + ("&" if "?" in url else "?") * bool(missing) + "&".join(missing)
