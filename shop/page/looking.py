"""What the page shows, read from outside: the services' databases and the broker by plain SQL, and the ledger."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from shop import ledger
from shop.brokers import READS, Broker, open_broker
from shop.databases import Unreadable, reading
from shop.ledger import STORES
from shop.roll import Roll
from shop.running import Place

QUICK, SERVER_QUICK = 0.25, 0.6
"""Seconds between two looks at files while something moves, and at databases that are servers."""
ORDERS, MAILS, DEAD_LETTERS = 8, 6, 2
"""How many of them are shown: the latest."""
LEDGER_EVERY, LEDGER_AGAIN = 1.0, 8.0
"""Seconds between two readings of the ledger while something moves, and while nothing does."""
JUST_BACK = 6.0
"""Seconds for which a service that was started again is just back: a little longer than the lease of its forerunner,
whose work it takes over only then; longer, as long as something waits for it and it has handled nothing."""
WAITING_EVERY, SERVER_EVERY = 0.5, 2.0
"""Seconds between two questions to the broker; where that is a server, which each of them costs a connection."""
REST, AT_REST, LOST_AFTER = 20.0, 1.0, 180.0
"""Seconds for which an order was at its end before the ledger judges it while others are under way, and when nothing
waits any more; and after which one that does not move counts as lost."""

SERVICE = """
    select (select count(*) from eventkeel_inbox where state = 0),
           (select count(*) from eventkeel_outbox),
           (select count(*) from eventkeel_held where state = 'parked'),
           (select count(*) from eventkeel_held where state in ('dead', 'conflict'))"""
DEAD = """
    select last_failed, number, topic, type, reason, error from eventkeel_held
    where state in ('dead', 'conflict') order by number desc limit ?"""
LATEST = """
    select order_id, user_id, amount, items, status, reason from orders
    where status <> 'unheard' order by placed_at desc, {then} desc limit ?"""
STATUSES = "select order_id, status from orders where order_id in ({ids})"
STOCK = "select sku, title, price, initial, free, held, sold from stock order by price, sku"
MAIL = "select at, recipient, subject, body, times from inbox order by rowid desc limit ?"


class Looker:
    """Not for several threads at once. Everything may be missing while the services start: then it is not shown."""

    def __init__(self, place: Place, roll: Roll) -> None:
        self._place, self._roll = place, roll
        self._broker: Broker = open_broker(place.broker)
        self._waiting: dict[str, int] = {}
        self._every = WAITING_EVERY if place.broker.startswith("sqlite:") else SERVER_EVERY
        self.pace = QUICK if not place.store_url or place.store_url.startswith("sqlite:") else SERVER_QUICK
        """Seconds between two looks while something moves."""
        self._asked_at = self._counted_at = float("-inf")
        self._ledger: dict[str, Any] | None = None
        self._moved: object = None
        self._back: dict[str, tuple[float, int]] = {}
        """Name of a service -> when it was last started again, and how much it had handled then."""

    def look(self, rush: Sequence[str]) -> dict[str, Any]:
        """``rush``: ids of orders whose statuses are asked for, too."""
        orders, rushed = self._orders(rush)
        services = self._services()
        quiet = not any(service["waiting"] for service in services)
        return {
            "orders": orders,
            "rush": rushed,
            "stock": self._stock(),
            "services": services,
            "dead_letters": self._dead_letters(services),
            "mails": self._mails(),
            "happenings": [each._asdict() for each in self._roll.happenings()[-12:]],
            "ledger": self._count((orders, services), quiet),
        }

    def prices(self) -> dict[str, int]:
        """Name of a ware -> its price in cents. May be called at any time, by anybody."""
        return {ware["sku"]: round(float(ware["price"]) * 100) for ware in self._stock()}

    def close(self) -> None:
        self._broker.close()

    def _orders(self, rush: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
        names = ("order_id", "user_id", "amount", "items", "status", "reason")
        with reading(self._place.stores["orders"]) as database:
            rows = database.rows(LATEST.format(then="order_id" if database.postgres else "rowid"), (ORDERS,))
            shown = [dict(zip(names, row, strict=True)) for row in rows]
            marks = ", ".join("?" * len(rush))
            known = dict(database.rows(STATUSES.format(ids=marks), rush)) if rush else {}
        for order in shown:
            order["amount"], order["items"] = f"{order['amount']:.2f}", msgspec.json.decode(order["items"])
        return shown, [known.get(order_id, "") for order_id in rush]

    def _services(self) -> list[dict[str, Any]]:
        waiting = self._ask_broker()
        return [self._service(folder, waiting) for folder in STORES]

    def _service(self, folder: str, waiting: dict[str, int]) -> dict[str, Any]:
        name = STORES[folder]
        with reading(self._place.stores[folder]) as database:
            handled, unsent, parked, dead = database.rows(SERVICE)[0]
        unread = sum(count for group, count in waiting.items() if group.removesuffix("-group") == name)
        processes = self._roll.processes(name)
        return {
            "name": folder,
            "handled": handled,
            "waiting": unread + unsent + parked,
            "dead": dead,
            "light": self._light(name, processes, handled, waiting=unread + unsent + parked),
            "pids": [pid for _, pid in sorted(processes.items()) if pid is not None],
        }

    def _light(self, name: str, processes: Mapping[str, int | None], handled: int, waiting: int) -> str:
        if not processes or None in processes.values():
            return "dead"
        back_at = self._roll.back_at(name)
        if self._back.get(name, (0.0, 0))[0] != back_at:
            self._back[name] = (back_at, handled)
        idle = waiting > 0 and handled == self._back[name][1]
        return "back" if time.monotonic() - back_at < (LOST_AFTER if idle else JUST_BACK) else "alive"

    def _ask_broker(self) -> dict[str, int]:
        if time.monotonic() - self._asked_at > self._every:
            self._waiting = {group: self._unread(group) for group in READS}
            self._asked_at = time.monotonic()
        return self._waiting

    def _unread(self, group: str) -> int:
        try:
            return self._broker.waiting({group: READS[group]})
        except Unreadable:  # a topic is not there yet, or the broker does not answer just now
            return self._waiting.get(group, 0)

    def _dead_letters(self, services: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found: list[tuple[float, dict[str, Any]]] = []
        for folder in (service["name"] for service in services if service["dead"]):
            with reading(self._place.stores[folder]) as database:
                for at, number, topic, kind, reason, error in database.rows(DEAD, (DEAD_LETTERS,)):
                    letter = {"number": number, "topic": topic, "type": kind, "reason": reason, "error": error[:300]}
                    found.append((at, {"service": folder, **letter}))
        return [letter for _, letter in sorted(found, key=lambda each: -each[0])[:DEAD_LETTERS]]

    def _stock(self) -> list[dict[str, Any]]:
        names = ("sku", "title", "price", "initial", "free", "held", "sold")
        with reading(self._place.stores["inventory"]) as database:
            shown = [dict(zip(names, row, strict=True)) for row in database.rows(STOCK)]
        for ware in shown:
            ware["price"] = f"{ware['price']:.2f}"
        return shown

    def _mails(self) -> list[dict[str, Any]]:
        with reading(self._place.outside) as database:
            rows = database.rows(MAIL, (MAILS,))
        return [dict(zip(("at", "to", "subject", "text", "times"), map(_text, row), strict=True)) for row in rows]

    def _count(self, moved: object, quiet: bool) -> dict[str, Any] | None:
        """Read anew when something has moved, and now and then: time alone makes an order lost."""
        since = time.monotonic() - self._counted_at
        if since > LEDGER_AGAIN or (since > LEDGER_EVERY and moved != self._moved):
            stores, rest = self._place.stores, AT_REST if quiet else REST
            self._ledger = ledger.read(stores, self._place.outside, rest=rest, patience=LOST_AFTER).json()
            self._moved, self._counted_at = moved, time.monotonic()
        return self._ledger


def _text(value: Any) -> Any:
    return value if isinstance(value, int) else str(value)
