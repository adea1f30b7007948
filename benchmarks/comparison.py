"""What the comparisons on servers share: variants that run alternately, each in a process of its own; what must hold;
the command line and the table.

Every variant runs on topics and tables of its own. Every run counts its rows; a run with a row missing ends the
benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NoReturn

import msgspec

from benchmarks.job import Figure, Run, figure, machine_speed, orders, uuid7
from benchmarks.postgres_twin import TABLES
from benchmarks.processes import child
from benchmarks.servers import Layout, Place, Servers, add_options, check, place, servers, topics
from benchmarks.where import Sampler

BATCH, LANES = 500, 4

Job = Callable[[Place, Sampler | None], Coroutine[Any, Any, Run]]
"""Does the whole job in this process. Only Eventkeel is looked at while it runs."""


class Variant(msgspec.Struct, frozen=True):
    """One way to do the job."""

    name: str
    run: Job
    messages: Callable[[argparse.Namespace], int]
    tables: str = TABLES
    inbox: str = "inbox"
    """The table of what was handled; empty: this one writes nothing."""
    outbox: str = "outbox"
    layout: Layout = "by hand"
    looked_at: bool = False
    """Where its time goes is printed."""


def ours(service: str, **settings: Any) -> Job:
    def run(here: Place, profile: Sampler | None) -> Coroutine[Any, Any, Run]:
        from benchmarks import ours as side
        from benchmarks import services  # topics are read from the environment when it is imported

        return side.handle(here, getattr(services, service), profile, **settings)

    return run


def many(options: argparse.Namespace) -> int:
    return int(options.messages)


def some(share: float) -> Callable[[argparse.Namespace], int]:
    """A slow variant gets fewer messages."""
    return lambda options: max(20, int(options.messages * share))


def eventkeel(name: str, service: str, share: float, *, looked_at: bool = False, **settings: Any) -> Variant:
    run, messages = ours(service, **settings), some(share)
    inbox, outbox = "eventkeel_inbox", "eventkeel_outbox"
    return Variant(name, run, messages, tables="", inbox=inbox, outbox=outbox, layout="", looked_at=looked_at)


class Demand(msgspec.Struct, frozen=True):
    """What must hold: one variant's rate is at least ``least`` times another's."""

    who: tuple[str, ...]
    """The faster of these counts: the batch size is a setting."""
    least: float
    than: str


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


class Task(msgspec.Struct, frozen=True):
    """What a child process is told."""

    variant: str
    place: Place
    profile: bool
    prepare: bool = False
    """Start and stop, so that topics, groups and tables are there; nothing is measured."""


class Outcome(msgspec.Struct, frozen=True):
    """What a child process says."""

    run: Run
    where: list[tuple[str, float]]
    """Part and microseconds of CPU per message; empty where nobody looked."""
    hottest: list[str]


class Comparison:
    """The variants on one kind of broker, and what must hold between them."""

    def __init__(self, module: str, kind: str, variants: Sequence[Variant], demands: Sequence[Demand]) -> None:
        self.module, self.kind, self.variants, self.demands = module, kind, variants, demands

    def variant(self, name: str) -> Variant:
        return next(each for each in self.variants if each.name == name)

    def judge(self, figures: Mapping[str, Figure]) -> list[Judged]:
        """Every demand whose two sides were measured."""
        judged = []
        for demand in self.demands:
            measured = [figures[name] for name in demand.who if name in figures]
            if not measured or demand.than not in figures:
                continue
            best = max(measured, key=lambda each: each.rate)
            judged.append(Judged(best.name, demand.than, demand.least, best.rate / figures[demand.than].rate))
        return judged

    # -- one run

    def measure(self, where: Servers, name: str, count: int, profile: bool = False) -> Outcome:
        """One whole run, in a process of its own."""
        variant = self.variant(name)

        def prepare(here: Place) -> None:
            if not variant.tables and where.kind == "rabbitmq":  # a queue gets only what comes after it was made
                child(self.module, Task(name, here, False, prepare=True), here.tag)

        inputs = orders(count, uuid7)
        with place(where, inputs, variant.tables, layout=variant.layout, prepare=prepare) as here:
            said = child(self.module, Task(name, here, profile), here.tag)
            if variant.inbox:
                check(here, variant.inbox, variant.outbox)
            else:
                assert not topics(where).left(here)
            return msgspec.json.decode(said, type=Outcome)

    def obey(self) -> NoReturn:
        """In the child: the task from standard input, its outcome to standard output."""
        from benchmarks.reference import run_loop

        task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
        if task.prepare:
            from benchmarks.ours import declare

            run_loop(declare(task.place))
            print("ready", flush=True)
            os._exit(0)
        profile = Sampler() if task.profile else None
        done: Run = run_loop(self.variant(task.variant).run(task.place, profile))
        seen = (profile.each(done.messages), profile.hottest(40)) if profile else ([], [])
        print(msgspec.json.encode(Outcome(done, *seen)).decode(), flush=True)
        os._exit(0)  # what FastStream and the twin leave running is not waited for

    # -- the whole benchmark

    def compare(
        self, where: Servers, chosen: Sequence[Variant], options: argparse.Namespace, say: Callable[..., None]
    ) -> dict[str, Figure]:
        """All variants in turn, round after round: each meets the same weather on a shared machine."""
        first = self.variants[0].name
        self.measure(where, first, max(1000, options.messages // 2))  # not counted: servers are slow at first
        runs: dict[str, list[Run]] = defaultdict(list)
        for round in range(1, options.runs + 1):
            for variant in chosen:
                done = self.measure(where, variant.name, variant.messages(options)).run
                runs[variant.name].append(done)
                say(f"  round {round}: {figure(variant.name, [done])}")
        return {name: figure(name, done) for name, done in runs.items()}

    def look(
        self, where: Servers, variant: Variant, options: argparse.Namespace, say: Callable[..., None]
    ) -> dict[str, float]:
        """Where the time of one variant goes, per message; a run of its own, because looking costs something."""
        outcome = self.measure(where, variant.name, variant.messages(options), profile=True)
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

    def main(self, doc: str | None, brokers: str) -> NoReturn:
        parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
        add_options(parser, brokers)
        parser.add_argument(
            "--messages", type=int, default=30_000, help="for the fast variants; the slow ones get a share"
        )
        parser.add_argument("--runs", type=int, default=3)
        parser.add_argument(
            "--only", action="append", default=[], help="variants whose name contains this (several times)"
        )
        parser.add_argument("--hot", type=int, default=0, help="also print so many single lines by their own time")
        parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
        parser.add_argument("--task", action="store_true", help=argparse.SUPPRESS)
        options = parser.parse_args()
        if options.task:
            self.obey()
        out = sys.stderr if options.json else sys.stdout

        def say(*words: object) -> None:
            print(*words, file=out, flush=True)

        chosen = [each for each in self.variants if not options.only or any(word in each.name for word in options.only)]
        before, began = machine_speed(), time.time()
        with servers(options.broker, options.store, self.kind) as where:
            figures = self.compare(where, chosen, options, say)
            parts = {each.name: self.look(where, each, options, say) for each in chosen if each.looked_at}
        say()
        for each in figures.values():
            say(each)
        judged = self.judge(figures)
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
