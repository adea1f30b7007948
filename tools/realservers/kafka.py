"""Apache Kafka from its own jars, in KRaft mode: one broker, or one of three."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.realservers import install, places, probe, processes
from tools.realservers.errors import ServersError
from tools.realservers.server import Server

POM = places.ROOT / "tools" / "kafka" / "pom.xml"

_LOG = """\
rootLogger.level=WARN
rootLogger.appenderRef.console.ref=console
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{HH:mm:ss.SSS} %p %c{1} %m%n
"""


def jars() -> Path:
    """The folder with Kafka's jars: brought by Maven once for each user and content of the pom."""
    versions = hashlib.sha256(POM.read_bytes()).hexdigest()[:12]
    folder = places.cache() / f"kafka-{versions}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            install.ensure([install.MAVEN])
            _copy_jars(folder)
    return folder


def _copy_jars(folder: Path) -> None:
    install.say("getting Kafka's jars with Maven, once")
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        shutil.copy(POM, place)
        libs = Path(place) / "libs"
        done = processes.run(
            [
                install.maven() or "mvn", "-q", "-B", "dependency:copy-dependencies",
                f"-DoutputDirectory={libs}", "-DincludeScope=runtime",
            ],
            folder=Path(place),
        )  # fmt: skip
        if done.returncode != 0 or not libs.exists():
            words = "\n".join(f"    {line}" for line in done.stdout.splitlines()[-15:])
            raise ServersError(f"Maven could not get Kafka's jars:\n{words}")
        libs.rename(folder)


def _fresh_id() -> str:
    """As Kafka writes ids: 16 bytes in URL-safe Base64, never with a dash in front."""
    while (text := base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")).startswith("-"):
        pass
    return text


class Kafka(Server):
    """A broker that is its own controller."""

    needs = (install.JAVA,)
    ports: tuple[str, ...] = ("port", "controller")
    _heap = 512
    _node = 1
    _users: Mapping[str, str] = {}
    _identity = Path()

    @property
    def url(self) -> str:
        return f"kafka://{places.HOST}:{self.port()}"

    def secure(self, identity: Path, users: Mapping[str, str]) -> None:
        """Before its first start: listen at one more port, ``port("secure")``, in TLS and for those who log in.

        ``identity`` is a PEM file with the broker's key (PKCS 8) and its certificates. ``users``: passwords by name,
        for SCRAM-SHA-512 and PLAIN.
        """
        self.ports = (*type(self).ports, "secure")
        self._identity, self._users = identity, users

    def answers(self) -> bool:
        return probe.kafka(self.port()) > 0

    def _java(self, *arguments: str | Path) -> list[str | Path]:
        # Without performance data there is no file of it left in the temporary folder after a kill.
        return [install.java() or "java", "-XX:-UsePerfData", *arguments]

    def cluster_id(self) -> str:
        """The id that the brokers of one cluster share; made when it is asked for first."""
        known = self._recall()
        if "cluster" not in known:
            self._remember(cluster=_fresh_id())
        return str(self._recall()["cluster"])

    def reserve(self) -> None:
        super().reserve()
        self.cluster_id()  # before brokers of a cluster start at the same time

    def _settings(self) -> dict[str, str]:
        return {
            "controller.quorum.voters": f"1@{places.HOST}:{self.port('controller')}",
            # After a kill the controller believes the broker alive for this long, 9 s unless told, and lets it wait.
            # Alone it has nobody to hand over to, so that the wait would only cost time.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
        }

    def _prepare(self) -> None:
        settings = {
            "process.roles": "broker,controller",
            "node.id": str(self._node),
            "listeners": f"PLAINTEXT://{places.HOST}:{self.port()},CONTROLLER://{places.HOST}:{self.port('controller')}",
            "advertised.listeners": f"PLAINTEXT://{places.HOST}:{self.port()}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": str(self.data),
            "group.initial.rebalance.delay.ms": "0",
            "auto.create.topics.enable": "false",
            **self._settings(),
        }
        if self._users:
            settings["listeners"] += f",SECURE://{places.HOST}:{self.port('secure')}"
            settings["advertised.listeners"] += f",SECURE://{places.HOST}:{self.port('secure')}"
            settings["listener.security.protocol.map"] += ",SECURE:SASL_SSL"
            settings |= self._of_secure()
        (self.folder / "server.properties").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        (self.folder / "log4j2.properties").write_text(_LOG)
        if (self.data / "bootstrap.checkpoint").exists():
            return
        self.data.mkdir(exist_ok=True)
        done = processes.run(
            self._java(
                "-cp", f"{jars()}/*", "kafka.tools.StorageTool", "format", "-t", self.cluster_id(),
                "-c", self.folder / "server.properties", *self._scram(),
            ),
            folder=self.folder,
        )  # fmt: skip
        if done.returncode != 0:
            raise ServersError(f"{self.name}: its storage could not be formatted:\n{done.stdout}")

    def _of_secure(self) -> dict[str, str]:
        modules = "org.apache.kafka.common.security"
        known = " ".join(f'user_{name}="{password}"' for name, password in self._users.items())
        return {
            "listener.name.secure.ssl.keystore.type": "PEM",
            "listener.name.secure.ssl.keystore.location": str(self._identity),
            "listener.name.secure.sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
            "listener.name.secure.scram-sha-512.sasl.jaas.config": f"{modules}.scram.ScramLoginModule required;",
            "listener.name.secure.plain.sasl.jaas.config": f"{modules}.plain.PlainLoginModule required {known};",
        }

    def _scram(self) -> list[str]:
        return [
            word
            for name, password in self._users.items()
            for word in ("--add-scram", f"SCRAM-SHA-512=[name={name},password={password}]")
        ]

    def _launch(self) -> tuple[int, str]:
        return processes.spawn(
            self._java(
                f"-Xmx{self._heap}m", f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
                "-cp", f"{jars()}/*", "kafka.Kafka", self.folder / "server.properties",
            ),
            log=self.log, folder=self.data, environment=os.environ,
        )  # fmt: skip


class Member(Kafka):
    """One broker of a cluster of three: replication 3, and two of three have to have a message."""

    _heap = 384

    def __init__(self, name: str, home: Path, cluster: Sequence[Member]) -> None:
        super().__init__(name, home)
        self._node = int(name.rpartition("-")[2])
        self._cluster = cluster

    def cluster_id(self) -> str:
        first = self._cluster[0]
        return super().cluster_id() if first is self else first.cluster_id()

    def _settings(self) -> dict[str, str]:
        voters = (f"{member._node}@{places.HOST}:{member.port('controller')}" for member in self._cluster)
        return {
            "controller.quorum.voters": ",".join(voters),
            "default.replication.factor": "3",
            "min.insync.replicas": "2",
            "offsets.topic.replication.factor": "3",
            "transaction.state.log.replication.factor": "3",
            "transaction.state.log.min.isr": "2",
            "share.coordinator.state.topic.replication.factor": "3",
            "share.coordinator.state.topic.min.isr": "2",
        }
