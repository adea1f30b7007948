"""The part of a ``postgresql://`` URL behind its scheme: what libpq takes, and where our tables are."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from eventkeel.errors import ConfigurationError

DEFAULTS = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "tcp_user_timeout": "30000",
    "target_session_attrs": "read-write",
}
"""Said to libpq where the URL does not: a peer that vanished is noticed within half a minute, and of several hosts (or
after a failover) the one is taken that can be written to. A standby must not be read from either: it shows transactions
in another order."""


class Address(NamedTuple):
    conninfo: str
    """A URL for libpq."""
    schema: str
    shown: str
    """Without its password, for messages."""
    pool: int


def parse(rest: str) -> Address:
    """``//user:password@host:port/db?schema=NAME&pool=20&…``; everything but ``schema`` and ``pool`` is libpq's.

    Raises ConfigurationError.
    """
    parts = urlsplit("postgresql:" + (rest if rest.startswith("//") else "//" + rest))
    torn = parts.fragment or "@" in parts.path or "@" in parts.query.partition("=")[0]
    if torn or re.search("%(?![0-9a-fA-F]{2})", parts.netloc):  # libpq would quote it, password and all
        raise ConfigurationError(
            "the store's URL cannot be read: in a user or a password % is written %25, / is %2F, ? is %3F, # is %23, "
            "@ is %40"
        )
    options = dict(parse_qsl(parts.query.replace("+", "%2B"), keep_blank_values=True))  # as libpq: a plus is a plus
    schema = options.pop("schema", "") or "public"
    pool = options.pop("pool", "16")
    if not pool.isdigit() or int(pool) < 2:
        raise ConfigurationError(f"pool={pool} in the store's URL: write the most connections of a process, from 2 on")
    if len(schema.encode()) > 63 or "\0" in schema:
        raise ConfigurationError(f"schema={schema}: a PostgreSQL name has at most 63 bytes")
    for name, value in DEFAULTS.items():
        options.setdefault(name, value)
    options.setdefault("application_name", "eventkeel")
    conninfo = parts._replace(query=urlencode(options, quote_via=quote)).geturl()
    host = parts.netloc.rpartition("@")
    user = unquote(host[0].partition(":")[0])
    shown = f"postgresql://{user + '@' if user else ''}{host[2]}{parts.path} (schema {schema})"
    return Address(conninfo, schema, shown, int(pool))
