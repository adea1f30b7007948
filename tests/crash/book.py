"""What the journal's database says, by plain SQL, read-only: nothing of Eventkeel in here either."""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Iterable
from pathlib import Path

from shop.brokers import Broker, Message
from shop.databases import reading

# Rows in the order in which they were committed. The handler read the account's last row in its own transaction: where
# that is not the row before, another one came in between (torn).
PAIRS = """
    select number, coalesce(previous, -1) as previous, lag(number) over account as before
    from journal window account as (partition by account order by {commit})"""

SQL = {
    "published": "select count(*) from source",
    "lost": """
        select count(*) from source s
        where not exists (select 1 from journal j where j.account = s.account and j.number = s.number)""",
    "twice": """
        select count(*) from
        (select 1 from journal group by account, number having count(*) > 1) as repeated""",
    "pairs": "select count(*) - count(distinct account) from journal",
    "out_of_order": f"select count(*) from ({PAIRS}) as pairs where number < before",
    "torn": f"select count(*) from ({PAIRS}) as pairs where previous <> coalesce(before, -1)",
    "failed_twice": "select count(*) from journal where attempt >= 3",
}

ONE_EACH = "order_events"
"""Of this topic, two messages of a key are the same fact; of all others, two with the same key and body."""


@dataclasses.dataclass(frozen=True)
class Book:
    published: int
    lost: int
    twice: int
    pairs: int
    out_of_order: int
    torn: int
    failed_twice: int


def read(store: Path | str) -> Book:
    """Count. Raises shop.databases.Unreadable."""
    with reading(store) as database:
        commit = database.in_order_of_commit("line")
        return Book(**{name: database.number(sql.format(commit=commit)) for name, sql in SQL.items()})


def duplicates(broker: Broker, topics: Iterable[str]) -> int:
    """Messages on the broker that were there before."""
    found = 0
    for topic in topics:
        facts = collections.Counter(
            (message.key, b"" if topic == ONE_EACH else message.body) for message in broker.messages(topic)
        )
        found += sum(facts.values()) - len(facts)
    return found


def some_messages(broker: Broker, topic: str, number: int) -> list[Message]:
    """A random choice of a topic's messages as they lie on the broker."""
    there = broker.messages(topic)
    return random.sample(there, min(number, len(there)))
