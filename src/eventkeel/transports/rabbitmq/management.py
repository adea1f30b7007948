"""The management API, where the broker has it: the only way to see bindings, and what others have not settled."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import urllib.request
from typing import Any, cast
from urllib.parse import quote, urlsplit

from eventkeel.transports.rabbitmq.settings import Options

log = logging.getLogger("eventkeel.transports.rabbitmq")

Binding = tuple[str, str, str, str]
"""Source, destination, routing key, and what the destination is: ``queue`` or ``exchange``."""
_PATIENCE = 3.0
_PORTS = {5672: 15672, 5671: 15672}
"""Where the API is, beside a broker at its usual port."""


class Management:
    """Answers None where the API is not to be had: nothing depends on it but how much can be looked at."""

    def __init__(self, options: Options) -> None:
        self._options = options
        usual = [f"http://{host}:{_PORTS[port]}" for host, port in options.hosts if port in _PORTS]
        named = [each.rstrip("/") for each in options.management.split(",") if each]
        self._addresses = [] if options.management == "no" else named or usual
        """One for each node; any of them knows all."""
        self.cluster = ""
        """The name of the cluster that we are connected to: an API that has another one is not asked."""
        self._checked: set[str] = set()

    async def bindings(self) -> set[Binding] | None:
        """Every binding in the virtual host."""
        found = await self._get("bindings")
        if not isinstance(found, list):
            return None
        names = ("source", "destination", "routing_key", "destination_type")
        return {cast("Binding", tuple(str(each[name]) for name in names)) for each in found}

    async def unsettled(self) -> dict[str, int]:
        """Of each queue, how many messages are out, as of some seconds ago."""
        found = await self._get("queues?columns=name,messages_unacknowledged&disable_stats=false")
        if not isinstance(found, list):
            return {}
        return {str(each["name"]): int(each.get("messages_unacknowledged") or 0) for each in found}

    async def _get(self, what: str) -> Any:
        for address in tuple(self._addresses):
            try:
                found = await self._ask(address, what)
            except (OSError, ValueError) as error:
                if address not in self._checked and not self._options.management:
                    self._addresses.remove(address)  # the usual port, and nobody there, or somebody else
                    log.info("the bindings of broker %s are not looked at: %s", self._options.name, error)
                continue
            self._addresses.sort(key=lambda each: each != address)  # a node that is down is not asked each time
            return found
        return None

    async def _ask(self, address: str, what: str) -> Any:
        name, _, query = what.partition("?")
        vhost = quote(self._options.vhost, safe="")
        if address not in self._checked:
            overview = await asyncio.to_thread(self._fetch, f"{address}/api/overview")
            if self.cluster and overview.get("cluster_name") != self.cluster:
                raise ValueError("another broker's")
            self._checked.add(address)
        return await asyncio.to_thread(self._fetch, f"{address}/api/{name}/{vhost}{'?' + query if query else ''}")

    def _fetch(self, url: str) -> Any:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("management in the broker's URL is no http:// or https:// address")
        request = urllib.request.Request(url)
        login = f"{self._options.user}:{self._options.password}".encode()
        request.add_header("Authorization", "Basic " + base64.b64encode(login).decode())
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
            return json.load(answer)
