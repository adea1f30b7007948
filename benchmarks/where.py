"""Where the time goes: the running line is noted every few milliseconds of CPU time, and charged to a part of a
message's way. Unlike a tracing profiler it does not make Python code dearer than C code.

A sample below Eventkeel (a statement in apsw, the event loop) is charged to the part that called it.
"""

from __future__ import annotations

import signal
from collections import Counter
from types import FrameType

Place = tuple[str, str, int]
"""File, function, line."""

EVERY = 0.001
"""Seconds of CPU time between two looks; kernels make 4 ms of it."""

_PARTS = (
    ("handlers, tx.write, tx.publish", ("benchmarks/services.py", "eventkeel/handling.py")),
    ("decode", ("eventkeel/codec", "eventkeel/fingerprint.py")),
    ("intake", ("engine/intake.py", "engine/work.py", "policy/watermark.py")),
    ("unit of work, lanes", ("engine/unit_of_work.py", "engine/lanes.py", "eventkeel/drive.py", "engine/context.py")),
    ("relay", ("engine/relay.py",)),
    ("broker: read and append", ("transports/sqlite", "eventkeel/_sqlite.py")),
    ("leases, settling, the rest", ("eventkeel/",)),
)
_IN_STORE = {
    "_commit": "commit of the unit",
    "_pipeline": "statements of handlers",
    "prepare": "statements of handlers",
    "sent": "relay",
    "unsent": "relay",
    "_ask": "relay",
}
_ENCODERS = frozenset({"encode", "write", "_own_key", "_fact_id", "uuid7", "_timestamp", "_text"})


class Sampler:
    """Looks while it is on. In the main thread; one at a time."""

    def __init__(self) -> None:
        self.parts: Counter[str] = Counter()
        self.places: Counter[Place] = Counter()

    def enable(self) -> None:
        signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, EVERY, EVERY)

    def disable(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, signal.SIG_IGN)  # one may be on its way

    def _look(self, _: int, frame: FrameType | None) -> None:
        if frame is not None:
            code = frame.f_code
            self.places[code.co_filename, code.co_name, frame.f_lineno] += 1
        while frame is not None:
            if part := _part(frame.f_code.co_filename, frame.f_code.co_name):
                self.parts[part] += 1
                return
            frame = frame.f_back
        self.parts["event loop"] += 1

    def shares(self) -> list[tuple[str, float]]:
        """Part and share of the time, largest first."""
        total = sum(self.parts.values()) or 1
        return [(part, count / total) for part, count in self.parts.most_common()]

    def hottest(self, count: int) -> list[str]:
        """Single lines, for whoever wants to mend one."""
        total = sum(self.places.values()) or 1
        return [
            f"{seen / total:6.1%}  {_short(file)}:{line} {name}"
            for (file, name, line), seen in self.places.most_common(count)
        ]


def _part(file: str, function: str) -> str | None:
    if "stores/sqlite/values.py" in file:
        return "statements of handlers"
    if "stores/sqlite" in file:
        return _IN_STORE.get(function, "begin, fence, claim, append")
    if "eventkeel/codec" in file and function in _ENCODERS:
        return "encode"
    return next((part for part, files in _PARTS if any(each in file for each in files)), None)


def _short(file: str) -> str:
    return file.rpartition("site-packages/")[2].rpartition("src/")[2]
