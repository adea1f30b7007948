"""A real browser for tests, as a fixture: headless Chromium, found or installed by tools/browser.py.

A test that takes ``browser`` is marked ``browser`` by that. None is skipped: where there is none it fails with the line
that says what to install.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tools.browser import ensure_chromium
from tools.realservers import ServersError

BROWSER = frozenset({"browser", "chromium"})
"""Fixtures that need one."""
PATIENCE = 15_000
"""Milliseconds for which Playwright waits for what should be seen, where a test does not say otherwise."""


def mark(items: Sequence[pytest.Item]) -> None:
    """For ``pytest_collection_modifyitems``, before marks are looked at."""
    for item in items:
        if isinstance(item, pytest.Function) and not BROWSER.isdisjoint(item.fixturenames):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def chromium() -> Path:
    """The program."""
    trouble = None
    try:
        return ensure_chromium()
    except ServersError as error:
        trouble = error
    pytest.fail(f"no browser for this test: {trouble}", pytrace=False)


@pytest.fixture(scope="module")
def browser(chromium: Path) -> Iterator[Browser]:
    """Of a module only: Playwright keeps an event loop in this thread, in which asynchronous tests could not run."""
    arguments = ["--no-sandbox"] if os.getuid() == 0 else []  # root has none; what is shown here is our own
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()
