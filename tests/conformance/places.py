"""Where the suite runs here: our brokers and our stores, and how what a test left on them is taken away."""

from __future__ import annotations

import contextlib
import json
import os
import re
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from eventkeel.testing import harness
from tests.servers import RUN
from tools.realservers import Servers, ServersError

QUICK_KAFKA = "session.timeout.ms=6000&heartbeat.interval.ms=500"
"""The least that Kafka allows before others take what a killed process had."""
QUICK_RABBITMQ = "catch_up_ms=300"
"""On one machine nothing is under way for longer."""


@contextlib.contextmanager
def broker(kind: str, request: pytest.FixtureRequest, name: str) -> Iterator[dict[str, str]]:
    """The broker's part of ``ServiceSuite.settings``; ``name`` is one that no other test has."""
    if kind == "kafka":
        url: str = request.getfixturevalue("kafka_url")
        try:
            yield {"broker": f"{url}?prefix={{place}}.&{QUICK_KAFKA}"}
        finally:
            _forget_topics(url)
    elif kind == "rabbitmq":
        with virtual_host(request.getfixturevalue("rabbitmq_url"), name) as url:
            yield {"broker": f"{url}{'&' if '?' in url else '?'}prefix={{place}}.&{QUICK_RABBITMQ}"}
    else:
        yield {}


@contextlib.contextmanager
def store(kind: str, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The store's part."""
    if kind != "postgres":
        yield {}
        return
    url: str = request.getfixturevalue("postgres_url")
    try:
        yield {"store": url + "?schema={place}_{service}"}
    finally:
        with psycopg.connect(url, autocommit=True) as db:
            for place in harness.PLACES:
                for (schema,) in db.execute(
                    "select nspname from pg_namespace where starts_with(nspname, %s)", [place]
                ).fetchall():
                    db.execute(f'drop schema if exists "{schema}" cascade'.encode())


def _forget_topics(url: str) -> None:
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": urlsplit(url).netloc})
    mine = [name for name in admin.list_topics(timeout=10).topics if name.startswith(tuple(harness.PLACES))]
    if harness.PLACES and mine:
        for done in admin.delete_topics(mine).values():
            done.result()


@contextlib.contextmanager
def virtual_host(url: str, name: str) -> Iterator[str]:
    """A virtual host of a test's own, gone afterwards with everything in it; on a broker whose management API nobody
    has told us, the one that it names, where queues stay."""
    address = _management(url)
    if not address:
        yield url
        return
    place = f"t-{re.sub(r'[^a-z0-9]+', '-', name.lower())[-80:]}-{os.urandom(3).hex()}"
    parts = urlsplit(url)
    login = f"{parts.username or 'guest'}:{parts.password or 'guest'}"
    user = login.partition(":")[0]
    _api(address, login, "PUT", f"vhosts/{place}", {})
    rights = {"configure": ".*", "write": ".*", "read": ".*"}
    _api(address, login, "PUT", f"permissions/{place}/{user}", rights)
    try:
        yield f"amqp://{parts.netloc}/{place}?management={address}"
    finally:
        _api(address, login, "DELETE", f"vhosts/{place}")


def _management(url: str) -> str:
    """Of a server that tools/realservers runs, for these tests or for whoever develops."""
    port = urlsplit(url).port
    homes = [Path(os.environ[RUN])] if RUN in os.environ else []
    for servers in (*(Servers(home) for home in homes), Servers()):
        with contextlib.suppress(ServersError, OSError):
            if servers.rabbitmq.exists and servers.rabbitmq.port() == port:
                return servers.rabbitmq.management
    return ""


def _api(address: str, login: str, method: str, what: str, body: object = None) -> None:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/api/{what}", data, method=method)
    request.add_header("Authorization", "Basic " + b64encode(login.encode()).decode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=20) as answer:
        answer.read()
