"""``eventkeel publish``: an event through a service's outbox, or a raw message straight to the broker."""

from __future__ import annotations

import asyncio
import sys

import click

from eventkeel import operate
from eventkeel.cli.loading import load
from eventkeel.cli.shape import Command, configured, json_option
from eventkeel.cli.show import print_json
from eventkeel.config import Config


@click.command(
    cls=Command,
    short_help="Publish an event, or put a raw message on the broker.",
    examples=(
        (
            """eventkeel publish shop.orders:service OrderCreated '{"order_id": "A1", "user_id": "U1", "amount": 5}'""",
            "as the service would",
        ),
        (
            """eventkeel publish --raw --topic order_events --key A1 '{"order_id": "A1"}'""",
            "as a foreign program would",
        ),
        ("eventkeel publish --raw --topic order_events --key A1 - < body.json", "from standard input"),
    ),
)
@click.argument("words", nargs=-1, metavar="SERVICE TYPE JSON | --raw BODY")
@click.option("--raw", is_flag=True, help="Put BODY on the broker exactly as it is: no outbox, no envelope, no check.")
@click.option("--topic", help="With --raw: the topic.")
@click.option("--key", help="With --raw: the message's ordering key.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="With --raw: a header; may be repeated.")
@click.option("--create", is_flag=True, help="With --raw: make the topic where it does not exist.")
@json_option
@configured
def publish(
    words: tuple[str, ...],
    raw: bool,
    topic: str | None,
    key: str | None,
    headers: tuple[str, ...],
    create: bool,
    as_json: bool,
    config: Config,
) -> int:
    """Publish one event, checked as the service's own code would be, through its outbox; or a raw message.

    TYPE is the name of an event class that the service's modules import, or TOPIC/NAME. A '-' instead of the body
    reads it from standard input.
    """
    if raw:
        if len(words) != 1 or topic is None:
            raise click.UsageError("write: eventkeel publish --raw --topic TOPIC [--key KEY] BODY")
        body = _body(words[0])
        pairs = [_header(text) for text in headers]
        encoded = None if key is None else key.encode()
        asyncio.run(operate.publish_raw(config, topic, encoded, pairs, body, create=create))
        if as_json:
            print_json({"topic": topic, "key": key, "bytes": len(body)})
        else:
            click.echo(f"{len(body)} bytes are on topic {topic}")
        return 0
    if len(words) != 3:
        raise click.UsageError("write: eventkeel publish SERVICE TYPE JSON")
    if topic is not None or key is not None or headers or create:
        raise click.UsageError("--topic, --key, --header and --create go with --raw; an event says them itself")
    done = asyncio.run(operate.publish(load(words[0]), config, words[1], _body(words[2])))
    if as_json:
        print_json({"id": str(done.id), "topic": done.topic, "type": done.type, "sent": done.sent})
    else:
        where = "on the broker" if done.sent else "in the outbox, to be sent when the service runs"
        click.echo(f"{done.type} {done.id} is {where} (topic {done.topic})")
    return 0


def _body(text: str) -> bytes:
    return sys.stdin.buffer.read() if text == "-" else text.encode("utf-8", "surrogateescape")


def _header(text: str) -> tuple[str, bytes]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--header {text!r} is not NAME=VALUE, such as ce_type=OrderCreated")
    return name, value.encode()
