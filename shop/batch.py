"""``scripts/shop --orders N``: place N orders, disturb them as asked, wait until quiet, count."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from eventkeel.testing.fleet import Fleet, wait_for_port
from eventkeel.testing.nemesis import PATIENCE, Nemesis, Tally, plan
from shop import ledger
from shop.brokers import QUICK, Broker, is_kafka, open_broker, with_options
from shop.databases import Unreadable
from shop.epochs import epoch_violations
from shop.foreign import Foreigner
from shop.placing import Api, Crowd, Order, shopping
from shop.quiet import wait_until_quiet
from shop.running import HOST, SERVICES, CannotRun, Place, Running, Street, choose_street, start_outside

BALANCED, UNBALANCED, INCONCLUSIVE = 0, 1, 2
TWO_OF = ("orders", "payment-service")
"""Services of which two workers run while some are killed: one takes over from the other."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """What the command line asked for."""

    orders: int
    seed: int = 0
    duplicates: float = 0.0
    """Probability that an order's message is delivered once more."""
    kills: int = 0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the run has shown."""

    ledger: ledger.Ledger
    kills: int
    kills_in_unit: int
    duplicates: int
    seconds: float
    seed: int
    inconclusive: str = ""
    problems: tuple[str, ...] = ()
    epoch_violations: int | None = 0
    """Rows that a former owner of their partition committed too late; None: the database cannot tell."""

    @property
    def code(self) -> int:
        if not self.ledger.balanced or self.problems or self.epoch_violations:
            return UNBALANCED
        return INCONCLUSIVE if self.inconclusive else BALANCED

    def json(self) -> dict[str, Any]:
        """The object of ``--json``."""
        return {
            **self.ledger.json(),
            "kills": self.kills,
            "kills_in_unit": self.kills_in_unit,
            "duplicates": self.duplicates,
            "seconds": round(self.seconds, 3),
            "seed": self.seed,
            "epoch_violations": self.epoch_violations,
            "balanced": self.ledger.balanced and not self.problems and not self.epoch_violations,
            "inconclusive": self.inconclusive or None,
            "problems": list(self.problems),
        }


def run(wish: Wish, place: Place, tell: Callable[[str], None]) -> Outcome:
    """Do it. Raises CannotRun where the services do not start."""
    with contextlib.closing(open_broker(place.broker)) as broker:
        return _run(wish, place, broker, tell)


def _run(wish: Wish, place: Place, broker: Broker, tell: Callable[[str], None]) -> Outcome:
    street = choose_street()
    rng = random.Random(wish.seed)
    users = max(3, wish.orders // 20)
    orders = list(shopping(wish.orders, users, rng))
    twins = _choose_twins(orders, wish.duplicates, rng)
    regrets = {order.order_id for order in orders if rng.random() < 0.06}
    before = _duplicates_so_far(broker)
    with _services(place, street, wish) as fleet:
        tell(f"orders API at http://{HOST}:{street.orders}/orders; placing {wish.orders:,} orders (seed {wish.seed})")
        began = time.monotonic()
        _register(users, street)
        crowd, foreigner = _crowd(street, orders, twins, regrets, place, held=bool(wish.kills))
        crowd.start()
        tally = _disturb(fleet, wish, place, crowd, rng, tell)
        crowd.join()
        foreigner.close()
        tell("all orders placed; waiting until nothing moves any more")
        quiet = wait_until_quiet(broker, [*place.stores.values()], done=lambda: _complete(place, wish.orders))
        seconds = time.monotonic() - began
        problems = [*crowd.failures[:5], *(fleet.unable() if fleet else [])]
        if not quiet:
            problems.append("something still waits: see 'eventkeel lag' and 'eventkeel dlq list'")
    return Outcome(
        ledger.read(place.stores, place.outside),
        tally.kills,
        tally.kills_in_unit,
        delivered := broker.repeated("order_events") - before,
        seconds,
        wish.seed,
        _inconclusive(wish, tally, delivered, len(twins)),
        tuple(problems),
        epoch_violations([*place.stores.values()]),
    )


def _choose_twins(orders: list[Order], probability: float, rng: random.Random) -> set[str]:
    twins = {order.order_id for order in orders if rng.random() < probability}
    if probability > 0 and not twins and orders:
        twins = {rng.choice(orders).order_id}
    return twins


def _duplicates_so_far(broker: Broker) -> int:
    try:
        return broker.repeated("order_events")
    except Unreadable:  # so there is no such topic yet
        return 0


@contextlib.contextmanager
def _services(place: Place, street: Street, wish: Wish) -> Iterator[Fleet | None]:
    """With kills: processes that can be hurt, kept by a fleet. Without: just as a user runs them."""
    if not wish.kills:
        running = Running(place, street)
        running.start()
        try:
            yield None
        finally:
            running.stop()
        return
    settings = {**place.settings(), "lease": "1", "log_level": "warning"}
    if is_kafka(place.broker):
        settings["broker"] = with_options(place.broker, QUICK)
    os.environ.update({**street.environment(), "SHOP_STEP_TIMEOUT": "300"})
    fleet = Fleet(place.data / "faults", settings=settings)
    for name, service in SERVICES.items():
        fleet.add(service, workers=2 if name in TWO_OF else 1)
    for name, address in street.http.items():
        fleet.add(SERVICES[name], http=address)
    with contextlib.closing(start_outside(place, street)), fleet:
        for port in (street.orders, street.users, street.payments):
            if not wait_for_port(HOST, port, 60):
                raise CannotRun(f"the services did not start: {'; '.join(fleet.unable()) or fleet.folder}")
        yield fleet


def _register(users: int, street: Street) -> None:
    with contextlib.closing(Api(HOST, street.users)) as api:
        for number in range(1, users + 1):
            user_id = f"USR{number:03}"
            api.post("/users", json.dumps({"user_id": user_id, "name": user_id, "email": f"{user_id}@mail.example"}))


def _crowd(
    street: Street, orders: list[Order], twins: set[str], regrets: set[str], place: Place, *, held: bool
) -> tuple[Crowd, Foreigner]:
    foreigner = Foreigner(place.broker)
    one_at_a_time = threading.Lock()

    def job(order: Order) -> Callable[[Api], None]:
        def place_it(api: Api) -> None:
            api.post("/orders", order.body())
            if order.order_id in twins:
                with one_at_a_time:
                    foreigner.append("order_events", order.order_id, order.body())
            if order.order_id in regrets:
                api.post(f"/orders/{order.order_id}/cancellation", "", also=(409,))  # it may be rejected already

        return place_it

    return Crowd(HOST, street.orders, [job(order) for order in orders], held=held), foreigner


def _disturb(
    fleet: Fleet | None, wish: Wish, place: Place, crowd: Crowd, rng: random.Random, tell: Callable[[str], None]
) -> Tally:
    if fleet is None:
        return Tally()
    nemesis = Nemesis(
        fleet.folder,
        plan(rng, kills=wish.kills, stops=0, stops_in_unit=0),
        rng,
        stop_seconds=2.5,
        feed=lambda share: crowd.allow(max(1, int(share * wish.orders))),
        tell=tell,
        patience=10.0 if is_kafka(place.broker) else PATIENCE,
    )
    return nemesis.run()


def _complete(place: Place, orders: int) -> bool:
    now = ledger.read(place.stores, place.outside)
    return now.orders >= orders and now.lost == 0


def _inconclusive(wish: Wish, tally: Tally, duplicates: int, planned: int) -> str:
    if tally.kills < wish.kills:
        return f"only {tally.kills} of {wish.kills} planned kills bit"
    if wish.kills >= 5 and not tally.kills_in_unit:
        return "no kill hit an open unit of work"
    if duplicates < planned:
        return f"only {duplicates} of {planned} planned duplicates were delivered"
    return ""
