"""Where a run works: on files, on servers of its own (which it may hurt), or on yours, by URL."""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eventkeel.testing.nemesis import PATIENCE, Killable
from shop.brokers import QUICK, is_kafka, with_options
from tools.realservers import Servers, ServersError
from tools.realservers.fleet import KINDS
from tools.realservers.rabbitmq_cluster import Node

BROKERS = ("sqlite", "kafka", "kafka-cluster", "rabbitmq", "rabbitmq-cluster", "amqp")
"""``amqp`` is another word for ``rabbitmq``."""
STORES = ("sqlite", "postgres")

STOP = 2.5
"""Seconds for which processes are stopped: well past the lease."""
STOP_ON_KAFKA = 9.0
"""The same where a silent member of a group is given up after 6 s."""
SCHEMA = "schema={service}"
_SHARD = re.compile(r"\.g\d+\.\d+$")
"""How names of shard queues end."""


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

    def with_options(self, options: Mapping[str, str]) -> Where:
        """The same broker, with further options in its URL."""
        if not is_kafka(self.broker):
            return self
        return dataclasses.replace(self, broker=with_options(self.broker, options))


class OneOf:
    """A cluster: each time another of its members is killed."""

    def __init__(self, members: list[Killable]) -> None:
        self._members, self._dead = members, members[0]

    def kill9(self) -> None:
        self._dead = random.choice([member for member in self._members if member is not self._dead])
        self._dead.kill9()

    def start(self) -> None:
        self._dead.start()


class Leader:
    """A cluster of RabbitMQ: each time the node is killed that leads most of the shard queues."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes, self._dead = nodes, nodes[0]

    def kill9(self) -> None:
        leaders = self.leaders()
        self._dead = max(self._nodes, key=lambda node: leaders[node.node])
        print(f"{self._dead.name} leads {leaders[self._dead.node]} of {leaders.total()} shard queues", flush=True)
        self._dead.kill9()

    def start(self) -> None:
        self._dead.start()

    def leaders(self) -> collections.Counter[str]:
        """How many shard queues each node leads."""
        shards = (queue for queue in self.queues() if _SHARD.search(queue["name"]))
        return collections.Counter(str(queue.get("leader")) for queue in shards)

    def replicated(self) -> bool:
        """Whether every queue and stream has all its members at work, so that the next node may die."""
        found = self.queues()
        return bool(found) and all(len(each.get("members", "?")) == len(each.get("online", "")) for each in found)

    def queues(self) -> list[dict[str, Any]]:
        """Quorum queues and streams as a node that lives knows them."""
        for node in self._nodes:
            with contextlib.suppress(OSError):
                found: list[dict[str, Any]] = node.api("queues?columns=name,leader,members,online")
                return found
        return []


@contextlib.contextmanager
def place(broker: str, store: str) -> Iterator[Where]:
    """``broker`` and ``store``: a kind, whose servers are started here and removed at the end, or a URL.

    Raises tools.realservers.ServersError where they cannot be started.
    """
    broker = {"amqp": "rabbitmq"}.get(broker, broker)
    kinds = [kind for kind in (broker, store) if kind in KINDS]
    with Servers.temporary() if kinds else contextlib.nullcontext() as servers:
        killable: dict[str, Killable] = {}
        if servers is not None:
            servers.up(*kinds)
            if broker in kinds:
                killable["broker"], broker = _own(servers, broker)
            if store in kinds:
                killable["database"] = servers.postgres
                store = f"{servers.url(store)}?{SCHEMA}"
        where = Where("" if broker == "sqlite" else broker, "" if store == "sqlite" else store, killable)
        if is_kafka(where.broker):
            where = dataclasses.replace(where, stop_seconds=STOP_ON_KAFKA, patience=10.0)
            where = where.with_options(QUICK)
        yield where


def _own(servers: Servers, broker: str) -> tuple[Killable, str]:
    """What may be killed, and the URL."""
    url = servers.url(broker)
    match broker:
        case "kafka-cluster":
            return OneOf([*servers.cluster]), url
        case "rabbitmq":
            return servers.rabbitmq, f"{url}?management={servers.rabbitmq.management}"
        case "rabbitmq-cluster":
            return Leader(servers.nodes), f"{url}?management={','.join(node.management for node in servers.nodes)}"
        case _:
            return servers[broker], url


def arguments(
    program: str, text: str | None, broker: str = "kafka", store: str = "postgres"
) -> argparse.ArgumentParser:
    """The options that every run has."""
    parser = argparse.ArgumentParser(
        prog=program, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broker", default=broker, help=f"{', '.join(BROKERS)} (own servers), or a URL ({broker})")
    parser.add_argument("--store", default=store, help=f"{', '.join(STORES)} (own servers), or a URL ({store})")
    parser.add_argument("--data", type=Path, help="keep everything here")
    return parser


def command(given: argparse.Namespace, run: Callable[[Where, Path], list[str]]) -> int:
    """Run it there; tell what is wrong, keep the folder then. The exit code."""
    folder = given.data or Path(tempfile.mkdtemp(prefix="eventkeel-crash-"))
    try:
        with place(given.broker, given.store) as where:
            wrong = run(where, folder)
    except ServersError as error:
        print(f"no servers: {error}", file=sys.stderr)
        return 2
    except TimeoutError as error:
        wrong = [str(error)]
    if not wrong:
        print("holds")
        if given.data is None:
            shutil.rmtree(folder, ignore_errors=True)
        return 0
    print(f"BROKEN: {'; '.join(wrong)}\neverything is kept in {folder}")
    return 1
