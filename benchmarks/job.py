"""The reference job and how it is measured: one event in, one business row, one event out, each once.

Shared by the twin and by the Eventkeel side, and on purpose without Eventkeel: events, the files'
checks by plain SQL, CPU time, medians.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import apsw
import msgspec

TOPIC_IN, TOPIC_OUT = "reference_orders", "reference_payments"
GROUP = "payment-service-group"
PARTITIONS = 8


class Input(msgspec.Struct, frozen=True):
    """One message as it lies on the broker before the clock starts."""

    key: bytes
    headers: list[tuple[str, bytes]]
    body: bytes


def uuid7() -> UUID:
    """An id that grows with time, as publishers of today make them: an index takes it at its end."""
    made = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10))
    made[6], made[8] = made[6] & 0x0F | 0x70, made[8] & 0x3F | 0x80
    return UUID(bytes=bytes(made))


def orders(count: int, new_id: Callable[[], UUID] = uuid4) -> list[Input]:
    """``count`` orders, each of its own key (the dearest case: nothing is shared between them)."""
    made = []
    for number in range(count):
        key = f"o-{number:07d}"
        body = f'{{"order_id":"{key}","user_id":"u-{number % 5000}","amount":{1 + number % 400}.{number % 100:02d}}}'
        made.append(Input(key.encode(), _headers(key, new_id()), body.encode()))
    return made


def _headers(key: str, id: UUID) -> list[tuple[str, bytes]]:
    return [
        ("content-type", b"application/json"),
        ("ce_specversion", b"1.0"),
        ("ce_type", b"OrderCreated"),
        ("ce_source", b"/orders"),
        ("ce_id", str(id).encode()),
        ("ce_time", b"2026-11-24T00:00:00.000000Z"),
        ("ce_subject", key.encode()),
    ]


class Run(msgspec.Struct, frozen=True):
    """What one run did."""

    messages: int
    seconds: float
    cpu: float
    """CPU seconds of the process, user and system, over the same span."""
    servers: Mapping[str, float] = {}
    """CPU seconds of the servers, by name, over the same span; empty where there is none."""

    @property
    def rate(self) -> float:
        return self.messages / self.seconds

    @property
    def cpu_us(self) -> float:
        return self.cpu / self.messages * 1e6


class Figure(msgspec.Struct, frozen=True):
    """Several runs of one variant."""

    name: str
    rate: float
    slowest: float
    fastest: float
    cpu_us: float
    runs: int
    servers_us: Mapping[str, float] = {}

    def __str__(self) -> str:
        servers = "".join(f" + {name} {cost:.0f}" for name, cost in self.servers_us.items())
        return (
            f"{self.name:<28} {self.rate:>9,.0f} /s   ({self.slowest:,.0f} to {self.fastest:,.0f}, "
            f"{self.runs} runs)   {self.cpu_us:6.1f}{servers} µs CPU each"
        )


def figure(name: str, runs: Sequence[Run]) -> Figure:
    """Median, slowest and fastest."""
    rates = [run.rate for run in runs]
    return Figure(
        name=name,
        rate=statistics.median(rates),
        slowest=min(rates),
        fastest=max(rates),
        cpu_us=statistics.median(run.cpu_us for run in runs),
        runs=len(runs),
        servers_us={
            name: statistics.median(run.servers.get(name, 0.0) / run.messages * 1e6 for run in runs)
            for name in runs[0].servers
        },
    )


class Stopwatch:
    """Wall-clock and CPU time since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self, messages: int) -> Run:
        return Run(messages, time.perf_counter() - self._wall, time.process_time() - self._cpu)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder for one run's files, on a real disk where there is a choice, removed afterwards."""
    made = tempfile.mkdtemp(prefix="eventkeel-benchmark-", dir=os.environ.get("EVENTKEEL_BENCHMARK_DIR"))
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def ask(path: Path, sql: str, *parameters: Any) -> int:
    """One number from a file, read-only."""
    return int(rows(path, sql, *parameters)[0][0])


def rows(path: Path, sql: str, *parameters: Any) -> list[Any]:
    """Rows from a file, read-only."""
    connection = apsw.Connection(f"file:{path}?mode=ro", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    connection.set_busy_timeout(5000)
    try:
        return connection.execute(sql, parameters).fetchall()
    finally:
        connection.close()


def machine_speed() -> float:
    """Milliseconds of a fixed loop: tells whether a shared machine was slow while a benchmark ran."""
    began, total = time.perf_counter(), 0
    for number in range(1_000_000):
        total += number & 7
    return (time.perf_counter() - began) * 1000
