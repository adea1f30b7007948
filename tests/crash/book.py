"""What the journal's database says, by plain SQL, read-only: nothing of Eventkeel in here either."""

from __future__ import annotations

import dataclasses
import sqlite3
from pathlib import Path

SQL = {
    "published": "select count(*) from source",
    "lost": """
        select count(*) from source s
        where not exists (select 1 from journal j where j.account = s.account and j.number = s.number)""",
    "twice": "select count(*) from (select 1 from journal group by account, number having count(*) > 1)",
    "pairs": "select count(*) - count(distinct account) from journal",
    "out_of_order": """
        select count(*) from
        (select number, lag(number) over (partition by account order by line) as before from journal)
        where number < before""",
    # The handler read the last row of the account in its own transaction: another one came in between.
    "torn": """
        select count(*) from
        (select previous, lag(number) over (partition by account order by line) as before from journal)
        where previous is not before""",
    "failed_twice": "select count(*) from journal where attempt >= 3",
}

# A message that repeats one which the broker had before; bodies of these topics are unique.
DUPLICATES = """
    select count(*) from
    (select row_number() over (partition by topic, key, case topic when 'order_events' then '' else body end
                               order by id) as nth
     from messages)
    where nth > 1"""


@dataclasses.dataclass(frozen=True)
class Book:
    published: int
    lost: int
    twice: int
    pairs: int
    out_of_order: int
    torn: int
    failed_twice: int


def read(store: Path) -> Book:
    """Count. Raises sqlite3.Error."""
    connection = _open(store)
    try:
        connection.execute("begin")
        return Book(**{name: int(connection.execute(sql).fetchone()[0]) for name, sql in SQL.items()})
    finally:
        connection.close()


def duplicates(broker: Path) -> int:
    """Messages on the broker, of all topics, that were there before."""
    connection = _open(broker)
    try:
        return int(connection.execute(DUPLICATES).fetchone()[0])
    finally:
        connection.close()


def some_messages(broker: Path, topic: str, number: int) -> list[tuple[str, bytes, str]]:
    """A random choice of a topic's messages as they lie on the broker: key, packed headers, body."""
    connection = _open(broker)
    try:
        return connection.execute(
            "select m.key, l.headers, m.body from messages m join log l on l.id = m.id "
            "where m.topic = ? order by random() limit ?",
            (topic, number),
        ).fetchall()
    finally:
        connection.close()


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path.resolve()}?mode=ro", uri=True)
