"""``scripts/shop`` without options: a first order, then orders that move, until Ctrl-C."""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from types import FrameType
from typing import Any

from shop import ledger
from shop.brokers import Broker, open_broker
from shop.databases import reading
from shop.foreign import Foreigner
from shop.placing import Api, NoAnswer, Order
from shop.quiet import wait_until_quiet
from shop.running import HOST, CannotRun, Place, Running, choose_port

FIRST = Order("ORD12345", "USR001", 9999)
PACE = 0.7
"""Seconds between two demo orders."""
BLINK = 0.25
"""Seconds between two looks at the databases."""
ROWS = 12

PAID = "select count(*) from payments where order_id = ?"
LATEST = "select order_id, user_id, amount, status from orders order by {latest} limit ?"
TOPIC = "order_events"


def run_live(place: Place, wanted_port: int, *, json_line: bool = False) -> int:
    """Blocks until Ctrl-C (or SIGTERM, or the terminal is closed). 0: the ledger balances; 1: it does not."""
    port = choose_port(wanted_port)
    say(f"starting orders and payments; their data is in {place}")
    running = Running(place, port)
    running.start()
    stop = _stop_signal()
    foreigner = Foreigner(place.broker)
    api = Api(HOST, port)
    broker = open_broker(place.broker)
    try:
        say(f"orders API at http://{HOST}:{port}/orders (POST an order, GET /orders/ORDER_ID); log in {running.log}")
        _first_order(api, foreigner, place, broker, stop)
        _watch(api, foreigner, place, running, stop)
        say("\nstopping: letting the last orders finish")
        _await_quiet(place, broker, 15)
    finally:
        broker.close()
        foreigner.close()
        api.close()
        running.stop()
    verdict = ledger.read(*place.stores)
    say(verdict.line())
    if json_line:
        print(json.dumps({**asdict(verdict), "balanced": verdict.balanced}), flush=True)
    return 0 if verdict.balanced else 1


def say(line: str) -> None:
    print(line, flush=True)


def _stop_signal() -> threading.Event:
    stop = threading.Event()
    asked_at = 0.0

    def ask(signum: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        if not stop.is_set():
            asked_at = time.monotonic()
            stop.set()
        elif time.monotonic() - asked_at > 1:  # some senders signal a process and its group: that is one Ctrl-C
            sys.exit(1)

    signal.signal(signal.SIGINT, ask)
    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGHUP, ask)
    return stop


def _first_order(api: Api, foreigner: Foreigner, place: Place, broker: Broker, stop: threading.Event) -> None:
    """Placed once over HTTP; its message is put into the broker twice more, as a retry would."""
    api.post("/orders", FIRST.body())
    for _ in range(2):
        foreigner.append("order_events", FIRST.order_id, FIRST.body())
    delivered = paid = 0
    deadline = time.monotonic() + 30
    while not stop.is_set():
        if time.monotonic() > deadline:
            raise CannotRun(f"{FIRST.order_id} was delivered {delivered} times and paid {paid} times after 30 s")
        delivered, paid = broker.delivered(TOPIC, FIRST.order_id), _paid(place)
        if delivered >= 3 and paid and not broker.unread("payment-service-group", TOPIC, FIRST.order_id):
            break
        time.sleep(0.05)
    if stop.is_set():
        return
    paid = _paid(place)
    times = {1: "once", 2: "TWICE"}.get(paid, f"{paid} TIMES")
    say(f"order {FIRST.order_id} of {FIRST.user_id} over 99.99: delivered {delivered} times, paid {times}")


def _paid(place: Place) -> int:
    with reading(place.stores[1]) as database:
        return database.number(PAID, (FIRST.order_id,))


def _await_quiet(place: Place, broker: Broker, seconds: float) -> bool:
    deadline = time.monotonic() + seconds

    def enough() -> bool:
        now = ledger.read(*place.stores)
        return now.lost == 0 and now.untold == 0

    return wait_until_quiet(
        broker, place.stores, done=lambda: enough() or time.monotonic() > deadline, stalled_after=seconds
    )


def _watch(api: Api, foreigner: Foreigner, place: Place, running: Running, stop: threading.Event) -> None:
    """A trickle of orders, every tenth delivered twice, and a table (or, without a terminal, lines)."""
    dice = random.Random()
    placed, next_order = 0, 0.0
    with _screen() as show:
        while not stop.wait(BLINK):
            if not running.alive:
                raise CannotRun(f"the services have ended; see {running.log}")
            if time.monotonic() >= next_order:
                next_order = time.monotonic() + PACE
                placed += 1
                order = Order(f"ORD-{uuid.uuid4().hex[:8]}", f"USR{dice.randint(1, 200):03}", dice.randint(100, 30_000))
                _place(api, foreigner, order, twin=placed % 10 == 0)
            with reading(place.stores[0]) as database:
                latest = "placed_at desc, order_id" if database.postgres else "rowid desc"
                rows = database.rows(LATEST.format(latest=latest), (ROWS,))
            show(rows, ledger.read(*place.stores))


def _place(api: Api, foreigner: Foreigner, order: Order, *, twin: bool) -> None:
    try:
        api.post("/orders", order.body())
    except NoAnswer as error:
        say(f"no answer: {error}")
        return
    if twin:
        foreigner.append("order_events", order.order_id, order.body())


Show = Callable[[list[Any], ledger.Ledger], None]


def _screen() -> AbstractContextManager[Show]:
    if sys.stdout.isatty():
        try:
            return _table()
        except ImportError:
            pass
    return nullcontext(_lines())


def _lines() -> Show:
    """Without a terminal: a line for each step of an order."""
    seen: dict[str, str] = {}

    def show(rows: list[Any], now: ledger.Ledger) -> None:
        for order_id, user_id, amount, status in reversed(rows):
            if seen.get(order_id) != status:
                seen[order_id] = status
                say(f"{order_id:<12}  {user_id}  {amount:>8.2f}  {status:<6}  | {_summary(now)}")

    return show


def _summary(now: ledger.Ledger) -> str:
    return f"{now.orders:,} orders, {now.paid:,} paid, {now.twice} paid twice"


@contextmanager
def _table() -> Iterator[Show]:
    from rich.live import Live
    from rich.table import Table

    def draw(rows: list[Any], now: ledger.Ledger) -> Table:
        table = Table(caption=f"{_summary(now)}\nCtrl-C stops and gives the verdict")
        for name, justify in (("order", "left"), ("user", "left"), ("amount", "right"), ("status", "left")):
            table.add_column(name, justify="right" if justify == "right" else "left")
        for order_id, user_id, amount, status in rows:
            colour = "green" if status == "paid" else "yellow"
            table.add_row(order_id, user_id, f"{amount:.2f}", f"[{colour}]{status}[/]")
        return table

    with Live(auto_refresh=False) as live:
        yield lambda rows, now: live.update(draw(rows, now), refresh=True)
