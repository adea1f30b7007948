"""``SQLAlchemyStore(engine)``: units on connections that a user's engine makes."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from eventkeel import ConfigurationError, Service, StoreUnavailable, SyncTransaction, Transaction
from eventkeel.admin.access import local_actor
from eventkeel.config import Config
from eventkeel.integrations.sqlalchemy import SQLAlchemyStore
from eventkeel.operate import desk
from eventkeel.testing.harness import harness

from .tables import PATIENT, SCHEMA, Ordered, Paid, ordered, payment


def url(database: str, driver: str = "psycopg") -> str:
    return database.replace("postgresql://", f"postgresql+{driver}://")


def engine_of(database: str, kind: str, **options: Any) -> AsyncEngine | Engine:
    if kind == "async":
        return create_async_engine(url(database), **options)
    return create_engine(url(database), **options)


async def disposed(engine: AsyncEngine | Engine) -> None:
    if isinstance(engine, AsyncEngine):
        await engine.dispose()
    else:
        engine.dispose()


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_an_asynchronous_service_runs_on_an_engine(database: str, kind: str) -> None:
    engine = engine_of(database, kind)
    service = Service("paying", schema=SCHEMA, retry=PATIENT).configure(
        store=SQLAlchemyStore(engine, schema="{service}")
    )

    @service.on(Ordered)
    async def pay(order: Ordered, session: AsyncSession, tx: Transaction) -> None:
        session.add(payment(order))
        tx.write("insert into notes (text) values (:number)", order)
        tx.publish(Paid(number=order.number, customer=order.customer))

    async with harness(service) as app:
        await app.publish(*[ordered(n, customer=f"c{n}") for n in range(20)])
        await app.until_quiet()
        assert len(await app.rows("select 1 from payments natural join (select text as number from notes) n")) == 20
        assert len(await app.published(Paid)) == 20
    await disposed(engine)
    with psycopg.connect(database) as db:
        assert db.execute("select count(*) from paying.eventkeel_inbox").fetchone() == (20,)


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_synchronous_service_runs_on_an_engine(database: str, kind: str) -> None:
    engine = engine_of(database, kind)
    service = Service("paying", schema=SCHEMA, retry=PATIENT).configure(store=SQLAlchemyStore(engine))

    @service.on(Ordered)
    def pay(order: Ordered, session: Session, tx: SyncTransaction) -> None:
        session.add(payment(order))
        tx.publish(Paid(number=order.number, customer=order.customer))

    def web_request() -> list[Any]:
        with service.transaction() as tx:
            return tx.fetch_all("select number from payments")

    async with harness(service) as app:
        await app.publish(*[ordered(n, customer=f"c{n}") for n in range(5)])
        await app.until_quiet()
        assert len(await asyncio.to_thread(web_request)) == 5
        assert len(await app.published(Paid)) == 5
    await disposed(engine)


async def test_the_engines_pool_is_left_alone(database: str) -> None:
    """Its one connection may be in use all the time."""
    engine = create_async_engine(url(database), pool_size=1, max_overflow=0, pool_timeout=1)
    service = Service("paying", schema=SCHEMA, retry=PATIENT).configure(store=SQLAlchemyStore(engine))

    @service.on(Ordered)
    async def pay(order: Ordered, session: AsyncSession) -> None:
        session.add(payment(order))

    async with engine.connect() as held, harness(service) as app:
        await app.publish(*[ordered(n, customer=f"c{n}") for n in range(20)])
        await app.until_quiet()
        assert await held.scalar(text("select count(*) from payments")) == 20
    await engine.dispose()


async def test_connections_are_made_as_the_engine_makes_them(database: str) -> None:
    """A password that an event brings (a cloud's token), and what connect_args say."""
    seen: list[str] = []
    broken = database.rpartition("/")[0].rpartition("@")[0] or "postgresql://postgres"
    engine = create_async_engine(
        f"{broken.replace('postgresql://', 'postgresql+psycopg://')}@nowhere.invalid/none",
        connect_args={"application_name": "from connect_args"},
    )
    parts = psycopg.conninfo.conninfo_to_dict(database)

    @event.listens_for(engine.sync_engine, "do_connect")
    def connecting(dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
        options.update(host=parts["host"], port=parts["port"], dbname=parts["dbname"])

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        seen.append(connection.driver_connection.info.get_parameters()["application_name"])

    service = Service("paying", schema=SCHEMA).configure(store=SQLAlchemyStore(engine))
    async with harness(service) as app:
        assert await app.rows("select current_database()") == [(parts["dbname"],)]
    assert set(seen) == {"from connect_args"}
    await engine.dispose()


async def test_a_handlers_session_reads_json_as_the_engine_does(database: str) -> None:
    read: list[Any] = []
    engine = create_async_engine(url(database), json_deserializer=lambda raw: json.loads(raw, parse_float=Decimal))
    service = Service("paying", schema=SCHEMA).configure(store=SQLAlchemyStore(engine))

    @service.on(Ordered)
    async def pay(order: Ordered, session: AsyncSession) -> None:
        read.append(await session.scalar(text("""select '{"amount": 0.1}'::jsonb""")))

    async with harness(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
    assert read == [{"amount": Decimal("0.1")}]
    await engine.dispose()


async def test_operators_find_the_store_too(database: str) -> None:
    engine = create_async_engine(url(database))
    service = Service("paying", schema=SCHEMA).configure(store=SQLAlchemyStore(engine))

    @service.on(Ordered)
    async def pay(order: Ordered, tx: Transaction) -> None:
        raise ValueError("no")

    async with harness(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        config = Config.load({"data": str(app.folder)}, environ={}, file=None)
        async with desk(service, config, local_actor("me")) as opened:
            assert (await opened.ask.lag()).store.dead == 1
    await engine.dispose()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: create_async_engine("postgresql+asyncpg://u@h/d"), "psycopg 3"),
        (lambda: create_engine("sqlite://"), "two SQLite libraries"),
    ],
)
def test_other_engines_are_refused_with_what_to_write(made: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        SQLAlchemyStore(made())


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_server_that_is_not_there_is_said_so(kind: str) -> None:
    engine = engine_of("postgresql://postgres@127.0.0.1:1/none", kind)
    store = SQLAlchemyStore(engine).of("paying")
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await store.open()
    await disposed(engine)


def test_a_url_is_still_a_setting() -> None:
    service = Service("paying").configure(store="sqlite:///x")
    assert service.settings == {"store": "sqlite:///x"} and service.store is None
