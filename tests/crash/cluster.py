"""Brokers of a cluster of three killed under load, one after another, each while the others go on:

    python -m tests.crash.cluster --store postgres

Prints how long nothing was committed each time. Exit 0: nothing lost, nothing stuck, nothing twice; 1: not so.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from shop.brokers import client_options
from tests.crash.load import TOPIC, journal_under_load
from tests.crash.places import Where, arguments, command

KILLS = 3
DOWN = 15.0
"""Seconds for which a broker stays dead, at least: the others have to notice, and to go on without it."""
FLOWING = 2.0
"""Seconds within which every partition commits something when all is well."""
LONGEST_STALL = 60.0
"""Seconds after which a partition is stuck."""


def brokers_die(where: Where, folder: Path, kills: int = KILLS) -> list[str]:
    """Kill one after another; what is wrong."""
    wrong = []
    with journal_under_load(where, folder) as (journal, load):
        for number in range(1, kills + 1):
            _await_replicas(where.broker)
            began = time.time()
            where.servers["broker"].kill9()
            time.sleep(DOWN)
            while (
                journal.gaps(time.time() - FLOWING, time.time())[1] >= FLOWING and time.time() < began + LONGEST_STALL
            ):
                time.sleep(0.5)
            longest, of_one = journal.gaps(began, time.time())
            print(
                f"broker {number} killed: nothing committed for {longest:.1f} s, by one partition {of_one:.1f} s",
                flush=True,
            )
            if of_one >= LONGEST_STALL - FLOWING:
                wrong.append(f"a partition stood still for {of_one:.1f} s")
            where.servers["broker"].start()
        load.stop()
        return wrong + journal.wrong(load)


def _await_replicas(url: str, patience: float = 60.0) -> None:
    """Until every partition is on all three brokers, so that the next may die. Raises TimeoutError."""
    admin = AdminClient({**client_options(url), "log_level": 0})
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(KafkaException):
            partitions = admin.list_topics(timeout=10).topics[TOPIC].partitions.values()
            if partitions and all(len(each.isrs) == 3 for each in partitions):
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"not every partition of {TOPIC} has three replicas in sync after {patience:.0f} s")
        time.sleep(0.2)


def main() -> int:
    parser = arguments("python -m tests.crash.cluster", __doc__, broker="kafka-cluster", store="postgres")
    return command(parser.parse_args(), brokers_die)


if __name__ == "__main__":
    sys.exit(main())
