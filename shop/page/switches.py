"""What a visitor can do to the shop: buy a hundred at once, kill a service, deliver every message twice, send poison,
and put the payment provider into one of its modes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
import uuid
from collections.abc import Callable, Sequence

from shop.foreign import Foreigner
from shop.ledger import STORES
from shop.page.twice import Twice
from shop.placing import Api, Crowd, Order
from shop.roll import Roll
from shop.running import HOST, Place, Street

BUYERS = 16
"""Connections over which many buy at once."""


class Switches:
    """Every method may block: call it in a thread. They can be called side by side."""

    def __init__(self, place: Place, street: Street, roll: Roll) -> None:
        self._place, self._street, self._roll = place, street, roll
        self._twice: Twice | None = None
        self._lock = threading.Lock()
        self.rush: tuple[str, ...] = ()
        """The orders of the last hundred."""

    def buy_many(self, sku: str, cents: int, number: int) -> Sequence[str]:
        """So many buyers want one piece each, all at once. Returns the ids of their orders, which are on their way."""
        name = uuid.uuid4().hex[:5].upper()
        orders = [Order(f"RUSH-{name}-{each:03}", f"BUYER{each:03}", cents, (sku,)) for each in range(1, number + 1)]
        crowd = Crowd(HOST, self._street.orders, [_placing(order) for order in orders], threads=BUYERS)
        self.rush = tuple(order.order_id for order in orders)
        crowd.start()
        return self.rush

    def kill(self, folder: str) -> list[int]:
        """SIGKILL to every process of a service. Returns the pids; none, where it is dead already."""
        killed = []
        for pid in self._roll.processes(STORES[folder]).values():
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
        return killed

    def poison(self) -> str:
        """A message that nobody can understand, as a program with a bug would write it. Returns its key."""
        order_id = f"POISON-{uuid.uuid4().hex[:6]}"
        foreigner = Foreigner(self._place.broker)
        try:
            body = json.dumps({"order_id": order_id, "user_id": "USR001", "amount": "a lot"})
            foreigner.append("order_events", order_id, body)
        finally:
            foreigner.close()
        return order_id

    @property
    def twice(self) -> bool:
        """Whether every message is delivered twice."""
        return self._twice is not None

    def deliver_twice(self, on: bool) -> None:
        with self._lock:
            if on and self._twice is None:
                self._twice = Twice(self._place.broker)
            elif not on and self._twice is not None:
                self._twice.close()
                self._twice = None

    def provider(self, mode: str | None = None) -> str:
        """Its mode, after it was changed to ``mode``. Raises OSError, HTTPException where it does not answer."""
        connection = http.client.HTTPConnection(HOST, self._street.provider, timeout=5)
        try:
            if mode is None:
                connection.request("GET", "/mode")
            else:
                connection.request("PUT", "/mode", json.dumps({"mode": mode}))
            return str(json.loads(connection.getresponse().read())["mode"])
        finally:
            connection.close()

    def close(self) -> None:
        """Everything as it should be."""
        self.deliver_twice(False)


def _placing(order: Order) -> Callable[[Api], None]:
    def place(api: Api) -> None:
        api.post("/orders", order.body())

    return place
