"""Where the suite runs here: our brokers and our stores, and how what a test left on them is taken away."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import psycopg
import pytest

from eventkeel.testing import harness
from tests.rabbit import wipe

QUICK_KAFKA = "session.timeout.ms=6000&heartbeat.interval.ms=500"
"""The least that Kafka allows before others take what a killed process had."""
QUICK_RABBITMQ = "catch_up_ms=300&settle_ms=0"
"""On one machine nothing is under way for longer; and whoever is given this does not kill the broker."""
KILLED_RABBITMQ = "catch_up_ms=300"
"""For tests that do."""


@contextlib.contextmanager
def broker(kind: str, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The broker's part of ``ServiceSuite.settings``."""
    if kind == "kafka":
        url: str = request.getfixturevalue("kafka_url")
        try:
            yield {"broker": f"{url}?prefix={{place}}.&{QUICK_KAFKA}"}
        finally:
            _forget_topics(url)
    elif kind == "rabbitmq":
        url = request.getfixturevalue("rabbitmq_url")
        try:
            yield {"broker": _with(url, f"prefix={{place}}.&{QUICK_RABBITMQ}")}
        finally:
            for place in harness.PLACES:
                _wipe(_with(url, f"prefix={place}."))
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
def corner(rabbitmq_url: str) -> Iterator[str]:
    """A prefix of a test's own on a RabbitMQ that it shares; what is behind it is gone afterwards."""
    prefix = f"prefix=t{os.urandom(4).hex()}."
    try:
        yield _with(rabbitmq_url, f"{prefix}&{QUICK_RABBITMQ}")
    finally:
        _wipe(_with(rabbitmq_url, prefix))


def _with(url: str, options: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{options}"


def _wipe(url: str) -> None:
    with ThreadPoolExecutor(1) as pool:  # here a loop may be open
        pool.submit(asyncio.run, wipe(url)).result()
