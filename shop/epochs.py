"""Whether a former owner of a partition committed something too late, by plain SQL over the inboxes. Nothing of
Eventkeel in here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shop.databases import reading

# A row whose epoch is below that of a row of its consumer and partition that was committed before it: the former
# owner's work, committed after the next one had begun. Rows of one transaction are neither before nor behind.
EPOCH_VIOLATIONS = """
    select count(*) from
    (select epoch, max(epoch) over (partition by consumer, topic, partition order by {order}
                                    groups between unbounded preceding and 1 preceding) as before
     from eventkeel_inbox) as numbered
    where epoch < before"""


def epoch_violations(stores: Sequence[Path | str]) -> int | None:
    """Inbox rows that a former owner of their partition committed too late.

    None: a PostgreSQL server does not remember when transactions were committed, so nobody can tell.
    Raises Unreadable.
    """
    found = 0
    for store in stores:
        with reading(store) as database:
            if not database.knows_commits():
                return None
            order = "pg_xact_commit_timestamp(cast(tx as xid))" if database.postgres else "id"
            found += database.number(EPOCH_VIOLATIONS.format(order=order))
    return found
