"""The command ``eventkeel``, and how every error becomes a sentence and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from eventkeel.cli.shape import Group
from eventkeel.errors import AccessDenied, ConfigurationError, EventkeelError, MalformedMessage, PublishError

FAILED, REFUSED, INTERRUPTED = 1, 2, 130
_REFUSALS = (ConfigurationError, AccessDenied, MalformedMessage, PublishError)


COMMANDS = {
    "run": "run:run",
    "publish": "publish:publish",
    "dlq": "dlq:dlq",
    "lag": "lag:lag",
    "refill": "refill:refill",
    "config": "config:config_group",
    "worker": "worker:worker",
}
"""Name -> where it is, in this package. Imported when it is asked for: a worker process holds no other commands."""


class Root(Group):
    """All commands, without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(f"eventkeel.cli.{module}"), name)
        return command


def _tell_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version  # a megabyte, for this alone

    try:
        said = version("eventkeel")
    except PackageNotFoundError:  # run from a source tree that is not installed
        said = "unknown"
    click.echo(f"eventkeel, version {said}")
    ctx.exit()


@click.group(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    examples=(
        ("eventkeel run shop.payments:service", "run a service"),
        ("eventkeel lag shop.payments:service", "how far is it behind?"),
        ("eventkeel dlq list shop.payments:service", "what did it give up on?"),
    ),
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_tell_version,
    help="Show the version and exit.",
)
def root() -> None:
    """Event-driven services in which every event takes effect once, in order per key.

    A SERVICE is written MODULE:ATTRIBUTE, such as shop.payments:service. Settings come from the options, the
    environment (EVENTKEEL_BROKER) or eventkeel.toml, in this order; 'eventkeel config show' tells which it was.

    Exit codes: 0 done, 1 failed, 2 wrong usage or refused.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit."""
    try:
        code = root.main(args=arguments, prog_name="eventkeel", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except EventkeelError as error:
        click.echo(f"eventkeel: {error}", err=True)
        sys.exit(REFUSED if isinstance(error, _REFUSALS) else FAILED)
    except BrokenPipeError:  # 'eventkeel dlq list … | head': whoever read us has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    sys.exit(code if isinstance(code, int) else 0)
