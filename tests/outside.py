"""The shop's third parties, a payment provider and a mail server, for tests of what talks to them."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from eventkeel.testing.fleet import free_port, wait_for_port

HOST = "127.0.0.1"


class Outside:
    """The third parties: a process of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.http, self.smtp = free_port(), free_port()
        addresses = ["--http", f"{HOST}:{self.http}", "--smtp", f"{HOST}:{self.smtp}"]
        self._command = [sys.executable, "-m", "shop.outside", "--data", str(folder), *addresses]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE)
        assert wait_for_port(HOST, self.http, 20), "the third parties do not start"

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def mode(self, mode: str) -> None:
        """Of the provider."""
        self._ask("PUT", "/mode", {"mode": mode})

    def mails(self) -> list[dict[str, str]]:
        """The latest first."""
        found: list[dict[str, str]] = self._ask("GET", "/mails")["mails"]
        return found

    def _ask(self, verb: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection(HOST, self.http, timeout=10)
        try:
            connection.request(verb, path, json.dumps(body))
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    @property
    def environment(self) -> dict[str, str]:
        """For the shop's services."""
        return {"SHOP_PROVIDER": f"http://{HOST}:{self.http}", "SHOP_SMTP": f"{HOST}:{self.smtp}"}

    def __enter__(self) -> Outside:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
