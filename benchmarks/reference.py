"""The reference job: Eventkeel beside the native twin, alternately, in one run.

One event in, one business row, one event out, each once; one process with relay and broker, all
syncs on. The clock runs until the last outbox row is confirmed by the broker and removed.

    python -m benchmarks.reference [--messages N] [--runs N] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import twin
from benchmarks.job import (
    PARTITIONS,
    TOPIC_IN,
    TOPIC_OUT,
    Figure,
    Input,
    Run,
    Stopwatch,
    ask,
    figure,
    folder,
    machine_speed,
    orders,
)
from benchmarks.services import payments
from benchmarks.where import Sampler
from eventkeel.app import Runtime, open_transport, spare_collector
from eventkeel.config import Config
from eventkeel.message import Headers, Outgoing, Slice
from eventkeel.ports.transport import Sent, TopicWant, Topology

PATIENCE = 120.0


def config(data: Path, **settings: Any) -> Config:
    return Config.load(
        {"data": str(data), "start": "earliest", "partitions": PARTITIONS, **settings}, environ={}, file=None
    )


async def fill(settings: Config, inputs: Sequence[Input]) -> None:
    """The input topic, filled through the transport. Not measured."""
    transport = open_transport(settings.broker_url)
    await transport.open()
    try:
        wants = tuple(TopicWant(topic, PARTITIONS) for topic in (TOPIC_IN, TOPIC_OUT))
        await transport.topology(Topology(topics=wants), apply=True)
        wave = [Outgoing(TOPIC_IN, each.key, Headers(each.headers), each.body) for each in inputs]
        for start in range(0, len(wave), 5000):
            outcomes = await transport.publish(wave[start : start + 5000], 60.0)
            assert all(isinstance(outcome, Sent) for outcome in outcomes)
    finally:
        await transport.close(5.0)


class Confirmed:
    """Counts removed outbox rows without an observer, which would cost something per message."""

    def __init__(self, runtime: Runtime, wanted: int) -> None:
        self._sent, self._left, self.all = runtime.store.sent, wanted, asyncio.Event()
        runtime.store.sent = self.sent  # type: ignore[method-assign]

    async def sent(self, group: str, epochs: Mapping[Slice, int], ids: Sequence[int]) -> tuple[Slice, ...]:
        lost = await self._sent(group, epochs, ids)
        if not lost:
            self._left -= len(ids)
            if self._left <= 0:
                self.all.set()
        return lost


async def handle(settings: Config, count: int, profile: Sampler | None) -> Run:
    """Start the service on a filled topic and wait until everything is handled, sent and removed."""
    runtime = Runtime(payments, settings)
    confirmed = Confirmed(runtime, count)
    await runtime.start()
    spare_collector()  # as `eventkeel run` does
    if profile:
        profile.enable()
    watch = Stopwatch()
    try:
        async with asyncio.timeout(PATIENCE):
            await confirmed.all.wait()
        done = watch.stop(count)
    finally:
        if profile:
            profile.disable()
        await runtime.stop()
    return done


def check(settings: Config, data: Path, count: int) -> None:
    """The same checks as the twin's: it counts only if every row is there."""
    store = data / f"{payments.name}.sqlite3"
    assert ask(store, "select count(*) from payments") == count
    assert ask(store, "select count(*) from eventkeel_inbox") == count
    assert ask(store, "select count(*) from eventkeel_outbox") == 0
    assert ask(data / "broker.sqlite3", "select count(*) from log") == 2 * count


def run_loop(coroutine: Any) -> Any:
    """On the loop that ``eventkeel run`` uses."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(coroutine)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


def measure(inputs: list[Input], batch: int, profile: Sampler | None = None) -> Run:
    """One whole run in a folder of its own."""
    with folder() as data:
        settings = config(data, batch_size=batch)
        run_loop(fill(settings, inputs))
        gc.collect()
        done: Run = run_loop(handle(settings, len(inputs), profile))
        check(settings, data, len(inputs))
        return done


def compare(messages: int, batch: int, runs: int) -> tuple[Figure, Figure]:
    """Twin and ours alternately: both meet the same weather on a shared machine."""
    inputs = orders(messages)
    theirs, ours = [], []
    for _ in range(runs):
        theirs.append(twin.measure(inputs, batch))
        ours.append(measure(inputs, batch))
    return figure(f"twin, batches of {batch}", theirs), figure(f"Eventkeel, batches of {batch}", ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument(
        "--single", type=int, default=2_000, help="messages for one delivery per transaction (0: leave out)"
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--hot", type=int, default=0, help="also print so many single lines by their own time")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args()
    say = print if not options.json else lambda *words: print(*words, file=sys.stderr)
    before, began = machine_speed(), time.time()
    result: dict[str, Any] = {"messages": options.messages, "runs": options.runs}
    for batch, messages in ((100, options.messages), (1, options.single)):
        if not messages:
            continue
        theirs, ours = compare(messages, batch, options.runs)
        ratio = ours.rate / theirs.rate
        say(theirs)
        say(ours)
        say(f"{'':<28} {ratio:>9.2f} of the twin\n")
        result[f"batch_{batch}"] = {
            "twin_rate": round(theirs.rate),
            "rate": round(ours.rate),
            "slowest": round(ours.slowest),
            "fastest": round(ours.fastest),
            "cpu_us": round(ours.cpu_us, 1),
            "twin_cpu_us": round(theirs.cpu_us, 1),
            "ratio": round(ratio, 3),
        }
    profile = Sampler()
    measure(orders(2 * options.messages), 100, profile)
    parts = profile.shares()
    say("Where the event loop's time goes (sampled in a run of its own; the broker's writer has a thread of its own):")
    for part, share in parts:
        if share >= 0.005:
            say(f"  {share:6.1%}  {part}")
    for line in profile.hottest(options.hot):
        say(f"  {line}")
    result["where"] = {part: round(share, 4) for part, share in parts}
    result["machine_ms"] = round(before, 1)
    say(f"\nmachine: {before:.0f} ms before and {machine_speed():.0f} ms after for a fixed loop")
    say(f"{time.time() - began:.0f} s in all")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
