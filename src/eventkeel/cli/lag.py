"""``eventkeel lag``: how far services are behind."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import msgspec

from eventkeel.admin.access import local_actor
from eventkeel.admin.ask import Lag, by_topic
from eventkeel.cli.loading import load_all
from eventkeel.cli.shape import Command, configured, json_option, services_argument
from eventkeel.cli.show import print_json, print_table, talk
from eventkeel.config import Config
from eventkeel.operate import desk
from eventkeel.service import Service


@click.command(
    cls=Command,
    short_help="How far services are behind.",
    examples=(
        ("eventkeel lag shop.orders:service shop.payments:service", "a line for each topic"),
        ("eventkeel lag shop.payments:service --partitions", "and for each partition"),
        ("eventkeel lag shop.payments:service --json", "for programs"),
    ),
)
@services_argument
@click.option("--partitions", "each", is_flag=True, help="A line for each partition.")
@json_option
@configured
def lag(references: tuple[str, ...], each: bool, as_json: bool, config: Config) -> int:
    """How far services are behind: messages not yet handled, events not yet sent, keys that wait.

    Services tell the broker once a second how far they are, so a busy one seems to be up to a second behind.
    """

    async def ask(service: Service) -> Lag:
        async with desk(service, config, local_actor()) as open_desk:
            return await open_desk.ask.lag()

    lags = [asyncio.run(ask(service)) for service in load_all(references, config).values()]
    if as_json:
        print_json({"services": [msgspec.to_builtins(one) for one in lags]})
        return 0
    if each:
        _print_partitions(lags)
    else:
        _print_topics(lags)
    for one in lags:
        _tell_store(one)
    return 0


def _print_topics(lags: list[Lag]) -> None:
    rows: list[tuple[Any, ...]] = [(one.service, *row) for one in lags for row in by_topic(one.slices)]
    print_table(("SERVICE", "TOPIC", "PARTITIONS", "MESSAGES", "SECONDS"), rows)


def _print_partitions(lags: list[Lag]) -> None:
    rows = [
        (one.service, part.topic, part.partition, part.settled or 0, part.end, part.messages, part.seconds)
        for one in lags
        for part in one.slices
    ]
    print_table(("SERVICE", "TOPIC", "PARTITION", "SETTLED", "END", "MESSAGES", "SECONDS"), rows)


def _tell_store(lag: Lag) -> None:
    store, name = lag.store, lag.service
    if store.unsent:
        talk(f"{name}: events that wait to be sent: {store.unsent}, the oldest for {lag.oldest_unsent_seconds:.1f} s")
    for row in store.stuck:
        talk(f"{name}: event {row.id} for {row.topic}, key {row.key}, is stuck: {row.reason}")
    if store.waiting_keys or store.blocked_keys:
        talk(
            f"{name}: keys that wait to be tried again: {store.waiting_keys}, blocked by a dead letter: "
            f"{store.blocked_keys}; parked deliveries: {store.parked}"
        )
    if store.dead:
        talk(f"{name}: dead letters: {store.dead}; see 'eventkeel dlq list'")
