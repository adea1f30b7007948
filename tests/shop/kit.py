"""The whole shop in one process: every service's real engine over one broker, with one clock that tests own; the third
parties beside it, reached as always, by HTTP and SMTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from eventkeel import Service
from eventkeel.testing.fleet import free_port
from eventkeel.testing.harness import Harness
from shop import ledger, settings
from shop.inventory import service as inventory
from shop.ledger import Ledger
from shop.loyalty import service as loyalty
from shop.notifications import service as notifications
from shop.orders import service as orders
from shop.payments import service as payments
from shop.shipping import service as shipping
from shop.users import service as users
from tests.outside import HOST, Outside

SERVICES: dict[str, Service] = {
    "users": users,
    "orders": orders,
    "inventory": inventory,
    "payments": payments,
    "shipping": shipping,
    "notifications": notifications,
    "loyalty": loyalty,
}
PATIENCE = 60.0


class Shop:
    """``async with shop(…) as it:``"""

    def __init__(self, folder: Path, outside: Outside, options: dict[str, Any]) -> None:
        self.folder, self.outside = folder, outside
        self.apps = {name: Harness(service, folder, options, ()) for name, service in SERVICES.items()}

    def client(self, name: str = "orders") -> httpx2.AsyncClient:
        """Of a service's HTTP application."""
        transport = httpx2.ASGITransport(app=SERVICES[name].http)
        return httpx2.AsyncClient(transport=transport, base_url="http://shop")

    async def place(self, order_id: str, *items: str, user_id: str = "USR1", amount: float = 10.0) -> None:
        """Over HTTP; each of ``items`` is one piece."""
        body = {"order_id": order_id, "user_id": user_id, "amount": amount, "items": [{"sku": sku} for sku in items]}
        async with self.client() as client:
            answer = await client.post("/orders", json=body)
        assert answer.status_code == 201, answer.text

    async def cancel(self, order_id: str) -> None:
        async with self.client() as client:
            answer = await client.post(f"/orders/{order_id}/cancellation")
        assert answer.status_code == 202, answer.text

    async def crash(self, name: str) -> None:
        """What SIGKILL leaves of a service; it starts again when its lease has run out."""
        await self.apps[name].crash()
        await self.apps[name].restart()

    async def rows(self, name: str, sql: str) -> list[Any]:
        return await self.apps[name].rows(sql)

    async def life(self, order_id: str) -> list[str]:
        """What was said of an order, in order."""
        sql = "select status from order_history where order_id = :order_id order by number"
        return [status for (status,) in await self.apps["orders"].rows(sql, {"order_id": order_id})]

    async def until(self, order_id: str, status: str) -> None:
        """Wait (real time) until an order has got there."""
        await self.apps["orders"].until(lambda: self._is(order_id, status), PATIENCE)

    async def _is(self, order_id: str, status: str) -> bool:
        sql = "select 1 from order_history where order_id = :order_id and status = :status"
        return bool(await self.apps["orders"].rows(sql, {"order_id": order_id, "status": status}))

    async def until_quiet(self, *, retries: bool = True) -> None:
        """Until nothing moves in any service; with ``retries``, backoffs pass (virtual time) until nothing is due."""
        while True:
            async with asyncio.timeout(PATIENCE):
                while not await self._still():
                    await asyncio.sleep(0.005)
            if not retries or not await self._let_backoffs_pass():
                return

    async def _let_backoffs_pass(self) -> bool:
        waited = False
        for app in self.apps.values():
            due = await app.runtime.store.next_due(app.clock.now())
            if due is not None:
                waited = True
                self._advance(app, due - app.clock.now() + 0.001)
        return waited

    def advance(self, seconds: float) -> None:
        """Let time pass in every service: whose backoff or timer is due then, is due."""
        for app in self.apps.values():
            self._advance(app, seconds)

    def _advance(self, app: Harness, seconds: float) -> None:
        app.clock.advance(seconds)
        app._wake()

    async def _still(self) -> bool:
        """Twice in a row: what one has just sent may have been unread by another."""
        for _ in range(2):
            for app in self.apps.values():
                if await app.moving():
                    return False
        return True

    def ledger(self) -> Ledger:
        """At rest."""
        stores = {name: self.apps[name].runtime.config.store_url(service) for name, service in ledger.STORES.items()}
        return ledger.read(stores, self.outside.folder / "outside.sqlite3")


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are pytest's."""
        yield


@contextlib.asynccontextmanager
async def shop(folder: Path, outside: Outside, **options: Any) -> AsyncIterator[Shop]:
    """All seven services run, and the provider's webhooks arrive."""
    made, port = Shop(folder, outside, options), free_port()
    settings.PROVIDER, settings.SMTP = f"http://{HOST}:{outside.http}", f"{HOST}:{outside.smtp}"
    settings.WEBHOOK = f"http://{HOST}:{port}/webhooks/provider"
    server = _Server(uvicorn.Config(payments.http, host=HOST, port=port, log_level="error"))
    serving = asyncio.ensure_future(server.serve())
    try:
        for app in made.apps.values():
            await app.start()
        yield made
    finally:
        server.should_exit = True
        await serving
        for app in made.apps.values():
            await app.stop()
