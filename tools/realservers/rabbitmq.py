"""RabbitMQ from the system's packages: a node of its own beside the one that a package may have started."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from tools.realservers import install, places, probe, processes
from tools.realservers.errors import ServersError
from tools.realservers.server import Server

PLUGINS = ("rabbitmq_consistent_hash_exchange", "rabbitmq_management")


class RabbitMQ(Server):
    """Two processes: the node, and a port mapper of its own that Erlang would otherwise start and leave behind."""

    needs = (install.RABBITMQ,)
    ports: tuple[str, ...] = ("port", "distribution", "epmd", "management")

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{places.HOST}:{self.port()}/"

    @property
    def node(self) -> str:
        """What Erlang calls it."""
        return f"eventkeel-{self.port()}@localhost"

    @property
    def management(self) -> str:
        """Where its management API answers."""
        return f"http://{places.HOST}:{self.port('management')}"

    def ctl(self, *words: str) -> str:
        """What ``rabbitmqctl`` says, such as ``ctl("stop_app")``. Raises ServersError where it fails."""
        server = install.rabbitmq()
        if server is None:
            raise ServersError(f"{self.name}: RabbitMQ is not installed any more")
        tool = server.with_name("rabbitmqctl")
        account = install.account("rabbitmq")
        done = processes.run([tool, "-q", *words], folder=self.data, environment=self._environment(), account=account)
        if done.returncode:
            raise ServersError(f"rabbitmqctl {' '.join(words)}: {done.stdout.strip()[-500:]}")
        return done.stdout

    def answers(self) -> bool:
        return probe.rabbitmq(self.port())

    def _settings(self) -> dict[str, str]:
        return {
            "listeners.tcp.1": f"{places.HOST}:{self.port()}",
            "log.console": "true",
            "log.console.level": "info",
            "management.tcp.ip": places.HOST,
            "management.tcp.port": str(self.port("management")),
        }

    def _prepare(self) -> None:
        self.data.mkdir(mode=0o700, exist_ok=True)
        settings = "".join(f"{name} = {value}\n" for name, value in self._settings().items())
        (self.folder / "rabbitmq.conf").write_text(settings)
        (self.folder / "enabled_plugins").write_text(f"[{','.join(PLUGINS)}].\n")
        account = install.account("rabbitmq")
        if account is not None:
            if not places.open_to_others(self.folder):
                raise ServersError(
                    f"user rabbitmq may not pass through to {self.folder}; name another folder: "
                    "EVENTKEEL_SERVERS=/some/where"
                )
            shutil.chown(self.data, account.pw_uid, account.pw_gid)

    def _environment(self) -> dict[str, str]:
        mine = {
            "HOME": self.data,
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_CONFIG_FILE": self.folder / "rabbitmq",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.folder / "enabled_plugins",
            "RABBITMQ_MNESIA_BASE": self.data / "mnesia",
            "RABBITMQ_LOG_BASE": self.data / "log",
            "RABBITMQ_PID_FILE": self.data / "pid",
            "RABBITMQ_DIST_PORT": self.port("distribution"),
            "ERL_EPMD_PORT": self._mapper_port(),
            "ERL_EPMD_ADDRESS": places.HOST,
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RABBITMQ_", "ERL_"))}
        return kept | {key: str(value) for key, value in mine.items()}

    def _launch(self) -> tuple[int, str]:
        account = install.account("rabbitmq")
        server = install.rabbitmq()
        if server is None:
            raise ServersError(f"{self.name}: RabbitMQ is not installed any more")
        self._start_mapper()
        environment = self._environment()
        return processes.spawn([server], log=self.log, folder=self.data, environment=environment, account=account)

    def _mapper_port(self) -> int:
        return self.port("epmd")

    def _start_mapper(self) -> None:
        pid, born = spawn_mapper(self._mapper_port(), log=self.log, folder=self.folder)
        self._remember(epmd_pid=pid, epmd_born=born)

    def pids(self) -> list[int]:
        members = super().pids()
        known = self._recall()
        mapper = int(known.get("epmd_pid", 0))
        if mapper and mapper not in members and processes.find(mapper, str(known["epmd_born"])):
            members.append(mapper)
        return members

    def stop(self) -> None:
        node = super().pids()
        processes.send(node, signal.SIGCONT)
        processes.send(node[:1], signal.SIGTERM)
        processes.wait_until_gone(node, 20.0)
        self._end(self.pids())  # the port mapper at least, which serves until it is ended


def spawn_mapper(port: int, *, log: Path, folder: Path) -> tuple[int, str]:
    """Starts Erlang's port mapper, by which nodes find each other: pid and birth."""
    command: list[str | Path] = [install.epmd() or "epmd", "-port", str(port)]
    environment = {**os.environ, "ERL_EPMD_ADDRESS": places.HOST}
    account = install.account("rabbitmq")
    return processes.spawn(command, log=log, folder=folder, environment=environment, account=account)
