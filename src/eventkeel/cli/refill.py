"""``eventkeel refill``: new queues for a service, filled from the topics' histories."""

from __future__ import annotations

import asyncio

import click

from eventkeel import operate
from eventkeel.admin.access import local_actor
from eventkeel.cli.loading import load
from eventkeel.cli.shape import Command, configured, json_option, service_argument
from eventkeel.cli.show import print_json
from eventkeel.config import Config


@click.command(
    cls=Command,
    short_help="Give a service new queues, filled from the topics' histories (RabbitMQ).",
    examples=(
        ("eventkeel refill shop.payments:service --topic order_events", "a queue or a binding is gone"),
        ("eventkeel refill shop.payments:service --set partitions=16", "another number of queues, for all its topics"),
    ),
)
@service_argument
@click.option("--topic", "topics", multiple=True, help="One of the topics that it handles; may be repeated.")
@json_option
@configured
def refill(reference: str, topics: tuple[str, ...], as_json: bool, config: Config) -> int:
    """Replace a service's queues on RabbitMQ by new ones, as many as 'partitions' says, which begin with what the
    topics' histories hold.

    For a queue or a binding that is gone, another number of queues, or a database that was restored from a backup. What
    lies in the old queues is handled first; what was handled before takes no effect again. Workers that run go over by
    themselves, those that have stopped do when they start.
    """
    lines = asyncio.run(operate.refill(load(reference), config, topics, local_actor()))
    if as_json:
        print_json({"done": lines})
    else:
        click.echo("\n".join(lines))
    return 0
