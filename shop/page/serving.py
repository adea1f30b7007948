"""Serves the page from a thread of the process that runs the shop: no process of its own, and nothing to do while
nobody looks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import uvicorn

from shop.page.app import Page
from shop.page.looking import Looker
from shop.page.switches import Switches
from shop.roll import Roll
from shop.running import HOST, CannotRun, Place, Street, choose_port

PATIENCE = 10.0
"""Seconds within which it has to listen."""


class _Server(uvicorn.Server):
    def __init__(self, page: Page, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._page = page
        self.up = threading.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the shop's."""
        yield

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        self.up.set()

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        self._page.hang_up()
        await super().shutdown(sockets)  # type: ignore[arg-type]


@contextlib.contextmanager
def serving(place: Place, street: Street, roll: Roll, wanted_port: int) -> Iterator[str]:
    """Yields the page's URL. Raises CannotRun."""
    port = choose_port(wanted_port)
    looker, switches = Looker(place, roll), Switches(place, street, roll)
    page = Page(street, looker, switches)
    config = uvicorn.Config(page.app, host=HOST, port=port, log_level="error", timeout_graceful_shutdown=1)
    server = _Server(page, config)
    thread = threading.Thread(target=server.run, name="page", daemon=True)
    thread.start()
    if not server.up.wait(PATIENCE):
        raise CannotRun(f"the page does not listen at {HOST}:{port}")
    try:
        yield f"http://{HOST}:{port}/"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        page.close()
        switches.close()
        looker.close()
