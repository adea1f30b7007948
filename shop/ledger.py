"""The ledger: counts by plain SQL what became of the orders, and knows nothing of how they were handled.

    python -m shop.ledger .data

It opens every database read-only and imports nothing of the framework under test.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import sys
from pathlib import Path

SQL = {
    # Every order, how often it was paid, and how much.
    "orders": "select count(*) from orders.orders",
    "paid": """
        select count(*) from orders.orders o
        where exists (select 1 from payments.payments p where p.order_id = o.order_id)""",
    "twice": """
        select count(*) from
        (select 1 from payments.payments group by order_id having count(*) > 1
         union all
         select 1 from orders.order_history group by order_id, sequence having count(*) > 1)""",
    # Neither paid nor kept: neither among the dead letters, nor waiting behind one.
    "lost": """
        select count(*) from orders.orders o
        where not exists (select 1 from payments.payments p where p.order_id = o.order_id)
          and not exists (select 1 from payments.eventkeel_held h
                          where cast(h.key as text) = o.order_id and h.state in ('dead', 'parked'))""",
    # Paid, and the order does not know it (or its history does not).
    "untold": """
        select count(*) from orders.orders o
        where exists (select 1 from payments.payments p where p.order_id = o.order_id)
          and (o.status <> 'paid' or (select count(distinct sequence) from orders.order_history h
                                      where h.order_id = o.order_id) < o.sequence)""",
    "out_of_order": """
        select count(*) from
        (select sequence, lag(sequence) over (partition by order_id order by number) as previous
         from orders.order_history)
        where previous is not null and sequence < previous""",
    "ordered_pairs": """
        select count(*) - count(distinct order_id) from orders.order_history""",
    "dead": """
        select (select count(*) from payments.eventkeel_held where state in ('dead', 'conflict'))
             + (select count(*) from orders.eventkeel_held where state in ('dead', 'conflict'))""",
    "charged": "select coalesce(sum(cast(round(amount * 100) as integer)), 0) from payments.payments",
    "owed": """
        select coalesce(sum(cast(round(o.amount * 100) as integer)), 0) from orders.orders o
        where exists (select 1 from payments.payments p where p.order_id = o.order_id)""",
    # Paid without an order: somebody wrote an OrderCreated past the API, straight into the broker.
    "foreign": """
        select count(*) from payments.payments p
        where not exists (select 1 from orders.orders o where o.order_id = p.order_id)""",
    "foreign_charged": """
        select coalesce(sum(cast(round(p.amount * 100) as integer)), 0) from payments.payments p
        where not exists (select 1 from orders.orders o where o.order_id = p.order_id)""",
}

DUPLICATES = """
    select count(*) from
    (select row_number() over (partition by key order by position) as nth from messages where topic = 'order_events')
    where nth > 1"""


@dataclasses.dataclass(frozen=True)
class Ledger:
    """What the databases say. Money is in cents."""

    orders: int
    paid: int
    lost: int
    twice: int
    untold: int
    out_of_order: int
    ordered_pairs: int
    dead: int
    owed: int
    charged: int
    foreign: int

    @property
    def amounts_equal(self) -> bool:
        """The money taken is the money owed by the orders that were paid, to the cent."""
        return self.owed == self.charged

    @property
    def balanced(self) -> bool:
        """Every order is paid once and knows it, or is kept with its reason; in order; to the cent."""
        wrong = self.lost + self.twice + self.untold + self.out_of_order
        return wrong == 0 and self.amounts_equal

    def line(self) -> str:
        verdict = "balanced" if self.balanced else "DOES NOT BALANCE"
        return (
            f"orders {self.orders}, paid {self.paid}, lost {self.lost}, twice {self.twice}, "
            f"out of order {self.out_of_order}, dead {self.dead}, "
            f"{self.charged / 100:.2f} taken of {self.owed / 100:.2f} owed: {verdict}"
        )


def _read_only(path: Path) -> str:
    return f"file:{path.resolve()}?mode=ro"


def read(orders: Path, payments: Path) -> Ledger:
    """Count. Raises sqlite3.Error where a database or a table is missing."""
    connection = sqlite3.connect(":memory:", uri=True)
    try:
        connection.execute("attach database ? as orders", (_read_only(orders),))
        connection.execute("attach database ? as payments", (_read_only(payments),))
        connection.execute("begin")
        got = {name: int(connection.execute(sql).fetchone()[0]) for name, sql in SQL.items()}
    finally:
        connection.close()
    got["charged"] -= got.pop("foreign_charged")
    return Ledger(**got)


def duplicates(broker: Path) -> int:
    """How many messages of ``order_events`` repeat an order that the broker had before."""
    connection = sqlite3.connect(_read_only(broker), uri=True)
    try:
        return int(connection.execute(DUPLICATES).fetchone()[0])
    finally:
        connection.close()


def read_folder(data: Path) -> Ledger:
    """The ledger of a data folder with the default file names."""
    return read(data / "orders.sqlite3", data / "payment-service.sqlite3")


def main() -> int:
    data = Path(sys.argv[1] if len(sys.argv) > 1 else ".data")
    try:
        ledger = read_folder(data)
    except sqlite3.Error as error:
        print(f"{data} cannot be read: {error}. Start 'scripts/shop --data {data}' first.", file=sys.stderr)
        return 2
    print(json.dumps({**dataclasses.asdict(ledger), "balanced": ledger.balanced}))
    return 0 if ledger.balanced else 1


if __name__ == "__main__":
    sys.exit(main())
