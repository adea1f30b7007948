"""The SQLite store."""

from eventkeel.stores.sqlite.catalogue import SQLiteCatalogue
from eventkeel.stores.sqlite.store import SQLiteStore

__all__ = ["SQLiteCatalogue", "SQLiteStore"]
