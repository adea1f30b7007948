"""Many processes on one pair of files: one service, n workers, 8 partitions, two publishing processes.

SQLite has one writer, so more workers cannot be faster than one; they must not be slower, nobody
may starve and nothing may fail.

    python -m benchmarks.many [--workers 8] [--events 20000] [--runs 3] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import apsw
import msgspec

from benchmarks.job import ask, folder, machine_speed, rows
from benchmarks.processes import running, wait_until
from benchmarks.services import Tick, spread
from eventkeel import codec
from eventkeel.app import open_transport
from eventkeel.codec.identity import uuid7
from eventkeel.config import Config
from eventkeel.message import Headers, Outgoing
from eventkeel.ports.transport import Sent, TopicWant, Topology

PARTITIONS = 8
WAVE = 100
KEYS = 4000


class Outcome(msgspec.Struct, frozen=True):
    """One run."""

    rate: float
    balance: float
    """Events of the worker that handled fewest over those of the one that handled most."""
    workers: int
    errors: int


def publisher(data: str, name: str, count: int, go: Any) -> None:
    """A process of its own that appends to the broker file."""
    asyncio.run(_publish(data, name, count, go))


async def _publish(data: str, name: str, count: int, go: Any) -> None:
    transport = open_transport(Config.load({"data": data}, environ={}, file=None).broker_url)
    await transport.open()
    await transport.topology(Topology(topics=(TopicWant("ticks", PARTITIONS),)), apply=True)
    go.wait()
    try:
        for start in range(0, count, WAVE):
            wave = [_message(name, number) for number in range(start, min(count, start + WAVE))]
            outcomes = await transport.publish(wave, 30.0)
            failed = [outcome for outcome in outcomes if not isinstance(outcome, Sent)]
            if failed:
                raise SystemExit(f"publisher {name}: {failed[0]}")
    finally:
        await transport.close(5.0)


def _message(name: str, number: int) -> Outgoing:
    now = time.time()
    tick = Tick(name=f"{name}-{number % KEYS}", number=number)
    record = codec.encode(tick, new_id=lambda: uuid7(now, os.urandom), source=f"/{name}", now=now)
    return Outgoing(record.topic, record.key, Headers.from_packed(record.headers), record.body)


def one(workers: int, events: int) -> Outcome:
    with folder() as data:
        log = data / "spread.log"
        store = data / f"{spread.name}.sqlite3"
        processes = multiprocessing.get_context("spawn")
        go = processes.Event()
        publishers = [
            processes.Process(target=publisher, args=(str(data), name, events // 2, go)) for name in ("left", "right")
        ]
        for each in publishers:
            each.start()
        with running("run", "--data", str(data), "--workers", str(workers), "benchmarks.services:spread", log=log):
            wait_until(lambda: _owners(store) == workers, f"{workers} workers share the partitions")
            began = time.monotonic()
            go.set()
            wait_until(
                lambda: (
                    ask(store, "select count(*) from handled") >= events or any(each.exitcode for each in publishers)
                ),
                "every event is handled",
                180.0,
            )
            for each in publishers:
                each.join(30)
            return _outcome(store, log, began, events, workers, [each.exitcode for each in publishers])


def _owners(store: Path) -> int:
    """How many processes own partitions; 0 while the file is not there yet."""
    try:
        return (
            ask(store, "select count(distinct owner) from eventkeel_owner where topic = 'ticks' and owner <> ''")
            if store.exists()
            else 0
        )
    except apsw.SQLError:
        return 0


def _outcome(store: Path, log: Path, began: float, events: int, workers: int, exits: list[int | None]) -> Outcome:
    handled = [row[0] for row in rows(store, "select count(*) from handled group by worker")]
    total, different, last = rows(store, "select count(*), count(distinct name || number), max(at) from handled")[0]
    dead = ask(store, "select count(*) from eventkeel_inbox where state <> 0")
    assert total == different == events, f"{events} events, {total} handled, {different} different ones"
    complaints = [
        line for line in log.read_text("utf-8", "replace").splitlines() if "ERROR" in line or "Traceback" in line
    ]
    for line in complaints[:5]:
        print(line, file=sys.stderr)
    errors = len(complaints) + dead + sum(code != 0 for code in exits)
    few = min(handled) if len(handled) == workers else 0
    return Outcome(events / (float(last) - began), few / max(handled), len(handled), errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args()
    out = sys.stderr if options.json else sys.stdout
    speed = machine_speed()
    many, alone = [], []
    for _ in range(options.runs):
        alone.append(one(1, options.events))
        many.append(one(options.workers, options.events))
    result: dict[str, Any] = {
        "workers": options.workers,
        "events": options.events,
        "rate": round(statistics.median(each.rate for each in many)),
        "rate_of_one": round(statistics.median(each.rate for each in alone)),
        "balance": round(statistics.median(each.balance for each in many), 3),
        "errors": sum(each.errors for each in many + alone),
        "rates": [round(each.rate) for each in many],
        "rates_of_one": [round(each.rate) for each in alone],
    }
    print(f"{options.workers} workers: {result['rate']:,} events/s {result['rates']}", file=out)
    print(f"one worker: {result['rate_of_one']:,} events/s {result['rates_of_one']}", file=out)
    print(f"slowest over fastest {result['balance']}; errors {result['errors']}", file=out)
    print(f"machine: {speed:.0f} ms for a fixed loop", file=out)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
