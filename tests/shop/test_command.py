"""``scripts/shop`` as a person or a program runs it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from shop.batch import Outcome
from shop.ledger import Ledger
from shop.running import listens

SHOP = [sys.executable, "-m", "shop"]
NOTHING = {field.name: 0 for field in dataclasses.fields(Ledger)}
FINE = Ledger(**{**NOTHING, "orders": 2, "confirmed": 2})


def outcome(**changes: Any) -> Outcome:
    given: dict[str, Any] = {"ledger": FINE, "kills": 0, "kills_in_unit": 0, "duplicates": 0, "seconds": 1.0, "seed": 0}
    return Outcome(**{**given, **changes})


def test_exit_code_0_needs_a_ledger_that_balances_and_a_run_that_proved_something() -> None:
    assert outcome().code == 0
    assert outcome(inconclusive="a planned kill never bit").code == 2
    assert outcome(problems=("something still waits",)).code == 1


@pytest.mark.parametrize(
    "wrong", ["lost", "twice", "out_of_order", "money_wrong", "stock_wrong", "points_wrong", "parcels_wrong"]
)
def test_a_ledger_that_does_not_balance_is_exit_code_1(wrong: str) -> None:
    found = outcome(ledger=Ledger(**{**NOTHING, wrong: 1}), inconclusive="and too few duplicates")
    assert (found.code, found.json()["balanced"]) == (1, False)


@pytest.mark.slow
def test_a_batch_ends_with_one_json_object_and_exit_code_0(tmp_path: Path) -> None:
    command = [*SHOP, "--orders", "60", "--duplicates", "0.2", "--seed", "4", "--data", str(tmp_path), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    assert (said["orders"], said["open"], said["lost"], said["twice"], said["dead"]) == (60, 0, 0, 0, 0)
    assert said["confirmed"] + said["rejected"] + said["cancelled"] == 60
    assert said["confirmed"] > 30
    assert [said[f"{name}_balanced"] for name in ("money", "stock", "points")] == [True] * 3
    assert said["balanced"] is True
    assert said["duplicates"] >= 1
    assert {"out_of_order", "kills", "kills_in_unit", "seconds", "mails"} <= said.keys()
    again = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert again.returncode == 2  # what is there already would be counted with it
    assert "earlier run" in again.stderr


@pytest.mark.slow
def test_a_batch_with_kills_balances(tmp_path: Path) -> None:
    command = [*SHOP, "--orders", "100", "--kills", "6", "--duplicates", "0.1", "--seed", "2", "--json"]
    ran = subprocess.run([*command, "--data", str(tmp_path)], capture_output=True, text=True, timeout=110, check=False)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    assert said["kills"] == 6
    assert said["kills_in_unit"] >= 1


@pytest.mark.slow
def test_the_shop_runs_until_ctrl_c_and_gives_its_verdict(tmp_path: Path) -> None:
    command = [*SHOP, "--data", str(tmp_path), "--port", "0"]
    shop = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    assert shop.stdout is not None
    try:
        lines = []
        for line in shop.stdout:
            lines.append(line)
            if "paid once" in line:
                break
        assert "order ORD12345 of USR001 over 99.99: delivered 3 times, paid once\n" in lines
        address = next(line for line in lines if "http://" in line).split("http://")[1].split(" ")[0]
        time.sleep(1)
        request = urllib.request.Request(
            f"http://{address}",
            b'{"order_id": "MINE", "user_id": "me", "amount": 5}',
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 201
        shop.send_signal(signal.SIGINT)
        rest, errors = shop.communicate(timeout=60)
        assert shop.returncode == 0, errors
        assert rest.strip().endswith("balanced")
    finally:
        if shop.poll() is None:
            shop.kill()
            shop.communicate()


@pytest.mark.slow
def test_the_shop_starts_again_beside_what_others_left_in_its_broker(tmp_path: Path) -> None:
    for turn in range(2):
        command = [*SHOP, "--data", str(tmp_path), "--port", "0"]
        shop = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert shop.stdout is not None
            assert any("paid once" in line for line in iter(shop.stdout.readline, ""))
            began = time.monotonic()
            shop.send_signal(signal.SIGINT)
            _, errors = shop.communicate(timeout=60)
            assert shop.returncode == 0, errors
            assert time.monotonic() - began < 12
        finally:
            if shop.poll() is None:
                shop.kill()
                shop.communicate()
        if turn == 0:
            with sqlite3.connect(tmp_path / "broker.sqlite3") as broker:
                broker.execute("insert into groups values ('stopped', 'another store')")
                broker.execute("insert into subscriptions values ('stopped', 'order_events')")
                broker.execute("insert into inbound (topic, body) values ('nowhere', '{}')")
            broker.close()


@pytest.mark.slow
def test_nothing_goes_on_when_the_shop_itself_is_killed(tmp_path: Path) -> None:
    command = [*SHOP, "--data", str(tmp_path), "--port", "0"]
    shop = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert shop.stdout is not None
    address = next(line for line in shop.stdout if "http://" in line).split("http://")[1].split("/")[0]
    shop.kill()
    shop.communicate()
    deadline = time.monotonic() + 30
    while listens(int(address.rpartition(":")[2])):
        assert time.monotonic() < deadline, "the services went on"
        time.sleep(0.1)


def test_a_folder_that_cannot_be_is_refused_and_proves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran = subprocess.run([*SHOP, "--data", str(tmp_path / "file")], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "choose another --data" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--broker", "nats://x"], "write sqlite:///PATH or kafka://HOST:PORT"),
        (["--store", "mysql://x/{service}"], "write sqlite:///PATH or postgresql://"),
        (["--store", "postgresql://x/shop"], "has to contain {service}"),
    ],
)
def test_a_broker_or_store_of_another_kind_is_refused_with_its_reason(options: list[str], words: str) -> None:
    ran = subprocess.run([*SHOP, "--orders", "1", *options], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr


def test_broker_and_store_come_from_the_environment_where_no_option_says_them() -> None:
    environment = {**os.environ, "EVENTKEEL_BROKER": "nats://x", "EVENTKEEL_STORE": "sqlite:///x/{service}"}
    ran = subprocess.run([*SHOP, "--orders", "1"], capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 2
    assert "nats" in ran.stderr


def test_a_late_commit_of_a_former_owner_is_exit_code_1() -> None:
    assert outcome(epoch_violations=1).code == 1
    assert outcome(epoch_violations=1).json()["balanced"] is False
    assert outcome(epoch_violations=None).json()["epoch_violations"] is None
