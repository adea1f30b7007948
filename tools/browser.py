"""A browser for tests of pages: found, installed where that is allowed, or named in one line to type.

python -m tools.browser      prints where it is
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tools.realservers.errors import ServersError
from tools.realservers.install import Need, ensure

OWN = "EVENTKEEL_TEST_BROWSER"
"""Names a Chromium, or Chrome, that is to be taken instead."""
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
APPS = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)


def find() -> Path | None:
    """Its program."""
    for name in NAMES:
        if found := shutil.which(name):
            return Path(found)
    return next((Path(app) for app in APPS if Path(app).exists()), None)


def ensure_chromium() -> Path:
    """Its program. Raises ServersError with the line to type, where it is not here and cannot be installed by us."""
    if own := os.environ.get(OWN):
        if not Path(own).exists():
            raise ServersError(f"{OWN} names {own}, which is not there")
        return Path(own)
    ensure([CHROMIUM])
    found = find()
    assert found is not None
    return found


CHROMIUM = Need("Chromium", find, "chromium", "--cask chromium")


def main() -> int:
    try:
        print(ensure_chromium())
    except ServersError as error:
        print(f"browser: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
