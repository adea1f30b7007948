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

from shop.databases import Unreadable, file_of, reading
from shop.epochs import epoch_violations
from tests.crash.pair import ledger

ROOT = Path(__file__).parents[2]

HELD = "create table eventkeel_held (key {bytes}, state text);"
INBOX = """create table eventkeel_inbox (id {number}, consumer integer, topic text, partition integer,
           epoch integer {tx});"""
"""As much of the framework's tables as the ledger looks at."""

ORDERS = "insert into orders (order_id, user_id, amount, status, sequence) values "
HISTORY = "insert into order_history (order_id, sequence, status, number) values "
PAYMENTS = "insert into payments (order_id, user_id, amount) values "
FINE = {
    "orders": [
        ORDERS + "('A', 'U', 99.99, 'paid', 2), ('B', 'U', 0.01, 'paid', 2)",
        HISTORY + "('A', 1, 'placed', 0), ('B', 1, 'placed', 0), ('B', 2, 'paid', 1), ('A', 2, 'paid', 1)",
    ],
    "payments": [PAYMENTS + "('A', 'U', 99.99), ('B', 'U', 0.01)"],
}


class Books:
    """Two databases with two orders in them, both paid."""

    def __init__(self) -> None:
        for service, fine in FINE.items():
            schema = (ROOT / "tests" / "crash" / "pair" / f"{service}.sql").read_text("utf-8")
            self.run(service, schema, self.typed(HELD), self.typed(INBOX), *fine)

    def url(self, service: str) -> str:
        raise NotImplementedError

    def run(self, service: str, *scripts: str) -> None:
        """Each of them in a transaction of its own."""
        raise NotImplementedError

    def typed(self, sql: str) -> str:
        raise NotImplementedError

    def count(self, *, orders: str = "", payments: str = "") -> ledger.Ledger:
        """After further statements."""
        self.run("orders", *[orders] * bool(orders))
        self.run("payments", *[payments] * bool(payments))
        return ledger.read(self.url("orders"), self.url("payments"))


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


@pytest.mark.parametrize("module", ["tests/crash/pair/ledger.py", "tests/crash/book.py", "shop/epochs.py"])
def test_the_ledger_imports_nothing_of_eventkeel(module: str) -> None:
    tree = ast.parse((ROOT / module).read_text("utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {name for name in imported if name.split(".")[0] in ("eventkeel", "shop", "tests", "apsw")}
    assert ours <= {"shop.databases", "shop.brokers"}, "which tests/shop looks at, too"
    assert ours or "sqlite3" in imported


def test_two_orders_paid_once_balance(books: Books) -> None:
    found = books.count()
    assert (found.orders, found.paid, found.lost, found.twice, found.out_of_order, found.dead) == (2, 2, 0, 0, 0, 0)
    assert (found.owed, found.charged, found.balanced, found.ordered_pairs) == (10_000, 10_000, True, 2)


@pytest.mark.parametrize(
    ("what", "orders", "payments"),
    [
        ("lost", ORDERS + "('C', 'U', 1, 'placed', 1)", ""),
        ("lost", "", "delete from payments where order_id = 'B'"),
        ("twice", "", PAYMENTS + "('A', 'U', 99.99)"),
        ("twice", HISTORY + "('A', 2, 'paid', 2)", ""),
        ("out_of_order", HISTORY + "('A', 1, 'placed', 2)", ""),
        ("untold", "update orders set status = 'placed' where order_id = 'A'", ""),
        ("untold", "delete from order_history where order_id = 'A' and sequence = 2", ""),
    ],
)
def test_what_is_wrong_is_counted_and_does_not_balance(books: Books, what: str, orders: str, payments: str) -> None:
    found = books.count(orders=orders, payments=payments)
    assert getattr(found, what) == 1
    assert not found.balanced


def test_two_rows_of_one_transaction_are_in_the_order_in_which_they_were_written(books: Books) -> None:
    assert books.count(orders=HISTORY + "('A', 4, 'x', 2); " + HISTORY + "('A', 3, 'x', 3)").out_of_order == 1


def test_a_cent_too_much_does_not_balance(books: Books) -> None:
    found = books.count(payments="update payments set amount = 0.02 where order_id = 'B'")
    assert (found.lost, found.twice, found.charged - found.owed, found.balanced) == (0, 0, 1, False)


def test_a_kept_order_is_neither_paid_nor_lost(books: Books) -> None:
    found = books.count(
        orders=ORDERS + "('C', 'U', 1, 'placed', 1)",
        payments=books.typed("insert into eventkeel_held values (cast('C' as {bytes}), 'dead')"),
    )
    assert (found.orders, found.paid, found.lost, found.dead, found.balanced) == (3, 2, 0, 1, True)


def test_a_payment_for_an_order_from_elsewhere_is_told_apart(books: Books) -> None:
    found = books.count(payments=PAYMENTS + "('X', 'U', 5)")
    assert (found.foreign, found.paid, found.balanced) == (1, 2, True)


def test_the_sum_of_many_large_amounts_is_exact_to_the_cent(books: Books) -> None:
    rows = ", ".join(f"('L{number}', 'U', 999999999.99)" for number in range(50))
    assert books.count(payments=PAYMENTS + rows).charged == 10_000
    orders = ORDERS + rows.replace("999.99)", "999.99, 'placed', 1)")
    assert books.count(orders=orders).charged == 10_000 + 50 * 99_999_999_999


INBOX_ROW = "insert into eventkeel_inbox (consumer, topic, partition, epoch) values "


def test_a_row_committed_under_an_older_epoch_than_one_before_it_is_a_violation(books: Books) -> None:
    stores = [books.url(service) for service in FINE]
    books.run("orders", INBOX_ROW + "(1, 't', 0, 1)", INBOX_ROW + "(1, 't', 0, 2)", INBOX_ROW + "(1, 't', 1, 1)")
    books.run("orders", INBOX_ROW + "(2, 't', 0, 1), (1, 'u', 0, 1)", INBOX_ROW + "(1, 't', 0, 2)")
    books.run("payments", INBOX_ROW + "(1, 't', 0, 1)")
    assert epoch_violations(stores) == 0
    books.run("orders", INBOX_ROW + "(1, 't', 0, 1)")
    assert epoch_violations(stores) == 1


@pytest.mark.servers
def test_what_counts_is_when_a_row_was_committed_not_when_it_was_written(postgres_url: str) -> None:
    books = Schemas(postgres_url)
    try:
        with psycopg.connect(books._server) as slow:
            slow.execute(f'set search_path to "{books._prefix}-orders"')
            slow.execute(INBOX_ROW + "(1, 't', 0, 1)")
            slow.execute(HISTORY + "('A', 0, 'late', 2)")
            books.run("orders", INBOX_ROW + "(1, 't', 0, 2)", HISTORY + "('A', 3, 'early', 2)")
            slow.commit()
        assert epoch_violations([books.url("orders")]) == 1
        assert books.count().out_of_order == 1
    finally:
        books.drop()


def test_what_is_not_there_is_unreadable(books: Books) -> None:
    with pytest.raises(Unreadable):
        ledger.read(books.url("orders"), books.url("nobody"))
    with reading(books.url("orders")) as database, pytest.raises(Unreadable):
        database.rows("select 1 from nothing")


def test_readers_write_nothing(books: Books) -> None:
    with reading(books.url("orders")) as database, pytest.raises(Unreadable, match=r"read.?only"):
        database.rows("delete from orders returning order_id")
