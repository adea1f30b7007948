"""PostgreSQL 15 or later, through psycopg 3: handlers' statements are pipelined below its cursors."""

from __future__ import annotations

from eventkeel.errors import ConfigurationError

try:
    import psycopg as psycopg
except ImportError as error:
    raise ConfigurationError("postgresql:// needs psycopg: pip install 'eventkeel[postgres]'") from error

from eventkeel.stores.postgres.catalogue import PostgresCatalogue as PostgresCatalogue
from eventkeel.stores.postgres.store import PostgresStore as PostgresStore

__all__ = ["PostgresCatalogue", "PostgresStore"]
