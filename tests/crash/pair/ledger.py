"""The ledger: counts by plain SQL what became of the orders, and knows nothing of how they were handled.

It opens every database read-only and imports nothing of the framework under test.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from contextlib import closing
from pathlib import Path

from shop.databases import Unreadable, file_of, is_postgres, read_only, reading

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
        (select sequence, lag(sequence) over (partition by order_id order by rowid) as previous
         from orders.order_history)
        where previous is not null and sequence < previous""",
    "ordered_pairs": """
        select count(*) - count(distinct order_id) from orders.order_history""",
    "dead": """
        select (select count(*) from payments.eventkeel_held where state in ('dead', 'conflict'))
             + (select count(*) from orders.eventkeel_held where state in ('dead', 'conflict'))""",
    "charged": "select coalesce(sum(cast(round(amount * 100) as bigint)), 0) from payments.payments",
    "owed": """
        select coalesce(sum(cast(round(o.amount * 100) as bigint)), 0) from orders.orders o
        where exists (select 1 from payments.payments p where p.order_id = o.order_id)""",
    # Paid without an order: somebody wrote an OrderCreated past the API, straight into the broker.
    "foreign": """
        select count(*) from payments.payments p
        where not exists (select 1 from orders.orders o where o.order_id = p.order_id)""",
    "foreign_charged": """
        select coalesce(sum(cast(round(p.amount * 100) as bigint)), 0) from payments.payments p
        where not exists (select 1 from orders.orders o where o.order_id = p.order_id)""",
}

HELD = ("eventkeel_held (key, state)", "select key, state from eventkeel_held")
COPIES = {
    "orders": (
        (
            "orders (order_id, user_id, amount numeric, status, sequence)",
            "select order_id, user_id, cast(amount as text), status, sequence from orders",
        ),
        (  # its rows come as they were committed: the rowid of the copy stands for that
            "order_history (order_id, sequence, status)",
            "select order_id, sequence, status from order_history order by {commit}",
        ),
        HELD,
    ),
    "payments": (
        (
            "payments (order_id, user_id, amount numeric)",
            "select order_id, user_id, cast(amount as text) from payments",
        ),
        HELD,
    ),
}
"""What is taken over from PostgreSQL, so that one set of statements counts both kinds of database."""


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


def read(orders: Path | str, payments: Path | str) -> Ledger:
    """Count what the two databases, by path or URL, hold. Raises Unreadable where one or a table is missing."""
    try:
        with closing(sqlite3.connect(":memory:", uri=True, isolation_level=None)) as books:
            for name, where in (("orders", orders), ("payments", payments)):
                if is_postgres(where):
                    books.execute(f"attach database ':memory:' as {name}")
                else:
                    books.execute(f"attach database ? as {name}", (read_only(file_of(where)),))
            books.execute("begin")
            for name, where in (("orders", orders), ("payments", payments)):
                if is_postgres(where):
                    _copy(str(where), books, name)
            got = {name: int(books.execute(sql).fetchone()[0]) for name, sql in SQL.items()}
    except sqlite3.Error as error:
        raise Unreadable(str(error)) from error
    got["charged"] -= got.pop("foreign_charged")
    return Ledger(**got)


def _copy(url: str, books: sqlite3.Connection, name: str) -> None:
    with reading(url) as database:
        for table, sql in COPIES[name]:
            books.execute(f"create table {name}.{table}")
            rows = database.rows(sql.format(commit=database.in_order_of_commit("number")))
            places = ", ".join("?" * (table.count(",") + 1))
            books.executemany(f"insert into {name}.{table.partition(' ')[0]} values ({places})", rows)
