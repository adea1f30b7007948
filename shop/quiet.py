"""Waiting until nothing moves any more, by looking at databases and broker: no outbox row, no unread message,
nobody whose retry is due. Plain SQL, read-only, like the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from shop.brokers import READS, Broker
from shop.databases import Unreadable, reading

WAITING_IN_STORE = """
    select (select count(*) from eventkeel_outbox)
         + (select count(*) from eventkeel_gate where state = 'waiting')"""


def waiting(broker: Broker, stores: Sequence[Path | str], reads: Mapping[str, Sequence[str]] = READS) -> int:
    """How much is still on its way: unsent, unread (as far as the groups have settled), parked."""
    in_stores = 0
    for store in stores:
        with reading(store) as database:
            in_stores += database.number(WAITING_IN_STORE)
    return broker.waiting(reads) + in_stores


def wait_until_quiet(
    broker: Broker,
    stores: Sequence[Path | str],
    *,
    done: Callable[[], bool],
    stalled_after: float = 60.0,
    reads: Mapping[str, Sequence[str]] = READS,
) -> bool:
    """Until nothing waits and ``done()``; False when nothing has moved for ``stalled_after`` seconds."""
    last, since = -1, time.monotonic()
    while True:
        try:
            left = waiting(broker, stores, reads)
            if left == 0 and done():
                return True
        except Unreadable:  # a database, a topic or a table is not there yet, or somebody does not answer
            left = -2
        if left != last:
            last, since = left, time.monotonic()
        elif time.monotonic() - since > stalled_after:
            return False
        time.sleep(0.1)
