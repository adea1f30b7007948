"""Eventkeel's tables, whose schema this is, which consumers live in it, and the user's own tables."""

from __future__ import annotations

import os
import re
from importlib import resources
from typing import Any

import psycopg
from psycopg import sql

from eventkeel.errors import ConfigurationError, StoreUnavailable
from eventkeel.ports.store import Schema
from eventkeel.stores.common import consumers_of
from eventkeel.stores.placeholders import ENGINES_OWN, brief, first_word, statements
from eventkeel.stores.postgres.unit import SQL
from eventkeel.stores.postgres.url import Address

VERSION = 2
"""Of our tables. Version N is schema.sql and the files migrations/0002.sql … 000N.sql after it."""
OLDEST = 1
"""The oldest version whose programs can work on tables of VERSION: while a deploy rolls, N and N-1 run side by side,
so a migration only adds (a column with a default, an index made concurrently), and the next one takes away."""

Connection = psycopg.AsyncConnection[Any]

_POSITIONAL = re.compile(r"\$(\d+)(::\w+)?")


async def ask(db: Connection, name: str, *params: Any) -> list[tuple[Any, ...]]:
    """One of our statements on a connection that is no unit's."""
    text, order = SQL[name], []

    def mark(found: re.Match[str]) -> str:
        order.append(int(found[1]) - 1)
        return "%s" + (found[2] or "")

    cursor = await db.execute(_POSITIONAL.sub(mark, text.replace("%", "%%")), [params[index] for index in order])
    return await cursor.fetchall() if cursor.description else []


async def framework_tables(db: Connection, address: Address) -> None:
    """Make what is missing. Raises ConfigurationError for tables that this version cannot work on."""
    if not (await ask(db, "made", address.schema))[0][0]:
        if not (await ask(db, "schema_made", address.schema))[0][0]:  # asked, because "if not exists" needs the right
            await db.execute(sql.SQL("create schema {}").format(sql.Identifier(address.schema)))
        await db.execute(_script("schema.sql"))
        await ask(db, "put_meta", "store_id", os.urandom(16).hex())
        version = oldest = 1
    else:
        version, oldest = [int((await ask(db, "get_meta", name))[0][0]) for name in ("schema", "oldest")]
    for number in range(version + 1, VERSION + 1):
        await db.execute(_script(f"migrations/{number:04d}.sql"))
    if version < VERSION or not await ask(db, "get_meta", "schema"):
        for name, value in (("schema", VERSION), ("oldest", OLDEST)):
            await ask(db, "set_meta", name, str(value))
    if oldest > VERSION:
        raise ConfigurationError(
            f"{address.shown} was brought to version {version} by a newer Eventkeel, whose tables need {oldest} or "
            f"later; this one knows {VERSION}: run the newer one"
        )


def _script(name: str) -> bytes:
    return resources.files("eventkeel.stores.postgres").joinpath(name).read_bytes()


async def register(db: Connection, want: Schema, address: Address, apply: bool) -> None:
    """Claim the schema for the service, and its consumers' names."""
    await _check_service(db, want.service, address, apply)
    rows = await ask(db, "consumers")
    written, retired = consumers_of(rows, want, address.shown, apply=apply)
    if not apply:
        return
    have = {name: handles for _, name, handles, gone in rows if not gone}
    for name, handles in written.items():
        if have.get(name) != handles:
            await ask(db, "add_consumer", name, handles)
    for name in retired:
        await ask(db, "retire_consumer", name)


async def _check_service(db: Connection, service: str, address: Address, apply: bool) -> None:
    """One service per schema: two would share an inbox and swallow each other's events."""
    rows = await ask(db, "get_meta", "service")
    if not rows:
        if not apply:
            raise ConfigurationError(f"{address.shown} is empty: run service {service!r} once to make its tables")
        await ask(db, "put_meta", "service", service)
    elif rows[0][0] != service:
        raise ConfigurationError(
            f"{address.shown} belongs to service {rows[0][0]!r}; {service!r} needs a schema of its own. Put "
            "?schema={service} into the store URL"
        )


async def apply_ddl(db: Connection, want: Schema) -> None:
    """The service's own statements, at every start. Raises ConfigurationError with the one that failed."""
    for ddl in want.ddl:
        for statement in statements(ddl):
            if (word := first_word(statement)) in ENGINES_OWN:
                raise ConfigurationError(
                    f"the schema of service {want.service!r} must not say {word.upper()}: it is applied in one "
                    f"transaction of Eventkeel's, as a whole or not at all ({brief(statement)})"
                )
            try:
                await db.execute(statement.encode())
            except psycopg.errors.DeadlockDetected:
                raise  # the whole is tried again
            except psycopg.errors.LockNotAvailable as error:
                raise StoreUnavailable(
                    f"the schema of service {want.service!r} waits for a lock that others have, in: "
                    f"{brief(statement)}; a long transaction on that table?"
                ) from error
            except psycopg.OperationalError as error:
                raise StoreUnavailable(f"the database went away during {brief(statement)}: {error}") from error
            except psycopg.Error as error:
                raise ConfigurationError(
                    f"the schema of service {want.service!r} failed: {error}, in: {brief(statement)}. It is run at "
                    "every start, so each statement has to be repeatable (create table if not exists …)"
                ) from error
