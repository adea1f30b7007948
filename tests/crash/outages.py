"""RabbitMQ in trouble under load, one kind after another, with processes that nobody restarts:

    python -m tests.crash.outages
    python -m tests.crash.outages --only stop_app --only memory

stop_app      the node's RabbitMQ is stopped for 20 s
connections   one of our connections is killed every 2 s, for a minute
unbound       the topic's exchange loses all its bindings for 10 s; `eventkeel refill` gives it others
deleted       one of the group's queues is deleted; the same command
memory        20 s of alarm: the broker takes nothing
disk          the same for its disk

Recovery is counted from the moment when the broker answers again, the alarm's end is asked for or the command that
mends it has returned: to the first effect that is committed then, and until no more is under way than
before (a second's worth counts as nothing). For killed connections the first is the longest time in which nothing was
committed.

Exit 0: nothing lost, twice, out of order or stuck in an outbox, every process lives, recovery within 15 s; 1: not so.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote

import pika  # type: ignore[import-untyped]

from shop.databases import reading
from tests.crash import book
from tests.crash.load import PATIENCE, SERVICE, TOPIC, Journal, Load, journal_under_load
from tests.crash.places import Where, arguments, command
from tests.crash.run import LOST_EVENTS
from tools.realservers.rabbitmq import RabbitMQ

LIMIT = 15.0
"""Seconds within which everything flows again."""
WORKERS, PER_SECOND = 3, 50.0
EVERY = 2.0
"""Seconds between two kills of a connection."""
CHANGING = 30.0
"""Seconds in which a group has gone over to its new queues: as long as a publish may take, and a bit."""
SETTLED = 2.0
"""Seconds of ordinary life between two disruptions."""
UNDER_WAY = f"select count(*) from ({LOST_EVENTS}) as under_way"
GROUP = "journal"
REFILL = f"eventkeel refill MODULE:SERVICE --topic {TOPIC}"
HALT = 10.0
"""Seconds within which a process says that a queue is gone."""


@dataclasses.dataclass(frozen=True)
class Recovery:
    """What a disruption did, in seconds."""

    name: str
    lasted: float
    first: float
    drained: float
    waiting: int
    """Events that were under way at its end: what proves that it was one."""

    stalled: float = 0.0
    """The longest time without an effect, afterwards."""

    @property
    def worst(self) -> float:
        return max(self.first, self.drained, self.stalled)

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.lasted:.0f} s, {self.waiting} events waited; first effect after {self.first:.1f} s, "
            f"nothing behind after {self.drained:.1f} s"
            + (f", no effect for {self.stalled:.1f} s while queues were changed" if self.stalled else "")
        )


class Outages:
    """Disrupts, measures, goes on."""

    def __init__(
        self, rabbit: RabbitMQ, journal: Journal, load: Load, share: float = 1.0, changing: float = CHANGING
    ) -> None:
        """``share``: of the seconds that each disruption takes in full; ``changing``: seconds in which a group has
        gone over to new queues."""
        self.rabbit, self.journal, self.load, self.share = rabbit, journal, load, share
        self.wrong: list[str] = []
        self._normal = PER_SECOND
        """Events that are under way when all is well."""
        self._changing = changing
        self._logs = self._sizes()

    def run(self, name: str) -> Recovery:
        """Raises TimeoutError where nothing flows again."""
        self._normal = max(PER_SECOND, 1.5 * max(self._ordinary()))
        pids, starts = self.journal.fleet.pids(SERVICE), self.journal.fleet.starts
        recovery: Recovery = getattr(self, name)()
        if self.journal.fleet.pids(SERVICE) != pids or self.journal.fleet.starts != starts:
            self.wrong.append(f"{name}: processes {pids} became {self.journal.fleet.pids(SERVICE)}")
        if recovery.worst > LIMIT:
            self.wrong.append(f"{name}: {recovery.worst:.1f} s to recover")
        if not any(word in said for word in SAYS[name] for said in self._said()):
            self.wrong.append(f"{name}: no process said one of {', '.join(SAYS[name])}")
        self._logs = self._sizes()
        return recovery

    def count(self) -> list[str]:
        """Whether all that is published by now takes effect once and in order; what is wrong."""
        missing, until = self._missing(), time.monotonic() + PATIENCE
        while missing and time.monotonic() < until:
            time.sleep(0.1)
            missing &= self._missing()
        counted = book.read(self.journal.store)
        found = {"lost": len(missing), "twice": counted.twice, "out of order": counted.out_of_order + counted.torn}
        return [f"{what} {number}" for what, number in found.items() if number]

    # -- the disruptions

    def stop_app(self) -> Recovery:
        self.rabbit.ctl("stop_app")
        return self._heal("stop_app", 20.0 * self.share, lambda: self.rabbit.ctl("start_app"), answers=True)

    def memory(self) -> Recovery:
        self.rabbit.ctl("set_vm_memory_high_watermark", "absolute", "1")
        return self._heal("memory", 20.0 * self.share, lambda: self.rabbit.ctl("set_vm_memory_high_watermark", "0.4"))

    def disk(self) -> Recovery:
        self.rabbit.ctl("set_disk_free_limit", str(10**15))
        return self._heal("disk", 20.0 * self.share, lambda: self.rabbit.ctl("set_disk_free_limit", "50MB"))

    def unbound(self) -> Recovery:
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(self.rabbit.url))) as connection:
            channel = connection.channel()
            for binding in self._ask(f"exchanges/%2f/{TOPIC}/bindings/source"):
                name, key = binding["destination"], binding["routing_key"]
                if binding["destination_type"] == "queue":
                    channel.queue_unbind(name, TOPIC, key)
                else:
                    channel.exchange_unbind(name, TOPIC, key)
        return self._change_queues("unbound")

    def deleted(self) -> Recovery:
        """Every process says within ``HALT`` seconds what to type."""
        queues = [each["name"] for each in self._ask("queues?columns=name")]
        queue = max(name for name in queues if name.startswith(f"{GROUP}.{TOPIC}.g"))
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(self.rabbit.url))) as connection:
            connection.channel().queue_delete(queue)
        began = time.monotonic()
        while not all(queue in said and REFILL in said for said in self._said()):
            if time.monotonic() - began > PATIENCE:
                raise TimeoutError(f"deleted: not every process said {REFILL!r} within {PATIENCE:.0f} s")
            time.sleep(0.05)
        halted = time.monotonic() - began
        print(f"every process says what to type {halted:.1f} s after {queue} was deleted", flush=True)
        if halted > HALT:
            self.wrong.append(f"deleted: the last process said so after {halted:.1f} s")
        return self._change_queues("deleted")

    def _change_queues(self, name: str) -> Recovery:
        recovery = self._heal(name, 10.0, self._refill, answers=True)
        # The history comes first, then the old queues, and only then the new ones.
        over = time.time() - recovery.drained
        time.sleep(max(0.0, self._changing - recovery.drained))
        self._until_nothing_is_behind(PATIENCE)
        stalled, _ = self.journal.gaps(over, time.time())
        return dataclasses.replace(recovery, stalled=stalled)

    def connections(self) -> Recovery:
        began, killed = time.time(), 0
        while time.time() < began + 60.0 * self.share:
            killed += self._kill_a_connection()
            time.sleep(EVERY)
        ended = time.time()
        gap, _ = self.journal.gaps(began, ended)
        if killed < 0.8 * 60.0 * self.share / EVERY:
            self.wrong.append(f"connections: only {killed} could be killed")
        waiting = self._under_way()
        drained = self._until_nothing_is_behind(PATIENCE)
        return Recovery(f"connections, {killed} killed", ended - began, gap, drained, waiting)

    def _kill_a_connection(self) -> bool:
        names = [each["name"] for each in self._ask("connections?columns=name")]
        if not names:
            return False
        with contextlib.suppress(HTTPError):  # it was gone already
            self._ask(f"connections/{quote(random.choice(names), safe='')}", method="DELETE")
            return True
        return False

    def _refill(self) -> None:
        """As an operator would: what the services say in their logs."""
        environment = {**os.environ, **{f"EVENTKEEL_{k.upper()}": v for k, v in self.journal.place.settings().items()}}
        words = [sys.executable, "-m", "eventkeel", "refill", SERVICE, "--topic", TOPIC]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if done.returncode:
            self.wrong.append(f"eventkeel refill: {done.stdout} {done.stderr}")

    # -- measuring

    def _ordinary(self) -> Iterator[int]:
        """What is under way, looked at for some time."""
        until = time.monotonic() + SETTLED
        while time.monotonic() < until:
            yield self._under_way()
            time.sleep(0.2)

    def _heal(self, name: str, seconds: float, heal: Callable[[], object], *, answers: bool = False) -> Recovery:
        """``answers``: it is over when ``heal`` returns; else when it is called."""
        began = time.time()
        time.sleep(seconds)
        waiting = self._under_way()
        if waiting < max(PER_SECOND * seconds / 4, self._normal):
            self.wrong.append(f"{name}: no trouble, only {waiting} events waited")
        over = time.time()
        heal()
        if answers:
            over = time.time()
        clock = time.monotonic() - (time.time() - over)
        before = self._committed()
        while self._committed() == before:
            if time.monotonic() - clock > PATIENCE:
                raise TimeoutError(f"{name}: nothing is handled {PATIENCE:.0f} s after it was over")
            time.sleep(0.02)
        first = time.monotonic() - clock
        drained = self._until_nothing_is_behind(PATIENCE, since=clock)
        return Recovery(name, over - began, first, drained, waiting)

    def _until_nothing_is_behind(self, patience: float, since: float | None = None) -> float:
        since = time.monotonic() if since is None else since
        while self._under_way() > self._normal:
            time.sleep(0.1)
        return time.monotonic() - since

    def _missing(self) -> set[tuple[Any, ...]]:
        with reading(self.journal.store) as database:
            return set(database.rows(LOST_EVENTS))

    def _under_way(self) -> int:
        with reading(self.journal.store) as database:
            return database.number(UNDER_WAY)

    def _committed(self) -> int:
        with reading(self.journal.store) as database:
            return database.number("select count(*) from journal")

    def _ask(self, what: str, method: str = "GET") -> Any:
        request = urllib.request.Request(f"{self.rabbit.management}/api/{what}", method=method)
        request.add_header("Authorization", "Basic Z3Vlc3Q6Z3Vlc3Q=")  # guest:guest
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
            return json.loads(text) if text else None

    def _sizes(self) -> dict[Path, int]:
        """The logs of the workers, and how long they are."""
        logs = [each for each in self.journal.fleet.folder.glob("*.log") if "http" not in each.name]
        return {path: path.stat().st_size for path in logs}

    def _said(self) -> list[str]:
        """What each worker has said since the last disruption."""
        return [path.read_bytes()[size:].decode("utf-8", "replace") for path, size in self._logs.items()]


SAYS = {
    "stop_app": ("cannot be reached", "does not answer", "the connection"),
    "connections": ("",),
    "unbound": ("eventkeel refill",),
    "deleted": ("eventkeel refill",),
    "memory": ("the broker takes nothing now: low on memory",),
    "disk": ("the broker takes nothing now: low on disk",),
}
"""Words of which a process has to say one."""
NAMES = tuple(SAYS)


def outages(
    where: Where, folder: Path, names: Sequence[str] = NAMES, *, share: float = 1.0, mutant: str = ""
) -> list[str]:
    """Disrupt one after another; what is wrong."""
    rabbit = where.servers["broker"]
    assert isinstance(rabbit, RabbitMQ)
    recoveries: list[Recovery] = []
    with journal_under_load(where, folder, workers=WORKERS, per_second=PER_SECOND, mutant=mutant) as (journal, load):
        pids = journal.fleet.pids(SERVICE)
        storm = Outages(rabbit, journal, load, share)
        try:
            for name in names:
                recoveries.append(storm.run(name))
                print(recoveries[-1], flush=True)
        except TimeoutError as error:
            storm.wrong.append(str(error))
        load.stop()
        wrong = storm.wrong + journal.wrong(load)
        with reading(journal.store) as database:
            left = database.number("select count(*) from eventkeel_outbox")
        wrong += [f"{left} rows are left in the outbox"] * bool(left)
        same = journal.fleet.pids(SERVICE) == pids
    worst = max((each.worst for each in recoveries), default=0.0)
    print(
        f"{len(recoveries)} disruptions, worst recovery {worst:.1f} s of {LIMIT:.0f}; processes "
        f"{'the same' if same else 'NOT the same'}: {', '.join(map(str, pids))}",
        flush=True,
    )
    return wrong


def main() -> int:
    parser = arguments("python -m tests.crash.outages", __doc__, broker="rabbitmq", store="postgres")
    parser.add_argument("--only", action="append", choices=NAMES, help="may be given several times")
    parser.add_argument("--share", type=float, default=1.0, help="of the seconds that each takes in full (1)")
    parser.add_argument("--mutant", default="", help="MODULE:FUNCTION, applied in every process")
    given: argparse.Namespace = parser.parse_args()
    names = given.only or NAMES
    return command(given, lambda where, folder: outages(where, folder, names, share=given.share, mutant=given.mutant))


if __name__ == "__main__":
    sys.exit(main())
