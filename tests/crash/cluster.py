"""Brokers of a cluster of three killed under load, one after another, each while the others go on:

    python -m tests.crash.cluster [--broker kafka]
    python -m tests.crash.cluster --broker rabbitmq

Of RabbitMQ's nodes it is the one that leads most of the queues. Prints how long nothing was committed each time, and
after how many seconds no event took longer than usual any more.

Exit 0: nothing lost, nothing stuck, nothing twice; 1: not so.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from shop.brokers import client_options, is_kafka
from tests.crash.load import LATE, TOPIC, Journal, journal_under_load
from tests.crash.places import Leader, Where, arguments, command

KILLS = 3
DOWN, DOWN_RABBITMQ = 15.0, 20.0
"""Seconds for which a broker stays dead, at least: the others have to notice, and to go on without it."""
RABBITMQ_LOAD = 120.0
"""Events in a second that three nodes, each of which writes every message, take beside all else on two cores."""
FLOWING = 2.0
"""Seconds within which every partition commits something when all is well."""
LONGEST_STALL = 60.0
"""Seconds after which a partition is stuck."""


def brokers_die(where: Where, folder: Path, kills: int = KILLS, patience: float = LONGEST_STALL) -> list[str]:
    """Kill one after another; what is wrong: a partition that stands still for ``patience`` seconds is."""
    kafka = is_kafka(where.broker)
    down, per_second = (DOWN, 300.0) if kafka else (DOWN_RABBITMQ, RABBITMQ_LOAD)
    wrong = []
    with journal_under_load(where, folder, per_second=per_second) as (journal, load):
        for number in range(1, kills + 1):
            _await_replicas(where)
            _let_catch_up(journal)
            began = time.time()
            where.servers["broker"].kill9()
            time.sleep(down)
            while journal.gaps(time.time() - FLOWING, time.time())[1] >= FLOWING and time.time() < began + patience:
                time.sleep(0.5)
            longest, of_one = journal.gaps(began, time.time())
            caught_up = journal.caught_up(began) - began
            print(
                f"broker {number} killed: nothing committed for {longest:.1f} s, by one partition {of_one:.1f} s; "
                f"nothing late any more after {caught_up:.1f} s",
                flush=True,
            )
            if of_one >= patience - FLOWING:
                wrong.append(f"a partition stood still for {of_one:.1f} s")
            where.servers["broker"].start()
        load.stop()
        return wrong + journal.wrong(load)


def _await_replicas(where: Where, patience: float = 60.0) -> None:
    """Until every partition is on all three brokers, so that the next may die. Raises TimeoutError."""
    leader = where.servers["broker"]
    replicated = leader.replicated if isinstance(leader, Leader) else _on_kafka(where.broker)
    deadline = time.monotonic() + patience
    while not replicated():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not every partition of {TOPIC} has three replicas in sync after {patience:.0f} s")
        time.sleep(0.2)


def _let_catch_up(journal: Journal, patience: float = 30.0) -> None:
    """What start and earlier kills have left undone is no part of the next figures; not for ever on a slow machine."""
    deadline = time.monotonic() + patience
    while journal.waiting() > LATE / 2 and time.monotonic() < deadline:
        time.sleep(0.2)


def _on_kafka(url: str) -> Callable[[], bool]:
    admin = AdminClient({**client_options(url), "log_level": 0})

    def replicated() -> bool:
        with contextlib.suppress(KafkaException):
            partitions = admin.list_topics(timeout=10).topics[TOPIC].partitions.values()
            return bool(partitions) and all(len(each.isrs) == 3 for each in partitions)
        return False

    return replicated


def main() -> int:
    parser = arguments("python -m tests.crash.cluster", __doc__, broker="kafka-cluster", store="postgres")
    given = parser.parse_args()
    if given.broker in ("kafka", "rabbitmq"):
        given.broker += "-cluster"
    return command(given, brokers_die)


if __name__ == "__main__":
    sys.exit(main())
