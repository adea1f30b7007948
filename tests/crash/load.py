"""The journal under a steady load: numbered events of many accounts, published over HTTP until it is stopped."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from eventkeel.testing.faults import controls
from eventkeel.testing.fleet import Fleet, free_port, wait_for_port
from shop.brokers import open_broker
from shop.databases import Unreadable, reading
from shop.placing import Api
from shop.quiet import wait_until_quiet
from shop.running import HOST, Place
from tests.crash import book
from tests.crash.places import Where

SERVICE = "tests.crash.journal:service"
TOPIC = "account_events"
ACCOUNTS, THREADS, CHUNK = 96, 4, 3
PATIENCE = 60.0

COMMITS = {
    True: "select extract(epoch from pg_xact_commit_timestamp(cast(tx as xid))), partition from eventkeel_inbox",
    False: "select at, partition from eventkeel_inbox",
}
LATE = 3.0
"""Seconds from publishing to effect that are not usual."""
LAST_LATE = f"""
select max(extract(epoch from pg_xact_commit_timestamp(journal.xmin)))
from journal join source using (account, number)
where pg_xact_commit_timestamp(journal.xmin) - pg_xact_commit_timestamp(source.xmin) > interval '{LATE} seconds'
"""
OLDEST_WAITING = """
select extract(epoch from clock_timestamp() - min(pg_xact_commit_timestamp(source.xmin)))
from source left join journal using (account, number) where journal.account is null
"""


class Load:
    """``per_second`` events, in order per account."""

    def __init__(self, port: int, per_second: float) -> None:
        self._port, self._pause = port, THREADS * CHUNK / per_second
        self._stop = threading.Event()
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._publish, args=(number,)) for number in range(THREADS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """What was begun is published; nothing after it."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _publish(self, thread: int) -> None:
        api = Api(HOST, self._port)
        mine = [f"ACC{number:03}" for number in range(1, ACCOUNTS + 1) if number % THREADS == thread]
        for turn in itertools.count():
            account, first = mine[turn % len(mine)], turn // len(mine) * CHUNK
            numbers = list(range(first, first + CHUNK))
            try:
                api.post("/events", json.dumps({"account": account, "numbers": numbers}))
            except Exception as error:  # told in the verdict; what follows on the account would be out of order
                self.failures.append(str(error))
                break
            if self._stop.wait(self._pause):
                break
        api.close()


class Publishing(Protocol):
    """Whoever feeds the service, and what went wrong with that."""

    failures: list[str]


class Journal:
    """The service's processes, and what its database says of them."""

    def __init__(self, where: Where, folder: Path, workers: int, mutant: str = "") -> None:
        self.place = Place(folder, where.broker, where.store)
        self.store = self.place.store("journal")
        self.port = free_port()
        self.fleet = Fleet(folder / "faults", settings={**self.place.settings(), "log_level": "warning"}, mutant=mutant)
        self.fleet.add(SERVICE, workers=workers)
        self.fleet.add(SERVICE, http=f"{HOST}:{self.port}")

    def await_workers(self, pids: Sequence[int]) -> float:
        """Until each of them has committed a unit; how many seconds that took. Raises TimeoutError."""
        began = time.monotonic()
        while not set(pids) <= self.at_work():
            if time.monotonic() - began > PATIENCE:
                raise TimeoutError(f"processes {pids} have not committed anything in {PATIENCE:.0f} s")
            time.sleep(0.02)
        return time.monotonic() - began

    def at_work(self) -> set[int]:
        """The processes that have committed a unit."""
        return {each.pid for each in controls(self.fleet.folder) if each.hits("unit.committed")}

    def gaps(self, since: float, until: float) -> tuple[float, float]:
        """The longest times without a commit from ``since`` to ``until``: of all, and of the slowest partition."""
        with reading(self.store) as database:
            rows = [(float(at), part) for at, part in database.rows(COMMITS[database.postgres]) if at is not None]
        within = sorted((at, part) for at, part in rows if since <= at <= until)
        by_partition = {
            part: _longest([since, *(at for at, one in within if one == part), until])
            for part in {one for _, one in rows}
        }
        return _longest([since, *(at for at, _ in within), until]), max(by_partition.values())

    def waiting(self) -> float:
        """Seconds since the oldest event was published that is not handled yet."""
        with reading(self.store) as database:
            [[seconds]] = database.rows(OLDEST_WAITING) if database.postgres else [[None]]
        return float(seconds or 0.0)

    def caught_up(self, since: float) -> float:
        """When the last event was handled that had waited for longer than ``LATE``; ``since`` where there was none."""
        with reading(self.store) as database:
            [[last]] = database.rows(LAST_LATE) if database.postgres else [[None]]
        return max(since, float(last or 0.0))

    def wrong(self, load: Publishing) -> list[str]:
        """Wait until nothing moves any more, and count; what is wrong."""
        with contextlib.closing(open_broker(self.place.broker)) as broker:
            done = wait_until_quiet(broker, [self.store], done=self._complete, reads={"journal": (TOPIC,)})
        counted = book.read(self.store)
        found = list(load.failures) + ["something still waits"] * (not done)
        counts = {name: getattr(counted, name) for name in ("lost", "twice", "out_of_order", "torn")}
        found += [f"{name} {value}" for name, value in counts.items() if value]
        print(f"{counted.published} events, {counted.pairs} pairs in order, lost {counted.lost}, twice {counted.twice}")
        return found + self.fleet.unable()

    def _complete(self) -> bool:
        try:
            return book.read(self.store).lost == 0
        except Unreadable:
            return False


def _longest(times: list[float]) -> float:
    return max(after - before for before, after in itertools.pairwise(times))


@contextlib.contextmanager
def journal_under_load(
    where: Where, folder: Path, *, workers: int = 4, per_second: float = 300.0, mutant: str = ""
) -> Iterator[tuple[Journal, Load]]:
    """Every worker has committed something when it begins; the load goes on until it ends."""
    journal = Journal(where, folder, workers, mutant)
    with journal.fleet:
        if not wait_for_port(HOST, journal.port, PATIENCE):
            raise TimeoutError(f"the service does not start: {journal.fleet.unable() or journal.fleet.folder}")
        with Load(journal.port, per_second) as load:
            journal.await_workers(journal.fleet.pids(SERVICE))
            yield journal, load
