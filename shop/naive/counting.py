"""The ledger of the two: the same questions as the shop's own, asked of two tables."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from shop.naive.queue import connect

SQL = {
    "orders": "select count(*) from orders",
    "paid": "select count(*) from orders o where exists (select 1 from p.payments p where p.order_id = o.order_id)",
    "lost": "select count(*) from orders o where not exists (select 1 from p.payments p where p.order_id = o.order_id)",
    "untold": """
        select count(*) from orders o where status <> 'paid'
        and exists (select 1 from p.payments p where p.order_id = o.order_id)""",
    "twice": "select count(*) from (select 1 from p.payments group by order_id having count(*) > 1)",
    "owed": "select coalesce(sum(cast(round(amount * 100) as integer)), 0) from orders",
    "charged": "select coalesce(sum(cast(round(amount * 100) as integer)), 0) from p.payments",
}


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Money is in cents."""

    orders: int
    paid: int
    lost: int
    """Orders that nobody was ever charged for."""
    untold: int
    """Orders that were paid and do not know it."""
    twice: int
    """Orders that were charged more than once."""
    owed: int
    charged: int

    @property
    def balanced(self) -> bool:
        return self.lost == self.untold == self.twice == 0 and self.owed == self.charged

    def json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "money_balanced": self.owed == self.charged, "balanced": self.balanced}

    def line(self) -> str:
        verdict = "balanced" if self.balanced else "DOES NOT BALANCE"
        return (
            f"naive: orders {self.orders}, paid {self.paid}, lost {self.lost}, paid and never told {self.untold}, "
            f"charged twice {self.twice}; {self.charged / 100:.2f} taken of {self.owed / 100:.2f} owed: {verdict}"
        )


def count(data: Path) -> Ledger:
    """When nothing moves any more."""
    with contextlib.closing(connect(data / "orders.sqlite3")) as database:
        database.execute("attach database ? as p", (str(data / "payments.sqlite3"),))
        return Ledger(**{name: int(database.execute(sql).fetchone()[0]) for name, sql in SQL.items()})
