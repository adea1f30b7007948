"""Whose database this is, which consumers live in it, and the user's own tables."""

from __future__ import annotations

import apsw

from eventkeel.errors import ConfigurationError
from eventkeel.ports.store import Schema
from eventkeel.stores.sqlite.unit import SQL


def check_service(db: apsw.Connection, service: str, path: str, apply: bool) -> None:
    """One service per database: two would share an inbox and swallow each other's events."""
    rows = db.execute(SQL["get_meta"], ("service",)).fetchall()
    if not rows:
        if not apply:
            raise ConfigurationError(f"{path} is empty: run service {service!r} once to make its tables")
        db.execute(SQL["put_meta"], ("service", service))
    elif rows[0][0] != service:
        raise ConfigurationError(
            f"{path} belongs to service {rows[0][0]!r}; {service!r} needs a file of its own. Put {{service}} into "
            "the store URL, such as sqlite:///.data/{service}.sqlite3"
        )


def check_consumers(db: apsw.Connection, want: Schema, apply: bool) -> None:
    """A consumer that vanished while another appeared on the same event was probably renamed: its
    inbox would be forgotten, and every event of the past would take effect again."""
    known = {name: set(handles.split()) for _, name, handles in db.execute(SQL["consumers"]).fetchall()}
    wanted = {consumer.name: set(consumer.handles) for consumer in want.consumers}
    for gone in known.keys() - wanted.keys():
        for new in wanted.keys() - known.keys():
            if known[gone] & wanted[new]:
                old = gone.partition("/")[2]
                raise ConfigurationError(
                    f"handler {new!r} appeared and {gone!r} vanished, both on {', '.join(sorted(known[gone] & wanted[new]))}. "
                    f'Renamed? Then keep its inbox: write @service.on(…, name="{old}"). Really another one? Keep a '
                    f"handler under the old name until it has nothing parked, or forget it: eventkeel_consumer in the store"
                )


def apply_schema(db: apsw.Connection, want: Schema) -> None:
    """The service's own statements, at every start. Raises ConfigurationError with the one that failed."""
    for ddl in want.ddl:
        try:
            db.execute(ddl)
        except apsw.Error as error:
            raise ConfigurationError(
                f"the schema of service {want.service!r} failed: {error}. It is run at every start, so each statement "
                "has to be repeatable (create table if not exists …)"
            ) from error
        if not db.in_transaction:
            raise ConfigurationError(f"the schema of service {want.service!r} must not begin or end transactions")
