"""``eventkeel config``: which settings are in force, and who said so."""

from __future__ import annotations

import click

from eventkeel.cli.shape import Command, Group, configured, json_option
from eventkeel.cli.show import print_json, print_table
from eventkeel.config import Config


@click.group(
    "config",
    cls=Group,
    short_help="Which settings are in force.",
    examples=(("eventkeel config show", "every option, its value and its origin"),),
)
def config_group() -> None:
    """Settings."""


@config_group.command(
    "show",
    cls=Command,
    examples=(
        ("eventkeel config show", "every option, its value and its origin"),
        ("EVENTKEEL_PARTITIONS=16 eventkeel config show --json", "for programs"),
    ),
)
@json_option
@configured
def show_config(as_json: bool, config: Config) -> int:
    """Show every option: the value in force (passwords masked) and where it was said."""
    if as_json:
        print_json({one.name: {"value": one.value, "origin": one.origin} for one in config.origins()})
    else:
        print_table(("OPTION", "VALUE", "ORIGIN"), config.origins(), whole=True)
    return 0
