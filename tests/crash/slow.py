"""A handler slower than Kafka's max.poll.interval: ``python -m tests.crash.slow --broker kafka --store postgres``.

Exit 0: its process keeps its partitions, the handler runs once, and the other keys go on; 1: not so.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from eventkeel import Delivery, Event, Service, Transaction
from eventkeel.testing.faults import controls
from eventkeel.testing.fleet import Fleet
from shop.databases import Unreadable, reading
from shop.foreign import Foreigner
from shop.running import Place
from tests.crash.places import Where, arguments, command

INTERVAL, SESSION = 10.0, 6.0
SLOW = 1.5 * INTERVAL
OTHERS = 100
RUNS = "SLOW_RUNS"
"""Names the file in which every run of a slow handler is noted, outside of any transaction."""

OWNERS = "select topic, partition, epoch from eventkeel_owner where topic = 'slow_events' and owner <> '' order by 1, 2"


class SlowEvent(Event, topic="slow_events", key="name", identity="name", accept="plain"):
    name: str
    seconds: float = 0.0


service = Service(
    "slow",
    schema="create table if not exists finished (name text not null, attempt integer not null)",
    deadline=60.0,
)


@service.on(SlowEvent)
async def take_time(event: SlowEvent, tx: Transaction, delivery: Delivery) -> None:
    if event.seconds:
        _note(event.name)
        await asyncio.sleep(event.seconds)
    tx.write(
        "insert into finished (name, attempt) values (:name, :attempt)",
        {"name": event.name, "attempt": delivery.attempt},
    )


def _note(name: str) -> None:
    with Path(os.environ[RUNS]).open("a") as runs:
        runs.write(f"{name}\n")


def slow_handler(where: Where, folder: Path) -> list[str]:
    """What is wrong."""
    where = where.with_options(
        {"max.poll.interval.ms": f"{INTERVAL * 1000:.0f}", "session.timeout.ms": f"{SESSION * 1000:.0f}"}
    )
    place, runs = Place(folder, where.broker, where.store), folder / "runs"
    store = place.store("slow")
    runs.touch()
    os.environ[RUNS] = str(runs)
    fleet = Fleet(folder / "faults", settings={**place.settings(), "log_level": "warning"})
    fleet.add("tests.crash.slow:service", workers=2)
    with fleet:
        foreigner = Foreigner(place.broker)
        foreigner.append("slow_events", "first", '{"name":"first"}')
        _until(lambda: _finished(store) == 1 and _settled(store), "the first event is handled and both have partitions")
        before, began = _owners(store), time.monotonic()
        foreigner.append("slow_events", "slow", f'{{"name":"slow","seconds":{SLOW}}}')
        for number in range(OTHERS):
            foreigner.append("slow_events", f"other {number}", f'{{"name":"other {number}"}}')
            time.sleep(SLOW / OTHERS / 2)
        fast = _finished(store)
        _until(lambda: _finished(store) == OTHERS + 2, "everything is handled")
        seconds = time.monotonic() - began
        foreigner.close()
        after, fenced = _owners(store), sum(each.hits("unit.fenced") for each in controls(fleet.folder))
    times = runs.read_text().count("slow")
    print(
        f"a handler of {SLOW:.0f} s, max.poll.interval {INTERVAL:.0f} s: run {times} times, "
        f"{fast - 1} others meanwhile, "
        f"all done after {seconds:.1f} s, fenced {fenced}, owners {'the same' if before == after else 'CHANGED'}"
    )
    return [
        text
        for text, wrong in (
            (f"the handler ran {times} times", times != 1),
            (f"partitions changed hands: {sorted(set(after) - set(before))}", before != after),
            (f"{fenced} units were fenced", fenced > 0),
            ("nothing else was handled meanwhile", fast < 2),
        )
        if wrong
    ]


def _owners(store: str) -> list[tuple[object, ...]]:
    with reading(store) as database:
        return database.rows(OWNERS)


def _settled(store: str) -> bool:
    """All eight partitions have an owner, and nobody has just come."""
    first = _owners(store)
    time.sleep(2.0)
    return len(first) == 8 and first == _owners(store)


def _finished(store: str) -> int:
    try:
        with reading(store) as database:
            return database.number("select count(*) from finished")
    except Unreadable:
        return 0


def _until(condition: Callable[[], bool], what: str, patience: float = 90.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {patience:.0f} s: {what}")
        time.sleep(0.1)


def main() -> int:
    return command(arguments("python -m tests.crash.slow", __doc__).parse_args(), slow_handler)


if __name__ == "__main__":
    sys.exit(main())
