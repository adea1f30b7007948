"""A handler's SQLAlchemy session, on a real PostgreSQL: one transaction for its rows, tx.write's and the events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, func, insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from eventkeel import (
    ConfigurationError,
    Delivery,
    FinalError,
    Service,
    SignatureError,
    StatementRefused,
    SyncTransaction,
    Transaction,
    TransactionClosed,
)
from eventkeel.message import Headers, Outgoing
from eventkeel.testing.harness import ELSEWHERE, Harness, every_crash_point, harness

from .tables import PATIENT, SCHEMA, Note, Ordered, Paid, Payment, ordered, payment

Open = Callable[[Service], AbstractAsyncContextManager[Harness]]


@pytest.fixture
def running(database: str) -> Open:
    @asynccontextmanager
    async def run(service: Service) -> AsyncIterator[Harness]:
        async with harness(service, store=f"{database}?schema={{service}}") as app:
            yield app

    return run


def fresh() -> Service:
    return Service("paying", schema=SCHEMA, retry=PATIENT)


def order_json(number: int) -> bytes:
    return b'{"number": "%d", "customer": "c", "amount": 9.99}' % number


async def dead(app: Harness) -> list[str]:
    return [str(error) for (error,) in await app.rows("select error from eventkeel_held where state = 'dead'")]


async def numbers(app: Harness) -> list[str]:
    return [number for (number,) in await app.rows("select number from payments order by number")]


async def test_rows_of_session_and_write_and_events_commit_together(running: Open) -> None:
    service = fresh()

    @service.on(Ordered)
    async def pay(order: Ordered, session: AsyncSession, tx: Transaction) -> None:
        session.add(payment(order))
        tx.write("insert into notes (text) values (:number)", order)
        tx.publish(Paid(number=order.number, customer=order.customer))
        if order.number == "bad":
            await session.flush()
            raise FinalError("no")

    async with running(service) as app:
        await app.publish(*[ordered(n) for n in range(20)], ordered("bad", customer="other"))
        await app.until_quiet()
        await app.redeliver("sa_ordered")
        await app.until_quiet()
        assert await numbers(app) == sorted(str(n) for n in range(20))
        assert len(await app.rows("select 1 from notes")) == 20
        assert [paid.number for paid in await app.published(Paid)] == [str(n) for n in range(20)]
        assert len(await dead(app)) == 1


async def test_a_flush_that_fails_is_its_own_deliverys_blame(running: Open) -> None:
    calls: list[str] = []
    service = fresh()

    @service.on(Ordered)
    async def pay(order: Ordered, session: AsyncSession) -> None:
        calls.append(order.number)
        amount = None if order.number == "5" else order.amount
        session.add(Payment(number=order.number, customer=order.customer, amount=amount))

    async with running(service) as app:
        await app.publish(*[ordered(n, customer=f"c{n}") for n in range(10)])
        await app.until_quiet()
        assert await numbers(app) == [str(n) for n in range(10) if n != 5]
        (error,) = await dead(app)
        assert "NotNullViolation" in error and "INSERT INTO payments" in error


async def test_a_failed_write_is_the_blame_of_who_queued_it_even_when_a_session_sends_it(running: Open) -> None:
    service = fresh()

    @service.on(Ordered)
    async def pay(order: Ordered, session: AsyncSession, tx: Transaction) -> None:
        text_ = "same" if order.number in ("3", "4") else order.number
        tx.write("insert into notes (text) values (:text)", {"text": text_})
        try:
            await session.scalar(select(Payment.number))
        except Exception:
            raise AssertionError("a queued write's failure could be caught") from None
        session.add(payment(order))

    async with running(service) as app:
        await app.publish(*[ordered(n, customer=f"c{n}") for n in range(8)])
        await app.until_quiet()
        assert len(await numbers(app)) == 7
        (error,) = await dead(app)
        assert "UniqueViolation" in error and "AssertionError" not in error


async def test_what_was_written_first_is_sent_first(running: Open) -> None:
    seen: list[Any] = []
    service = fresh()

    @service.on(Ordered)
    async def pay(order: Ordered, session: AsyncSession, tx: Transaction) -> None:
        tx.write("insert into notes (text) values ('by write')")
        note = await session.scalar(select(Note))
        assert note is not None
        seen.append(note.text)
        session.add(payment(order))
        seen.append(await tx.fetch_value("select count(*) from payments"))
        tx.write("update payments set amount = 1")
        await session.refresh(await session.get_one(Payment, order.number))
        seen.append((await session.get_one(Payment, order.number)).amount)

    async with running(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        assert seen == ["by write", 1, 1]


async def _commit(session: AsyncSession) -> None:
    await session.commit()


async def _rollback(session: AsyncSession) -> None:
    await session.rollback()


async def _close(session: AsyncSession) -> None:
    async with session:
        pass


async def _begin(session: AsyncSession) -> None:
    async with session.begin():
        pass


async def _behind(session: AsyncSession) -> None:
    await (await session.connection()).commit()


async def _behind_back(session: AsyncSession) -> None:
    await (await session.connection()).rollback()


@pytest.mark.parametrize("act", [_commit, _rollback, _close, _begin, _behind])
async def test_the_end_of_the_transaction_is_refused_with_the_reason(
    running: Open, act: Callable[[AsyncSession], Awaitable[None]]
) -> None:
    service = fresh()

    @service.on(Ordered)
    async def pay(order: Ordered, session: AsyncSession) -> None:
        session.add(payment(order))
        await session.flush()
        with pytest.raises(StatementRefused, match="begin_nested"):
            await act(session)
        raise FinalError("was refused")

    async with running(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        assert await numbers(app) == []
        (error,) = await dead(app)
        assert "was refused" in error


async def test_a_rollback_behind_the_sessions_back_fails_the_delivery(running: Open) -> None:
    service = fresh()

    @service.on(Ordered)
    async def pay(order: Ordered, session: AsyncSession) -> None:
        await session.execute(text("insert into notes (text) values ('x')"))
        await _behind_back(session)

    async with running(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        assert await app.rows("select 1 from notes") == []
        (error,) = await dead(app)
        assert "nothing of this unit was applied" in error


async def test_a_swallowed_error_fails_the_delivery(running: Open) -> None:
    service = fresh()

    @service.on(Ordered)
    async def pay(order: Ordered, session: AsyncSession) -> None:
        session.add(payment(order))
        if order.number == "2":
            session.add(Payment(number="1", customer="", amount=0))
            with pytest.raises(IntegrityError):
                await session.flush()

    async with running(service) as app:
        await app.publish(ordered(1, "a"))
        await app.until_quiet()
        await app.publish(ordered(2, "b"), ordered(3, "c"))
        await app.until_quiet()
        assert await numbers(app) == ["1", "3"]
        (error,) = await dead(app)
        assert "caught an SQL error outside a savepoint" in error


async def test_a_rolled_back_savepoint_drops_its_rows_writes_and_events(running: Open) -> None:
    service = fresh()

    @service.on(Ordered)
    async def pay(order: Ordered, session: AsyncSession, tx: Transaction) -> None:
        tx.publish(Paid(number="before", customer=order.customer))
        session.add(payment(order))
        with pytest.raises(IntegrityError):
            async with session.begin_nested():
                tx.write("insert into notes (text) values ('in it')")
                tx.publish(Paid(number="in it", customer=order.customer))
                async with session.begin_nested():
                    tx.publish(Paid(number="deep in it", customer=order.customer))
                session.add(Payment(number="x", customer=None, amount=1))
        for statement in ("select 1", None):
            with pytest.raises(psycopg.errors.NotNullViolation):
                async with session.begin_nested():
                    tx.write("insert into notes (text) values (null)")
                    if statement is not None:
                        await session.execute(text(statement))
        async with session.begin_nested():
            tx.write("insert into notes (text) values ('kept')")
            tx.publish(Paid(number="kept", customer=order.customer))
        with pytest.raises(ZeroDivisionError):
            async with tx.savepoint():
                session.add(Note(text="dropped"))
                tx.write("insert into notes (text) values (null)")  # never sent
                raise ZeroDivisionError
        tx.publish(Paid(number="after", customer=order.customer))

    async with running(service) as app:
        await app.publish(*[ordered(n, customer=f"c{n}") for n in range(1)])
        await app.until_quiet()
        assert await dead(app) == []
        assert await numbers(app) == ["0"]
        assert await app.rows("select text from notes") == [("kept",)]
        assert [paid.number for paid in await app.published(Paid)] == ["before", "kept", "after"]


async def test_a_session_kept_for_later_is_of_no_use(running: Open) -> None:
    kept: list[AsyncSession] = []
    service = fresh()

    @service.on(Ordered)
    async def pay(order: Ordered, session: AsyncSession) -> None:
        session.add(payment(order))
        kept.append(session)

    async with running(service) as app:
        await app.publish(ordered(1), ordered(2))
        await app.until_quiet()
        assert kept[0] is not kept[1]
        for session in kept:
            with pytest.raises(TransactionClosed, match="is over"):
                await session.execute(text("select 1"))


async def test_a_batch_handler_has_one_session_and_a_failure_in_it_finds_its_delivery(running: Open) -> None:
    sizes: list[int] = []
    service = fresh()

    @service.on(Ordered)
    async def pay(orders: list[Ordered], deliveries: list[Delivery], session: AsyncSession) -> None:
        sizes.append(len(orders))
        session.add_all([payment(order) for order in orders])
        if any(order.number == "7" for order in orders):
            session.add(Note(text="x"))
            session.add(Note(text="x"))

    async with running(service) as app:
        await app.send(*[Outgoing("sa_ordered", b"c", Headers(()), order_json(n)) for n in range(12)])
        await app.until_quiet()
        assert len(await numbers(app)) == 7 and max(sizes) > 1  # what is behind it on its key waits
        assert len(await dead(app)) == 1


async def test_a_lock_that_is_in_the_way_is_nobodys_fault(running: Open) -> None:
    attempts: list[int] = []
    service = fresh()

    @service.on(Ordered)
    async def pay(order: Ordered, delivery: Delivery, session: AsyncSession) -> None:
        attempts.append(delivery.attempt)
        await session.execute(text("update notes set text = text"))
        session.add(payment(order))

    async with running(service) as app:
        async with app.service.transaction() as tx:
            await tx.execute("insert into notes (text) values ('hot')")
        async with app.service.transaction() as tx:
            await tx.execute("update notes set text = 'held'")
            await app.send(*[Outgoing("sa_ordered", b"c", Headers(()), order_json(n)) for n in range(3)])
            await app.until(lambda: len(attempts) >= 2)  # the batch gave up its short wait
        await app.until_quiet()
        assert len(await numbers(app)) == 3 and set(attempts) == {1}
        assert app.runtime.context.crowding("paying/pay").limit < 100


def test_what_a_signature_may_say_of_sessions() -> None:
    service = fresh()
    with pytest.raises(SignatureError, match="asks for AsyncSession"):

        @service.on(Ordered)
        async def pay(order: Ordered, session: Session) -> None: ...

    with pytest.raises(SignatureError, match="asks for Session"):

        @service.on(Ordered)
        def pay_sync(order: Ordered, session: AsyncSession) -> None: ...

    with pytest.raises(SignatureError, match="session twice"):

        @service.on(Ordered)
        async def pay_twice(order: Ordered, one: AsyncSession, two: AsyncSession) -> None: ...


async def test_a_store_on_sqlite_is_refused_at_start(tmp_path: Any) -> None:
    service = Service("paying")

    @service.on(Ordered)
    async def pay(order: Ordered, session: AsyncSession) -> None: ...

    with pytest.raises(ConfigurationError, match="two SQLite libraries"):
        async with harness(service, folder=tmp_path):
            pass


async def test_a_subclass_of_a_session_is_given_as_such(running: Open) -> None:
    class Ours(AsyncSession):
        async def pay(self, order: Ordered) -> None:
            self.add(payment(order))

    service = fresh()

    @service.on(Ordered)
    async def pay(order: Ordered, session: Ours) -> None:
        await session.pay(order)

    async with running(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        assert await numbers(app) == ["1"]


async def test_what_else_a_session_can_do(running: Open) -> None:
    seen: list[Any] = []
    service = fresh()

    @service.on(Ordered)
    async def pay(order: Ordered, session: AsyncSession, tx: Transaction) -> None:
        await session.execute(insert(Note), [{"text": f"{order.number}/{n}"} for n in range(30)])
        made = await session.scalars(insert(Note).returning(Note.text), [{"text": f"r{n}"} for n in range(3)])
        seen.append(list(made))
        tx.write("insert into notes (text) values ('by write')")
        streamed = await session.stream_scalars(select(Note.text).order_by(Note.id).execution_options(yield_per=7))
        seen.append([text async for text in streamed])
        seen.append(await session.run_sync(lambda inner: inner.scalar(select(func.count()).select_from(Note))))
        session.add(payment(order))

    async with running(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        assert await dead(app) == []
        returned, streamed, count = seen
        assert returned == ["r0", "r1", "r2"]
        assert len(streamed) == count == 34 and streamed[-1] == "by write"
        assert await numbers(app) == ["1"]


async def test_statements_of_handlers_are_compiled_once(running: Open) -> None:
    compiled: list[int] = []
    service = fresh()

    @service.on(Ordered)
    async def pay(order: Ordered, session: AsyncSession) -> None:
        bind = session.get_bind()
        assert isinstance(bind, Connection)
        compiled.append(len(bind.engine._compiled_cache or ()))
        await session.execute(select(Payment).where(Payment.number == order.number))

    async with running(service) as app:
        await app.publish(*[ordered(n) for n in range(5)])
        await app.until_quiet()
        assert compiled == [compiled[0]] + [compiled[0] + 1] * 4


# ------------------------------------------------------------------ synchronous services


async def test_a_synchronous_service_gets_a_session(running: Open) -> None:
    service = fresh()

    @service.on(Ordered)
    def pay(order: Ordered, session: Session, tx: SyncTransaction) -> None:
        session.add(payment(order))
        tx.write("insert into notes (text) values (:number)", order)
        tx.publish(Paid(number=order.number, customer=order.customer))
        with pytest.raises(IntegrityError), session.begin_nested():
            tx.publish(Paid(number="dropped", customer=order.customer))
            session.add(Note(text=order.number))
        with pytest.raises(StatementRefused):
            session.commit()
        if order.number == "3":
            session.add(Payment(number=None, customer="", amount=1))

    async with running(service) as app:
        await app.publish(*[ordered(n, customer=f"c{n}") for n in range(6)])
        await app.until_quiet()
        assert await numbers(app) == ["0", "1", "2", "4", "5"]
        assert sorted(paid.number for paid in await app.published(Paid)) == ["0", "1", "2", "4", "5"]
        assert len(await app.rows("select 1 from notes")) == 5
        assert len(await dead(app)) == 1


async def test_many_handlers_with_sessions_share_the_store(running: Open) -> None:
    service = fresh()

    @service.on(Ordered)
    async def pay(order: Ordered, session: AsyncSession) -> None:
        await asyncio.sleep(0)
        for _ in range(7):  # often enough for psycopg to prepare it, were it allowed to
            await session.scalar(select(Payment.number).where(Payment.number == order.number))
        session.add(payment(order))

    @service.on(Ordered)
    async def note(order: Ordered, tx: Transaction) -> None:
        tx.write("insert into notes (text) values (:number)", order)

    async with running(service) as app:
        await app.publish(*[ordered(n, customer=f"c{n % 7}") for n in range(60)])
        await app.until_quiet()
        assert len(await numbers(app)) == 60 and len(await app.rows("select 1 from notes")) == 60


# ------------------------------------------------------------------ trouble


async def test_a_failed_delivery_waits_and_its_retry_has_a_session_of_its_own(running: Open) -> None:
    sessions: list[AsyncSession] = []
    service = fresh()

    @service.on(Ordered)
    async def pay(order: Ordered, delivery: Delivery, session: AsyncSession, tx: Transaction) -> None:
        sessions.append(session)
        session.add(payment(order))
        tx.publish(Paid(number=order.number, customer=order.customer))
        await session.flush()
        if delivery.attempt < 3:
            raise ValueError("not yet")

    async with running(service) as app:
        await app.publish(ordered(1), ordered(2))
        await app.until_quiet()
        assert await numbers(app) == ["1", "2"]
        assert [paid.number for paid in await app.published(Paid)] == ["1", "2"]
        # Two that come together are tried together first, which counts for neither.
        assert len(set(map(id, sessions))) == len(sessions) in (6, 7)


async def test_a_connection_that_is_lost_in_a_session_is_nobodys_fault(running: Open) -> None:
    attempts: list[int] = []
    service = fresh()

    @service.on(Ordered)
    async def pay(order: Ordered, delivery: Delivery, session: AsyncSession) -> None:
        attempts.append(delivery.attempt)
        session.add(payment(order))
        if len(attempts) == 1:
            await session.execute(text("select pg_terminate_backend(pg_backend_pid())"))

    async with running(service) as app:
        await app.publish(ordered(1), ordered(2))
        await app.until_quiet()
        assert await numbers(app) == ["1", "2"] and set(attempts) == {1}


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_statement_of_a_session_that_takes_too_long_is_given_up(database: str, kind: str) -> None:
    attempts: list[int] = []
    service = Service("paying", schema=SCHEMA, retry=PATIENT, deadline=0.5)

    def slow(delivery: Delivery) -> bool:
        attempts.append(delivery.attempt)
        return delivery.attempt == 1

    if kind == "async":

        @service.on(Ordered)
        async def pay(order: Ordered, delivery: Delivery, session: AsyncSession) -> None:
            session.add(payment(order))
            await session.flush()
            if slow(delivery):
                await session.execute(text("select pg_sleep(20)"))

    else:

        @service.on(Ordered)
        def pay_sync(order: Ordered, delivery: Delivery, session: Session) -> None:
            session.add(payment(order))
            session.flush()
            if slow(delivery):
                session.execute(text("select pg_sleep(20)"))

    async with harness(service, store=f"{database}?schema=paying") as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        assert await numbers(app) == ["1"] and attempts == [1, 2]


async def test_dying_at_any_point_repeats_and_loses_nothing(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ELSEWHERE, "store", database + "?schema={place}")
    service = fresh()

    @service.on(Ordered)
    async def pay(order: Ordered, delivery: Delivery, session: AsyncSession, tx: Transaction) -> None:
        session.add(payment(order))
        async with session.begin_nested():
            tx.write("insert into notes (text) values (:number)", order)
        tx.publish(Paid(number=order.number, customer=order.customer))
        if order.number == "2" and delivery.attempt == 1:
            raise ValueError("parked first")

    async def scenario(app: Harness) -> Any:
        await app.publish(*[ordered(n, customer=f"c{n % 2}") for n in range(4)])
        await app.until_quiet()
        paid = {event.number for event in await app.published(Paid)}
        return await numbers(app), len(await app.rows("select 1 from notes")), paid

    await every_crash_point(service)(scenario)()
