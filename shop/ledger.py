"""The ledger: counts by plain SQL what became of the orders, and knows nothing of how they were handled.

    python -m shop.ledger .data
    python -m shop.ledger 'postgresql://user@host/database?schema={service}'

It opens every database read-only and imports nothing of the framework under test. An order is judged when it has
reached an end, and nothing of it has moved for a while (``rest``): what the services made of it has to fit then.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from shop.databases import Unreadable, file_of, is_postgres, read_only, reading

STORES = {
    "users": "users",
    "inventory": "inventory",
    "payments": "payment-service",
    "shipping": "shipping",
    "notifications": "notifications",
    "loyalty": "loyalty",
    "orders": "orders",  # last: what the others have made of an order is looked at before how far it is
}
"""Folder of a service -> its name, as in the URL of its database."""

BEFORE = """
    create temp view judged as
        select *, cast(round(amount * 100) as bigint) as cents from orders.orders
        where status in ('confirmed', 'rejected', 'cancelled') and changed_at <= datetime('now', '-{rest} seconds');
    create temp view heard as select * from orders.orders where status <> 'unheard';
    create temp view ended as
        select h.* from orders.order_history h join judged j on j.order_id = h.order_id
        where h.status in ('confirmed', 'rejected', 'cancelled');
    create temp view settled_users as
        select * from users.users where registered_at <= datetime('now', '-{rest} seconds');
    create temp view held as {held};
    create temp view took as
        select order_id, sum(cast(round(amount * 100) as bigint)) as cents from payments.payments group by order_id;
"""

SQL = {
    "orders": "select count(*) from heard",
    "confirmed": "select count(*) from heard where status = 'confirmed'",
    "rejected": "select count(*) from heard where status = 'rejected'",
    "cancelled": "select count(*) from heard where status = 'cancelled'",
    "charged": "select coalesce(sum(cast(round(amount * 100) as bigint)), 0) from payments.payments where amount > 0",
    "refunded": "select coalesce(sum(cast(round(-amount * 100) as bigint)), 0) from payments.payments where amount < 0",
    # Orders over whose money the two disagree: what was taken and not given back is what a confirmed order costs.
    "money_wrong": """
        select count(*) from judged j left join took t on t.order_id = j.order_id
        where coalesce(t.cents, 0) <> case j.status when 'confirmed' then j.cents else 0 end""",
    # Shelves on which something is missing, or too much; and orders that have, or hold, what is not theirs.
    "stock_wrong": """
        select (select count(*) from inventory.stock s
                where s.free + s.held + s.sold <> s.initial or s.free < 0
                   or s.held <> (select coalesce(sum(quantity), 0) from inventory.reservations r
                                 where r.sku = s.sku and r.state = 'held')
                   or s.sold <> (select coalesce(sum(quantity), 0) from inventory.reservations r
                                 where r.sku = s.sku and r.state = 'sold'))
             + (select count(*) from judged j
                where (select count(*) from inventory.reservations r
                       where r.order_id = j.order_id and r.state in ('held', 'sold'))
                   <> case j.status when 'confirmed' then json_array_length(j.items) else 0 end)""",
    "points_wrong": """
        select (select count(*) from loyalty.accounts a
                where a.points <> (select sum(points) from loyalty.entries e where e.user_id = a.user_id))
             + (select count(*) from judged j
                where (select coalesce(sum(points), 0) from loyalty.entries e where e.order_id = j.order_id)
                   <> case j.status when 'confirmed' then j.cents / 100 else 0 end)
             + (select count(*) from settled_users u where not exists
                (select 1 from loyalty.entries e where e.user_id = u.user_id and e.order_id = ''))""",
    "parcels_wrong": """
        select count(*) from judged j
        where (select count(*) from shipping.shipments s where s.order_id = j.order_id and s.state = 'booked')
           <> case j.status when 'confirmed' then 1 else 0 end""",
    "mails": "select count(*) from notifications.mails",
    # Not at an end, not moving, and kept nowhere: neither among the dead letters, nor waiting behind one. Or at its
    # end, and somebody who had to be told was not.
    "lost": """
        select (select count(*) from heard o
                where o.status not in ('confirmed', 'rejected', 'cancelled')
                  and o.changed_at <= datetime('now', '-{patience} seconds')
                  and o.order_id not in (select key from held))
             + (select count(*) from judged j
                where (select count(distinct sequence) from orders.order_history h where h.order_id = j.order_id)
                    < j.sequence)
             + (select count(*) from ended e where not exists
                (select 1 from notifications.mails m where m.mail_id = 'order ' || e.order_id || ' ' || e.sequence))
             + (select count(*) from settled_users u where not exists
                (select 1 from notifications.mails m where m.mail_id = 'welcome ' || u.user_id))""",
    "twice": """
        select count(*) from
        (select 1 from orders.order_history group by order_id, sequence having count(*) > 1
         union all select 1 from inventory.reservations group by order_id, line having count(*) > 1
         union all select 1 from payments.payments group by order_id, amount > 0 having count(*) > 1
         union all select 1 from shipping.shipments group by order_id having count(*) > 1
         union all select 1 from notifications.mails group by mail_id having count(*) > 1
         union all select 1 from loyalty.entries group by user_id, order_id, points > 0 having count(*) > 1)""",
    "out_of_order": """
        select count(*) from
        (select sequence, lag(sequence) over (partition by order_id order by rowid) as previous
         from orders.order_history)
        where previous is not null and sequence < previous""",
    "ordered_pairs": "select count(*) - count(distinct order_id) from orders.order_history",
    "dead": "select count(*) from held where state in ('dead', 'conflict')",
}

OUTSIDE = {
    # What the provider has is what `payments` has: it was charged once, and given back if it was to be.
    "money_wrong": """
        select count(*) from judged j
        where (select coalesce(sum(case kind when 'charge' then 1 else -1 end * cast(round(amount * 100) as bigint)), 0)
               from outside.movements m where m.reference = j.order_id and m.status = 'succeeded')
           <> case j.status when 'confirmed' then j.cents else 0 end""",
    "twice": """
        select count(*) from (select 1 from outside.movements where status = 'succeeded'
                              group by reference, kind having count(*) > 1)""",
}
"""Added to the counts where the third parties can be asked, too."""

HELD = ("eventkeel_held (key, state)", "select key, state from eventkeel_held")
COPIES = {
    "users": (("users (user_id, registered_at)", "select user_id, {registered_at} from users"), HELD),
    "orders": (
        (
            "orders (order_id, user_id, amount numeric, items, status, sequence, changed_at)",
            "select order_id, user_id, cast(amount as text), items, status, sequence, {changed_at} from orders",
        ),
        (  # its rows come as they were committed: the rowid of the copy stands for that
            "order_history (order_id, sequence, status)",
            "select order_id, sequence, status from order_history order by {commit}",
        ),
        HELD,
    ),
    "payments": (
        ("payments (order_id, amount numeric)", "select order_id, cast(amount as text) from payments"),
        HELD,
    ),
    "inventory": (
        ("stock (sku, initial, free, held, sold)", "select sku, initial, free, held, sold from stock"),
        (
            "reservations (order_id, line, sku, quantity, state)",
            "select order_id, line, sku, quantity, state from reservations",
        ),
        HELD,
    ),
    "shipping": (("shipments (order_id, state)", "select order_id, state from shipments"), HELD),
    "notifications": (("mails (mail_id)", "select mail_id from mails"), HELD),
    "loyalty": (
        ("accounts (user_id, points)", "select user_id, points from accounts"),
        ("entries (user_id, order_id, points)", "select user_id, order_id, points from entries"),
        HELD,
    ),
}
"""What is taken over from PostgreSQL, so that one set of statements counts both kinds of database."""


@dataclasses.dataclass(frozen=True)
class Ledger:
    """What the databases say. Money is in cents."""

    orders: int
    confirmed: int
    rejected: int
    cancelled: int
    charged: int
    refunded: int
    money_wrong: int
    stock_wrong: int
    points_wrong: int
    parcels_wrong: int
    mails: int
    lost: int
    twice: int
    out_of_order: int
    ordered_pairs: int
    dead: int

    @property
    def open(self) -> int:
        """Orders that are not at an end."""
        return self.orders - self.confirmed - self.rejected - self.cancelled

    @property
    def balanced(self) -> bool:
        """Whatever has come to an end has come to it everywhere, once, in order, to the cent and to the piece."""
        return not any((*self._wrongs().values(), self.lost, self.twice, self.out_of_order))

    def _wrongs(self) -> dict[str, int]:
        return {name: getattr(self, f"{name}_wrong") for name in ("money", "stock", "points", "parcels")}

    def json(self) -> dict[str, Any]:
        """For programs."""
        counts = dataclasses.asdict(self)
        verdicts = {f"{name}_balanced": not wrong for name, wrong in self._wrongs().items()}
        return {**counts, "open": self.open, **verdicts, "balanced": self.balanced}

    def line(self) -> str:
        """For people."""
        wrong = ", ".join(f"{name} of {count}" for name, count in self._wrongs().items() if count)
        verdict = "balanced" if self.balanced else f"DOES NOT BALANCE{wrong and f' ({wrong} wrong)'}"
        return (
            f"orders {self.orders}: confirmed {self.confirmed}, rejected {self.rejected}, cancelled {self.cancelled}, "
            f"open {self.open}; {self.charged / 100:.2f} taken, {self.refunded / 100:.2f} given back, {self.mails} "
            f"mails; lost {self.lost}, twice {self.twice}, out of order {self.out_of_order}, dead {self.dead}: "
            f"{verdict}"
        )


def read(stores: Mapping[str, str], outside: Path | None = None, *, rest: float = 0, patience: float = 0) -> Ledger:
    """Count. ``stores``: folder of a service (the keys of ``STORES``) -> path or URL of its database. ``outside``: the
    third parties' file. ``rest``: seconds for which an order was at its end before it is judged. ``patience``: seconds
    for which one may stand still before it counts as lost; 0 is right when nothing moves any more. Raises Unreadable
    where a database or a table is missing."""
    try:
        with closing(sqlite3.connect(":memory:", uri=True, isolation_level=None)) as books:
            if outside is not None:
                books.execute("attach database ? as outside", (read_only(outside),))
            for name in STORES:
                where = ":memory:" if is_postgres(stores[name]) else read_only(file_of(stores[name]))
                books.execute(f"attach database ? as {name}", (where,))
            held = " union all ".join(
                f"select cast(key as text) as key, state from {name}.eventkeel_held" for name in STORES
            )
            books.executescript(BEFORE.format(rest=rest, held=held))
            books.execute("begin")
            for name in STORES:
                if is_postgres(stores[name]):
                    _copy(stores[name], books, name)
                else:
                    books.execute(f"select 1 from {name}.eventkeel_held limit 1").fetchall()
            got = {name: _number(books, sql.replace("{patience}", str(patience))) for name, sql in SQL.items()}
            for name, sql in OUTSIDE.items() if outside is not None else ():
                got[name] += _number(books, sql)
    except sqlite3.Error as error:
        raise Unreadable(str(error)) from error
    return Ledger(**got)


def _number(books: sqlite3.Connection, sql: str) -> int:
    return int(books.execute(sql).fetchone()[0])


def _copy(url: str, books: sqlite3.Connection, name: str) -> None:
    with reading(url) as database:
        for table, sql in COPIES[name]:
            books.execute(f"create table {name}.{table}")
            at = {column: f"to_char({column}, 'YYYY-MM-DD HH24:MI:SS')" for column in ("changed_at", "registered_at")}
            rows = database.rows(sql.format(commit=database.in_order_of_commit("number"), **at))
            books.execute(
                f"create index {name}.{table.partition(' ')[0]}_first on {table.partition(' ')[0]} "
                f"({table.partition('(')[2].partition(',')[0].strip(')')})"
            )
            places = ", ".join("?" * (table.count(",") + 1))
            books.executemany(f"insert into {name}.{table.partition(' ')[0]} values ({places})", rows)


def read_folder(data: Path) -> Ledger:
    """The ledger of a data folder with the default file names."""
    outside = data / "outside.sqlite3"
    stores = {name: str(data / f"{service}.sqlite3") for name, service in STORES.items()}
    return read(stores, outside if outside.exists() else None)


def main() -> int:
    where = sys.argv[1] if len(sys.argv) > 1 else ".data"
    try:
        if is_postgres(where):
            ledger = read({name: where.replace("{service}", service) for name, service in STORES.items()})
        else:
            ledger = read_folder(Path(where))
    except Unreadable as error:
        print(f"this cannot be read: {error}. Start 'scripts/shop' there first.", file=sys.stderr)
        return 2
    print(json.dumps(ledger.json()))
    return 0 if ledger.balanced else 1


if __name__ == "__main__":
    sys.exit(main())
