"""``service.outbox(session)``: events commit with a user's own session, once, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from eventkeel import (
    ConfigurationError,
    NestedTransaction,
    PublishError,
    Service,
    StatementRefused,
    Transaction,
)
from eventkeel.drive import drive
from eventkeel.testing.harness import Harness, harness

from .tables import PATIENT, SCHEMA, Note, Ordered, Paid, Payment, ordered, payment

DRIVERS = ("psycopg", "asyncpg")


@pytest.fixture
async def app(database: str) -> AsyncIterator[Harness]:
    service = Service("paying", schema=SCHEMA, retry=PATIENT)

    @service.on(Ordered)
    async def pay(order: Ordered, tx: Transaction) -> None:
        tx.write("insert into notes (text) values ('handled ' || :number)", order)

    async with harness(service, store=f"{database}?schema={{service}}") as made:
        yield made


@pytest.fixture(params=DRIVERS)
async def engine(database: str, request: pytest.FixtureRequest) -> AsyncIterator[AsyncEngine]:
    url = database.replace("postgresql://", f"postgresql+{request.param}://")
    made = create_async_engine(url, poolclass=NullPool)
    if request.param == "psycopg":
        event.listen(made.sync_engine, "connect", _no_preparing)
    yield made.execution_options(schema_translate_map={None: "paying"})
    await made.dispose()


def _no_preparing(connection: Any, record: Any) -> None:
    """As behind PgBouncer."""
    connection.driver_connection.prepare_threshold = None


@pytest.fixture
def sync_engine(database: str) -> Any:
    made = create_engine(database.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool)
    return made.execution_options(schema_translate_map={None: "paying"})


async def paid(app: Harness) -> list[str]:
    await app.until_quiet()
    return sorted(event.number for event in await app.published(Paid))


def one(number: str) -> Paid:
    return Paid(number=number, customer="c")


async def test_an_event_commits_with_the_session_once(app: Harness, engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        session.add(payment(ordered(1)))
        app.service.outbox(session).publish(one("a"))
        app.service.outbox(session).publish(one("b"))
        await session.commit()
        assert await paid(app) == ["a", "b"]
        await session.commit()
        session.add(payment(ordered(2)))
        app.service.outbox(session).publish(one("c"))
        await session.commit()
    assert await paid(app) == ["a", "b", "c"]
    assert len(await app.rows("select 1 from payments")) == 2


async def test_the_order_of_a_key_is_that_of_publishing(app: Harness, engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        for number in range(50):
            app.service.outbox(session).publish(one(str(number)))
        await session.commit()
    await app.until_quiet()
    assert [event.number for event in await app.published(Paid)] == [str(number) for number in range(50)]


async def test_more_keys_than_locks_are_appended_all_the_same(app: Harness, engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        for number in range(700):
            app.service.outbox(session).publish(Paid(number=str(number), customer=f"c{number}"))
        await session.commit()
    assert len(await paid(app)) == 700


async def test_begin_as_a_block_commits_it_too(app: Harness, engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, session.begin():
        session.add(payment(ordered(1)))
        app.service.outbox(session).publish(one("a"))
    assert await paid(app) == ["a"]


async def test_a_rollback_drops_it(app: Harness, engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        app.service.outbox(session).publish(one("rolled back"))
        await session.rollback()
        app.service.outbox(session).publish(one("kept"))
        await session.commit()
        app.service.outbox(session).publish(one("closed"))
    async with AsyncSession(engine) as session:
        with pytest.raises(ZeroDivisionError):
            async with session.begin():
                app.service.outbox(session).publish(one("raised"))
                raise ZeroDivisionError
    assert await paid(app) == ["kept"]


async def test_a_commit_that_fails_publishes_nothing_and_the_next_one_only_its_own(
    app: Harness, engine: AsyncEngine
) -> None:
    async with app.service.transaction() as tx:
        await tx.execute("alter table payments add constraint late unique (customer) deferrable initially deferred")
    async with AsyncSession(engine) as session:
        for number in ("first", "second"):
            session.add(Payment(number=number, customer="same", amount=1))
        app.service.outbox(session).publish(one("never"))
        with pytest.raises(IntegrityError):
            await session.commit()  # the constraint is checked by COMMIT itself
        await session.rollback()
        session.add(payment(ordered(1)))
        app.service.outbox(session).publish(one("kept"))
        await session.commit()
    assert await paid(app) == ["kept"]
    assert len(await app.rows("select 1 from payments")) == 1


async def test_a_failed_flush_publishes_nothing(app: Harness, engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        app.service.outbox(session).publish(one("never"))
        session.add(Note(text=None))
        with pytest.raises(IntegrityError):
            await session.commit()
        await session.rollback()
        await session.commit()
    assert await paid(app) == []


async def test_a_rolled_back_savepoint_drops_what_was_published_in_it(app: Harness, engine: AsyncEngine) -> None:
    outbox = app.service.outbox
    async with AsyncSession(engine) as session:
        outbox(session).publish(one("1 before"))
        async with session.begin_nested():
            outbox(session).publish(one("2 released"))
            inner = await session.begin_nested()
            outbox(session).publish(one("dropped"))
            await inner.rollback()
        with pytest.raises(ZeroDivisionError):
            async with session.begin_nested():
                outbox(session).publish(one("raised"))
                async with session.begin_nested():
                    outbox(session).publish(one("released within"))
                raise ZeroDivisionError
        outbox(session).publish(one("3 after"))
        await session.commit()
    assert await paid(app) == ["1 before", "2 released", "3 after"]


async def test_an_outbox_first_asked_for_in_a_savepoint_goes_with_it(app: Harness, engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        nested = await session.begin_nested()
        app.service.outbox(session).publish(one("dropped"))
        await nested.rollback()
        app.service.outbox(session).publish(one("kept"))
        await session.commit()
    assert await paid(app) == ["kept"]


def test_a_commit_with_an_open_savepoint_loses_nothing(app: Harness, sync_engine: Any) -> None:
    with Session(sync_engine) as session, session.begin():
        session.begin_nested()
        app.service.outbox(session).publish(one("kept"))
    with sync_engine.connect() as connection:
        assert connection.scalar(text("select count(*) from paying.eventkeel_outbox")) == 1


async def test_what_flushes_publish_belongs_to_the_commit(app: Harness, engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:

        def flushed(inner: Session, context: Any) -> None:
            app.service.outbox(inner).publish(one("said by a listener"))

        event.listen(session.sync_session, "after_flush", flushed)
        app.service.outbox(session)
        session.add(payment(ordered(1)))
        await session.commit()
    assert await paid(app) == ["said by a listener"]


async def test_publishing_after_the_append_is_refused_instead_of_lost(app: Harness, engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        app.service.outbox(session)
        event.listen(
            session.sync_session, "before_commit", lambda inner: app.service.outbox(inner).publish(one("too late"))
        )
        with pytest.raises(PublishError, match="before commit"):
            await session.commit()


async def test_two_sessions_of_one_key_append_one_after_the_other(app: Harness, engine: AsyncEngine) -> None:
    order: list[str] = []
    locked, go_on = asyncio.Event(), asyncio.Event()

    async with AsyncSession(engine) as first:
        app.service.outbox(first).publish(one("first"))
        connection = await first.connection()

        async def second() -> None:
            async with AsyncSession(engine) as session:
                app.service.outbox(session).publish(one("second"))
                await locked.wait()
                task = asyncio.ensure_future(session.commit())
                done, _ = await asyncio.wait({task}, timeout=0.3)
                assert not done, "the second did not wait for the lock of the first"
                go_on.set()
                await task
                order.append("second")

        @event.listens_for(connection.sync_connection, "commit")
        def committing(_: Any) -> None:
            """The first has appended, and is about to commit."""
            from sqlalchemy.util import await_only

            locked.set()
            await_only(go_on.wait())
            order.append("first")

        other = asyncio.create_task(second())
        await first.commit()
        await other
    await app.until_quiet()
    assert order == ["first", "second"]
    assert [event.number for event in await app.published(Paid)] == ["first", "second"]


async def test_another_database_is_refused(app: Harness, postgres_url: str) -> None:
    for driver in DRIVERS:
        elsewhere = create_async_engine(postgres_url.replace("postgresql://", f"postgresql+{driver}://"))
        async with AsyncSession(elsewhere) as session:
            app.service.outbox(session).publish(one("never"))
            with pytest.raises(ConfigurationError, match=r"is not the one of service 'paying'.*none of its tables"):
                await session.commit()
        await elsewhere.dispose()
    assert await paid(app) == []


async def test_another_kind_of_database_is_refused(app: Harness) -> None:
    with Session(create_engine("sqlite://")) as session:
        app.service.outbox(session).publish(one("never"))
        with pytest.raises(ConfigurationError, match="it is on sqlite"):
            session.commit()


async def test_a_session_that_commits_each_statement_is_refused(app: Harness, engine: AsyncEngine) -> None:
    async with AsyncSession(engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        app.service.outbox(session).publish(one("never"))
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            await session.commit()
    assert await paid(app) == []


async def test_what_is_no_session_is_refused(app: Harness, engine: AsyncEngine) -> None:
    with pytest.raises(ConfigurationError, match="takes an SQLAlchemy session"):
        app.service.outbox(engine)


async def test_a_bad_event_is_refused_where_it_is_published(app: Harness, engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        with pytest.raises(PublishError):
            app.service.outbox(session).publish("no event")
        with pytest.raises(PublishError, match="delay="):
            app.service.outbox(session).publish(one("x"), delay=-1.0)


async def test_events_for_later_commit_with_the_session_and_are_sent_when_they_are_due(
    app: Harness, engine: AsyncEngine
) -> None:
    async with AsyncSession(engine) as session:
        outbox = app.service.outbox(session)
        outbox.publish(one("later"), delay=60)
        savepoint = await session.begin_nested()
        outbox.publish(one("dropped"), delay=60)
        await savepoint.rollback()
        outbox.publish(one("now"))
        await session.commit()
    async with AsyncSession(engine) as session:
        app.service.outbox(session).publish(one("never"), delay=60)
        await session.rollback()
    await app.until_quiet()
    assert await paid(app) == ["now"]
    await app.advance(61)
    assert await paid(app) == ["later", "now"]


def test_a_service_that_is_not_open_says_how_to_open_it(sync_engine: Any) -> None:
    with Session(sync_engine) as session, pytest.raises(ConfigurationError, match="not open in this process"):
        Service("closed").outbox(session)


async def test_a_service_on_sqlite_refuses_it(engine: AsyncEngine) -> None:
    async with harness(Service("small")) as app, AsyncSession(engine) as session:
        with pytest.raises(ConfigurationError, match="PostgreSQL"):
            app.service.outbox(session)


async def test_inside_a_handler_it_is_refused(database: str, engine: AsyncEngine) -> None:
    refusals: list[BaseException] = []
    service = Service("paying", schema=SCHEMA, retry=PATIENT)

    @service.on(Ordered)
    async def pay(order: Ordered, session: AsyncSession) -> None:
        with pytest.raises(NestedTransaction, match="Use the tx") as refused:
            service.outbox(session)
        refusals.append(refused.value)

    async with harness(service, store=f"{database}?schema={{service}}") as app:
        await app.publish(ordered(1))
        await app.until_quiet()
    assert len(refusals) == 1


async def test_a_synchronous_session_in_a_thread(app: Harness, sync_engine: Any) -> None:
    def web_request() -> None:
        with Session(sync_engine) as session:
            session.add(payment(ordered(1)))
            app.service.outbox(session).publish(one("a"))
            with session.begin_nested() as nested:
                app.service.outbox(session).publish(one("dropped"))
                nested.rollback()
            session.commit()
            app.service.outbox(session).publish(one("rolled back"))

    await asyncio.to_thread(web_request)
    assert await paid(app) == ["a"]
    assert len(await app.rows("select 1 from payments")) == 1


async def test_a_commit_wakes_the_relay(database: str, engine: AsyncEngine) -> None:
    woken: list[Any] = []
    async with harness(Service("paying", schema=SCHEMA), store=f"{database}?schema={{service}}") as app:
        app.runtime.store.on_commit(outbox=lambda: woken.append(1), gates=lambda: None)
        async with AsyncSession(engine) as session:
            app.service.outbox(session).publish(one("a"))
            await session.flush()
            assert woken == []
            await session.commit()
            assert woken


async def test_in_a_transaction_from_outside_it_goes_with_that(app: Harness, engine: AsyncEngine) -> None:
    for number, keep in (("dropped", False), ("kept", True)):
        async with engine.connect() as connection:
            transaction = await connection.begin()
            async with AsyncSession(connection) as session:
                app.service.outbox(session).publish(one(number))
                await session.commit()
            await (transaction.commit() if keep else transaction.rollback())
    assert await paid(app) == ["kept"]


async def test_the_connection_is_left_as_it_was(app: Harness, engine: AsyncEngine) -> None:
    asked = text(
        "select current_setting('search_path'), (select count(*) from pg_prepared_statements where not from_sql)"
    )
    async with engine.connect() as connection:
        before = (await connection.execute(asked)).one()
        async with AsyncSession(connection) as session:
            app.service.outbox(session).publish(one("a"))
            await session.commit()
        after = (await connection.execute(asked)).one()
        assert after[0] == before[0]
        if connection.dialect.driver == "psycopg":  # asyncpg prepares what it runs, as its user has it
            assert after[1] == before[1] == 0
        await connection.commit()
    assert await paid(app) == ["a"]


async def test_a_joined_unit_neither_begins_nor_ends(app: Harness, database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        await connection.execute("select 1")
        unit = app.runtime.store.join(connection)
        assert unit.native is connection and unit.connection.alive
        for operation in (unit.begin(speculative=False), unit.commit(), unit.rollback()):
            with pytest.raises(StatementRefused, match="whoever began it"):
                await drive(operation, unit.connection)
        unit.close(discard=True)
        assert unit.connection.alive
    with pytest.raises(ConfigurationError, match="no connection"):
        app.runtime.store.join("no connection")
