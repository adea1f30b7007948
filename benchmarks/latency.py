"""Latency and idle cost: two services as real processes, 100 orders a second.

From the moment the publishing transaction has committed to the moment the handler's has: outbox,
relay, broker, consumer in between. Then both services are left alone and their CPU time is read.

    python -m benchmarks.latency [--rate 100] [--seconds 10] [--idle 20] [--json]
    python -m benchmarks.latency --broker kafka://… --store postgresql://…      # without: on SQLite files
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.job import folder, machine_speed
from benchmarks.processes import child, cpu_seconds, family, running, wait_until
from benchmarks.servers import Place, Servers, add_options, place, servers
from benchmarks.services import OrderCreated, orders
from eventkeel.app import Runtime
from eventkeel.config import Config

WARM_UP = 50
LARGEST = 8.0
"""Milliseconds that half of the events may take at most on Kafka and PostgreSQL."""


async def publish(settings: Mapping[str, str], rate: float, count: int, first: int = 0) -> dict[str, float]:
    """As a web process does: a transaction each, at an even rate. When each of them had committed."""
    runtime = Runtime(orders, Config.load(settings, environ={}, file=None), mode="publisher")
    await runtime.start()
    committed: dict[str, float] = {}
    try:
        began = time.monotonic()
        for number in range(first, first + count):
            due = began + (number - first) / rate
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            order = OrderCreated(order_id=f"o-{number}", user_id="u-1", amount=Decimal("99.99"))
            async with orders.transaction() as tx:
                tx.write("insert into orders (order_id, amount) values (:order_id, :amount)", order)
                tx.publish(order)
            committed[order.order_id] = time.monotonic()
    finally:
        await runtime.stop()
    return committed


def times(path: Path) -> dict[str, float]:
    """Order and moment of its handler's commit, as the service wrote them."""
    found: dict[str, float] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            order, _, at = line.partition(" ")
            if at:
                found.setdefault(order, float(at))
    return found


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def measure(data: Path, rate: float, seconds: float, idle: float, **where: str) -> dict[str, Any]:
    """``where``: URLs of broker and store; without, files in ``data``."""
    noted = data / "times"
    settings = {"data": str(data), **where}
    run = ("run", *(word for name, value in settings.items() for word in (f"--{name}", value)))
    here = {"EVENTKEEL_BENCHMARK_TIMES": str(noted)}
    with (
        running(*run, "benchmarks.services:orders", log=data / "orders.log") as first,
        running(*run, "benchmarks.services:timed", log=data / "payments.log", environment=here) as second,
    ):
        asyncio.run(publish(settings, rate, WARM_UP))
        wait_until(lambda: len(times(noted)) >= WARM_UP, "the warm-up is handled")
        count = int(rate * seconds)
        began = time.monotonic()
        committed = asyncio.run(publish(settings, rate, count, WARM_UP))
        achieved = count / (time.monotonic() - began)
        wait_until(lambda: len(times(noted)) >= WARM_UP + count, "every order is handled")
        handled = times(noted)
        waits = [(handled[order] - at) * 1000 for order, at in committed.items()]
        result: dict[str, Any] = {
            "rate": round(achieved, 1),
            "orders": count,
            **{f"p{share}_ms": round(percentile(waits, share / 100), 2) for share in (50, 95, 99)},
            "max_ms": round(max(waits), 2),
        }
        time.sleep(2)
        pids = family(first.pid) + family(second.pid)
        before, since = cpu_seconds(pids), time.monotonic()
        time.sleep(idle)
        after, span = cpu_seconds(pids), time.monotonic() - since
        result["processes"] = len(pids)
        result["idle_percent"] = None if before is None or after is None else round((after - before) / span * 100, 2)
    return result


class Task(msgspec.Struct, frozen=True):
    """What a child process is told: topics are named by its environment."""

    place: Place
    rate: float
    seconds: float
    idle: float


def obey() -> None:
    """In the child: the task from standard input, its result to standard output."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    here = task.place
    where = {"broker": here.servers.broker, "store": here.servers.store_of(here.schema + "_") + "{service}"}
    with folder() as data:
        print(json.dumps(measure(data, task.rate, task.seconds, task.idle, **where)), flush=True)


def on_servers(where: Servers, rate: float, seconds: float, idle: float) -> dict[str, Any]:
    with place(where) as here:
        result: dict[str, Any] = json.loads(child("benchmarks.latency", Task(here, rate, seconds, idle), here.tag))
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_options(parser)
    parser.add_argument("--rate", type=float, default=100.0, help="orders per second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--idle", type=float, default=20.0, help="seconds to watch the idle services")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--task", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        obey()
        return
    out = sys.stderr if options.json else sys.stdout
    speed = machine_speed()
    if options.broker or options.store:
        with servers(options.broker, options.store) as where:
            result = on_servers(where, options.rate, options.seconds, options.idle)
        holds = result["p50_ms"] <= LARGEST
    else:
        holds = True
        with folder() as data:
            result = measure(data, options.rate, options.seconds, options.idle)
    print(
        f"commit of the publish to commit of the handler, {result['rate']:.0f} orders/s, {result['orders']} orders: "
        f"p50 {result['p50_ms']} ms, p95 {result['p95_ms']} ms, p99 {result['p99_ms']} ms, "
        f"slowest {result['max_ms']} ms",
        file=out,
    )
    idle = "not read on this system" if result["idle_percent"] is None else f"{result['idle_percent']} % of one core"
    print(f"idle, both services ({result['processes']} processes): {idle}", file=out)
    print(f"machine: {speed:.0f} ms for a fixed loop", file=out)
    if options.broker or options.store:
        print(f"{'pass' if holds else 'MISS'}  p50 {result['p50_ms']} ms (at most {LARGEST:g})", file=out)
    if options.json:
        print(json.dumps(result))
    raise SystemExit(not holds)


if __name__ == "__main__":
    main()
