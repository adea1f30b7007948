"""``scripts/shop --naive --orders N``: the two by hand, under the same kills and duplicates as the shop; then count."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from shop.naive.counting import Ledger, count
from shop.naive.database import drop, make
from shop.naive.queue import Queue, open_queue
from shop.placing import Api, Crowd, Order, made_up

HOST = "127.0.0.1"
AHEAD = 20
"""Orders that are under way when somebody is killed."""
READS = (("payments", "order_events"), ("orders", "payment_events"))
TOPICS, SERVICES = ("order_events", "payment_events"), ("orders", "payments")


class Places(NamedTuple):
    broker: str
    store: str
    port: int


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

    def __init__(self, commands: list[list[str]], broker: str, store: str) -> None:
        self._commands = commands
        self._environment = {**os.environ, "NAIVE_BROKER": broker, "NAIVE_STORE": store}
        self._stopping = threading.Event()
        self._running = [self._start(command) for command in commands]
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        line = [sys.executable, "-m", *command]
        return subprocess.Popen(
            line,
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self._environment,
            start_new_session=True,
        )

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


def run(orders: int, kills: int, duplicates: float, seed: int, broker: str, store: str, port: int) -> Outcome:
    """``broker`` and ``store``: an empty folder, or URLs of Kafka and PostgreSQL, where topics and schemas are made
    for this run and dropped after it."""
    name = f"naive_{uuid.uuid4().hex[:8]}"
    if broker.startswith("kafka:"):
        broker = _named(broker, "prefix", f"{name}.")
    if store.startswith("postgres"):
        store = _named(store.replace("{service}", "naive"), "application_name", name)
    with contextlib.closing(open_queue(broker)) as queue:
        make(store, SERVICES)
        try:
            queue.make(*TOPICS)
            try:
                return _run(orders, kills, duplicates, random.Random(seed), queue, Places(broker, store, port))
            finally:
                queue.drop(*TOPICS)
        finally:
            drop(store, SERVICES)


def _named(url: str, option: str, value: str) -> str:
    """With this option, last, instead of what it says of it and of ``schema``."""
    address, _, rest = url.partition("?")
    kept = [each for each in rest.split("&") if each and each.partition("=")[0] not in (option, "schema")]
    return address + "?" + "&".join([*kept, f"{option}={value}"])


def _run(orders: int, kills: int, duplicates: float, dice: random.Random, queue: Queue, places: Places) -> Outcome:
    wanted = list(made_up(orders, dice))
    twins = {order.order_id for order in wanted if dice.random() < duplicates}
    serve = ["shop.naive.orders", "serve", str(places.port)]
    others = [["shop.naive.orders", "consume"], *[["shop.naive.payments"]] * 2]
    began = time.monotonic()
    with contextlib.closing(Processes([serve, *others], places.broker, places.store)) as processes:
        jobs = [_job(order, order.order_id in twins, places.broker) for order in wanted]
        crowd = Crowd(HOST, places.port, jobs, held=True)
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
        return Outcome(count(places.store), kills, queue.repeated("order_events"), time.monotonic() - began)


def _job(order: Order, twice: bool, broker: str) -> Callable[[Api], None]:
    def place(api: Api) -> None:
        api.post("/orders", order.body())
        if twice:
            with contextlib.closing(open_queue(broker)) as queue:
                queue.publish("order_events", order.order_id, order.body())

    return place


def _wait(condition: Callable[[], bool], patience: float = 60.0) -> None:
    deadline = time.monotonic() + patience
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
