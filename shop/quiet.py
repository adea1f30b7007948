"""Waiting until nothing moves any more, by looking at the files: no outbox row, no unread message,
nobody whose retry is due. Plain SQL, read-only, like the ledger."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

WAITING_IN_STORE = """
    select (select count(*) from eventkeel_outbox)
         + (select count(*) from eventkeel_gate where state = 'waiting')"""

# Only what the shop itself reads: a service that somebody ran beside it and stopped is behind for ever.
WAITING_IN_BROKER = """
    select (select count(*) from inbound where topic in (select name from topics))
         + (select coalesce(sum(p.next - coalesce(g.position, 0)), 0)
            from subscriptions s
            join partitions p on p.topic = s.topic
            left join progress g on g.grp = s.grp and g.topic = s.topic and g.partition = p.partition
            where s.grp in ('orders', 'payment-service-group'))"""


def _value(path: Path, sql: str) -> int:
    connection = sqlite3.connect(f"file:{path.resolve()}?mode=ro", uri=True)
    try:
        return int(connection.execute(sql).fetchone()[0])
    finally:
        connection.close()


def waiting(broker: Path, stores: Sequence[Path]) -> int:
    """How much is still on its way: unsent, unread (as far as the groups have settled), parked."""
    return _value(broker, WAITING_IN_BROKER) + sum(_value(store, WAITING_IN_STORE) for store in stores)


def wait_until_quiet(
    broker: Path, stores: Sequence[Path], *, done: Callable[[], bool], stalled_after: float = 60.0
) -> bool:
    """Until nothing waits and ``done()``; False when nothing has moved for ``stalled_after`` seconds."""
    last, since = -1, time.monotonic()
    while True:
        try:
            left = waiting(broker, stores)
            if left == 0 and done():
                return True
        except sqlite3.OperationalError:  # a file or a table is not there yet
            left = -2
        if left != last:
            last, since = left, time.monotonic()
        elif time.monotonic() - since > stalled_after:
            return False
        time.sleep(0.1)
