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
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from types import FrameType
from typing import Any

from shop import ledger
from shop.brokers import Broker, open_broker
from shop.databases import reading
from shop.foreign import Foreigner
from shop.page.serving import serving
from shop.placing import Api, NoAnswer, Order, shopping
from shop.quiet import wait_until_quiet
from shop.running import HOST, CannotRun, Place, Running, choose_street

FIRST = Order("ORD12345", "USR001", 9999, ("mug",))
BLINK = 0.5
"""Seconds between two looks at the databases."""
SECOND_LOOK = 10.0
"""Seconds after which the ledger is read again although nothing has moved."""
DRAIN = 3.0
"""Seconds that the last orders get when the shop is stopped."""
ROWS = 12

PAID = "select count(*) from payments where order_id = ?"
LATEST = "select order_id, user_id, amount, status from orders where status <> 'unheard' order by {latest} limit ?"
USER = '{"user_id": "USR001", "name": "Ada", "email": "ada@mail.example"}'
REST, LOST_AFTER = 20.0, 180.0
"""Seconds for which an order was at its end before the ledger judges it while others are under way; and after which
one that does not move counts as lost."""
TOPIC = "order_events"


def run_live(place: Place, wanted_port: int, *, page: int = 8080, pace: float = 0, json_line: bool = False) -> int:
    """Blocks until Ctrl-C (or SIGTERM, or the terminal is closed). ``pace``: seconds between two orders that it places
    by itself; 0: none. 0: the ledger balances; 1: it does not."""
    street = choose_street(wanted_port)
    say(f"starting seven services; their data is in {place}")
    running = Running(place, street)
    running.start()
    stop = _stop_signal()
    api = Api(HOST, street.orders)
    broker = open_broker(place.broker)
    quiet = False
    try:
        say(f"orders API at http://{HOST}:{street.orders}/orders (POST an order, GET /orders/ORDER_ID)")
        say(f"users API at http://{HOST}:{street.users}/users; mails at http://{HOST}:{street.provider}/mails")
        say(f"log in {running.log}")
        with closing(Api(HOST, street.users)) as users:
            users.post("/users", USER)
        with serving(place, street, running.roll, page) as url:
            say(f"the shop's page: {url}")
            _first_order(api, place, broker, stop)
            _watch(_trickle(api, place, pace), place, running, stop)
        say("\nstopping: letting the last orders finish")
        quiet = _await_quiet(place, broker, DRAIN)
    finally:
        broker.close()
        api.close()
        running.stop()
    verdict = ledger.read(place.stores, place.outside, patience=0 if quiet else LOST_AFTER)
    say(verdict.line())
    if json_line:
        print(json.dumps(verdict.json()), flush=True)
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


def _first_order(api: Api, place: Place, broker: Broker, stop: threading.Event) -> None:
    """Placed once over HTTP; its message is put into the broker twice more, as a retry would."""
    api.post("/orders", FIRST.body())
    for _ in range(2):
        _append(place, FIRST)
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
    with reading(place.stores["payments"]) as database:
        return database.number(PAID, (FIRST.order_id,))


def _await_quiet(place: Place, broker: Broker, seconds: float) -> bool:
    """False: some were still under way."""
    deadline = time.monotonic() + seconds
    reached = False

    def enough() -> bool:
        nonlocal reached
        reached = ledger.read(place.stores, place.outside).lost == 0
        return reached or time.monotonic() > deadline

    wait_until_quiet(broker, [*place.stores.values()], done=enough, stalled_after=seconds)
    return reached


def _watch(trickle: Callable[[], None], place: Place, running: Running, stop: threading.Event) -> None:
    """What moves, as a table (or, without a terminal, as lines), until somebody says stop."""
    rows: list[Any] = []
    at = 0.0
    with _screen() as show:
        while not stop.wait(BLINK):
            if not running.alive:
                raise CannotRun(f"the services have ended; see {running.log}")
            trickle()
            with reading(place.stores["orders"]) as database:
                latest = "placed_at desc, order_id" if database.postgres else "rowid desc"
                before, rows = rows, database.rows(LATEST.format(latest=latest), (ROWS,))
            if rows != before or time.monotonic() - at > SECOND_LOOK:
                at = time.monotonic()
                show(rows, ledger.read(place.stores, place.outside, rest=REST, patience=LOST_AFTER))


def _trickle(api: Api, place: Place, pace: float) -> Callable[[], None]:
    """Places an order whenever it is time for one; every tenth is delivered twice."""
    dice = random.Random()
    placed, next_order = 0, 0.0

    def trickle() -> None:
        nonlocal placed, next_order
        if not pace or time.monotonic() < next_order:
            return
        next_order = time.monotonic() + pace
        placed += 1
        (order,) = shopping(1, 200, dice)
        order = replace(order, order_id=f"ORD-{uuid.uuid4().hex[:8]}")
        _place(api, place, order, twin=placed % 10 == 0)

    return trickle


def _place(api: Api, place: Place, order: Order, *, twin: bool) -> None:
    try:
        api.post("/orders", order.body())
    except NoAnswer as error:
        say(f"no answer: {error}")
        return
    if twin:
        _append(place, order)


def _append(place: Place, order: Order) -> None:
    """Put its message into the broker, past Eventkeel; by a program that lives only as long as that takes."""
    with closing(Foreigner(place.broker)) as foreigner:
        foreigner.append(TOPIC, order.order_id, order.body())


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
                say(f"{order_id:<12}  {user_id}  {amount:>8.2f}  {status:<9}  | {_summary(now)}")

    return show


def _summary(now: ledger.Ledger) -> str:
    verdict = "ledger balanced" if now.balanced else "LEDGER DOES NOT BALANCE"
    return (
        f"{now.orders:,} orders, {now.confirmed:,} confirmed, {now.rejected:,} rejected, {now.open:,} open; {verdict}"
    )


@contextmanager
def _table() -> Iterator[Show]:
    from rich.live import Live
    from rich.table import Table

    def draw(rows: list[Any], now: ledger.Ledger) -> Table:
        table = Table(caption=f"{_summary(now)}\nCtrl-C stops and gives the verdict")
        for name, justify in (("order", "left"), ("user", "left"), ("amount", "right"), ("status", "left")):
            table.add_column(name, justify="right" if justify == "right" else "left")
        for order_id, user_id, amount, status in rows:
            colour = {"confirmed": "green", "rejected": "red", "cancelled": "red"}.get(status, "yellow")
            table.add_row(order_id, user_id, f"{amount:.2f}", f"[{colour}]{status}[/]")
        return table

    with Live(auto_refresh=False) as live:
        yield lambda rows, now: live.update(draw(rows, now), refresh=True)
