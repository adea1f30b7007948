"""The whole shop as a visitor starts it, and his browser."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page

from tests.browser import PATIENCE

SHOP = [sys.executable, "-m", "shop", "--port", "0", "--page", "0"]
START = 90.0
"""Seconds for twelve processes on a busy machine."""


class Shop(NamedTuple):
    url: str
    data: Path
    broker: str = ""


@contextlib.contextmanager
def running(*options: str) -> Iterator[Shop]:
    """``scripts/shop`` with these options; what was done to it must have left its ledger balanced."""
    with tempfile.TemporaryDirectory(prefix="eventkeel-page-") as folder:
        data, said = Path(folder), Path(folder) / "said"
        with said.open("w") as out:
            process = subprocess.Popen([*SHOP, "--data", folder, *options], stdout=out, stderr=out, env={**os.environ})
        try:
            yield Shop(_read_url(said, process), data)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                code = process.wait(60)
            finally:
                process.kill()
        assert code == 0, said.read_text()
        assert "Traceback" not in said.read_text(), said.read_text()


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    """One for a module."""
    with running() as shop:
        yield shop


def _read_url(said: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + START
    while process.poll() is None and time.monotonic() < deadline:
        if found := re.search(r"page: (http://\S+)\n", said.read_text()):
            return found[1]
        time.sleep(0.05)
    pytest.fail(f"the shop told of no page:\n{said.read_text()}")


class Visit:
    """``page`` is Playwright's; ``troubles``: what its console said that is no good."""

    def __init__(
        self,
        browser: Browser,
        url: str,
        *,
        width: int = 1280,
        height: int = 900,
        scheme: str = "light",
        feed: bool = True,
    ) -> None:
        dark = scheme == "dark"
        self._context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        self._context.set_default_timeout(PATIENCE)
        self.troubles: list[str] = []
        self.page: Page = self._context.new_page()
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        if not feed:
            self.page.route("**/page/feed", lambda route: None)  # never answered
        self.page.goto(url, wait_until="load" if feed else "domcontentloaded")
        self.page.wait_for_selector("#wares li" if feed else "#checks li")

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.troubles.append(message.text)

    def count(self, service: str, what: str) -> int:
        """A number of a service's card."""
        text = self.page.get_by_test_id(f"service-{service}").locator(f"[data-count={what}]").inner_text()
        return int(text.replace(",", ""))

    def buy(self, title: str) -> None:
        self.page.get_by_role("button", name=f"Buy: {title}", exact=True).click()

    def reaches(self, status: str, *, seconds: float = 30) -> None:
        """Wait until the order whose life is shown has got there."""
        self.page.wait_for_selector(f"#steps [data-status={status}][data-state=done]", timeout=seconds * 1000)

    def close(self) -> None:
        self._context.close()


@pytest.fixture
def visit(browser: Browser, shop: Shop) -> Iterator[Visit]:
    """A visitor at a desk, whose console stays silent."""
    visit = Visit(browser, shop.url)
    yield visit
    visit.close()
    assert visit.troubles == []
