"""A client of the orders API, as a careful shop front would be one: no answer means asking again."""

from __future__ import annotations

import dataclasses
import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE = 60.0
"""Seconds after which an order that nobody answers is given up."""


class NoAnswer(Exception):
    """The API did not take an order in time, or refused it."""


@dataclasses.dataclass(frozen=True)
class Order:
    order_id: str
    user_id: str
    cents: int
    items: tuple[str, ...] = ()
    """One piece of each."""

    def body(self) -> str:
        """The plain JSON fields; the amount is a number with two decimals."""
        amount = f"{self.cents // 100}.{self.cents % 100:02}"
        items = [{"sku": sku, "quantity": 1} for sku in self.items]
        more = f',"items":{json.dumps(items)}' if items else ""
        return (
            f'{{"order_id":{json.dumps(self.order_id)},"user_id":{json.dumps(self.user_id)},"amount":{amount}{more}}}'
        )


def made_up(number: int, rng: random.Random) -> Iterator[Order]:
    """``number`` orders, always the same for the same random numbers."""
    for index in range(1, number + 1):
        yield Order(f"ORD{index:06}", f"USR{rng.randint(1, 200):03}", rng.randint(1, 100_000))


def shopping(number: int, users: int, rng: random.Random) -> Iterator[Order]:
    """The same with baskets, so that everything happens that can: most orders go well; some things are sold out soon,
    some too heavy to ship, some cards declined (amounts that end with .13); some orders need nothing from stock."""
    for index in range(1, number + 1):
        cents = rng.randint(1, 300) * 100 + (13 if rng.random() < 0.05 else rng.choice((0, 50, 99)))
        kind = rng.random()
        basket = [rng.choice(("mug", "cap"))] * (kind > 0.06)
        if kind > 0.9:
            basket.append(rng.choice(("anvil", "print", "lamp")))
        yield Order(f"ORD{index:06}", f"USR{rng.randint(1, users):03}", cents, tuple(basket))


class Api:
    """One keep-alive connection. Not for several threads."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._connection: http.client.HTTPConnection | None = None

    def post(self, path: str, body: str, *, also: tuple[int, ...] = ()) -> dict[str, Any]:
        """Send until there is an answer. Only safe because the same order twice is one order.

        Raises NoAnswer after a minute, and at once where the API says that the request is wrong; ``also``: statuses
        that say so, and are an answer all the same.
        """
        deadline, pause = time.monotonic() + PATIENCE, 0.01
        while True:
            try:
                status, answer = self._once(path, body)
                if status < 300 or status in also:
                    return answer
                reason = f"{status} {answer.get('detail', '')}"
                if status < 500 and status != 429:
                    raise NoAnswer(f"POST {path}: {reason}")
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.close()
                reason = str(error) or type(error).__name__
            if time.monotonic() > deadline:
                raise NoAnswer(f"POST {path}: no answer in {PATIENCE:.0f} s, last: {reason}")
            time.sleep(pause)
            pause = min(0.25, pause * 2)

    def _once(self, path: str, body: str) -> tuple[int, dict[str, Any]]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._host, self._port, timeout=10)
        self._connection.request("POST", path, body, {"content-type": "application/json"})
        response = self._connection.getresponse()
        answer = json.loads(response.read())
        return response.status, answer if isinstance(answer, dict) else {}

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Crowd:
    """Threads that carry jobs out in the order given, each on a connection of its own.

    ``allow(n)`` lets the first ``n`` jobs go; without it nothing is held back.
    """

    def __init__(
        self, host: str, port: int, jobs: list[Callable[[Api], None]], *, threads: int = 8, held: bool = False
    ) -> None:
        self._jobs, self._address = jobs, (host, port)
        self._next = 0
        self._allowed = 0 if held else len(jobs)
        self._change = threading.Condition()
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def allow(self, number: int) -> None:
        with self._change:
            self._allowed = max(self._allowed, min(number, len(self._jobs)))
            self._change.notify_all()

    def join(self) -> None:
        """Until every job is done or has failed."""
        self.allow(len(self._jobs))
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """Begin no further job."""
        with self._change:
            self._jobs = self._jobs[: self._next]
            self._change.notify_all()

    def _work(self) -> None:
        api = Api(*self._address)
        while (job := self._take()) is not None:
            try:
                job(api)
            except Exception as error:  # one job must not end the thread that has others to do
                self.failures.append(str(error) or type(error).__name__)
        api.close()

    def _take(self) -> Callable[[Api], None] | None:
        with self._change:
            while self._next >= self._allowed and self._next < len(self._jobs):
                self._change.wait()
            if self._next >= len(self._jobs):
                return None
            self._next += 1
            return self._jobs[self._next - 1]
