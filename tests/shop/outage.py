"""The payment provider is gone for a while, under load: orders are taken all the same, and nothing is lost.

    python -m tests.shop.outage --down 60 --per-second 20 [--broker URL --store URL]

Real processes, as ``scripts/shop`` runs them. The verdict is the ledger's; printed beside it is how long
``POST /orders`` took while the provider was down, and how long it took to catch up when it was back.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from shop import ledger, running
from shop.brokers import open_broker
from shop.placing import Api, Order, shopping
from shop.quiet import wait_until_quiet
from shop.running import HOST, Place, Running, choose_street, listens

THREADS = 4
USERS = 20


@dataclasses.dataclass(frozen=True)
class Found:
    """What the run has shown."""

    placed: int
    latencies: tuple[float, ...]
    """Seconds that each order took to be answered while the provider was down."""
    drained: float
    """Seconds from its return until nothing moved any more."""
    ledger: ledger.Ledger

    @property
    def p99(self) -> float:
        """Seconds."""
        return statistics.quantiles(self.latencies, n=100)[98]

    @property
    def holds(self) -> bool:
        whole = self.ledger.balanced and self.ledger.open == self.ledger.dead == 0
        return whole and self.ledger.orders == self.placed and self.ledger.confirmed > 0

    def line(self) -> str:
        return (
            f"{self.ledger.line()}\n{len(self.latencies)} orders placed while the provider was down: answered in p50 "
            f"{statistics.median(self.latencies) * 1000:.1f} ms, p99 {self.p99 * 1000:.1f} ms, at most "
            f"{max(self.latencies) * 1000:.0f} ms; caught up {self.drained:.1f} s after its return"
        )


class _Load:
    """Orders at a steady pace, each timed."""

    def __init__(self, port: int, per_second: float) -> None:
        self._port, self._pause = port, THREADS / per_second
        self._orders = shopping(1_000_000, USERS, random.Random(5))
        self._lock, self._stop = threading.Lock(), threading.Event()
        self.took: list[tuple[float, float]] = []
        """(when it was sent, seconds until it was answered)"""
        self._threads = [threading.Thread(target=self._place, daemon=True) for _ in range(THREADS)]

    def __enter__(self) -> _Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _place(self) -> None:
        with contextlib.closing(Api(HOST, self._port)) as api:
            while not self._stop.wait(self._pause):
                with self._lock:
                    order: Order = next(self._orders)
                began = time.monotonic()
                api.post("/orders", order.body())
                self.took.append((began, time.monotonic() - began))


def outage(place: Place, *, down: float, per_second: float, before: float = 3.0) -> Found:
    """The provider runs for ``before`` seconds, is gone for ``down``, comes back; the load goes on all the time."""
    street = choose_street()
    shop = Running(place, street)
    shop.start()
    try:
        with _Load(street.orders, per_second) as load:
            time.sleep(before)
            assert shop.outside is not None
            shop.outside.close()
            assert not listens(street.provider)
            began = time.monotonic()
            time.sleep(down)
            back = time.monotonic()
            shop.outside = running.start_outside(place, street)
            time.sleep(before)
        with contextlib.closing(open_broker(place.broker)) as broker:
            stores = [*place.stores.values()]
            wait_until_quiet(broker, stores, done=lambda: ledger.read(place.stores, place.outside).lost == 0)
        took = tuple(seconds for at, seconds in load.took if began <= at <= back)
        drained = time.monotonic() - back
        return Found(len(load.took), took, drained, ledger.read(place.stores, place.outside))
    finally:
        shop.stop()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests.shop.outage", description=__doc__.partition("\n")[0] if __doc__ else ""
    )
    parser.add_argument("--down", type=float, default=60.0, help="seconds without the provider (60)")
    parser.add_argument("--per-second", type=float, default=20.0, help="orders (20)")
    parser.add_argument("--broker", default="", help="URL (SQLite)")
    parser.add_argument("--store", default="", help="URL with {service} (SQLite)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="eventkeel-outage-") as data:
        found = outage(Place(Path(data), given.broker, given.store), down=given.down, per_second=given.per_second)
    print(found.line())
    return 0 if found.holds else 1


if __name__ == "__main__":
    sys.exit(main())
