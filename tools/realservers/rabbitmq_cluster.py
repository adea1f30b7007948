"""A cluster of three RabbitMQ nodes on one machine, and the port mapper by which they find each other."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import threading
import urllib.request
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.realservers import install, places, probe
from tools.realservers.rabbitmq import RabbitMQ, spawn_mapper
from tools.realservers.server import Server

SIZE = 3


class Mapper(Server):
    """Of one cluster and no other, so that several live on one machine. It survives the death of any node."""

    needs = (install.RABBITMQ,)

    def __init__(self, name: str, home: Path) -> None:
        super().__init__(name, home)
        self._starting = threading.Lock()

    @property
    def url(self) -> str:
        return f"epmd://{places.HOST}:{self.port()}"

    @property
    def cookie(self) -> str:
        """The secret that the nodes of the cluster share."""
        return str(self._recall()["cookie"])

    def reserve(self) -> None:
        super().reserve()
        if "cookie" not in self._recall():
            self._remember(cookie=secrets.token_hex(16))

    def start(self, *, wait: bool = True) -> None:
        """Each node sees to it that it runs, at the same time as the others."""
        with self._starting:
            super().start(wait=wait)

    def answers(self) -> bool:
        try:
            socket.create_connection((places.HOST, self.port()), probe.PATIENCE).close()
        except OSError:
            return False
        return True

    def _prepare(self) -> None:
        self.data.mkdir(exist_ok=True)

    def _launch(self) -> tuple[int, str]:
        return spawn_mapper(self.port(), log=self.log, folder=self.folder)


class Node(RabbitMQ):
    """One of three; a new queue has its members on all of them."""

    ports = ("port", "distribution", "management")

    def __init__(self, name: str, home: Path, cluster: Sequence[Node], mapper: Mapper) -> None:
        super().__init__(name, home)
        self._cluster, self._mapper = cluster, mapper

    def reserve(self) -> None:
        super().reserve()
        self._mapper.reserve()

    def answers(self) -> bool:
        """It lets clients in, and knows the others, alive or not: nodes that start first found a cluster of one."""
        return super().answers() and self._known() == SIZE

    def _known(self) -> int:
        try:
            return len(self.api("nodes?columns=name"))
        except (OSError, ValueError):
            return 0

    def api(self, what: str) -> Any:
        """What the management API says of it. Raises OSError."""
        request = urllib.request.Request(f"{self.management}/api/{what}")
        request.add_header("Authorization", "Basic " + b64encode(b"guest:guest").decode())
        with urllib.request.urlopen(request, timeout=2 * probe.PATIENCE) as answer:
            return json.load(answer)

    def _settings(self) -> dict[str, str]:
        others = {
            f"cluster_formation.classic_config.nodes.{number}": node.node
            for number, node in enumerate(self._cluster, 1)
        }
        return {
            **super()._settings(),
            "cluster_formation.peer_discovery_backend": "classic_config",
            **others,
            # A node that is cut off from both others takes nothing, instead of going its own way.
            "cluster_partition_handling": "pause_minority",
        }

    def _prepare(self) -> None:
        super()._prepare()
        cookie = self.data / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(self._mapper.cookie)
            cookie.chmod(0o400)
            if (account := install.account("rabbitmq")) is not None:
                shutil.chown(cookie, account.pw_uid, account.pw_gid)

    def _mapper_port(self) -> int:
        return self._mapper.port()

    def _start_mapper(self) -> None:
        self._mapper.start()
