"""What the third parties keep, in one SQLite file. The ledger reads it: what was charged there is the truth."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import NamedTuple

SCHEMA = """
create table if not exists movements (
    idempotency_key text primary key,
    kind            text not null,              -- charge, refund
    reference       text not null,
    amount          text not null,
    status          text not null,              -- succeeded, declined
    reason          text not null,
    webhook         text not null,
    untold          integer not null            -- how often its webhook is still to be sent
);
create index if not exists movements_by_reference on movements (reference);
create table if not exists inbox (
    message_id text primary key,
    recipient  text not null,
    subject    text not null,
    body       text not null,
    times      integer not null default 1,      -- how often it came: a mailbox shows it once
    at         timestamp not null default current_timestamp
);
"""


class Movement(NamedTuple):
    """Money that moved, or did not."""

    key: str
    kind: str
    reference: str
    amount: str
    status: str
    reason: str
    webhook: str


class Books:
    """Not for several threads."""

    def __init__(self, path: Path) -> None:
        self._file = sqlite3.connect(path, isolation_level=None)
        self._file.execute("pragma journal_mode = wal")
        self._file.execute("pragma synchronous = normal")
        self._file.executescript(SCHEMA)

    def movement(self, key: str) -> Movement | None:
        """What was done for this key before."""
        row = self._file.execute(f"{MOVEMENT} where idempotency_key = ?", (key,)).fetchone()
        return Movement(*row) if row else None

    def move(self, movement: Movement, tell: int) -> None:
        """``tell``: how often to send its webhook."""
        self._file.execute("insert into movements values (?, ?, ?, ?, ?, ?, ?, ?)", (*movement, tell))

    def untold(self) -> list[tuple[Movement, int]]:
        """Whose webhook is still to be sent, and how often."""
        rows = self._file.execute(f"{MOVEMENT_UNTOLD} where untold > 0").fetchall()
        return [(Movement(*row[:-1]), row[-1]) for row in rows]

    def told(self, key: str) -> None:
        self._file.execute("update movements set untold = untold - 1 where idempotency_key = ?", (key,))

    def receive(self, message_id: str, recipient: str, subject: str, body: str) -> None:
        """A mail; one that is here already is counted."""
        self._file.execute(
            "insert into inbox (message_id, recipient, subject, body) values (?, ?, ?, ?) "
            "on conflict (message_id) do update set times = times + 1",
            (message_id, recipient, subject, body),
        )

    def mails(self, most: int) -> list[tuple[str, str, str, str]]:
        """The latest first: when, to whom, subject, text."""
        sql = "select at, recipient, subject, body from inbox order by rowid desc limit ?"
        return self._file.execute(sql, (most,)).fetchall()

    def close(self) -> None:
        self._file.close()


_COLUMNS = "idempotency_key, kind, reference, amount, status, reason, webhook"
MOVEMENT = f"select {_COLUMNS} from movements"
MOVEMENT_UNTOLD = f"select {_COLUMNS}, untold from movements"
