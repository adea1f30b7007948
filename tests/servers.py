"""Real servers for tests, as fixtures.

``kafka_url``, ``postgres_url``, ``rabbitmq_url`` and ``database`` share one set of servers: those that
EVENTKEEL_TEST_KAFKA, EVENTKEEL_TEST_POSTGRES and EVENTKEEL_TEST_RABBITMQ name, else one that is started for this run,
whichever worker of pytest-xdist asks first, and ended with it. ``own_kafka``, ``own_kafka_cluster``, ``own_postgres``,
``own_rabbitmq`` and ``own_rabbitmq_cluster`` are one test's own, to be killed and paused.

A test that takes one of them is marked ``servers`` by that. One that asks ``request`` for them marks itself, such as
``pytest.param("postgres", marks=pytest.mark.servers)``. None is skipped: where there are no servers it fails with the
line that says what to install.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
import pytest

from tools.realservers import Server, Servers, ServersError, foreign
from tools.realservers.fleet import check_foreign
from tools.realservers.rabbitmq import RabbitMQ

RUN = "EVENTKEEL_TEST_RUN"
"""Names the folder of this run's servers to the workers of pytest-xdist, and to a pytest that a test starts."""

_ours = pytest.StashKey[Servers]()


def prepare(config: pytest.Config) -> None:
    """For ``pytest_configure``: a folder for servers, and no mind for those that somebody's shell speaks of."""
    for name in ("EVENTKEEL_BROKER", "EVENTKEEL_STORE"):
        os.environ.pop(name, None)
    if RUN not in os.environ:
        config.stash[_ours] = servers = Servers.temporary()
        os.environ[RUN] = str(servers.home)


def clean(config: pytest.Config) -> None:
    """For ``pytest_unconfigure``: whoever made the folder ends what runs there."""
    if servers := config.stash.get(_ours, None):
        os.environ.pop(RUN, None)
        servers.down()


def mark(items: Sequence[pytest.Item]) -> None:
    """For ``pytest_collection_modifyitems``, before marks are looked at."""
    for item in items:
        if isinstance(item, pytest.Function) and not SERVERS.isdisjoint(item.fixturenames):
            item.add_marker(pytest.mark.servers)


def _shared(kind: str) -> str:
    try:
        return _find_or_start(kind)
    except ServersError as error:
        trouble = error
    pytest.fail(f"no {kind} for this test: {trouble}", pytrace=False)


def _find_or_start(kind: str) -> str:
    if url := foreign(kind):
        check_foreign(kind, url)
        return url
    home = Path(os.environ[RUN])
    broken = home / f"{kind}.broken"
    with (home / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if broken.exists():  # the first test that wanted it has waited for all of them
            raise ServersError(broken.read_text())
        servers = Servers(home)
        try:
            servers.up(kind)
        except ServersError as error:
            broken.write_text(str(error))
            raise
        return servers.url(kind)


@contextlib.contextmanager
def _own(kind: str) -> Iterator[Servers]:
    with Servers.temporary() as servers:
        trouble = None
        try:
            servers.up(kind)
        except ServersError as error:
            trouble = error
        if trouble:
            pytest.fail(f"no {kind} for this test: {trouble}", pytrace=False)
        yield servers


@pytest.fixture(scope="session")
def kafka_url() -> str:
    """``kafka://host:port``; topics have to be made, and named so that no other test has the same."""
    return _shared("kafka")


@pytest.fixture(scope="session")
def postgres_url() -> str:
    """``postgresql://…`` of a superuser, in a database that all tests share."""
    return _shared("postgres")


@contextlib.contextmanager
def fresh_database(postgres_url: str) -> Iterator[str]:
    """The URL of a new, empty database; it is dropped afterwards, whoever is still connected."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f'create database "{name}" template template0'.encode())
    try:
        yield urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as admin:
            admin.execute(f'drop database "{name}" with (force)'.encode())


@pytest.fixture
def database(postgres_url: str) -> Iterator[str]:
    """The URL of this test's own database."""
    with fresh_database(postgres_url) as url:
        yield url


@pytest.fixture
def own_kafka() -> Iterator[Server]:
    """A broker to hurt: ``kill9()``, ``start()``, ``pause()``, ``resume()``, ``restart()``, ``url``."""
    with _own("kafka") as servers:
        yield servers.kafka


@pytest.fixture
def own_kafka_cluster() -> Iterator[Servers]:
    """Three brokers to hurt: ``.cluster``, and ``.url("kafka-cluster")``."""
    with _own("kafka-cluster") as servers:
        yield servers


@pytest.fixture
def own_postgres() -> Iterator[Server]:
    """A PostgreSQL to hurt; its data survives that as it would survive a crash."""
    with _own("postgres") as servers:
        yield servers.postgres


@pytest.fixture(scope="session")
def rabbitmq_url() -> str:
    """``amqp://…`` of a user who may do everything; names have to be a test's own (``prefix=``)."""
    return _shared("rabbitmq")


@pytest.fixture
def own_rabbitmq() -> Iterator[RabbitMQ]:
    """A RabbitMQ to hurt; ``ctl(…)`` is its ``rabbitmqctl``, and its URL knows the management API."""
    with _own("rabbitmq") as servers:
        yield servers.rabbitmq


@pytest.fixture
def own_rabbitmq_cluster() -> Iterator[Servers]:
    """Three nodes to hurt: ``.nodes``, and ``.url("rabbitmq-cluster")``."""
    with _own("rabbitmq-cluster") as servers:
        yield servers


SERVERS = frozenset(
    {
        *("kafka_url", "postgres_url", "rabbitmq_url", "database"),
        *("own_kafka", "own_kafka_cluster", "own_postgres", "own_rabbitmq", "own_rabbitmq_cluster"),
    }
)
"""Fixtures that need real servers."""
