"""A database, opened read-only by its URL and read by plain SQL, as an outsider would. Nothing of Eventkeel in here.

sqlite:///PATH                                      (or just a path)
postgresql://user@host:port/database?schema=NAME
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

OURS = ("schema", "pool")
"""Options of the URL that libpq does not know."""


class Unreadable(Exception):
    """The database or a table of it cannot be read: not there yet, not there at all, or nobody answers."""


class Reader:
    """One read-only transaction: everything read in it is of one moment."""

    def __init__(self, connection: Any, *, postgres: bool) -> None:
        self._connection, self.postgres = connection, postgres

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """``?`` stands for a parameter. Raises Unreadable."""
        with _readable(self.postgres):
            if self.postgres:
                sql = sql.replace("%", "%%").replace("?", "%s")
            return list(self._connection.execute(sql, parameters).fetchall())

    def number(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """The one number that the statement gives."""
        return int(self.rows(sql, parameters)[0][0])

    def in_order_of_commit(self, within: str) -> str:
        """What to sort a table by whose rows are only ever inserted, so that they come as they were committed.

        SQLite commits one transaction after another, and numbers rows as they come. PostgreSQL knows when a
        row's transaction was committed if it was told to remember (``track_commit_timestamp``); else the order
        in which transactions first wrote has to do. Of the rows of one transaction it does not know the order
        (``cmin`` does not survive a crash, and ``ctid`` goes wherever there is room): ``within`` is the column
        in which the writer says so.
        """
        if not self.postgres:
            return "rowid"
        when = "pg_xact_commit_timestamp(xmin)" if self.knows_commits() else "cast(cast(xmin as text) as bigint)"
        return f"{when}, {within}"

    def knows_commits(self) -> bool:
        """False: a PostgreSQL server that does not remember when a transaction was committed."""
        return not self.postgres or self.rows("show track_commit_timestamp") == [("on",)]


@contextmanager
def reading(where: Path | str) -> Iterator[Reader]:
    """Raises Unreadable."""
    postgres = is_postgres(where)
    with _readable(postgres):
        connection = _open_postgres(str(where)) if postgres else _open_sqlite(file_of(where))
    try:
        yield Reader(connection, postgres=postgres)
    finally:
        connection.close()


def is_postgres(where: Path | str) -> bool:
    return isinstance(where, str) and where.partition(":")[0] in ("postgresql", "postgres")


def file_of(where: Path | str) -> Path:
    """The file that a ``sqlite:`` URL names, as the framework reads it: three slashes, then a path."""
    text = str(where)
    return Path(text.removeprefix("sqlite:").removeprefix("///") if text.startswith("sqlite:") else text)


def read_only(path: Path) -> str:
    """For SQLite."""
    return f"file:{quote(str(path.resolve()))}?mode=ro"


def shown(url: str) -> str:
    """Of a database or a broker, without what may be secret."""
    if url.startswith("sqlite:"):
        return str(file_of(url))
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextmanager
def _readable(postgres: bool) -> Iterator[None]:
    if not postgres:
        try:
            yield
        except sqlite3.Error as error:
            raise Unreadable(str(error)) from error
        return
    psycopg = _psycopg()
    try:
        yield
    except psycopg.Error as error:
        raise Unreadable(str(error).strip()) from error


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise Unreadable("reading PostgreSQL needs psycopg: pip install 'eventkeel[postgres]'") from error
    return psycopg


def _open_sqlite(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(read_only(path), uri=True, isolation_level=None)
    connection.execute("begin")
    return connection


def _open_postgres(url: str) -> Any:
    psycopg = _psycopg()
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    schema = options.get("schema", "public")
    ours = {"connect_timeout": "5", "application_name": "shop-ledger"}
    theirs = {name: value for name, value in options.items() if name not in OURS}
    query = urlencode({**ours, **theirs}, quote_via=quote)
    connection = psycopg.connect(parts._replace(query=query).geturl(), prepare_threshold=None)
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    connection.execute("select set_config('search_path', quote_ident(%s), true)", (schema,))
    return connection
