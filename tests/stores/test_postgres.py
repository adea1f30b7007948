"""PostgreSQL as a store: everything that every store has to do, and what only it does."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from eventkeel.ports.catalogue import Catalogue
from eventkeel.ports.store import Store
from eventkeel.stores.postgres import PostgresCatalogue, PostgresStore
from eventkeel.testing.store_suite import StoreSuite


class TestPostgres(StoreSuite):
    store = "postgres"
    types = (
        "exact numeric, flag boolean, id uuid, at timestamptz, raw bytea, word text, whole bigint, "
        "part double precision"
    )

    @pytest.fixture(autouse=True)
    def schema(self, postgres_url: str) -> Iterator[None]:
        self.url = postgres_url
        self.name = f"t_{uuid.uuid4().hex[:12]}"
        yield
        with psycopg.connect(self.url, autocommit=True) as db:
            db.execute(f'drop schema if exists "{self.name}" cascade')

    async def make(self, place: Path, service: str) -> Store:
        return PostgresStore(f"{self.url.partition(':')[2]}?schema={self.name}", service, shards=1)

    def catalogue(self, store: Store) -> Catalogue:
        assert isinstance(store, PostgresStore)
        return PostgresCatalogue(store)
