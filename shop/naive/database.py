"""A service's database: a file in a folder, or a schema of PostgreSQL. Every statement is a transaction."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any

from shop.databases import Unreadable


class Database:
    """One connection; not for several threads."""

    def __init__(self, store: str, service: str) -> None:
        self._postgres = store.startswith("postgres")
        self._connection: Any = _postgres(store, service) if self._postgres else open_file(Path(store, service))

    def execute(self, sql: str, values: dict[str, Any] | None = None) -> Any:
        """``:name`` stands for a value. Returns the driver's cursor."""
        if self._postgres:
            sql = re.sub(r":(\w+)", r"%(\1)s", sql)
        return self._connection.execute(sql, values or {})

    def close(self) -> None:
        self._connection.close()


def open_file(path: Path) -> sqlite3.Connection:
    """``path`` without its ending."""
    connection = sqlite3.connect(path.with_suffix(".sqlite3"), timeout=30, isolation_level=None)
    connection.execute("pragma journal_mode = wal")
    return connection


def _postgres(store: str, service: str) -> Any:
    import psycopg

    connection = psycopg.connect(store, autocommit=True)
    connection.execute("select set_config('search_path', %s, false)", (schema_of(store, service),))
    return connection


def schema_of(store: str, service: str) -> str:
    """Of PostgreSQL; named after the run, which is what the URL calls its application."""
    return f"{store.rpartition('application_name=')[2]}_{service}"


def make(store: str, services: tuple[str, ...]) -> None:
    """Schemas to work in. Raises Unreadable."""
    _in_postgres(store, [f"create schema if not exists {schema_of(store, service)}" for service in services])


def drop(store: str, services: tuple[str, ...]) -> None:
    _in_postgres(store, [f"drop schema if exists {schema_of(store, service)} cascade" for service in services])


def _in_postgres(store: str, statements: list[str]) -> None:
    if not store.startswith("postgres"):
        return
    import psycopg

    try:
        with psycopg.connect(store, autocommit=True, connect_timeout=5) as connection:
            for statement in statements:
                connection.execute(statement)
    except psycopg.Error as error:
        raise Unreadable(f"PostgreSQL: {error}") from error
