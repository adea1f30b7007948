"""A set of servers in one folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from tools.realservers import install, places, probe, processes
from tools.realservers.errors import ServersError
from tools.realservers.kafka import Kafka, Member, jars
from tools.realservers.postgres import Postgres
from tools.realservers.rabbitmq import RabbitMQ
from tools.realservers.rabbitmq_cluster import Mapper, Node
from tools.realservers.server import Server

KINDS = ("kafka", "kafka-cluster", "postgres", "rabbitmq", "rabbitmq-cluster")
BROKERS = ("kafka", "kafka-cluster", "rabbitmq", "rabbitmq-cluster")
_OF_OTHERS = "eventkeel-run-"

FOREIGN = {
    "kafka": "EVENTKEEL_TEST_KAFKA",
    "postgres": "EVENTKEEL_TEST_POSTGRES",
    "rabbitmq": "EVENTKEEL_TEST_RABBITMQ",
}
"""Variables that name a server which somebody already has: it is used, and neither started nor stopped."""
_SCHEMES = {"kafka": "kafka://", "postgres": "postgresql://", "rabbitmq": "amqp://"}


def foreign(kind: str) -> str | None:
    """The URL of the user's own server of that kind."""
    url = os.environ.get(FOREIGN.get(kind, ""), "").strip()
    if not url:
        return None
    return url if "://" in url else _SCHEMES[kind] + url


class Servers:
    """Started, found, hurt and removed by name. As a context manager it takes everything down at its end.

    Other processes with the same folder see and control the same servers.
    """

    def __init__(self, home: Path | None = None) -> None:
        self.home = home or places.default_home()
        cluster: list[Member] = []
        cluster += [Member(f"kafka-{node}", self.home, cluster) for node in (1, 2, 3)]
        self.kafka = Kafka("kafka", self.home)
        self.cluster: Sequence[Member] = cluster
        self.postgres = Postgres("postgres", self.home)
        self.rabbitmq = RabbitMQ("rabbitmq", self.home)
        nodes: list[Node] = []
        self.mapper = Mapper("rabbitmq-epmd", self.home)
        nodes += [Node(f"rabbitmq-{number}", self.home, nodes, self.mapper) for number in (1, 2, 3)]
        self.nodes: Sequence[Node] = nodes

    @classmethod
    def temporary(cls) -> Self:
        """In a folder of their own, beside any others; what an earlier run of this user left behind ends first."""
        cls.sweep()
        home = Path(tempfile.mkdtemp(prefix=_OF_OTHERS, dir=Path(tempfile.gettempdir()).resolve()))
        servers = cls(places.make(home))
        me = processes.table()[os.getpid()]
        (home / "owner.json").write_text(json.dumps({"pid": me.pid, "born": me.born}))
        return servers

    @classmethod
    def sweep(cls) -> None:
        """Takes down temporary servers whose owner ended without doing so, because it was killed."""
        for home in Path(tempfile.gettempdir()).resolve().glob(f"{_OF_OTHERS}*"):
            with contextlib.suppress(OSError, ValueError):
                owner = json.loads((home / "owner.json").read_text())
                if home.stat().st_uid == os.getuid() and processes.find(owner["pid"], owner["born"]) is None:
                    cls(home).down()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One command at a time, whichever process gives it."""
        places.make(self.home)
        with (self.home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def members(self, name: str) -> list[Server]:
        """The servers that a name stands for: one, or those of a cluster."""
        known: dict[str, list[Server]] = {
            "kafka": [self.kafka],
            "kafka-cluster": [*self.cluster],
            "postgres": [self.postgres],
            "rabbitmq": [self.rabbitmq],
            "rabbitmq-cluster": [self.mapper, *self.nodes],
            **{member.name: [member] for member in (*self.cluster, self.mapper, *self.nodes)},
        }
        if name not in known:
            raise ServersError(f"there is no server {name!r}; there are {', '.join(known)}")
        return known[name]

    def __getitem__(self, name: str) -> Server:
        found = self.members(name)
        if len(found) > 1:
            raise ServersError(f"{name} is several servers; name one: {', '.join(server.name for server in found)}")
        return found[0]

    def present(self) -> list[str]:
        """The kinds that were started here, running or not."""
        return [kind for kind in KINDS if self.members(kind)[0].exists]

    def up(self, *kinds: str) -> None:
        """All of them answer afterwards. What is missing is installed first, where that is allowed."""
        wanted = [server for kind in dict.fromkeys(kinds) for server in self.members(kind)]
        with self._alone():
            install.ensure(dict.fromkeys(need for server in wanted for need in server.needs))
            if any(isinstance(server, Kafka) for server in wanted):
                jars()
            self._start(wanted)

    def start(self, *names: str) -> None:
        """Those that were up before, again and together: brokers of a cluster wait for each other."""
        wanted = [server for name in names for server in self.members(name)]
        for server in wanted:
            server.port()  # or it says that it was never up
        with self._alone():
            self._start(wanted)

    def _start(self, wanted: Sequence[Server]) -> None:
        for server in wanted:
            server.reserve()
        self._each(wanted, lambda server: server.start(wait=False))
        self._each(wanted, lambda server: server.wait())

    def down(self, *kinds: str) -> None:
        """Ends them, all when none is named, and removes their data."""
        if not self.home.exists():
            return
        with self._alone():
            going = [server for kind in kinds or KINDS for server in self.members(kind)]
            self._each(going, lambda server: server.remove())
            if not self.present():
                shutil.rmtree(self.home, ignore_errors=True)

    def url(self, kind: str) -> str:
        """Where clients go: ``kafka://``, ``postgresql://`` or ``amqp://``."""
        if kind == "kafka-cluster":
            return "kafka://" + ",".join(f"{places.HOST}:{member.port()}" for member in self.cluster)
        if kind == "rabbitmq-cluster":
            return f"amqp://guest:guest@{','.join(f'{places.HOST}:{node.port()}' for node in self.nodes)}/"
        return self[kind].url

    @staticmethod
    def _each(servers: Iterable[Server], act: Callable[[Server], object]) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(act, servers))


def check_foreign(kind: str, url: str) -> None:
    """Raises when nobody listens there."""
    if not probe.anybody(url):
        raise ServersError(f"nobody answers at {FOREIGN[kind]}={url}")


def exports(urls: dict[str, str]) -> list[str]:
    """Lines for a shell: where Eventkeel finds its broker and its store."""
    lines = []
    for kind in BROKERS:
        if kind in urls:
            lines.append(f"export EVENTKEEL_BROKER={shlex.quote(urls[kind])}")
            break
    if store := urls.get("postgres"):
        if "schema=" not in store:
            store += ("&" if "?" in store else "?") + "schema={service}"
        lines.append(f"export EVENTKEEL_STORE={shlex.quote(store)}")
    return lines
