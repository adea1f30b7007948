"""``eventkeel dlq``: what a service gave up on, why, and what to do with it."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import msgspec

from eventkeel.admin.access import Actor, local_actor
from eventkeel.cli.loading import load, load_all
from eventkeel.cli.shape import (
    Command,
    Group,
    configured,
    json_option,
    same_place,
    service_argument,
    services_argument,
)
from eventkeel.cli.show import body_fields, moment, print_facts, print_json, print_table, talk
from eventkeel.config import Config
from eventkeel.errors import ConfigurationError
from eventkeel.operate import desk
from eventkeel.ports.catalogue import DeadLetter, State
from eventkeel.service import Service


@click.group(
    cls=Group,
    short_help="Dead letters: list, show, redrive, skip.",
    examples=(
        ("eventkeel dlq list shop.payments:service", "what is there?"),
        ("eventkeel dlq show shop.payments:service 7", "why, and what did it say?"),
        ("eventkeel dlq redrive shop.payments:service 7", "try it again, ahead of its key"),
        ("eventkeel dlq skip shop.payments:service 7 --note 'paid by hand'", "never; the key goes on"),
    ),
)
def dlq() -> None:
    """Dead letters: deliveries that were given up on, kept with their reason. The key of one whose handler failed
    waits behind it."""


@dlq.command(
    "list",
    cls=Command,
    examples=(
        ("eventkeel dlq list shop.orders:service shop.payments:service", "of two services"),
        ("eventkeel dlq list shop.payments:service --state parked", "what waits to be tried again"),
        ("eventkeel dlq list shop.payments:service --json", "for programs"),
    ),
)
@services_argument
@click.option("--state", type=click.Choice(["dead", "conflict", "parked"]), help="Only these.  [dead and conflict]")
@click.option("--consumer", metavar="SERVICE/HANDLER", help="Only of this consumer.")
@click.option("--after", type=click.IntRange(min=0), default=0, metavar="NUMBER", help="Only numbers above this one.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At most so many of each."
)
@json_option
@configured
def list_letters(
    references: tuple[str, ...],
    state: State | None,
    consumer: str | None,
    after: int,
    limit: int,
    as_json: bool,
    config: Config,
) -> int:
    """List dead letters, oldest first, without their bodies."""

    async def ask(service: Service) -> list[DeadLetter]:
        async with desk(service, config, local_actor()) as open_desk:
            return await open_desk.ask.dead_letters(consumer=consumer, state=state, after=after, limit=limit)

    services = load_all(references, config)
    found = {reference: asyncio.run(ask(service)) for reference, service in services.items()}
    letters = [letter for each in found.values() for letter in each]
    if as_json:
        print_json({"dead_letters": [_fields(letter) for letter in letters]})
        return 0
    if not letters:
        talk("nothing parked" if state == "parked" else "no dead letters")
        return 0
    titles = ("NUMBER", "STATE", "CONSUMER", "TOPIC", "KEY", "TYPE", "REASON", "ATTEMPTS", "BLOCKED", "SINCE", "ERROR")
    print_table(titles, [_row(letter) for letter in letters])
    for reference, each in found.items():
        if len(each) == limit:
            talk(f"more of {reference}: --after {each[-1].number}")
    first = next(reference for reference, each in found.items() if each)
    talk("look at one: " + same_place(f"eventkeel dlq show {first} {found[first][0].number}"))
    return 0


@dlq.command("show", cls=Command, examples=(("eventkeel dlq show shop.payments:service 7", "number from dlq list"),))
@service_argument
@click.argument("number", type=click.IntRange(min=1))
@json_option
@configured
def show_letter(reference: str, number: int, as_json: bool, config: Config) -> int:
    """Show one dead letter whole: reason, error, headers and body."""

    async def ask(service: Service) -> DeadLetter | None:
        async with desk(service, config, local_actor()) as open_desk:
            return await open_desk.ask.dead_letter(number)

    letter = asyncio.run(ask(load(reference)))
    if letter is None:
        raise ConfigurationError(
            f"{reference} keeps nothing under number {number}; see 'eventkeel dlq list {reference}'"
        )
    if as_json:
        print_json(_fields(letter))
        return 0
    print_facts(_facts(letter))
    if letter.state == "dead":
        talk("try it again: " + same_place(f"eventkeel dlq redrive {reference} {number}"))
    return 0


def _actor(_: click.Context, __: click.Parameter, value: str | None) -> Actor:
    return local_actor(value)


_actor_option = click.option(
    "--actor", callback=_actor, metavar="NAME", help="Who does it; recorded.  [the system's user]"
)


@dlq.command(
    "redrive",
    cls=Command,
    examples=(
        ("eventkeel dlq redrive shop.payments:service 7", "after the cause is mended"),
        ("eventkeel dlq redrive shop.payments:service 7 8 9", "several, in this order"),
    ),
)
@service_argument
@click.argument("numbers", type=click.IntRange(min=1), nargs=-1, required=True, metavar="NUMBER...")
@_actor_option
@json_option
@configured
def redrive(reference: str, numbers: tuple[int, ...], actor: Actor, as_json: bool, config: Config) -> int:
    """Send dead letters through again, under the same ids: what took effect once does not do so again."""

    async def act(service: Service) -> None:
        async with desk(service, config, actor) as open_desk:
            for number in numbers:
                letter = await open_desk.act.redrive(number)
                behind = f"; {letter.blocked} wait behind it" if letter.blocked else ""
                _report(letter, "redriven", behind, actor, as_json)

    asyncio.run(act(load(reference)))
    return 0


@dlq.command(
    "skip",
    cls=Command,
    examples=(("eventkeel dlq skip shop.payments:service 7 --note 'refunded by hand'", "it never takes effect"),),
)
@service_argument
@click.argument("number", type=click.IntRange(min=1))
@click.option("--note", required=True, help="Why it shall never take effect; recorded.")
@_actor_option
@json_option
@configured
def skip(reference: str, number: int, note: str, actor: Actor, as_json: bool, config: Config) -> int:
    """Give up on a delivery for ever: it never takes effect, and what waits behind it on its key goes on."""

    async def act(service: Service) -> DeadLetter:
        async with desk(service, config, actor) as open_desk:
            return await open_desk.act.skip(number, note)

    letter = asyncio.run(act(load(reference)))
    _report(letter, "skipped", f"; {letter.blocked} go on behind it" if letter.blocked else "", actor, as_json)
    return 0


# ------------------------------------------------------------------ how they look


def _report(letter: DeadLetter, what: str, rest: str, actor: Actor, as_json: bool) -> None:
    if as_json:
        print_json({"action": what, "actor": actor.name, "dead_letter": _fields(letter)})
    else:
        click.echo(f"{what} {letter.number}: {letter.type or 'message'} {letter.event_id} of {letter.consumer}{rest}")


def _row(letter: DeadLetter) -> tuple[object, ...]:
    return (
        letter.number,
        letter.state,
        letter.consumer,
        letter.topic,
        letter.key or "",
        letter.type,
        letter.reason,
        letter.attempts,
        letter.blocked,
        moment(letter.first_failed),
        letter.error.partition("\n")[0],
    )


def _fields(letter: DeadLetter) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(letter)
    fields["headers"] = [{"name": name, "value": value} for name, value in letter.headers]
    del fields["body"]
    return {**fields, **body_fields(letter.body)}


def _facts(letter: DeadLetter) -> list[tuple[str, object]]:
    body = "(none)" if letter.body is None else letter.body.decode("utf-8", "backslashreplace")
    return [
        ("number", letter.number),
        ("state", letter.state),
        ("consumer", letter.consumer),
        ("event id", letter.event_id),
        ("type", letter.type),
        ("topic", f"{letter.topic}, partition {letter.partition}, position {letter.position}"),
        ("key", letter.key or "(none)"),
        ("blocked", f"{letter.blocked} deliveries wait behind it"),
        ("attempts", letter.attempts),
        ("failed", f"first {moment(letter.first_failed)}, last {moment(letter.last_failed)}"),
        ("reason", letter.reason),
        ("error", letter.error),
        *((f"header {name}", value) for name, value in letter.headers),
        ("body", body),
    ]
