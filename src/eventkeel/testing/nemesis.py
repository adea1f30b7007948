"""Drives faults into running processes by a plan made from a seed: what, where, in which order.

The plan can be repeated; the schedule of real processes cannot. So everything that really happened
is counted (``Tally``), and a run in which too little of it bit proves nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from eventkeel.testing.faults import Action, Control, order_next

IN_UNIT = ("unit.begun", "unit.claimed", "unit.handled", "unit.before_commit")
AROUND = (
    "unit.committed",
    "lane.before_settle",
    "relay.selected",
    "relay.sent",
    "relay.removed",
    "progress.flushed",
    "intake.taken",
    "unit.before_begin",
    "gate.parked",
    "due.leased",
    "due.before_commit",
    "outside.before_commit",
    "outside.committed",
)
AT_START = ("owner.taken",)
BETWEEN = ("unit.before_begin", "intake.taken")
"""Where a stopped process holds nothing: after its lease, others pass it, and it must be fenced."""

Deed = Literal[
    "kill at a point",
    "kill at a start",
    "kill at a moment",
    "kill a relay",
    "kill the broker",
    "kill the database",
    "stop between units",
    "stop in a unit",
]

PATIENCE = 2.5
"""Seconds that an armed point may wait for its hit before the deed is done in another way."""
LAST_MOMENT = 0.05
"""Seconds in which a point that was just disarmed may still bite."""
LONGEST_RECOVERY = 120.0
"""Seconds for which somebody who should work again is waited for."""


class Killable(Protocol):
    """A server."""

    def kill9(self) -> None: ...

    def start(self) -> None:
        """With the same port and data; returns when it answers."""


class Outage(NamedTuple):
    server: str
    down: float
    """Seconds from its death until it answered again."""
    recovery: float
    """Seconds from then until every service had committed a unit."""


@dataclasses.dataclass
class Tally:
    """What really happened."""

    kills: int = 0
    kills_in_unit: int = 0
    kills_at_points: Counter[str] = dataclasses.field(default_factory=Counter)
    kills_at_moments: int = 0
    stops: int = 0
    """Stops between intake and begin, longer than the lease."""
    stops_in_unit: int = 0
    stall: float = 0.0
    """Longest time in which a stopped process kept its service from committing, seconds."""
    relays: int = 0
    """Kills of a process whose relay had sent what was not confirmed."""
    outages: list[Outage] = dataclasses.field(default_factory=list)
    missed: Counter[str] = dataclasses.field(default_factory=Counter)
    """Points that were armed and not reached in time; a kill at a random moment took their place."""


def plan(
    rng: random.Random,
    *,
    kills: int,
    stops: int,
    stops_in_unit: int,
    relays: int = 0,
    brokers: int = 0,
    stores: int = 0,
) -> list[Deed]:
    """Half of the kills at named points, a few at a start, the others at random moments; shuffled.
    ``relays`` are further kills, of processes that are just sending."""
    at_start = kills // 20
    at_points = kills // 2
    numbers: dict[Deed, int] = {
        "kill at a start": at_start,
        "kill at a point": at_points,
        "kill at a moment": kills - 2 * at_start - at_points,  # a start has to be made: one more kill
        "kill a relay": relays,
        "kill the broker": brokers,
        "kill the database": stores,
        "stop between units": stops,
        "stop in a unit": stops_in_unit,
    }
    deeds = [deed for deed, number in numbers.items() for _ in range(number)]
    rng.shuffle(deeds)
    return deeds


class Nemesis:
    """Carries a plan out against the processes that have control files in ``folder``.

    ``feed(share)`` is called before each deed: let the workload proceed to that share (0 to 1), so
    that there is work for the fault to hit. ``patience``: seconds that an armed point may wait for its hit
    before the deed is done in another way. ``servers`` by name: "broker", "database".
    """

    def __init__(
        self,
        folder: Path,
        deeds: Sequence[Deed],
        rng: random.Random,
        *,
        stop_seconds: float,
        feed: Callable[[float], None],
        tell: Callable[[str], None] = lambda line: None,
        patience: float = PATIENCE,
        servers: Mapping[str, Killable] | None = None,
    ) -> None:
        self.patience, self.servers = patience, servers or {}
        self.folder, self.deeds, self.rng = folder, deeds, rng
        self.stop_seconds, self.feed, self.tell = stop_seconds, feed, tell
        self.tally = Tally()
        self.hurt: set[int] = set()
        """Pids that we killed: any other death is a crash of its own."""
        self._known: dict[Path, Control] = {}
        self._points = self._endless((*IN_UNIT, *AROUND, *IN_UNIT))
        self._orders = 0
        self._following = 0.0

    def run(self) -> Tally:
        """Do every deed of the plan, one after another; returns what really happened."""
        self.feed(0.0)
        self._until(lambda: {c.role.removesuffix("-http") for c in self._all()} <= self._at_work(), 30)
        for number, deed in enumerate(self.deeds):
            self._await_somebody()
            self.feed(number / len(self.deeds))
            self._following = (number + 1) / len(self.deeds)
            match deed:
                case "kill at a point":
                    self._kill_at_point(next(self._points))
                case "kill at a start":
                    self._kill_at_start()
                case "kill at a moment":
                    self._kill_at_moment()
                case "kill a relay":
                    self._kill_at_point("relay.selected", "kill soon")
                case "kill the broker":
                    self._kill_server("broker")
                case "kill the database":
                    self._kill_server("database")
                case "stop between units":
                    self._stop(self.rng.choice((*BETWEEN, BETWEEN[0])))
                case "stop in a unit":
                    self._stop("unit.claimed")
        self.feed(1.0)
        return self.tally

    # -- deeds --------------------------------------------------------------------------------

    def _kill_at_point(self, point: str, action: Action = "kill") -> None:
        target = self._pick(point)
        target.arm(point, action, self.rng.randint(1, 3))
        if self._until(lambda: not target.alive, self.patience):
            self._note_kill(target, point)
            return
        target.disarm()
        if self._until(lambda: not target.alive, LAST_MOMENT):
            self._note_kill(target, point)
            return
        self.tally.missed[point] += 1
        self._kill_at_moment()

    def _kill_at_start(self) -> None:
        """Kill somebody, and then its successor while it takes its partitions."""
        target = self._pick(AT_START[0])
        self._orders += 1
        before = {control.pid for control in self._all()}
        order = order_next(self.folder, target.role, self._orders, AT_START[0], "kill")
        self._kill(target)

        def successor_died() -> bool:
            return any(c.pid not in before and c.role == target.role and not c.alive for c in self._all())

        if self._until(successor_died, 2 * self.patience):
            for control in self._all():
                if control.pid not in before and control.role == target.role and not control.alive:
                    self._note_kill(control, AT_START[0])
        else:
            order.unlink(missing_ok=True)
            for control in self._living():
                control.disarm()
            self.tally.missed[AT_START[0]] += 1
            self._kill_at_moment()

    def _kill_at_moment(self) -> None:
        """A random process at a random moment; every second time one that is in a unit right now."""
        time.sleep(self.rng.uniform(0, 0.08))
        target = self.rng.choice(self._living())
        if self.rng.random() < 0.5:
            busy = self._first_busy(0.5)
            target = busy or target
        self._kill(target)

    def _kill(self, target: Control) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(target.pid, signal.SIGKILL)
        self._until(lambda: not target.alive, 10)
        self.tally.kills_at_moments += 1
        self._note_kill(target, None)

    def _note_kill(self, target: Control, point: str | None) -> None:
        if target.pid in self.hurt:
            return
        self.hurt.add(target.pid)
        self.tally.kills += 1
        self.tally.kills_in_unit += target.unit_open
        self.tally.relays += target.sending
        if point is not None:
            self.tally.kills_at_points[point] += 1
        inside = ", inside a unit of work" if target.unit_open else ""
        self.tell(f"killed {target.role} {target.pid} {'at ' + point if point else 'at a random moment'}{inside}")

    def _kill_server(self, name: str) -> None:
        """Kill it, start it again, and wait until every service commits again."""
        server = self.servers[name]
        steady = {control.pid for control in self._living() if control.hits("unit.over")}
        began = time.monotonic()
        server.kill9()
        time.sleep(self.rng.uniform(0.2, 2.0))
        server.start()
        healed = time.monotonic()
        before = self._commits()
        self.feed(self._following)
        recovered = self._until(lambda: all(self._commits()[role] > before[role] for role in before), LONGEST_RECOVERY)
        seconds = time.monotonic() - healed if recovered else float("inf")
        self.tally.outages.append(Outage(name, healed - began, seconds))
        # Whoever had just been started, and found nobody there, may have ended; its supervisor starts it again.
        self.hurt |= {control.pid for control in self._all() if not control.alive and control.pid not in steady}
        self.tell(f"killed the {name}, {healed - began:.1f} s down; every service at work {seconds:.1f} s later")

    def _commits(self) -> Counter[str]:
        """Units that each service has ever committed."""
        found: Counter[str] = Counter()
        for control in self._all():
            if hits := control.hits("unit.committed"):
                found[control.role] += hits
        return found

    def _at_work(self) -> set[str]:
        """Services that have committed a unit or, having no handlers, sent what their API published."""
        return {c.role for c in self._all() if c.hits("unit.committed") or c.hits("relay.removed")}

    def _stop(self, point: str) -> None:
        """Stop a process past its lease, let the others go on, and wake it up again."""
        target = self._stop_somebody(point)
        if target is None:
            self.tally.missed[point] += 1
            return
        inside = point not in BETWEEN
        self.tell(f"stopped {target.role} {target.pid} at {point} for {self.stop_seconds:.1f} s")
        stall = self._stall(target, self.stop_seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(target.pid, signal.SIGCONT)
        if inside:
            self.tally.stops_in_unit += 1
        else:
            self.tally.stops += 1
        self.tally.stall = max(self.tally.stall, stall)

    def _stop_somebody(self, point: str) -> Control | None:
        for _ in range(4):
            target = self._pick(point)
            target.arm(point, "stop", self.rng.randint(1, 3))
            if self._until(partial(getattr, target, "stopped"), self.patience):
                return target
            target.disarm()
            if self._until(partial(getattr, target, "stopped"), LAST_MOMENT):
                return target
        return None

    def _stall(self, stopped: Control, seconds: float) -> float:
        """Wait; the longest time in which no process of the stopped one's service committed."""

        def committed() -> int:
            return sum(c.hits("unit.committed") for c in self._all() if c.role == stopped.role)

        start = last = time.monotonic()
        before, longest = committed(), 0.0
        while (now := time.monotonic()) < start + seconds:
            if (count := committed()) != before:
                before, last = count, now
            longest = max(longest, now - last)
            time.sleep(0.02)
        return longest

    # -- who and when -------------------------------------------------------------------------

    def _all(self) -> list[Control]:
        for path in self.folder.glob("*.ctl"):
            if path not in self._known:
                self._known[path] = Control(path)
        return list(self._known.values())

    def _living(self) -> list[Control]:
        return sorted((c for c in self._all() if c.pid not in self.hurt and c.alive), key=lambda c: c.pid)

    def _pick(self, point: str) -> Control:
        """Somebody alive, preferably one that has come by ``point`` before and so will again."""
        living = self._living()
        if point.startswith("unit.") or point in BETWEEN:
            workers = [c for c in living if c.hits("intake.taken")]
            return self.rng.choice(workers or living)
        likely = [c for c in living if c.hits(point)]
        if likely:
            return self.rng.choice(likely)
        roles = {c.role for c in self._all() if c.hits(point)}
        return self.rng.choice([c for c in living if c.role in roles] or living)

    def _first_busy(self, seconds: float) -> Control | None:
        end = time.monotonic() + seconds
        living = self._living()
        while time.monotonic() < end:
            for control in living:
                if control.unit_open:
                    return control
        return None

    def _await_somebody(self) -> None:
        if not self._until(lambda: len(self._living()) > 0, 60):
            raise RuntimeError(f"no process under test is alive (control files: {self.folder})")

    @staticmethod
    def _until(condition: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def _endless(self, points: Sequence[str]) -> Iterator[str]:
        """Every point equally often, in an order of the seed."""
        while True:
            yield from self.rng.sample(points, len(points))

    def crashes(self) -> list[Control]:
        """Processes that died and that we did not kill."""
        return [c for c in self._all() if c.pid not in self.hurt and not c.alive]

    def total(self, point: str) -> int:
        """How often all processes together have passed ``point``."""
        return sum(control.hits(point) for control in self._all())
