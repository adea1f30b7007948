"""The shop's services as processes: one supervisor (``eventkeel run``) with its children.

    python -m shop.running run …          eventkeel run …, until its standard input is closed

So nothing goes on when the shop itself is killed.
"""

from __future__ import annotations

import dataclasses
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from shop.databases import is_postgres, shown

SERVICES = ("shop.orders:service", "shop.payments:service")
HOST = "127.0.0.1"


class CannotRun(Exception):
    """The services did not come up; the message holds what they said."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the shop keeps what it has: files in a folder, unless URLs say otherwise. Raises CannotRun for
    a kind of broker or database that the shop's readers do not know."""

    data: Path
    broker_url: str = ""
    store_url: str = ""
    """May contain {service}, and has to where the services shall not meet in one schema."""

    def __post_init__(self) -> None:
        for url, known in ((self.broker_url, ("sqlite", "kafka")), (self.store_url, ("sqlite", "postgresql"))):
            scheme, _, rest = url.partition(":")
            if url and (scheme not in known or not rest):
                raise CannotRun(
                    f"{scheme}://…: this shop runs on SQLite, Kafka and PostgreSQL so far; write sqlite:///PATH or "
                    f"{'kafka://HOST:PORT' if 'kafka' in known else 'postgresql://USER@HOST:PORT/DATABASE'}"
                )
        if self.store_url and "{service}" not in self.store_url:
            raise CannotRun("--store has to contain {service}: each service has a database, or schema, of its own")

    @property
    def broker(self) -> str:
        """Its URL."""
        return self.broker_url or f"sqlite:///{self.data / 'broker.sqlite3'}"

    def store(self, service: str) -> str:
        """The URL of a service's database."""
        # The directory itself may contain braces: only what the user wrote as a template is one.
        if self.store_url:
            return self.store_url.replace("{service}", service)
        return f"sqlite:///{self.data / service}.sqlite3"

    @property
    def stores(self) -> tuple[str, str]:
        return self.store("orders"), self.store("payment-service")

    def settings(self) -> dict[str, str]:
        """As the options of ``eventkeel run`` are called. Said outright, so that no file here says otherwise."""
        settings = {"data": str(self.data), "broker": self.broker, "store": self.store_url}
        if not self.store_url and "{" not in str(self.data):
            settings["store"] = self.store("{service}")
        return {name: value for name, value in settings.items() if value}

    @property
    def remedy(self) -> str:
        """What to change for a run that meets nothing of an earlier one."""
        changes = ["prefix=NAME in --broker"] * self.broker_url.startswith("kafka:")
        changes += ["schema=NAME-{service} in --store"] * is_postgres(self.store_url)
        return " and ".join(changes) or "--data"

    def __str__(self) -> str:
        kinds = [shown(url) for url in (self.broker_url, self.store_url) if url]
        return " and ".join(kinds) or str(self.data)


class Running:
    """``eventkeel run`` with the shop's services. Its output goes to ``DATA/shop.log``."""

    def __init__(self, place: Place, port: int, *, workers: int = 1) -> None:
        self.log = place.data / "shop.log"
        self._port = port
        self._command = [sys.executable, "-m", "shop.running", "run", *SERVICES, "--workers", str(workers)]
        self._command += ["--http", f"{HOST}:{port}"]
        # By the environment: a command line would show the passwords in URLs to everybody on the machine.
        options = {f"EVENTKEEL_{name.upper()}": value for name, value in place.settings().items()}
        self._environment = {**os.environ, **options}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, patience: float = 30.0) -> None:
        """Returns when the API answers. Raises CannotRun."""
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            log = self.log.open("ab")
        except OSError as error:
            raise CannotRun(f"{self.log} cannot be written: {error.strerror}; choose another --data") from error
        with log:
            # A session of its own: Ctrl-C is ours to answer, first by a verdict.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + patience
        while not listens(self._port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise CannotRun(f"the services did not start; their log {self.log} ends with:\n{self._tail()}")
            time.sleep(0.05)

    def _tail(self) -> str:
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-8:])

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Let everything drain, then end. Twice is once."""
        if self._process is None:
            return
        process, self._process = self._process, None
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((HOST, port)) == 0


def choose_port(wanted: int) -> int:
    """``wanted`` if nobody has it, else any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise CannotRun("no free port on 127.0.0.1")


def main() -> None:
    """``python -m eventkeel`` with the same arguments, told to stop when whoever started it is gone."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    runpy.run_module("eventkeel", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
