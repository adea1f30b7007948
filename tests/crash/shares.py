"""Three workers share twelve queues, and go on doing so when one is killed, comes back, is stopped and wakes up:

    python -m tests.crash.shares
    python -m tests.crash.shares --broker sqlite --store sqlite

Prints after how many seconds every living worker owned its fair share (4; 6 when one is gone). Exit 0: within 15 s each
time; 1: not so.
"""

from __future__ import annotations

import collections
import os
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path

from eventkeel.testing.fleet import Fleet
from shop.databases import Unreadable, reading
from shop.running import Place
from tests.crash.load import SERVICE, TOPIC
from tests.crash.places import Where, arguments, command

QUEUES, WORKERS = 12, 3
LIMIT = 15.0
PATIENCE = 20.0
OWNERS = f"""
    select o.owner, o.until, coalesce(m.until, 0) from eventkeel_owner o
    left join eventkeel_member m on m.grp = o.grp and m.member = o.owner
    where o.topic = '{TOPIC}' and o.owner <> ''"""
"""A lease lasts as long as its row says, or its member's: on some stores a renewal touches the member only."""


def owned(store: str) -> dict[int, int]:
    """Process -> how many queues it owns now: by leases that have not run out."""
    try:
        with reading(store) as database:
            rows = database.rows(OWNERS)
    except Unreadable:  # not made yet
        return {}
    now = time.time()
    return dict(
        collections.Counter(int(str(owner).split("-")[-2]) for owner, *until in rows if max(map(float, until)) > now)
    )


def is_fair(shares: dict[int, int], alive: Collection[int]) -> bool:
    """Every queue has an owner that lives, and no two of those differ by more than one."""
    mine = [shares.get(pid, 0) for pid in alive]
    return sum(mine) == sum(shares.values()) == QUEUES and max(mine) - min(mine) <= 1


def shares(where: Where, folder: Path, mutant: str = "") -> list[str]:
    """Run it; what is wrong."""
    place = Place(folder, where.broker, where.store)
    settings = {**place.settings(), "log_level": "warning", "partitions": str(QUEUES)}
    fleet = Fleet(folder / "faults", settings=settings, mutant=mutant)
    fleet.add(SERVICE, workers=WORKERS)
    wrong: list[str] = []

    def until_fair(what: str, alive: Collection[int]) -> None:
        began = time.monotonic()
        while not is_fair(now := owned(place.store("journal")), alive):
            if time.monotonic() - began > PATIENCE:
                break
            time.sleep(0.05)
        seconds = time.monotonic() - began
        print(f"{what}: {sorted(now.values())} after {seconds:.1f} s", flush=True)
        if seconds > LIMIT:
            wrong.append(f"{what}: {sorted(now.values())} after {seconds:.1f} s")

    with fleet:
        until_fair("three started", fleet.pids(SERVICE))
        fleet.lose(fleet.pids(SERVICE)[1])
        until_fair("one killed", fleet.pids(SERVICE))
        fleet.scale(SERVICE, WORKERS)
        until_fair("another one started", fleet.pids(SERVICE))
        sleeper, *others = fleet.pids(SERVICE)
        os.kill(sleeper, signal.SIGSTOP)
        until_fair("one stopped", others)
        os.kill(sleeper, signal.SIGCONT)
        until_fair("it goes on", [sleeper, *others])
    return wrong


def main() -> int:
    parser = arguments("python -m tests.crash.shares", __doc__, broker="rabbitmq", store="postgres")
    parser.add_argument("--mutant", default="", help="MODULE:FUNCTION, applied in every process")
    given = parser.parse_args()
    return command(given, lambda where, folder: shares(where, folder, given.mutant))


if __name__ == "__main__":
    sys.exit(main())
