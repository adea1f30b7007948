"""The SQLite store: the suite that every store passes, and what is true of a file only."""

from __future__ import annotations

from pathlib import Path

from eventkeel.ports.catalogue import Catalogue
from eventkeel.ports.store import Store
from eventkeel.stores.sqlite import SQLiteCatalogue, SQLiteStore
from eventkeel.testing.store_suite import StoreSuite


class TestSQLiteStore(StoreSuite):
    async def make(self, place: Path, service: str) -> Store:
        return SQLiteStore(place / "store.sqlite3", service)

    def catalogue(self, store: Store) -> Catalogue:
        assert isinstance(store, SQLiteStore)
        return SQLiteCatalogue(store)
