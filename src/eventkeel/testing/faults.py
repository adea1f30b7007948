"""Killing and stopping real processes, at named points and at random moments.

A process under test (``eventkeel.testing.worker``) makes a control file, which it shares with the
test that drives it by ``mmap``: so the test can arm a point while the process runs, and can still
read, after a SIGKILL, whether the process had a unit of work open. Nothing of this is reachable
from the product: ``engine.faults.point`` does nothing unless a hook was installed.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from eventkeel.engine import faults

POINTS = (
    "intake.taken",
    "unit.before_begin",
    "unit.begun",
    "unit.claimed",
    "unit.handled",
    "unit.before_commit",
    "unit.committed",
    "unit.over",
    "unit.fenced",
    "lane.before_settle",
    "relay.selected",
    "relay.sent",
    "relay.removed",
    "steps.opened",
    "steps.before_call",
    "steps.called",
    "steps.journalled",
    "timers.moved",
    "timers.committed",
    "gate.parked",
    "due.leased",
    "due.before_commit",
    "outside.before_commit",
    "outside.committed",
    "owner.taken",
    "progress.flushed",
)
"""Every point that the engine names, in the order in which a control file counts them."""

Action = Literal["kill", "stop", "kill soon"]
"""``kill soon``: within milliseconds, while the process goes on with what the point announces."""

_SOON = 0.004
"""Seconds, at most."""
_ACTIONS: tuple[Action, ...] = ("kill", "stop", "kill soon")
_OPEN, _ARMED, _ACTION, _STOPPED, _COUNTDOWN, _HITS = 0, 1, 2, 3, 4, 8
_SIZE = _HITS + 4 * len(POINTS)
_INDEX = {name: index for index, name in enumerate(POINTS)}
_OPENS = frozenset({"unit.begun", "due.before_commit", "outside.before_commit"})
_CLOSES = frozenset({"unit.before_begin", "unit.committed", "unit.over", "outside.committed"})


class Control:
    """One process's control file: ``PID-ROLE.ctl``, bytes shared between the process and its test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        pid, _, role = path.stem.partition("-")
        self.pid, self.role = int(pid), role
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE)

    @classmethod
    def create(cls, folder: Path, role: str) -> Control:
        """Make this process's file; it appears under its name only when it is complete."""
        path = folder / f"{os.getpid()}-{role}.ctl"
        draft = path.with_suffix(".new")
        draft.write_bytes(bytes(_SIZE))
        draft.rename(path)
        return cls(path)

    @property
    def unit_open(self) -> bool:
        """A unit of work is (or, at the time of its death, was) open."""
        return self._map[_OPEN] == 1

    @unit_open.setter
    def unit_open(self, value: bool) -> None:
        self._map[_OPEN] = value

    @property
    def sending(self) -> bool:
        """The process's relay has (or, at the time of its death, had) sends that are not confirmed."""
        return self.hits("relay.selected") > self.hits("relay.sent")

    @property
    def stopped(self) -> bool:
        """The process has stopped itself and waits for SIGCONT."""
        return self._map[_STOPPED] == 1

    @property
    def armed(self) -> bool:
        return self._map[_ARMED] != 0

    def hits(self, point: str) -> int:
        """How often the process has passed ``point``."""
        return int(struct.unpack_from("<I", self._map, _HITS + 4 * _INDEX[point])[0])

    def arm(self, point: str, action: Action, nth: int = 1) -> None:
        """From now on, the ``nth`` time at ``point``: kill (or stop) itself. Replaces what was armed."""
        self._map[_ARMED] = 0
        struct.pack_into("<I", self._map, _COUNTDOWN, nth)
        self._map[_ACTION] = _ACTIONS.index(action)
        self._map[_ARMED] = _INDEX[point] + 1

    def disarm(self) -> None:
        self._map[_ARMED] = 0

    @property
    def alive(self) -> bool:
        """The process runs (or is stopped); a zombie that nobody has waited for is dead."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return not Path("/proc/self").exists() and _exists(self.pid)
        return state not in ("Z", "X")

    # -- inside the process under test --------------------------------------------------------

    def count(self, point: str) -> Action | None:
        """Note that ``point`` was reached; the action to take now, if this was the armed hit."""
        index = _INDEX.get(point)
        if index is None:
            return None
        where = _HITS + 4 * index
        struct.pack_into("<I", self._map, where, struct.unpack_from("<I", self._map, where)[0] + 1)
        if point in _OPENS:
            self._map[_OPEN] = 1
        elif point in _CLOSES:
            self._map[_OPEN] = 0
        if self._map[_ARMED] != index + 1:
            return None
        left = struct.unpack_from("<I", self._map, _COUNTDOWN)[0] - 1
        struct.pack_into("<I", self._map, _COUNTDOWN, max(0, left))
        if left > 0:
            return None
        self._map[_ARMED] = 0
        return _ACTIONS[self._map[_ACTION]]

    def stop_here(self) -> None:
        """Stop this process until somebody continues it."""
        self._map[_STOPPED] = 1
        os.kill(os.getpid(), signal.SIGSTOP)
        self._map[_STOPPED] = 0


class Trap:
    """The hook of a process under test: counts points and carries out what is armed.

    ``folder`` holds the control files, the log ``faults.jsonl``, and orders for whoever starts next
    (``next-N.json``): each is taken by one process, which renames it.
    """

    def __init__(self, folder: Path, role: str) -> None:
        self.folder = folder
        self.control = Control.create(folder, role)
        self._log = os.open(folder / "faults.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._take_order()

    def install(self) -> None:
        faults.install(self)

    def __call__(self, point: str) -> None:
        action = self.control.count(point)
        if action is None:
            return
        self._write(point, action)
        if action == "stop":
            self.control.stop_here()
        elif action == "kill soon":
            threading.Timer(random.uniform(0, _SOON), os.kill, (os.getpid(), signal.SIGKILL)).start()
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    def _write(self, point: str, action: Action) -> None:
        line = {
            "time": time.time(),
            "pid": os.getpid(),
            "role": self.control.role,
            "point": point,
            "action": action,
            "unit_open": self.control.unit_open,
        }
        os.write(self._log, json.dumps(line).encode() + b"\n")

    def _take_order(self) -> None:
        for order in sorted(self.folder.glob(f"next-{self.control.role}-*.json")):
            mine = order.with_suffix(f".{os.getpid()}")
            try:
                order.rename(mine)
            except FileNotFoundError:
                continue
            wanted = json.loads(mine.read_text("ascii"))
            self.control.arm(wanted["point"], wanted["action"], wanted["nth"])
            return


def order_next(folder: Path, role: str, number: int, point: str, action: Action, nth: int = 1) -> Path:
    """Arm a point in whichever process of ``role`` starts next: for what happens only at a start."""
    path = folder / f"next-{role}-{number:04}.json"
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps({"point": point, "action": action, "nth": nth}), "ascii")
    return draft.rename(path)


def controls(folder: Path) -> Iterator[Control]:
    """Every process that has ever run under this folder, dead ones included."""
    for path in sorted(folder.glob("*.ctl")):
        yield Control(path)


def fired(folder: Path) -> list[dict[str, object]]:
    """What processes did to themselves, in order: the lines of ``faults.jsonl``."""
    try:
        lines = (folder / "faults.jsonl").read_text("ascii").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
