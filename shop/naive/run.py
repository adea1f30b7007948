"""``scripts/shop --naive --orders N``: the two by hand, under the same kills and duplicates as the shop; then count."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from shop.naive.counting import Ledger, count
from shop.naive.queue import Queue
from shop.placing import Api, Crowd, Order, made_up

HOST = "127.0.0.1"
AHEAD = 20
"""Orders that are under way when somebody is killed."""
READS = (("payments", "order_events"), ("orders", "payment_events"))


class Outcome(NamedTuple):
    """What the run has shown."""

    ledger: Ledger
    kills: int
    duplicates: int
    seconds: float

    def json(self) -> dict[str, Any]:
        more = {"kills": self.kills, "duplicates": self.duplicates, "seconds": round(self.seconds, 3)}
        return {"naive": True, **self.ledger.json(), **more}


class Processes:
    """The services, each started again as soon as it ends."""

    def __init__(self, commands: list[list[str]]) -> None:
        self._commands = commands
        self._stopping = threading.Event()
        self._running = [self._start(command) for command in commands]
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        line = [sys.executable, "-m", *command]
        return subprocess.Popen(line, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)

    def _keep(self) -> None:
        while not self._stopping.wait(0.01):
            for seat, process in enumerate(self._running):
                if process.poll() is not None:
                    process.communicate()
                    self._running[seat] = self._start(self._commands[seat])

    def kill_one(self, dice: random.Random) -> None:
        """At whatever moment this is."""
        process = dice.choice(self._running)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        self._stopping.set()
        self._keeper.join()
        for process in self._running:
            process.kill()
            process.communicate()


def run(orders: int, kills: int, duplicates: float, seed: int, data: Path, port: int) -> Outcome:
    """The folder has to be empty."""
    data.mkdir(parents=True, exist_ok=True)
    dice = random.Random(seed)
    wanted = list(made_up(orders, dice))
    twins = {order.order_id for order in wanted if dice.random() < duplicates}
    serve = ["shop.naive.orders", "serve", str(data), str(port)]
    others = [["shop.naive.orders", "consume", str(data)], *[["shop.naive.payments", str(data)]] * 2]
    began = time.monotonic()
    with (
        contextlib.closing(Queue(data / "queue.sqlite3")) as queue,
        contextlib.closing(Processes([serve, *others])) as processes,
    ):
        crowd = Crowd(HOST, port, [_job(order, order.order_id in twins, data) for order in wanted], held=True)
        crowd.start()
        for number in range(kills):
            share = max(1, (number + 1) * orders // (kills + 1))
            crowd.allow(share + AHEAD)
            _wait(lambda: queue.published("order_events") >= share, patience=10)  # noqa: B023 - asked at once
            time.sleep(dice.uniform(0, 0.1))
            processes.kill_one(dice)
        crowd.join()
        _wait(lambda: not any(queue.waiting(*who) for who in READS))
        time.sleep(1)  # what was received last is being handled
        return Outcome(count(data), kills, queue.repeated("order_events"), time.monotonic() - began)


def _job(order: Order, twice: bool, data: Path) -> Callable[[Api], None]:
    def place(api: Api) -> None:
        api.post("/orders", order.body())
        if twice:
            with contextlib.closing(Queue(data / "queue.sqlite3")) as queue:
                queue.publish("order_events", order.order_id, order.body())

    return place


def _wait(condition: Callable[[], bool], patience: float = 60.0) -> None:
    deadline = time.monotonic() + patience
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
