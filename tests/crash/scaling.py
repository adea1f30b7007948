"""Order under everything at once: many keys, handlers that fail, messages that come again, workers that are killed,
restarted, and scaled from 1 to 4 and back to 1 under load:

    python -m tests.crash.scaling --broker amqp --store postgres
    python -m tests.crash.scaling --broker sqlite --store sqlite --keys 200 --events 20

Every event has to be in the ledger once, and the events of each key in the order in which they were published: each
row says which one of its key its handler saw before it. Exit 0: so it is; 1: it is not; 2: too little happened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from eventkeel.testing.fleet import wait_for_port
from shop.brokers import open_broker
from shop.databases import Unreadable
from shop.foreign import Foreigner
from shop.placing import Api
from shop.running import HOST
from tests.crash import book
from tests.crash.load import PATIENCE, SERVICE, TOPIC, Journal
from tests.crash.places import Where, arguments, command

THREADS, CHUNK = 4, 5
WORKERS = 4
AGAIN = 60
"""Messages that are put on the broker a second time, at each step."""


@dataclasses.dataclass(frozen=True)
class Wish:
    keys: int = 1000
    events: int = 50
    """Of each key."""
    kills: int = 6
    seed: int = 1

    @property
    def total(self) -> int:
        return self.keys * self.events


class Feed:
    """Publishes every event of every key, in order per key, as fast as it may: no further than ``allow`` says."""

    def __init__(self, port: int, wish: Wish) -> None:
        self._port, self._wish = port, wish
        self._allowed = threading.Condition()
        self._share = 0.0
        self.published = [0] * THREADS
        self.failures: list[str] = []
        self._threads = [
            threading.Thread(target=self._publish, args=(number,), daemon=True) for number in range(THREADS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def allow(self, share: float) -> None:
        """Go on until this share of everything is published."""
        with self._allowed:
            self._share = share
            self._allowed.notify_all()

    def join(self) -> None:
        self.allow(1.0)
        for thread in self._threads:
            thread.join()

    @property
    def share(self) -> float:
        return sum(self.published) / self._wish.total

    def _publish(self, thread: int) -> None:
        api, wish = Api(HOST, self._port), self._wish
        mine = [f"ACC{number:04}" for number in range(1, wish.keys + 1) if number % THREADS == thread]
        quota = wish.events * len(mine)
        try:
            for first in range(0, wish.events, CHUNK):
                for account in mine:
                    with self._allowed:
                        self._allowed.wait_for(lambda: self.published[thread] <= self._share * quota)
                    numbers = list(range(first, min(first + CHUNK, wish.events)))
                    api.post("/events", json.dumps({"account": account, "numbers": numbers}))
                    self.published[thread] += len(numbers)
        except Exception as error:  # told in the verdict
            self.failures.append(f"publishing failed: {error!r}")
        finally:
            api.close()


class Storm:
    """What happens to the service while it is fed."""

    def __init__(self, wish: Wish, where: Where, folder: Path, tell: Callable[[str], None]) -> None:
        self._wish, self._tell = wish, tell
        self._dice = random.Random(wish.seed)
        self._journal = Journal(where, folder, workers=1)
        self._broker = open_broker(self._journal.place.broker)
        self._kills = self._again = 0

    def run(self) -> list[str]:
        """What is wrong, and (behind ``too little``) what did not happen."""
        journal, wish = self._journal, self._wish
        began = time.monotonic()
        with journal.fleet, contextlib.closing(self._broker):
            if not wait_for_port(HOST, journal.port, PATIENCE):
                raise TimeoutError(f"the service does not start: {journal.fleet.unable() or journal.fleet.folder}")
            feed = Feed(journal.port, wish)
            feed.start()
            feed.allow(0.05)
            journal.await_workers(journal.fleet.pids(SERVICE))
            foreigner = Foreigner(journal.place.broker)
            try:
                self._blow(feed, foreigner)
            finally:
                foreigner.close()
            feed.join()
            self._tell(f"everything is published after {time.monotonic() - began:.0f} s; waiting until nothing moves")
            wrong = journal.wrong(feed)
        counted = book.read(journal.store)
        duplicates = book.duplicates(self._broker, [TOPIC])
        self._tell(
            f"{time.monotonic() - began:.0f} s: {wish.keys} keys, {counted.published} events, {counted.pairs} pairs, "
            f"out of order {counted.out_of_order}, torn {counted.torn}; {self._kills} kills, {duplicates} duplicates, "
            f"{counted.failed_twice} events failed twice"
        )
        return wrong + self._too_little(counted, duplicates)

    def _blow(self, feed: Feed, foreigner: Foreigner) -> None:
        """1 worker, 4, 1: at each step messages come again and somebody dies, in the middle one is restarted."""
        fleet, kills = self._journal.fleet, self._wish.kills
        steps = [0.1, 0.2, *(0.25 + 0.5 * n / max(1, kills) for n in range(kills)), 0.8, 0.9]
        for number, share in enumerate(steps):
            feed.allow(share)
            self._await(feed, share)
            if number == 2:
                fleet.scale(SERVICE, WORKERS)
                self._await_all_at_work(feed)
            if number == 2 + kills // 2:
                fleet.replace(self._dice.choice(fleet.pids(SERVICE)))
            if number == 2 + kills:
                fleet.scale(SERVICE, 1)
                self._tell(f"one worker again, {feed.share:.0%} published")
            feed.allow(min(1.0, share + 0.05))  # what follows happens under load
            self._send_again(foreigner)
            if 2 <= number < 2 + kills or number == len(steps) - 1:
                os.kill(self._dice.choice(fleet.pids(SERVICE)), signal.SIGKILL)
                self._kills += 1

    def _await_all_at_work(self, feed: Feed) -> None:
        """Fed little by little meanwhile: nobody commits anything where nothing comes."""
        began, pids = time.monotonic(), set(self._journal.fleet.pids(SERVICE))
        while not pids <= self._journal.at_work():
            if time.monotonic() - began > PATIENCE:
                raise TimeoutError(f"not all of {pids} have committed anything in {PATIENCE:.0f} s")
            feed.allow(min(0.7, feed.share + 0.01))
            time.sleep(0.2)
        waited = time.monotonic() - began
        self._tell(f"{len(pids)} workers at work after {waited:.1f} s, {feed.share:.0%} published")

    def _send_again(self, foreigner: Foreigner) -> None:
        with contextlib.suppress(Unreadable):
            for message in book.some_messages(self._broker, TOPIC, AGAIN):
                assert message.key is not None and message.body is not None
                headers = {name: value.decode() for name, value in message.headers}
                foreigner.append(TOPIC, message.key.decode(), message.body.decode(), headers)
                self._again += 1

    @staticmethod
    def _await(feed: Feed, share: float) -> None:
        deadline = time.monotonic() + 10 * PATIENCE
        while feed.share < share and not feed.failures:
            if time.monotonic() > deadline:
                raise TimeoutError(f"publishing stands still at {feed.share:.0%}")
            time.sleep(0.02)

    def _too_little(self, counted: book.Book, duplicates: int) -> list[str]:
        wish = self._wish
        measured = (
            ("events", counted.published, wish.total),
            ("kills", self._kills, wish.kills + 1),
            ("duplicates", duplicates, self._again // 2),
            ("events that failed twice", counted.failed_twice, wish.total // 100),
            ("pairs in order", counted.pairs, wish.total - wish.keys),
        )
        return [f"too little: {name} {got}, at least {need} needed" for name, got, need in measured if got < need]


def scaling(where: Where, folder: Path, wish: Wish) -> list[str]:
    """Run it; what is wrong."""
    return Storm(wish, where, folder, lambda line: print(line, flush=True)).run()


def main() -> int:
    parser = arguments("python -m tests.crash.scaling", __doc__, broker="sqlite", store="sqlite")
    parser.add_argument("--keys", type=int, default=Wish.keys)
    parser.add_argument("--events", type=int, default=Wish.events, help="of each key")
    parser.add_argument("--kills", type=int, default=Wish.kills)
    parser.add_argument("--seed", type=int, default=Wish.seed)
    given = parser.parse_args()
    wish = Wish(given.keys, given.events, given.kills, given.seed)
    return command(given, lambda where, folder: scaling(where, folder, wish))


if __name__ == "__main__":
    sys.exit(main())
