"""The ledger: independent of the framework, and able to say no."""

from __future__ import annotations

import ast
import sqlite3
from pathlib import Path

import pytest

from shop import ledger

ROOT = Path(__file__).parents[2]

HELD = "create table eventkeel_held (key blob, state text);"
"""As much of the framework's tables as the ledger looks at."""

FINE = {
    "orders": """
        insert into orders values ('A', 'U', 99.99, 'paid', 2), ('B', 'U', 0.01, 'paid', 2);
        insert into order_history (order_id, sequence, status) values
            ('A', 1, 'placed'), ('B', 1, 'placed'), ('B', 2, 'paid'), ('A', 2, 'paid');""",
    "payments": "insert into payments (order_id, user_id, amount) values ('A', 'U', 99.99), ('B', 'U', 0.01);",
}


def count(folder: Path, *, orders: str = "", payments: str = "") -> ledger.Ledger:
    """The ledger of two paid orders, after further statements."""
    for service, name, more in (("orders", "orders", orders), ("payments", "payment-service", payments)):
        connection = sqlite3.connect(folder / f"{name}.sqlite3")
        connection.executescript((ROOT / "shop" / service / "schema.sql").read_text("utf-8"))
        connection.executescript(HELD + FINE[service] + more)
        connection.close()
    return ledger.read_folder(folder)


@pytest.mark.parametrize("module", ["shop/ledger.py", "shop/quiet.py", "tests/crash/book.py"])
def test_the_ledger_imports_nothing_of_eventkeel(module: str) -> None:
    tree = ast.parse((ROOT / module).read_text("utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "sqlite3" in imported
    assert not {name for name in imported if name.split(".")[0] in ("eventkeel", "shop", "tests", "apsw")}


def test_two_orders_paid_once_balance(tmp_path: Path) -> None:
    found = count(tmp_path)
    assert (found.orders, found.paid, found.lost, found.twice, found.out_of_order, found.dead) == (2, 2, 0, 0, 0, 0)
    assert (found.owed, found.charged, found.balanced) == (10_000, 10_000, True)


@pytest.mark.parametrize(
    ("what", "orders", "payments"),
    [
        ("lost", "insert into orders values ('C', 'U', 1, 'placed', 1)", ""),
        ("lost", "", "delete from payments where order_id = 'B'"),
        ("twice", "", "insert into payments (order_id, user_id, amount) values ('A', 'U', 99.99)"),
        ("twice", "insert into order_history (order_id, sequence, status) values ('A', 2, 'paid')", ""),
        ("out_of_order", "insert into order_history (order_id, sequence, status) values ('A', 1, 'placed')", ""),
        ("untold", "update orders set status = 'placed' where order_id = 'A'", ""),
        ("untold", "delete from order_history where order_id = 'A' and sequence = 2", ""),
    ],
)
def test_what_is_wrong_is_counted_and_does_not_balance(tmp_path: Path, what: str, orders: str, payments: str) -> None:
    found = count(tmp_path, orders=orders, payments=payments)
    assert getattr(found, what) == 1
    assert not found.balanced


def test_a_cent_too_much_does_not_balance(tmp_path: Path) -> None:
    found = count(tmp_path, payments="update payments set amount = 0.02 where order_id = 'B'")
    assert (found.lost, found.twice, found.charged - found.owed, found.balanced) == (0, 0, 1, False)


def test_a_kept_order_is_neither_paid_nor_lost(tmp_path: Path) -> None:
    found = count(
        tmp_path,
        orders="insert into orders values ('C', 'U', 1, 'placed', 1)",
        payments="insert into eventkeel_held values (cast('C' as blob), 'dead')",
    )
    assert (found.orders, found.paid, found.lost, found.dead, found.balanced) == (3, 2, 0, 1, True)


def test_a_payment_for_an_order_from_elsewhere_is_told_apart(tmp_path: Path) -> None:
    found = count(tmp_path, payments="insert into payments (order_id, user_id, amount) values ('X', 'U', 5)")
    assert (found.foreign, found.paid, found.balanced) == (1, 2, True)
