"""Where the time goes: the running line is noted every few milliseconds of CPU time, and charged to a part of a
message's way. Unlike a tracing profiler it does not make Python code dearer than C code.

A sample below Eventkeel (a statement in apsw, the event loop) is charged to the part that called it, with the CPU time
that the main thread has used since the look before. Other threads are charged as a whole, by their name: the poll
threads of Kafka, and librdkafka's own, which no Python profiler sees.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import FrameType

Place = tuple[str, str, int]
"""File, function, line."""

EVERY = 0.001
"""Seconds of CPU time between two looks; kernels make 4 ms of it."""

_UNIT, _CLAIM = "unit of work, lanes", "begin, fence, claim, append"
_PARTS = (
    ("handlers, tx.write, tx.publish", ("benchmarks/services.py", "eventkeel/handling.py", "stores/placeholders.py")),
    ("decode", ("eventkeel/codec", "eventkeel/fingerprint.py")),
    ("intake", ("engine/intake.py", "engine/work.py", "policy/watermark.py")),
    (_UNIT, ("engine/unit_of_work.py", "engine/lanes.py", "eventkeel/drive.py", "engine/context.py")),
    ("relay", ("engine/relay.py",)),
    ("broker: read and append", ("transports/", "eventkeel/_sqlite.py")),
    ("leases, settling, the rest", ("eventkeel/",)),
)
_IN_STORE = {
    "_commit": "commit of the unit",
    "_pipeline": "statements of handlers",
    "prepare": "statements of handlers",
    "bind": "statements of handlers",
    "sent": "relay",
    "unsent": "relay",
    "_ask": "relay",
}
_CARRIERS = ("postgres/wire.py", "postgres/connection.py", "postgres/pool.py", "postgres/store.py")
"""Carry what others ask: whoever asked is charged. What a unit of work asks, by a generator that is not below its
statement on the stack, is told apart by that."""
_ENCODERS = frozenset({"encode", "write", "_own_key", "_fact_id", "uuid7", "_timestamp", "_text"})
_VALUES = ("stores/sqlite/values.py", "stores/postgres/values.py")


class Sampler:
    """Looks while it is on. In the main thread; one at a time."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = defaultdict(float)
        """CPU seconds of the main thread."""
        self.places: dict[Place, float] = defaultdict(float)
        self.threads: dict[str, float] = defaultdict(float)
        """CPU seconds of the other threads, by name; empty where the system does not tell."""
        self._seen = 0.0
        self._before: dict[int, tuple[str, float]] = {}

    def enable(self) -> None:
        self._before = _threads()
        self._seen = time.thread_time()
        signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, EVERY, EVERY)

    def disable(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, signal.SIG_IGN)  # one may be on its way
        for number, (name, seconds) in _threads().items():
            self.threads[name] += seconds - self._before.get(number, (name, 0.0))[1]

    def _look(self, _: int, frame: FrameType | None) -> None:
        now = time.thread_time()
        spent, self._seen = now - self._seen, now
        if frame is not None:
            code = frame.f_code
            self.places[code.co_filename, code.co_name, frame.f_lineno] += spent
        carried = False
        while frame is not None:
            file, function = frame.f_code.co_filename, frame.f_code.co_name
            if function not in _IN_STORE and any(each in file for each in _CARRIERS):
                carried = True
            elif part := _part(file, function):
                self.parts[_CLAIM if carried and part == _UNIT else part] += spent
                return
            frame = frame.f_back
        self.parts["event loop"] += spent

    def shares(self) -> list[tuple[str, float]]:
        """Part and share of the main thread's time, largest first."""
        total = sum(self.parts.values()) or 1
        return [(part, seconds / total) for part, seconds in _sorted(self.parts)]

    def each(self, messages: int) -> list[tuple[str, float]]:
        """Part of the main thread or other thread, and microseconds of CPU per message, largest first."""
        spent = {**self.parts, **{f"thread {name}": seconds for name, seconds in self.threads.items()}}
        return [(name, seconds / messages * 1e6) for name, seconds in _sorted(spent)]

    def hottest(self, count: int) -> list[str]:
        """Single lines of the main thread, for whoever wants to mend one."""
        total = sum(self.places.values()) or 1
        ranked = sorted(self.places.items(), key=lambda item: -item[1])[:count]
        return [f"{seen / total:6.1%}  {_short(file)}:{line} {name}" for (file, name, line), seen in ranked]


def _sorted(spent: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(spent.items(), key=lambda item: -item[1])


def _threads() -> dict[int, tuple[str, float]]:
    """Number -> name and CPU seconds of every thread but this one (Linux; elsewhere none)."""
    named = {each.native_id: each.name for each in threading.enumerate()}
    found = {}
    try:
        for task in Path("/proc/self/task").iterdir():
            number = int(task.name)
            if number == threading.get_native_id():
                continue
            name = named.get(number) or (task / "comm").read_text().strip()
            found[number] = (name.rstrip("0123456789-_ "), _seconds(task))
    except OSError:
        return found
    return found


def _seconds(task: Path) -> float:
    try:
        return int((task / "schedstat").read_text().split()[0]) / 1e9
    except (OSError, IndexError):  # a kernel without it: in ticks
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _part(file: str, function: str) -> str | None:
    if any(each in file for each in _VALUES):
        return "statements of handlers"
    if "eventkeel/stores/" in file and "placeholders" not in file:
        return _IN_STORE.get(function, _CLAIM)
    if "eventkeel/codec" in file and function in _ENCODERS:
        return "encode"
    return next((part for part, files in _PARTS if any(each in file for each in files)), None)


def _short(file: str) -> str:
    return file.rpartition("site-packages/")[2].rpartition("src/")[2]
