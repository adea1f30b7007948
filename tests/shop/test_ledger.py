"""The ledger: independent of the framework, and able to say no, on every kind of database."""

from __future__ import annotations

import ast
import contextlib
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from shop import ledger
from shop.databases import Unreadable, file_of, reading
from shop.outside.books import Books as Kept
from shop.outside.books import Movement

ROOT = Path(__file__).parents[2]

HELD = "create table eventkeel_held (key {bytes}, state text);"
INBOX = """create table eventkeel_inbox (id {number}, consumer integer, topic text, partition integer,
           epoch integer {tx});"""
"""As much of the framework's tables as the ledger looks at."""

ITEMS = '[{"sku":"mug","quantity":1}]'
FINE = {
    "users": ["insert into users (user_id, name, email) values ('U', 'Ann', 'ann@mail.example')"],
    "orders": [
        f"insert into orders (order_id, user_id, amount, items, status, sequence) values "
        f"('A', 'U', 99.99, '{ITEMS}', 'confirmed', 2), ('B', 'U', 0.01, '{ITEMS}', 'rejected', 2)",
        "insert into order_history (order_id, sequence, status, reason, number) values ('A', 1, 'placed', '', 0), "
        "('B', 1, 'placed', '', 0), ('B', 2, 'rejected', '', 1), ('A', 2, 'confirmed', '', 1)",
    ],
    "payments": ["insert into payments (order_id, user_id, amount) values ('A', 'U', 99.99)"],
    "inventory": [
        "update stock set free = free - 1, sold = 1 where sku = 'mug'",
        "insert into reservations (order_id, line, sku, quantity, state) values "
        "('A', 0, 'mug', 1, 'sold'), ('B', 0, 'mug', 1, 'released')",
    ],
    "shipping": ["insert into shipments (order_id, tracking, state) values ('A', 'T', 'booked')"],
    "notifications": [
        "insert into mails (mail_id, \"to\", subject) values ('order A 2', '', ''), ('order B 2', '', ''), "
        "('welcome U', '', '')"
    ],
    "loyalty": [
        "insert into accounts (user_id, points) values ('U', 199)",
        "insert into entries (user_id, order_id, points) values ('U', '', 100), ('U', 'A', 99)",
    ],
}


class Books:
    """Seven databases with two orders in them: one went well, one was declined."""

    def __init__(self) -> None:
        for service, fine in FINE.items():
            schema = (ROOT / "shop" / service / "schema.sql").read_text("utf-8")
            self.run(service, schema, self.typed(HELD), self.typed(INBOX), *fine)

    def url(self, service: str) -> str:
        raise NotImplementedError

    def run(self, service: str, *scripts: str) -> None:
        """Each of them in a transaction of its own."""
        raise NotImplementedError

    def typed(self, sql: str) -> str:
        raise NotImplementedError

    def count(self, **more: str) -> ledger.Ledger:
        """After further statements, by service."""
        for service, sql in more.items():
            self.run(service, sql)
        return ledger.read({service: self.url(service) for service in FINE})


class Files(Books):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        super().__init__()

    def url(self, service: str) -> str:
        return f"sqlite:///{self._folder / service}.sqlite3"

    def run(self, service: str, *scripts: str) -> None:
        with contextlib.closing(sqlite3.connect(file_of(self.url(service)))) as connection:
            for script in scripts:
                connection.executescript(script)

    def typed(self, sql: str) -> str:
        return sql.format(bytes="blob", number="integer primary key", tx="")


class Schemas(Books):
    def __init__(self, server: str) -> None:
        self._server, self._prefix = server.partition("?")[0], f"shop-{uuid.uuid4().hex[:8]}"
        with psycopg.connect(self._server, autocommit=True) as connection:
            for service in FINE:
                connection.execute(f'create schema "{self._prefix}-{service}"')
        super().__init__()

    def url(self, service: str) -> str:
        return f"{self._server}?schema={self._prefix}-{service}"

    def run(self, service: str, *scripts: str) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(f'set search_path to "{self._prefix}-{service}"')
            for script in scripts:
                connection.execute(script)

    def typed(self, sql: str) -> str:
        tx = ", tx xid8 not null default pg_current_xact_id()"
        return sql.format(bytes="bytea", number="integer generated always as identity", tx=tx)

    def drop(self) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            for service in FINE:
                connection.execute(f'drop schema "{self._prefix}-{service}" cascade')


@pytest.fixture(params=["files", pytest.param("schemas", marks=pytest.mark.servers)])
def books(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Books]:
    if request.param == "files":
        yield Files(tmp_path)
        return
    made = Schemas(request.getfixturevalue("postgres_url"))
    yield made
    made.drop()


@pytest.mark.parametrize(
    "module",
    [
        "shop/ledger.py",
        "shop/quiet.py",
        "shop/databases.py",
        "shop/brokers.py",
        "shop/rabbit.py",
        "shop/epochs.py",
        "shop/outside/books.py",
    ],
)
def test_the_ledger_imports_nothing_of_eventkeel(module: str) -> None:
    tree = ast.parse((ROOT / module).read_text("utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {name for name in imported if name.split(".")[0] in ("eventkeel", "shop", "tests", "apsw")}
    assert ours <= {"shop.databases", "shop.brokers", "shop.rabbit"}, "which are looked at here, too"
    assert ours or "sqlite3" in imported


def test_what_went_well_and_what_was_undone_balances(books: Books) -> None:
    found = books.count()
    assert found.balanced, found.line()
    assert (found.orders, found.confirmed, found.rejected, found.cancelled, found.open) == (2, 1, 1, 0, 0)
    assert (found.charged, found.refunded, found.mails, found.ordered_pairs) == (9999, 0, 3, 2)


PAYMENT = "insert into payments (order_id, user_id, amount) values "
WRONG = [
    ("lost", "orders", "insert into orders (order_id, user_id, amount, status) values ('C', 'U', 1, 'placed')"),
    ("lost", "orders", "delete from order_history where order_id = 'B' and sequence = 1"),
    ("lost", "notifications", "delete from mails where mail_id = 'order B 2'"),
    ("lost", "notifications", "delete from mails where mail_id = 'welcome U'"),
    ("twice", "orders", "insert into order_history values ('A', 2, 'confirmed', '', 2, current_timestamp)"),
    ("twice", "payments", f"{PAYMENT} ('B', 'U', 0.01), ('B', 'U', 0.01), ('B', 'U', -0.02)"),
    ("twice", "inventory", "insert into reservations values ('B', 0, 'mug', 1, 'released')"),
    ("twice", "shipping", "insert into shipments values ('B', 'T', 'recalled'), ('B', 'T', 'recalled')"),
    ("twice", "notifications", "insert into mails (mail_id, \"to\", subject) values ('order A 2', '', '')"),
    ("out_of_order", "orders", "insert into order_history values ('A', 0, 'x', '', 2, current_timestamp)"),
    ("money_wrong", "payments", "update payments set amount = 99.98 where order_id = 'A'"),
    ("money_wrong", "payments", "delete from payments"),
    ("money_wrong", "payments", f"{PAYMENT} ('B', 'U', 0.01)"),
    ("stock_wrong", "inventory", "update stock set free = free - 1 where sku = 'cap'"),
    ("stock_wrong", "inventory", "update stock set held = 1, free = free - 1 where sku = 'cap'"),
    ("points_wrong", "loyalty", "update accounts set points = 198"),
    ("parcels_wrong", "shipping", "update shipments set state = 'recalled'"),
    ("parcels_wrong", "shipping", "insert into shipments values ('B', 'T', 'booked')"),
]


@pytest.mark.parametrize(("what", "service", "sql"), WRONG)
def test_what_is_wrong_is_counted_and_does_not_balance(books: Books, what: str, service: str, sql: str) -> None:
    found = books.count(**{service: sql})
    assert getattr(found, what) == 1, found
    assert not found.balanced


def test_stock_that_is_not_the_orders_own_is_wrong_on_the_shelf_and_in_the_order(books: Books) -> None:
    assert books.count(inventory="update reservations set state = 'held' where order_id = 'B'").stock_wrong == 2


def test_points_that_were_not_earned_are_wrong(books: Books) -> None:
    added = "update accounts set points = 204; insert into entries values ('U', 'B', 5)"
    assert books.count(loyalty=added).points_wrong == 1


def test_two_rows_of_one_transaction_are_in_the_order_in_which_they_were_written(books: Books) -> None:
    history = "insert into order_history (order_id, sequence, status, reason, number) values "
    assert books.count(orders=f"{history} ('A', 4, 'x', '', 2); {history} ('A', 3, 'x', '', 3)").out_of_order == 1


def test_an_order_that_somebody_keeps_is_open_and_not_lost(books: Books) -> None:
    found = books.count(
        orders="insert into orders (order_id, user_id, amount, status) values ('C', 'U', 1, 'placed')",
        shipping=books.typed("insert into eventkeel_held values (cast('C' as {bytes}), 'dead')"),
    )
    assert (found.orders, found.open, found.lost, found.dead, found.balanced) == (3, 1, 0, 1, True)


def test_what_only_others_have_heard_of_is_no_order(books: Books) -> None:
    assert books.count(orders="insert into orders (order_id, ending) values ('C', 'cancelled')").orders == 2


def test_while_others_are_under_way_only_what_rests_is_judged(books: Books) -> None:
    books.count(payments="delete from payments", notifications="delete from mails")
    stores = {service: books.url(service) for service in FINE}
    assert not ledger.read(stores).balanced
    assert ledger.read(stores, rest=3600).balanced


def test_what_the_provider_has_is_what_payments_has(books: Books, tmp_path: Path) -> None:
    stores, outside = {service: books.url(service) for service in FINE}, tmp_path / "outside.sqlite3"
    charge = Movement("key", "charge", "A", "99.99", "succeeded", "", "")
    kept = Kept(outside)
    kept.move(charge, 0)
    kept.move(charge._replace(key="no", reference="B", amount="0.01", status="declined"), 0)
    assert ledger.read(stores, outside).balanced
    kept.move(charge._replace(key="again"), 0)
    found = ledger.read(stores, outside)
    assert (found.money_wrong, found.twice) == (1, 1)
    kept.move(charge._replace(key="back", kind="refund"), 0)
    kept.close()
    found = ledger.read(stores, outside)
    assert (found.money_wrong, found.twice) == (0, 1)


def test_a_verdict_in_words_names_what_is_wrong(books: Books) -> None:
    assert books.count().line().endswith(": balanced")
    assert "DOES NOT BALANCE (money of 1 wrong)" in books.count(payments="delete from payments").line()


def test_what_is_not_there_is_unreadable(books: Books) -> None:
    with pytest.raises(Unreadable):
        ledger.read({service: books.url("nobody" if service == "loyalty" else service) for service in FINE})
    with reading(books.url("orders")) as database, pytest.raises(Unreadable):
        database.rows("select 1 from nothing")


def test_readers_write_nothing(books: Books) -> None:
    with reading(books.url("orders")) as database, pytest.raises(Unreadable, match=r"read.?only"):
        database.rows("delete from orders returning order_id")
