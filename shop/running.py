"""The shop's services as processes: one supervisor (``eventkeel run``) with its children, and the third parties.

    python -m shop.running run …          eventkeel run …, until its standard input is closed

So nothing goes on when the shop itself is killed.
"""

from __future__ import annotations

import contextlib
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

from shop import ledger
from shop.brokers import QUICK, is_kafka, with_options
from shop.databases import Unreadable, is_postgres, shown
from shop.ending import end_with_standard_input
from shop.ledger import STORES
from shop.roll import Roll

HOST = "127.0.0.1"
SERVICES = {name: f"shop.{folder}:service" for folder, name in STORES.items()}
"""Name of a service -> where it is found."""


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
        brokers, stores = ("sqlite", "kafka", "amqp"), ("sqlite", "postgresql")
        for url, known in ((self.broker_url, brokers), (self.store_url, stores)):
            scheme, _, rest = url.partition(":")
            if url and (scheme not in known or not rest):
                raise CannotRun(
                    f"{scheme}://…: this shop runs on SQLite, Kafka, RabbitMQ and PostgreSQL; write sqlite:///PATH or "
                    + (
                        "kafka://HOST:PORT or amqp://USER:PASSWORD@HOST:PORT"
                        if known is brokers
                        else "postgresql://USER@HOST:PORT/DATABASE"
                    )
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
    def stores(self) -> dict[str, str]:
        """Folder of a service -> URL of its database."""
        return {folder: self.store(name) for folder, name in STORES.items()}

    @property
    def outside(self) -> Path:
        """The third parties' file."""
        return self.data / "outside.sqlite3"

    def settings(self) -> dict[str, str]:
        """As the options of ``eventkeel run`` are called. Said outright, so that no file here says otherwise."""
        settings = {"data": str(self.data), "broker": self.broker, "store": self.store_url}
        if not self.store_url and "{" not in str(self.data):
            settings["store"] = self.store("{service}")
        return {name: value for name, value in settings.items() if value}

    @property
    def remedy(self) -> str:
        """What to change for a run that meets nothing of an earlier one."""
        changes = ["prefix=NAME in --broker"] * self.broker_url.startswith(("kafka:", "amqp:"))
        changes += ["schema=NAME-{service} in --store"] * is_postgres(self.store_url)
        return " and ".join(changes) or "--data"

    def __str__(self) -> str:
        kinds = [shown(url) for url in (self.broker_url, self.store_url) if url]
        return " and ".join(kinds) or str(self.data)


@dataclasses.dataclass(frozen=True)
class Street:
    """Who listens where: ports on this machine."""

    orders: int
    users: int
    payments: int
    provider: int
    mail: int

    @property
    def http(self) -> dict[str, str]:
        """Name of a service -> HOST:PORT of its API."""
        ports = {"orders": self.orders, "users": self.users, "payment-service": self.payments}
        return {name: f"{HOST}:{port}" for name, port in ports.items()}

    def environment(self) -> dict[str, str]:
        """What the services have to know of it (shop/settings.py); what somebody has said already stays."""
        said = {
            "SHOP_PROVIDER": f"http://{HOST}:{self.provider}",
            "SHOP_WEBHOOK": f"http://{HOST}:{self.payments}/webhooks/provider",
            "SHOP_SMTP": f"{HOST}:{self.mail}",
            "SHOP_STEP_TIMEOUT": "60",
        }
        return {**said, **{name: os.environ[name] for name in said if name in os.environ}}


def choose_street(orders: int = 0) -> Street:
    """Free ports; ``orders`` is the wanted one. Raises CannotRun."""
    with contextlib.ExitStack() as held:  # all of them until the last is chosen: else two could be the same one
        probes = [held.enter_context(_hold(wanted)) for wanted in (orders, 0, 0, 0, 0)]
        return Street(*(_port(probe) for probe in probes))


class Kept:
    """A process that is started again whenever it ends, with longer and longer pauses while it keeps failing. It ends
    with us: its standard input is a pipe of ours."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self._command, self._log, self._environment = command, log, environment
        self._stopping = threading.Event()
        self._process = self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    def _keep(self) -> None:
        pause, born = 0.1, time.monotonic()
        while not self._stopping.wait(0.25):
            if self._process.poll() is None:
                continue
            pause = 0.1 if time.monotonic() - born > 10 else min(10, 2 * pause)
            if self._stopping.wait(pause):
                return
            self._process.communicate()
            self._process, born = self._start(), time.monotonic()

    def close(self) -> None:
        """End it, for good."""
        self._stopping.set()
        self._keeper.join()
        self._process.kill()
        self._process.communicate()


def start_outside(place: Place, street: Street, patience: float = 30.0) -> Kept:
    """The payment provider and the mail server. Raises CannotRun."""
    where = ["--http", f"{HOST}:{street.provider}", "--smtp", f"{HOST}:{street.mail}"]
    command = [sys.executable, "-m", "shop.outside", "--data", str(place.data), *where]
    log = open_folder(place) / "outside.log"
    kept = Kept(command, log, {**os.environ, **street.environment()})
    deadline = time.monotonic() + patience
    while not (listens(street.provider) and listens(street.mail)):
        if time.monotonic() > deadline:
            kept.close()
            raise CannotRun(f"the third parties did not start; their log {log} ends with:\n{tail(log)}")
        time.sleep(0.05)
    return kept


def open_folder(place: Place) -> Path:
    """The folder of the data, made if it is not there. Raises CannotRun."""
    try:
        place.data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotRun(f"{place.data} cannot be written: {error.strerror}; choose another --data") from error
    return place.data


class Running:
    """``eventkeel run`` with all services, and the third parties. Its output goes to ``DATA/shop.log``."""

    def __init__(self, place: Place, street: Street, *, workers: int = 1) -> None:
        self.log = place.data / "shop.log"
        self.roll = Roll()
        self._place, self._street = place, street
        self._command = [sys.executable, "-m", "shop.running", "run", *SERVICES.values(), "--workers", str(workers)]
        for name, address in street.http.items():
            self._command += ["--http", f"{name}={address}"]
        # By the environment: a command line would show the passwords in URLs to everybody on the machine.
        settings = place.settings()
        if is_kafka(place.broker):  # whoever kills a service here wants to see it go on
            settings["broker"] = with_options(place.broker, QUICK)
        options = {f"EVENTKEEL_{name.upper()}": value for name, value in settings.items()}
        self._environment = {**os.environ, **options, **street.environment()}
        self._process: subprocess.Popen[bytes] | None = None
        self.outside: Kept | None = None
        """The third parties: tests end them, and start them again."""

    def start(self, patience: float = 60.0) -> None:
        """Returns when every service is there. Raises CannotRun."""
        open_folder(self._place)
        self.outside = start_outside(self._place, self._street)
        try:
            log = self.log.open("ab")
        except OSError as error:
            self.stop()
            raise CannotRun(f"{self.log} cannot be written: {error.strerror}; choose another --data") from error
        with log:
            # A session of its own: Ctrl-C is ours to answer, first by a verdict.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
        deadline = time.monotonic() + patience
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise CannotRun(f"the services did not start; their log {self.log} ends with:\n{tail(self.log)}")
            time.sleep(0.05)

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """What the supervisor says of its processes goes to the log, and to the roll."""
        assert process.stdout is not None
        with process.stdout as lines, self.log.open("ab", buffering=0) as log:
            for line in lines:
                log.write(line)
                self.roll.hear(line.decode("utf-8", "replace"))

    def _ready(self) -> bool:
        """Every API answers, and every service has made its tables."""
        street = self._street
        if not all(listens(port) for port in (street.orders, street.users, street.payments)):
            return False
        try:
            ledger.read(self._place.stores, self._place.outside)
        except Unreadable:
            return False
        return True

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Let everything drain, then end. Twice is once."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process is not None and process.stdin is not None:
            process.stdin.close()
        outside, self.outside = self.outside, None
        if outside is not None:
            outside.close()


def tail(log: Path) -> str:
    """Its last lines."""
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-8:])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((HOST, port)) == 0


def choose_port(wanted: int) -> int:
    """``wanted`` if nobody has it, else any free one. Raises CannotRun."""
    with _hold(wanted) as probe:
        return _port(probe)


def _hold(wanted: int) -> socket.socket:
    """A port that is ours until the socket is closed."""
    for port in (wanted, 0):
        probe = socket.socket()
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            probe.close()
            continue
        return probe
    raise CannotRun("no free port on 127.0.0.1")


def _port(probe: socket.socket) -> int:
    return int(probe.getsockname()[1])


def main() -> None:
    """``python -m eventkeel`` with the same arguments, told to stop when whoever started it is gone."""
    end_with_standard_input()
    runpy.run_module("eventkeel", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
