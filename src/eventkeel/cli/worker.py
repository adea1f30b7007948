"""``eventkeel worker``: one process of a service. Hidden: ``eventkeel run`` starts it, with standard input a pipe."""

from __future__ import annotations

import click

from eventkeel.app import run_http, run_worker
from eventkeel.cli.loading import load
from eventkeel.cli.shape import Command, service_argument
from eventkeel.config import Config
from eventkeel.supervise import end_with_parent
from eventkeel.telemetry.logs import Logs, setup


@click.command(cls=Command, hidden=True)
@service_argument
@click.option("--http", metavar="HOST:PORT")
def worker(reference: str, http: str | None) -> int:
    """One process of a service; settings come from the environment."""
    end_with_parent()
    config = Config.load(file=None)  # the environment says everything that was resolved
    setup(config.log_level, config.log_format, load(reference).name)
    if http is None:
        run_worker(reference, config, [Logs()])
    else:
        from eventkeel.cli.run import parse_address  # and with it what only a supervisor needs

        run_http(reference, config, *parse_address(http))
    return 0
