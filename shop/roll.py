"""Who of the services' processes lives, as their supervisor says it (``eventkeel run`` writes a line for each start and
each end)."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from typing import NamedTuple

SAID = re.compile(r"\[(?P<service>[^/\]]+)/(?P<seat>[^\]]+)\] pid (?P<pid>\d+)(?: (?P<ended>ended .*))?$")
"""``[payment-service/1] pid 4711``, or the same with how it ended."""
KEPT = 50


class Happening(NamedTuple):
    """A process that began or ended; ``after``: of one that began again, seconds since its forerunner's end."""

    number: int
    service: str
    seat: str
    pid: int
    ended: str
    after: float | None


class Roll:
    """Hears the lines in one thread, is asked by others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._living: dict[tuple[str, str], int] = {}
        self._died_at: dict[tuple[str, str], float] = {}
        self._back_at: dict[tuple[str, str], float] = {}
        self._happenings: deque[Happening] = deque(maxlen=KEPT)
        self._number = 0

    def hear(self, line: str) -> None:
        """Any line of the supervisor's; those that are about something else are passed over."""
        said = SAID.search(line.rstrip())
        if said is None or said["seat"] is None:
            return
        who, pid, now = (said["service"], said["seat"]), int(said["pid"]), time.monotonic()
        with self._lock:
            after = None
            if said["ended"]:
                self._living.pop(who, None)
                self._died_at[who] = now
            else:
                self._living[who] = pid
                if who in self._died_at:
                    after = round(now - self._died_at.pop(who), 1)
                    self._back_at[who] = now
            self._number += 1
            self._happenings.append(Happening(self._number, *who, pid, said["ended"] or "", after))

    def processes(self, service: str) -> dict[str, int | None]:
        """Seat -> pid; None: it is dead, and about to be started again."""
        with self._lock:
            seats = {seat: None for name, seat in self._died_at if name == service}
            return {**seats, **{seat: pid for (name, seat), pid in self._living.items() if name == service}}

    def back_at(self, service: str) -> float:
        """When a process of it was last started again (monotonic time); minus infinity: never."""
        with self._lock:
            return max((at for (name, _), at in self._back_at.items() if name == service), default=float("-inf"))

    def happenings(self) -> list[Happening]:
        """The latest last."""
        with self._lock:
            return list(self._happenings)
