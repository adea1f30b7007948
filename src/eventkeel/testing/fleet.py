"""Keeps the processes of a test running: what dies is started again at once, as a supervisor would."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from eventkeel.config import PREFIX

HOPELESS = 6
"""Failures within seconds of the start, one after another, after which a process is not started again."""
PAUSE = 0.125
"""Seconds before a process that failed at once is started again: doubled each time."""


@dataclasses.dataclass
class _Seat:
    """A process that shall run, and the one that runs now."""

    command: list[str]
    log: Path
    handles: str = ""
    """The service for which it handles."""
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    quick_deaths: int = 0
    leaves: bool = False
    """Its process is told to end, and is not started again."""


class Fleet:
    """Processes of ``eventkeel.testing.worker``. ``with Fleet(…) as fleet:`` stops them at the end.

    ``folder`` gets the control files, ``faults.jsonl`` and the processes' output (``*.log``).
    """

    def __init__(self, folder: Path, *, settings: dict[str, str], mutant: str = "") -> None:
        self.folder, self._mutant = folder, mutant
        # By the environment: a command line would show a URL's password to everybody on the machine.
        self._environment = {**os.environ, **{PREFIX + name.upper(): value for name, value in settings.items()}}
        self._seats: list[_Seat] = []
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, service: str, *, workers: int = 1, http: str = "") -> None:
        """``workers`` processes that handle, or (``http``: HOST:PORT) one that serves its application."""
        command = [sys.executable, "-m", "eventkeel.testing.worker", service, "--faults", str(self.folder)]
        if self._mutant:
            command += ["--mutant", self._mutant]
        if http:
            self._seats.append(_Seat([*command, "--http", http], self._log(service, "http")))
            return
        for _ in range(workers):
            number = sum(seat.handles == service for seat in self._seats) + 1
            self._seats.append(_Seat(command, self._log(service, str(number)), handles=service))

    def scale(self, service: str, workers: int, patience: float = 60.0) -> None:
        """While it runs: start further processes that handle for a service, or let the last ones drain and end, until
        there are ``workers``. Raises TimeoutError where one does not drain."""
        there = [seat for seat in self._seats if seat.handles == service]
        self.add(service, workers=max(0, workers - len(there)))
        for seat in [seat for seat in self._seats if seat.handles == service and seat not in there]:
            self._spawn(seat)
        deadline = time.monotonic() + patience
        for seat in there[workers:]:
            seat.leaves = True
            if seat.process is not None:
                seat.process.terminate()
        for seat in there[workers:]:
            if seat.process is not None:
                try:
                    seat.process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    raise TimeoutError(f"{seat.log.stem} did not drain in {patience:.0f} s") from None
                _close(seat.process)
        self._seats = [seat for seat in self._seats if not seat.leaves]

    def lose(self, pid: int) -> None:
        """Kill a process at once (SIGKILL); nobody starts it again."""
        seat = next(seat for seat in self._seats if seat.process is not None and seat.process.pid == pid)
        assert seat.process is not None
        seat.leaves = True
        seat.process.kill()
        seat.process.wait()
        _close(seat.process)
        self._seats = [each for each in self._seats if each is not seat]

    def _log(self, service: str, number: str) -> Path:
        return self.folder / f"{service.replace(':', '.')}-{number}.log"

    def start(self) -> None:
        for pattern in ("*.ctl", "next-*", "faults.jsonl"):  # of an earlier run: its pids may live again
            for old in self.folder.glob(pattern):
                old.unlink()
        for seat in self._seats:
            self._spawn(seat)
        self._keeper.start()

    def stop(self, patience: float = 30.0) -> list[str]:
        """Let every process drain (SIGTERM), kill what does not; returns who had to be killed or failed."""
        self._stopping.set()
        if self._keeper.is_alive():
            self._keeper.join()
        bad: list[str] = []
        running = [seat for seat in self._seats if seat.process is not None]
        for seat in running:
            assert seat.process is not None
            with contextlib.suppress(ProcessLookupError):
                os.kill(seat.process.pid, signal.SIGCONT)
                seat.process.terminate()
        deadline = time.monotonic() + patience
        for seat in running:
            assert seat.process is not None
            try:
                code = seat.process.wait(max(0.1, deadline - time.monotonic()))
                if code not in (0, -signal.SIGTERM):
                    bad.append(f"{seat.log.stem} ended with {code}")
            except subprocess.TimeoutExpired:
                seat.process.kill()
                seat.process.wait()
                bad.append(f"{seat.log.stem} did not drain in {patience:.0f} s")
            _close(seat.process)
            seat.process = None
        return bad

    def __enter__(self) -> Fleet:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def pids(self, service: str) -> list[int]:
        """The processes that handle for ``service`` (as given to ``add``) now."""
        return [seat.process.pid for seat in self._seats if seat.process is not None and seat.handles == service]

    def replace(self, pid: int, patience: float = 60.0) -> int:
        """Let a process drain and end, as a rolling restart does; the pid of the one that took its place."""
        seat = next(seat for seat in self._seats if seat.process is not None and seat.process.pid == pid)
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + patience
        while (now := seat.process) is None or now.pid == pid:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{seat.log.stem} did not drain in {patience:.0f} s")
            time.sleep(0.01)
        return now.pid

    @property
    def starts(self) -> int:
        return sum(seat.starts for seat in self._seats)

    def unable(self) -> list[str]:
        """Seats whose process keeps failing as soon as it is started, although nobody kills it."""
        return [f"{seat.log.stem}: {tail(seat.log)}" for seat in self._seats if seat.quick_deaths >= HOPELESS]

    def _spawn(self, seat: _Seat) -> None:
        with seat.log.open("ab") as log:
            # Its standard input is a pipe that closes with us: no process under test outlives its test.
            seat.process = subprocess.Popen(
                seat.command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        seat.starts += 1

    def _keep(self) -> None:
        born = {id(seat): time.monotonic() for seat in self._seats}
        due: dict[int, float] = {}
        while not self._stopping.wait(0.01):
            now = time.monotonic()
            for seat in self._seats:
                if seat.process is None or seat.process.poll() is None or seat.quick_deaths >= HOPELESS:
                    continue
                if seat.leaves:
                    continue
                if id(seat) not in due:
                    failed = seat.process.returncode > 0 and now - born.setdefault(id(seat), now) < 3
                    seat.quick_deaths = seat.quick_deaths + 1 if failed else 0
                    _close(seat.process)
                    # Longer and longer, as a supervisor would: what it needs may be about to come back.
                    due[id(seat)] = now + (PAUSE * 2**seat.quick_deaths if failed else 0)
                if now >= due[id(seat)] and seat.quick_deaths < HOPELESS:
                    del due[id(seat)]
                    self._spawn(seat)
                    born[id(seat)] = time.monotonic()


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


def tail(log: Path, lines: int = 5) -> str:
    """The last lines of a process's output, on one line."""
    text = log.read_text("utf-8", "replace") if log.exists() else ""
    return " | ".join(text.splitlines()[-lines:])


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def wait_for_port(host: str, port: int, seconds: float) -> bool:
    """Until somebody listens there; False after ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return True
        time.sleep(0.02)
    return False
