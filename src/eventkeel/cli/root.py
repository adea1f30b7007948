"""The command ``eventkeel``, and how every error becomes a sentence and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

import click

from eventkeel.cli.config import config_group
from eventkeel.cli.dlq import dlq
from eventkeel.cli.lag import lag
from eventkeel.cli.publish import publish
from eventkeel.cli.refill import refill
from eventkeel.cli.run import run
from eventkeel.cli.shape import Group
from eventkeel.cli.worker import worker
from eventkeel.errors import AccessDenied, ConfigurationError, EventkeelError, MalformedMessage, PublishError

FAILED, REFUSED, INTERRUPTED = 1, 2, 130
_REFUSALS = (ConfigurationError, AccessDenied, MalformedMessage, PublishError)


def _version() -> str:
    try:
        return version("eventkeel")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    examples=(
        ("eventkeel run shop.payments:service", "run a service"),
        ("eventkeel lag shop.payments:service", "how far is it behind?"),
        ("eventkeel dlq list shop.payments:service", "what did it give up on?"),
    ),
)
@click.version_option(_version(), prog_name="eventkeel")
def root() -> None:
    """Event-driven services in which every event takes effect once, in order per key.

    A SERVICE is written MODULE:ATTRIBUTE, such as shop.payments:service. Settings come from the options, the
    environment (EVENTKEEL_BROKER) or eventkeel.toml, in this order; 'eventkeel config show' tells which it was.

    Exit codes: 0 done, 1 failed, 2 wrong usage or refused.
    """


for _command in (run, publish, dlq, lag, refill, config_group, worker):
    root.add_command(_command)


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
