"""One server: a process with its children, a folder with its data, and ports that stay the same."""

from __future__ import annotations

import abc
import json
import shutil
import signal
import time
from pathlib import Path

from tools.realservers import places, processes
from tools.realservers.errors import ServersError
from tools.realservers.install import Need

PATIENCE = 90.0
"""Seconds to answer in. A few are usual; a busy machine, or a log to recover, takes more."""


class Server(abc.ABC):
    """Started, killed and found again by its folder: what it was is in a file there, for other processes to read."""

    needs: tuple[Need, ...] = ()
    ports: tuple[str, ...] = ("port",)
    """Names of the ports that it takes."""

    def __init__(self, name: str, home: Path) -> None:
        self.name = name
        self.folder = home / name
        self.data = self.folder / "data"
        self.log = self.folder / "log"

    @property
    @abc.abstractmethod
    def url(self) -> str:
        """Where it answers."""

    @abc.abstractmethod
    def answers(self) -> bool:
        """Whether it is ready for clients now."""

    @abc.abstractmethod
    def _prepare(self) -> None:
        """Makes what the first start needs; does nothing for data that is there already."""

    @abc.abstractmethod
    def _launch(self) -> tuple[int, str]:
        """Starts the process: its id and birth."""

    @property
    def _state(self) -> Path:
        return self.folder / "server.json"

    def _recall(self) -> dict[str, str | int]:
        try:
            known: dict[str, str | int] = json.loads(self._state.read_text())
        except (OSError, ValueError):
            return {}
        return known

    def _remember(self, **values: str | int) -> None:
        fresh = self._state.with_suffix(".new")
        fresh.write_text(json.dumps({**self._recall(), **values}))
        fresh.replace(self._state)

    @property
    def exists(self) -> bool:
        """Whether it was ever started here."""
        return self._state.exists()

    def port(self, name: str = "port") -> int:
        """One of its ports; the same through every restart."""
        try:
            return int(self._recall()[name])
        except KeyError:
            raise ServersError(f"{self.name} was not started here: tools/servers up {self.name}") from None

    @property
    def pid(self) -> int | None:
        """The process that was started, while it runs."""
        known = self._recall()
        if "pid" not in known:
            return None
        process = processes.find(int(known["pid"]), str(known["born"]))
        return process.pid if process else None

    def pids(self) -> list[int]:
        """All processes of the server that run, its first one first."""
        root = self.pid
        members = processes.family(root) if root is not None else []
        return members + [pid for pid in processes.inside(self.data) if pid not in members]

    @property
    def status(self) -> str:
        """``running``, ``starting`` (or recovering), ``paused`` or ``stopped``."""
        root = self.pid
        process = processes.table().get(root) if root is not None else None
        if process is None:
            return "stopped"
        if process.state.startswith("T"):
            return "paused"
        return "running" if self.answers() else "starting"

    @property
    def memory(self) -> int:
        """Resident bytes of all its processes; memory that they share counts for each."""
        return processes.memory(self.pids())

    def reserve(self) -> None:
        """Its folder, and ports that stay its own."""
        places.make(self.folder)
        for name in self.ports:
            if name not in self._recall():
                self._remember(**{name: places.free_port()})

    def start(self, *, wait: bool = True) -> None:
        """Starts it where it was: same ports, same data. Does nothing when it runs; one that is paused goes on."""
        self.reserve()
        if self.pid is not None:
            self.resume()
        else:
            self._end(self.pids())  # children whose parent was killed hold on to its data
            self._prepare()
            pid, born = self._launch()
            self._remember(pid=pid, born=born)
        if wait:
            self.wait()

    def wait(self, patience: float = PATIENCE) -> None:
        """Returns when it answers; raises when it ended or takes longer than ``patience`` seconds."""
        deadline = time.monotonic() + patience
        while not self.answers():
            if self.pid is None:
                raise ServersError(f"{self.name} ended while it started:\n{self.last_words()}")
            if time.monotonic() > deadline:
                raise ServersError(f"{self.name} does not answer after {patience:g} s:\n{self.last_words()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends it as its documentation says, so that nothing has to be recovered; data and ports stay."""
        members = self.pids()
        processes.send(members, signal.SIGCONT)
        if (root := self.pid) is not None:
            processes.send([root], self._farewell)
        if not processes.wait_until_gone(members, 20.0):
            self._end(self.pids())

    _farewell = signal.SIGTERM

    def kill9(self) -> None:
        """What a crash does: all its processes end at once by SIGKILL, none of them says goodbye."""
        self._end(processes.freeze(self.pids))

    def _end(self, members: list[int]) -> None:
        processes.send(members, signal.SIGKILL)
        if not processes.wait_until_gone(members, 10.0):
            raise ServersError(f"{self.name} does not end: processes {members}")

    def pause(self) -> None:
        """Stops all its processes in the middle of whatever they do; connections stay open, and nobody answers."""
        processes.freeze(self.pids)

    def resume(self) -> None:
        """They go on."""
        processes.send(self.pids(), signal.SIGCONT)

    def restart(self) -> None:
        """Stops and starts it; returns when it answers."""
        self.stop()
        self.start()

    def remove(self) -> None:
        """Ends it and removes its data, log and ports: nothing of it is left."""
        self.kill9()
        shutil.rmtree(self.folder, ignore_errors=True)

    def last_words(self) -> str:
        """The end of its log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return "(it has no log)"
        return "\n".join(f"    {line}" for line in lines[-15:]) + f"\n    ({self.log})"
