"""Eventkeel's tables, whose database this is, which consumers live in it, and the user's own tables."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib import resources

import apsw

from eventkeel.errors import ConfigurationError
from eventkeel.ports.store import Schema
from eventkeel.stores.common import consumers_of
from eventkeel.stores.placeholders import ENGINES_OWN, brief, first_word
from eventkeel.stores.sqlite.connection import fetch
from eventkeel.stores.sqlite.unit import SQL

VERSION = 1
"""Of what a program has to know of schema.sql to work on the file."""
NEWEST = "eventkeel_timer"
"""What schema.sql made last. Tables that an older program does without are no new version: they are made where they
are missing, so that while a deploy rolls the older one still opens the file."""


def framework_tables(db: apsw.Connection, path: str) -> None:
    """Make what is missing. Raises ConfigurationError for a file that a newer Eventkeel made."""
    known = fetch(db, "select 1 from sqlite_schema where name = 'eventkeel_meta'")
    rows = fetch(db, SQL["get_meta"], ("schema",)) if known else []
    if rows and int(rows[0][0]) > VERSION:
        raise ConfigurationError(
            f"{path} was written by a newer Eventkeel (schema {rows[0][0]}; this one knows {VERSION}): run that one, "
            "or restore the copy from before its upgrade"
        )
    if fetch(db, "select 1 from sqlite_schema where name = ?", (NEWEST,)):
        return
    db.execute(resources.files("eventkeel.stores.sqlite").joinpath("schema.sql").read_text("utf-8"))
    db.execute(SQL["put_meta"], ("schema", str(VERSION)))
    db.execute(SQL["put_meta"], ("store_id", os.urandom(16).hex()))


def register(db: apsw.Connection, want: Schema, path: str, apply: bool) -> None:
    """Claim the file for the service, and its consumers' names."""
    _check_service(db, want.service, path, apply)
    written, retired = consumers_of(fetch(db, SQL["consumers"]), want, path, apply=apply)
    if not apply:
        return
    for consumer in written.items():
        db.execute(SQL["add_consumer"], consumer)
    for name in retired:
        db.execute(SQL["retire_consumer"], (name,))


def _check_service(db: apsw.Connection, service: str, path: str, apply: bool) -> None:
    """One service per database: two would share an inbox and swallow each other's events."""
    rows = fetch(db, SQL["get_meta"], ("service",))
    if not rows:
        if not apply:
            raise ConfigurationError(f"{path} is empty: run service {service!r} once to make its tables")
        db.execute(SQL["put_meta"], ("service", service))
    elif rows[0][0] != service:
        raise ConfigurationError(
            f"{path} belongs to service {rows[0][0]!r}; {service!r} needs a file of its own. Put {{service}} into "
            "the store URL, such as sqlite:///.data/{service}.sqlite3"
        )


def apply_ddl(db: apsw.Connection, want: Schema) -> None:
    """The service's own statements, at every start. Raises ConfigurationError with the one that failed."""
    for ddl in want.ddl:
        for statement in statements(ddl):
            if (word := first_word(statement)) in ENGINES_OWN:
                raise ConfigurationError(
                    f"the schema of service {want.service!r} must not say {word.upper()}: it is applied in one "
                    f"transaction of Eventkeel's, as a whole or not at all ({brief(statement)})"
                )
            try:
                db.execute(statement)
            except apsw.Error as error:
                raise ConfigurationError(
                    f"the schema of service {want.service!r} failed: {error}, in: {brief(statement)}. It is run at "
                    "every start, so each statement has to be repeatable (create table if not exists …)"
                ) from error


def statements(script: str) -> Iterator[str]:
    """The single statements of a script. SQLite itself tells where one ends: it knows strings, comments
    and triggers, whose bodies have semicolons of their own."""
    piece = ""
    for part in re.split(r"(?<=;)", script):
        piece += part
        if apsw.complete(piece):
            if first_word(piece):
                yield piece.strip()
            piece = ""
    if first_word(piece):
        yield piece.strip()
