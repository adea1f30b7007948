"""Memory of a worker that joins a group for which a million messages wait on Kafka.

What it holds at most is bounded by its budget, not by what lies on the broker. The handler does nothing, so that only
the engine is seen; reading ends after a part of the messages, when the most that the worker has ever had is read.

    python -m benchmarks.memory [--messages N] [--size BYTES] [--handled N] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.job import Input, folder, orders, uuid7
from benchmarks.processes import family, running, wait_until
from benchmarks.servers import Place, add_options, ask, place, servers

LARGEST = 300.0
"""Megabytes."""
PATIENCE = 600.0


def large(count: int, size: int) -> Iterator[Input]:
    """Orders of ``size`` bytes, made while they are sent."""
    for start in range(0, count, 1000):
        for each in orders(min(1000, count - start), uuid7):
            key = b"%07d-" % start + each.key
            body = each.body.replace(each.key, key)
            padding = b"x" * max(0, size - len(body))
            yield Input(key, each.headers, body.replace(b'"user_id":"', b'"user_id":"' + padding))


def most(pids: list[int]) -> float:
    """Megabytes that the largest of these processes has had resident at most."""
    return max(
        int(line.split()[1]) / 1024
        for pid in pids
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )


def handled(here: Place) -> int:
    """Rows in the inbox; 0 until there is one."""
    try:
        return ask(here, "select count(*) from eventkeel_inbox")
    except psycopg.errors.UndefinedTable:
        return 0


def measure(here: Place, wanted: int) -> dict[str, Any]:
    with folder() as data:
        flags = ("--broker", here.servers.broker, "--store", here.servers.store_of(here.schema), "--start", "earliest")
        quiet = ("--set", "log_level=warning")
        tag = {"EVENTKEEL_BENCHMARK_TAG": here.tag}
        command = ("run", *flags, *quiet, "benchmarks.services:idle")
        with running(*command, log=data / "log", environment=tag) as worker:
            began = time.monotonic()
            wait_until(lambda: handled(here) >= wanted, f"{wanted} messages are handled", PATIENCE, every=1.0)
            seconds, count = time.monotonic() - began, handled(here)
            return {
                "waiting": here.count,
                "handled": count,
                "rate": round(count / seconds),
                "most_mb": round(most(family(worker.pid)), 1),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_options(parser)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=1000, help="bytes of each body")
    parser.add_argument("--handled", type=int, default=200_000, help="messages after which it ends")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args()
    out = sys.stderr if options.json else sys.stdout
    with servers(options.broker, options.store) as where:
        print(f"putting {options.messages:,} messages of {options.size:,} bytes on a topic", file=out, flush=True)
        with place(where, large(options.messages, options.size)) as here:
            result = measure(here, min(options.handled, options.messages))
    holds = result["most_mb"] < LARGEST
    print(
        f"{'pass' if holds else 'MISS'}  {result['most_mb']} MB at most (below {LARGEST:g}); {result['handled']:,} of "
        f"{result['waiting']:,} messages handled, {result['rate']:,} /s with start-up",
        file=out,
    )
    if options.json:
        print(json.dumps(result))
    raise SystemExit(not holds)


if __name__ == "__main__":
    main()
