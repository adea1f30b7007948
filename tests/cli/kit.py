"""Real commands, in processes of their own, on files of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent.parent
SAMPLE = "tests.cli.sample:service"
PATIENCE = 30.0


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Place:
    """A folder of data, and commands that use it."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.mended = data / "mended"
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("EVENTKEEL_")}
        self.environ |= {"EVENTKEEL_DATA": str(data), "SAMPLE_MENDED": str(self.mended)}

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "eventkeel", *words]

    def say(self, *words: str, cwd: Path = ROOT, stdin: str = "", **environ: str) -> Said:
        """Run a command to its end."""
        done = subprocess.run(
            self.command(*words),
            cwd=cwd,
            env=self.environ | environ,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def run(self, *words: str) -> Running:
        return Running(self, words)

    def rows(self, sql: str, service: str = "bookings") -> list[tuple[Any, ...]]:
        """What a service's database says; nothing while it is still being made."""
        path = self.data / f"{service}.sqlite3"
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
                return connection.execute(sql).fetchall()
        except sqlite3.OperationalError:
            return []


class Running:
    """``eventkeel run``, as a context: started inside, ended afterwards."""

    def __init__(self, place: Place, words: tuple[str, ...]) -> None:
        self._place, self._words = place, words
        self._out = place.data / "run.out"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Running:
        self._place.data.mkdir(parents=True, exist_ok=True)
        with self._out.open("wb") as out, (self._place.data / "run.err").open("wb") as err:
            self.process = subprocess.Popen(
                self._place.command("run", *self._words),
                cwd=ROOT,
                env=self._place.environ,
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
            )
        return self

    def __exit__(self, *exc: object) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return (self._place.data / "run.err").read_text()

    def pids(self, seat: str) -> list[int]:
        """Of all processes that this seat has had."""
        return [int(pid) for pid in re.findall(rf"^\[{re.escape(seat)}\] pid (\d+)$", self.out, re.MULTILINE)]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def until(true: Callable[[], object], what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Not even as a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self").exists():
            return False
    else:
        return state != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
