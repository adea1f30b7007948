"""How commands look: help with examples first, near misses suggested, options that several commands share."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import click

from eventkeel.config import FILE, Config, options

F = TypeVar("F", bound=Callable[..., Any])
Examples = Sequence[tuple[str, str]]
"""(command line, what it does)"""


class Command(click.Command):
    """A command whose help begins with examples."""

    def __init__(self, *arguments: Any, examples: Examples = (), **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.examples = examples

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_usage(ctx, formatter)
        _format_examples(self.examples, formatter)
        self.format_help_text(ctx, formatter)
        self.format_options(ctx, formatter)


class Group(Command, click.Group):
    """A group of commands whose help begins with examples, and which suggests what was probably meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
            known = [name for name, command in commands.items() if command is not None and not command.hidden]
            near = get_close_matches(args[0], known, 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}."
            raise click.UsageError(f"There is no command {args[0]!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)


def _format_examples(examples: Examples, formatter: click.HelpFormatter) -> None:
    if not examples:
        return
    widest = max(len(line) for line, _ in examples)
    with formatter.section("Examples"):
        for line, what in examples:
            formatter.write(f"  {line:<{widest}}   # {what}\n")


def _assignment(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    given: dict[str, str] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE, such as partitions=16")
        given[name.strip()] = text
    return given


def configured(command: F) -> F:
    """The options of every command that touches a broker or a store. Gives it ``config``: a ``Config``."""

    def resolve(*arguments: Any, broker: Any, store: Any, data: Any, file: Path | None, given: Any, **rest: Any) -> Any:
        overrides = {"broker": broker, "store": store, "data": data, **given}
        for name in ("workers", "start"):
            if name in rest:
                overrides[name] = rest.pop(name)
        config = Config.load({k: v for k, v in overrides.items() if v is not None}, file=file or FILE)
        return command(*arguments, config=config, **rest)

    wrapped: Any = resolve
    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__click_params__ = getattr(command, "__click_params__", [])
    texts = {one.name: one.text for one in options()}
    for decorate in (
        click.option(
            "--set",
            "given",
            multiple=True,
            callback=_assignment,
            metavar="NAME=VALUE",
            help="Any other option of the configuration ('eventkeel config show' lists them).",
        ),
        click.option(
            "--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="Instead of eventkeel.toml."
        ),
        click.option("--data", metavar="DIR", help=_sentence(texts["data"])),
        click.option("--store", metavar="URL", help=_sentence(texts["store"])),
        click.option("--broker", metavar="URL", help=_sentence(texts["broker"])),
    ):
        wrapped = decorate(wrapped)
    result: F = wrapped
    return result


def same_place(line: str) -> str:
    """A command to type next, with the options that this one was given, so that it looks at the same files."""
    given = click.get_current_context().params
    options = [(f"--{name}", given[name]) for name in ("broker", "store", "data") if given[name] is not None]
    options += [("--config", given["file"])] if given["file"] is not None else []
    options += [("--set", f"{name}={value}") for name, value in given["given"].items()]
    return " ".join([line, *(f"{option} {shlex.quote(str(value))}" for option, value in options)])


def json_option(command: F) -> F:
    """``--json``. Gives the command ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def services_argument(command: F) -> F:
    """``SERVICE…``. Gives the command ``references``."""
    return click.argument("references", nargs=-1, required=True, metavar="SERVICE...")(command)


def service_argument(command: F) -> F:
    """``SERVICE``. Gives the command ``reference``."""
    return click.argument("reference", metavar="SERVICE")(command)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
