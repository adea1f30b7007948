"""What the framework is for: the same two services by hand, under the same kills and duplicates."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

NAIVE = Path(__file__).parents[2] / "shop" / "naive"


def run(*options: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "shop", "--naive", "--json", "--port", "0", *options]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert ran.stdout, ran.stderr
    said: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return ran.returncode, said


def test_by_hand_imports_nothing_of_eventkeel() -> None:
    for module in NAIVE.glob("*.py"):
        tree = ast.parse(module.read_text("utf-8"))
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        ours = {name for name in names if name.split(".")[0] in ("eventkeel", "shop")}
        ours = {name for name in ours if not name.startswith("shop.naive.")}
        assert ours <= {"shop.ending", "shop.placing", "shop.brokers", "shop.databases"}, module


@pytest.mark.slow
def test_by_hand_it_balances_as_long_as_nothing_happens() -> None:
    code, said = run("--orders", "60")
    assert (code, said["paid"], said["balanced"]) == (0, 60, True)


@pytest.mark.slow
def test_by_hand_orders_are_lost_and_charged_twice_once_something_happens() -> None:
    code, said = run("--orders", "300", "--kills", "20", "--duplicates", "0.1", "--seed", "3")
    assert (code, said["balanced"], said["money_balanced"]) == (1, False, False)
    assert said["lost"] > 0
    assert said["twice"] > 0


@pytest.mark.slow
@pytest.mark.servers
def test_by_hand_it_is_no_better_on_kafka_and_postgresql(kafka_url: str, postgres_url: str) -> None:
    places = ("--broker", kafka_url, "--store", postgres_url)
    code, said = run("--orders", "300", "--kills", "12", "--duplicates", "0.1", "--seed", "3", *places)
    assert (code, said["balanced"], said["money_balanced"]) == (1, False, False)
    assert said["twice"] > 0
    with psycopg.connect(postgres_url) as database:
        left = database.execute("select count(*) from pg_namespace where nspname like 'naive\\_%'").fetchone()
    assert left == (0,)


@pytest.mark.slow
@pytest.mark.servers
def test_by_hand_it_balances_on_kafka_and_postgresql_as_long_as_nothing_happens(
    kafka_url: str, postgres_url: str
) -> None:
    code, said = run("--orders", "60", "--broker", kafka_url, "--store", postgres_url)
    assert (code, said["paid"], said["balanced"]) == (0, 60, True)


@pytest.mark.parametrize("where", [("--broker", "amqp://127.0.0.1/"), ("--store", "sqlite:///here")])
def test_it_says_where_it_can_run(where: tuple[str, str]) -> None:
    command = [sys.executable, "-m", "shop", "--naive", *where]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, "--naive speaks to" in ran.stderr) == (2, True)
