"""The relay alone on PostgreSQL and Kafka or RabbitMQ: drain a full outbox, Eventkeel and the native twin, alternately.

Kafka: acknowledged by all replicas, idempotent producer. RabbitMQ: persistent, mandatory, confirmed, into the same
exchange and stream. A row is deleted only after it was confirmed. The clock runs from the first look at the outbox
until the last row is deleted. ``one hot key``: every row has the same key, so all are in order; RabbitMQ keeps no order
for whoever does not wait, so there it is one message after another.

    python -m benchmarks.relay [--broker kafka|rabbitmq] [--events N] [--runs N] [--json]
    python -m benchmarks.relay --broker kafka://… --store postgresql://…
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import msgspec
import psycopg

from benchmarks import byhand
from benchmarks.job import PARTITIONS, Figure, Run, figure, machine_speed, uuid7
from benchmarks.postgres_twin import TABLES, Relay
from benchmarks.processes import child
from benchmarks.servers import Meter, Place, Servers, add_options, ask, connect, place, servers, topics

TWIN, OURS, HOT = "twin", "Eventkeel", "Eventkeel, one hot key"
LEAST_SHARE, LEAST_HOT = 0.6, 2000.0
HOT_SHARE = {"kafka": 5, "rabbitmq": 25}
PER_TRANSACTION = 500
PATIENCE = 240.0


class Task(msgspec.Struct, frozen=True):
    """What a child process is told."""

    variant: str
    place: Place


# ------------------------------------------------------------------ by hand


def fill(here: Place) -> None:
    """The twin's outbox. Not measured."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
    into = "copy outbox (shard, event_id, topic, key, headers, body) from stdin"
    with psycopg.connect(here.servers.dsn(), autocommit=True) as connection:
        connection.execute(f"set search_path = {here.schema}".encode())
        with connection.cursor() as cursor, cursor.copy(into.encode()) as copy:
            for number in range(here.count):
                cause = uuid7()
                order = byhand.OrderCreated(f"o-{number:07d}", "u-1", Decimal("12.30"))
                id, key, headers, body = byhand.outgoing(cause, str(cause), order, now)
                copy.write_row((number % PARTITIONS, id, here.topic_out, key, headers, body))


async def _relay(here: Place) -> Relay:
    connection = await connect(here)
    if here.servers.kind == "kafka":
        from benchmarks import kafka_twin

        return kafka_twin.Relay(connection, here.servers)
    from benchmarks import rabbitmq_twin

    relay = rabbitmq_twin.Relay(connection, here)
    await relay.open()
    return relay


async def twin(here: Place) -> Run:
    fill(here)
    relay = await _relay(here)
    meter = Meter(here.servers)
    task = asyncio.create_task(relay.run())
    async with asyncio.timeout(PATIENCE):
        while relay.sent < here.count:
            await asyncio.sleep(0.005)
            if task.done():
                task.result()
    done = meter.stop(here.count)
    relay.stop()
    return done


# ------------------------------------------------------------------ Eventkeel


async def publish(here: Place, hot: bool) -> None:
    """Fill the outbox through the public door. Not measured."""
    from benchmarks.ours import config
    from benchmarks.services import PaymentSucceeded, payments
    from eventkeel.app import Runtime

    runtime = Runtime(payments, config(here), mode="publisher")
    await runtime.start()
    for start in range(0, here.count, PER_TRANSACTION):
        async with payments.transaction() as tx:
            for number in range(start, min(here.count, start + PER_TRANSACTION)):
                key = "hot" if hot else f"o-{number:07d}"
                tx.publish(PaymentSucceeded(order_id=key, amount=Decimal("12.30")))
    await runtime.stop()


async def ours(here: Place, hot: bool) -> Run:
    """The relay as ``eventkeel publish`` runs it: no handlers beside it."""
    from benchmarks.ours import config, until
    from benchmarks.reference import Confirmed
    from benchmarks.services import payments
    from eventkeel.app import Runtime

    await publish(here, hot)
    runtime = Runtime(payments, config(here), mode="relay")
    confirmed = Confirmed(runtime, here.count)
    begun: list[Meter] = []
    look = runtime.store.unsent

    async def unsent(shards: Sequence[int], limit: int, *, heads_only: bool = False) -> Any:
        if not begun:
            begun.append(Meter(here.servers))
        return await look(shards, limit, heads_only=heads_only)

    runtime.store.unsent = unsent  # type: ignore[method-assign]
    await runtime.start()
    await until(confirmed.all, runtime)
    done = begun[0].stop(here.count)
    await runtime.stop()
    return done


# ------------------------------------------------------------------ runs


def obey() -> None:
    """In the child: the task from standard input, its run to standard output."""
    from benchmarks.reference import run_loop

    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    here = task.place
    done: Run = run_loop(twin(here) if task.variant == TWIN else ours(here, task.variant == HOT))
    print(msgspec.json.encode(done).decode(), flush=True)
    os._exit(0)


def measure(where: Servers, variant: str, events: int) -> Run:
    """One whole run, in a process of its own."""
    by_hand = variant == TWIN
    with place(where, tables=TABLES if by_hand else "", count=events, layout="by hand" if by_hand else "") as here:
        done = msgspec.json.decode(child("benchmarks.relay", Task(variant, here), here.tag), type=Run)
        waiting = ask(here, f"select count(*) from {'outbox' if by_hand else 'eventkeel_outbox'}")
        sent = topics(where).out(here)
        assert (waiting, sent) == (0, events), f"{waiting} rows left, {sent} of {events} messages out"
        return done


def compare(where: Servers, options: argparse.Namespace, say: Callable[..., None]) -> dict[str, Figure]:
    """All variants in turn, round after round."""
    runs: dict[str, list[Run]] = defaultdict(list)
    for round in range(1, options.runs + 1):
        for variant in (TWIN, OURS, HOT):
            if options.only and options.only not in variant:
                continue
            events = options.events // HOT_SHARE[where.kind] if variant == HOT else options.events
            runs[variant].append(measure(where, variant, events))
            say(f"  round {round}: {figure(variant, runs[variant][-1:])}")
    return {name: figure(name, done) for name, done in runs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_options(parser, "kafka or rabbitmq (servers of our own), kafka://host:port, amqp://user:password@host:port")
    parser.add_argument("--events", type=int, default=50_000, help="rows in the outbox; one hot key gets a part of it")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--task", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        obey()
    out = sys.stderr if options.json else sys.stdout

    def say(*words: object) -> None:
        print(*words, file=out, flush=True)

    speed = machine_speed()
    with servers(options.broker, options.store) as where:
        figures = compare(where, options, say)
    say()
    for each in figures.values():
        say(each)
    verdicts = []
    if {TWIN, OURS} <= figures.keys():
        share = figures[OURS].rate / figures[TWIN].rate
        verdicts.append((share >= LEAST_SHARE, f"{share:.2f} of the twin (at least {LEAST_SHARE:g})"))
    if HOT in figures and where.kind == "kafka":
        rate = figures[HOT].rate
        verdicts.append((rate >= LEAST_HOT, f"one hot key: {rate:,.0f} /s (at least {LEAST_HOT:,.0f})"))
    for holds, words in verdicts:
        say(f"{'pass' if holds else 'MISS'}  {words}")
    say(f"machine: {speed:.0f} ms before and {machine_speed():.0f} ms after for a fixed loop")
    if options.json:
        print(json.dumps({"figures": msgspec.to_builtins(list(figures.values())), "verdicts": verdicts}))
    raise SystemExit(not all(holds for holds, _ in verdicts))


if __name__ == "__main__":
    main()
