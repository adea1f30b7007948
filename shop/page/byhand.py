"""The same by hand, under kills and duplicates: ``scripts/shop --naive`` as a process beside the shop, in files of its
own, so that a visitor can see what becomes of it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import Any

ORDERS, KILLS, DUPLICATES = 300, 12, 0.1
RUN = ["--naive", "--orders", str(ORDERS), "--kills", str(KILLS), "--duplicates", str(DUPLICATES), "--port", "0"]


class ByHand:
    """One run at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._outcome: dict[str, Any] | None = None

    def start(self, seed: int) -> bool:
        """False: it runs already."""
        with self._lock:
            if self._process is not None:
                return False
            self._process = subprocess.Popen(
                [sys.executable, "-m", "shop", *RUN, "--seed", str(seed), "--json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
            threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
            return True

    def _read(self, process: subprocess.Popen[str]) -> None:
        said, _ = process.communicate()
        with self._lock:
            self._process = None
            lines = said.splitlines()
            self._outcome = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None

    @property
    def state(self) -> dict[str, Any]:
        """For the page."""
        with self._lock:
            return {"running": self._process is not None, "outcome": self._outcome}

    def close(self) -> None:
        with self._lock:
            if self._process is not None:
                self._process.terminate()
