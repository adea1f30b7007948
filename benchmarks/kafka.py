"""The reference job on Kafka and PostgreSQL: Eventkeel, the native twin and FastStream, alternately, in one run.

One event in, one business row, one event out, each once; one process each, relay included. Every variant runs in a
process, topics and tables of its own. Every run counts its rows; a run with a row missing ends the benchmark.

    python -m benchmarks.kafka [--broker kafka://… --store postgresql://…] [--messages N] [--runs N] [--only WORD]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import msgspec

from benchmarks import kafka_twin
from benchmarks.job import Figure, Run, figure, machine_speed, orders, uuid7
from benchmarks.processes import child
from benchmarks.servers import Place, Servers, add_options, check, place, servers, topic_size
from benchmarks.where import Sampler

BATCH, LANES = 500, 4

Job = Callable[[Place, Sampler | None], Coroutine[Any, Any, Run]]
"""Does the whole job in this process. Only Eventkeel is looked at while it runs."""


class Variant(msgspec.Struct, frozen=True):
    """One way to do the job."""

    name: str
    run: Job
    messages: Callable[[argparse.Namespace], int]
    tables: str = kafka_twin.TABLES
    inbox: str = "inbox"
    """The table of what was handled; empty: this one writes nothing."""
    outbox: str = "outbox"


def _twin(style: kafka_twin.Style, batch: int) -> Job:
    return lambda here, _: kafka_twin.Twin(here, style, batch, LANES).run()


def _peer(kind: Any) -> Job:
    def run(here: Place, _: Sampler | None) -> Coroutine[Any, Any, Run]:
        from benchmarks.peer import Peer  # FastStream and SQLAlchemy: only where they run

        return Peer(here, kind).run()

    return run


def _ours(service: str, **settings: Any) -> Job:
    def run(here: Place, profile: Sampler | None) -> Coroutine[Any, Any, Run]:
        from benchmarks import ours, services  # topics are read from the environment when it is imported

        return ours.handle(here, getattr(services, service), profile, **settings)

    return run


def _many(options: argparse.Namespace) -> int:
    return int(options.messages)


def _some(share: float) -> Callable[[argparse.Namespace], int]:
    """A slow variant gets fewer messages."""
    return lambda options: max(20, int(options.messages * share))


def _eventkeel(name: str, service: str, share: float, **settings: Any) -> Variant:
    run, messages = _ours(service, **settings), _some(share)
    return Variant(name, run, messages, tables="", inbox="eventkeel_inbox", outbox="eventkeel_outbox")


DEFERRED, BULK, AWAITED = "twin, deferred", "twin, bulk", "twin, one by one"
OURS, OURS_500, OURS_BULK, OURS_ONE = (
    "Eventkeel",
    "Eventkeel, batches of 500",
    "Eventkeel, batch handler",
    "Eventkeel, one by one",
)
BARE, DRIVER, MODELS, PEER_BULK = (
    "FastStream, empty",
    "FastStream + driver",
    "FastStream + SQLAlchemy",
    "FastStream, batch=True",
)
VARIANTS = (
    Variant(DEFERRED, _twin("deferred", BATCH), _many),
    _eventkeel(OURS_500, "payments", 1, batch_size=BATCH),
    _eventkeel(OURS, "payments", 1),
    Variant(BULK, _twin("bulk", BATCH), _many),
    _eventkeel(OURS_BULK, "bulk", 1, batch_size=BATCH),
    Variant(PEER_BULK, _peer("bulk"), _many),
    Variant(BARE, _peer("bare"), _some(0.2), inbox=""),
    Variant(AWAITED, _twin("awaited", 1), _some(0.1)),
    _eventkeel(OURS_ONE, "payments", 0.1, batch_size=1),
    Variant(DRIVER, _peer("driver"), _some(0.08)),
    Variant(MODELS, _peer("sqlalchemy"), _some(0.04)),
)


class Demand(msgspec.Struct, frozen=True):
    """What must hold: one variant's rate is at least ``least`` times another's."""

    who: tuple[str, ...]
    """The faster of these counts: the batch size is a setting."""
    least: float
    than: str


DEMANDS = (
    Demand((OURS_500, OURS), 0.5, DEFERRED),
    Demand((OURS_500, OURS), 35, MODELS),
    Demand((OURS_500, OURS), 20, DRIVER),
    Demand((OURS_500, OURS), 1, BARE),
    Demand((OURS_ONE,), 1.2, DRIVER),
    Demand((OURS_BULK,), 0.6, BULK),
    Demand((OURS_BULK,), 1.6, PEER_BULK),
)


class Judged(msgspec.Struct, frozen=True):
    """A demand and what was measured."""

    who: str
    than: str
    least: float
    ratio: float

    @property
    def holds(self) -> bool:
        return self.ratio >= self.least

    def __str__(self) -> str:
        word = "pass" if self.holds else "MISS"
        return f"{word}  {self.ratio:6.2f} x {self.than:<24} (at least {self.least:g})   {self.who}"


def judge(figures: Mapping[str, Figure]) -> list[Judged]:
    """Every demand whose two sides were measured."""
    judged = []
    for demand in DEMANDS:
        measured = [figures[name] for name in demand.who if name in figures]
        if not measured or demand.than not in figures:
            continue
        best = max(measured, key=lambda each: each.rate)
        judged.append(Judged(best.name, demand.than, demand.least, best.rate / figures[demand.than].rate))
    return judged


# ------------------------------------------------------------------ one run


class Task(msgspec.Struct, frozen=True):
    """What a child process is told."""

    variant: str
    place: Place
    profile: bool


class Outcome(msgspec.Struct, frozen=True):
    """What a child process says."""

    run: Run
    where: list[tuple[str, float]]
    """Part and microseconds of CPU per message; empty where nobody looked."""
    hottest: list[str]


def measure(where: Servers, variant: Variant, count: int, profile: bool = False) -> Outcome:
    """One whole run, in a process of its own."""
    with place(where, orders(count, uuid7), variant.tables) as here:
        said = child("benchmarks.kafka", Task(variant.name, here, profile), here.tag)
        if variant.inbox:
            check(here, variant.inbox, variant.outbox)
        else:
            assert topic_size(where, here.topic_in) == count
        return msgspec.json.decode(said, type=Outcome)


def obey() -> None:
    """In the child: the task from standard input, its outcome to standard output."""
    from benchmarks.reference import run_loop

    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    variant = next(each for each in VARIANTS if each.name == task.variant)
    profile = Sampler() if task.profile else None
    done: Run = run_loop(variant.run(task.place, profile))
    seen = (profile.each(done.messages), profile.hottest(40)) if profile else ([], [])
    print(msgspec.json.encode(Outcome(done, *seen)).decode(), flush=True)
    os._exit(0)  # what FastStream and the twin leave running is not waited for


# ------------------------------------------------------------------ the whole benchmark


def compare(
    where: Servers, variants: Sequence[Variant], options: argparse.Namespace, say: Callable[..., None]
) -> dict[str, Figure]:
    """All variants in turn, round after round: each meets the same weather on a shared machine."""
    measure(where, VARIANTS[0], max(1000, options.messages // 2))  # not counted: servers are slow at first
    runs: dict[str, list[Run]] = defaultdict(list)
    for round in range(1, options.runs + 1):
        for variant in variants:
            done = measure(where, variant, variant.messages(options)).run
            runs[variant.name].append(done)
            say(f"  round {round}: {figure(variant.name, [done])}")
    return {name: figure(name, done) for name, done in runs.items()}


def look(where: Servers, variant: Variant, options: argparse.Namespace, say: Callable[..., None]) -> dict[str, float]:
    """Where the time of one variant goes, per message; a run of its own, because looking costs something."""
    outcome = measure(where, variant, variant.messages(options), profile=True)
    run = outcome.run
    say(f"\nWhere the CPU time goes, {variant.name}, {run.rate:,.0f} /s while it was sampled, µs per message:")
    spent = {
        **dict(outcome.where),
        **{f"server {name}": cost / run.messages * 1e6 for name, cost in run.servers.items()},
    }
    for part, cost in spent.items():
        if cost >= 0.05:
            say(f"  {cost:8.2f}  {part}")
    for line in outcome.hottest[: options.hot]:
        say(f"  {line}")
    return {part: round(cost, 2) for part, cost in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_options(parser)
    parser.add_argument("--messages", type=int, default=30_000, help="for the fast variants; the slow ones get a share")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", action="append", default=[], help="variants whose name contains this (several times)")
    parser.add_argument("--hot", type=int, default=0, help="also print so many single lines by their own time")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--task", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        obey()
    out = sys.stderr if options.json else sys.stdout

    def say(*words: object) -> None:
        print(*words, file=out, flush=True)

    chosen = [each for each in VARIANTS if not options.only or any(word in each.name for word in options.only)]
    before, began = machine_speed(), time.time()
    with servers(options.broker, options.store) as where:
        figures = compare(where, chosen, options, say)
        parts = {
            each.name: look(where, each, options, say)
            for each in chosen
            if each.name in (OURS_500, OURS_BULK, OURS_ONE)
        }
    say()
    for each in figures.values():
        say(each)
    judged = judge(figures)
    say()
    for verdict in judged:
        say(verdict)
    say(f"\nmachine: {before:.0f} ms before and {machine_speed():.0f} ms after for a fixed loop")
    say(f"{time.time() - began:.0f} s in all")
    if options.json:
        result = {
            "figures": msgspec.to_builtins(list(figures.values())),
            "ratios": [{**msgspec.to_builtins(each), "holds": each.holds} for each in judged],
            "where": parts,
            "machine_ms": round(before, 1),
        }
        print(json.dumps(result))
    raise SystemExit(not all(verdict.holds for verdict in judged))


if __name__ == "__main__":
    main()
