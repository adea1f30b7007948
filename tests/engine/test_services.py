"""What users declare: signatures, synchronous services, transactions outside, lifespan, drain."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from eventkeel import (
    ConfigurationError,
    Delivery,
    Event,
    PublishError,
    Retry,
    Service,
    SignatureError,
    StatementRefused,
    SyncTransaction,
    Transaction,
    TransactionClosed,
    TransactionError,
)
from eventkeel.testing.harness import harness

from .domain import SCHEMA, STEPS, Noted, Ordered, Paid, ordered, paying


def test_a_handler_without_annotations_is_told_what_to_write() -> None:
    service = Service("s")
    with pytest.raises(SignatureError, match="annotate order, tx"):

        @service.on(Ordered)
        async def pay(order, tx):  # type: ignore[no-untyped-def]
            ...


def test_a_handler_may_not_ask_for_what_nobody_gives() -> None:
    service = Service("s")
    with pytest.raises(SignatureError, match="nothing can be given for clock"):

        @service.on(Ordered)
        async def pay(order: Ordered, clock: datetime) -> None: ...


def test_a_service_is_asynchronous_or_synchronous_as_a_whole() -> None:
    service = Service("s")

    @service.on(Ordered)
    async def first(order: Ordered, tx: Transaction) -> None: ...

    with pytest.raises(SignatureError, match="as a whole"):

        @service.on(Noted)
        def second(noted: Noted, tx: SyncTransaction) -> None: ...


@pytest.mark.parametrize("wrong", ["sync asks async", "async asks sync", "twice", "list with delivery"])
def test_signatures_that_cannot_work_are_refused(wrong: str) -> None:
    service = Service("s")
    with pytest.raises(SignatureError):
        if wrong == "sync asks async":

            @service.on(Ordered)
            def a(order: Ordered, tx: Transaction) -> None: ...
        elif wrong == "async asks sync":

            @service.on(Ordered)
            async def b(order: Ordered, tx: SyncTransaction) -> None: ...
        elif wrong == "twice":

            @service.on(Ordered)
            async def c(order: Ordered, tx: Transaction, tx2: Transaction) -> None: ...
        else:

            @service.on(Ordered)
            async def d(orders: list[Ordered], delivery: Delivery) -> None: ...


async def test_two_handlers_of_one_name_are_refused() -> None:
    service = Service("s")
    for _ in range(2):

        @service.on(Ordered)
        async def same(order: Ordered, tx: Transaction) -> None: ...

    with pytest.raises(ConfigurationError, match="two handlers"):
        async with harness(service):
            pass


class Rates:
    def __init__(self) -> None:
        self.asked = 0


async def test_provide_gives_handlers_what_they_ask_for() -> None:
    service, rates = Service("rated", schema=SCHEMA), Rates()
    service.provide(Rates, lambda: rates)

    @service.on(Noted)
    async def note(noted: Noted, rates: Rates, tx: Transaction) -> None:
        rates.asked += 1

    async with harness(service) as app:
        await app.publish(Noted(customer="c", step=1))
        await app.until_quiet()
        assert rates.asked == 1


async def test_a_synchronous_service_keeps_the_same_promise() -> None:
    service = Service("sync", schema=SCHEMA, retry=Retry(attempts=2, first=1.0, in_place=()))
    calls: list[int] = []

    @service.on(Noted)
    def note(noted: Noted, tx: SyncTransaction, delivery: Delivery) -> None:
        calls.append(noted.step)
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)
        with contextlib.suppress(Exception), tx.savepoint():
            tx.execute("insert into payments (number, customer, amount) values (null, null, null)")
        assert tx.fetch_value("select max(step) from steps where customer = :customer", noted) == noted.step
        if noted.step == 3 and delivery.attempt == 1:
            raise RuntimeError("once")
        tx.publish(Paid(number=str(noted.step), customer=noted.customer))

    async with harness(service) as app:
        await app.publish(*[Noted(customer="c", step=n) for n in range(6)])
        await app.redeliver("noted")
        await app.until_quiet()
        assert [step for (step,) in await app.rows(STEPS, {"customer": "c"})] == [0, 1, 2, 3, 4, 5]
        assert len(await app.published(Paid)) == 6

        def outside() -> None:
            with service.transaction() as tx:
                tx.publish(Paid(number="outside", customer="c"))

        await asyncio.to_thread(outside)
        await app.until_quiet()
        assert len(await app.published(Paid)) == 7


async def test_a_synchronous_handler_that_takes_too_long_is_rolled_back_while_it_still_runs() -> None:
    service = Service("stuck", schema=SCHEMA, retry=Retry(attempts=1, in_place=()), deadline=0.2)
    import threading

    go, late = threading.Event(), list[BaseException]()

    @service.on(Noted)
    def note(noted: Noted, tx: SyncTransaction) -> None:
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)
        if noted.step == 1:
            go.wait(20)
            try:
                tx.execute("insert into steps (customer, step) values ('too late', 0)")
            except Exception as error:
                late.append(error)
                raise

    async with harness(service) as app:
        await app.publish(*[Noted(customer=f"c{n}", step=n) for n in range(3)])
        await app.until_quiet()
        assert sorted(await app.rows("select step from steps")) == [(0,), (2,)]
        go.set()
        await app.until(lambda: bool(late))
        assert isinstance(late[0], TransactionClosed)
        assert sorted(await app.rows("select step from steps")) == [(0,), (2,)]


async def test_a_transaction_kept_for_later_is_dead() -> None:
    service = Service("keeper", schema=SCHEMA)
    kept: list[Transaction] = []

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction) -> None:
        kept.append(tx)

    async with harness(service) as app:
        await app.publish(Noted(customer="c", step=1))
        await app.until_quiet()
        with pytest.raises(TransactionClosed):
            kept[0].write("insert into steps (customer, step) values ('x', 1)")
        with pytest.raises(TransactionClosed):
            await kept[0].fetch_all("select 1")


class Wide(Event, topic="wide", key="id"):
    id: str
    text: str = ""


async def test_what_cannot_be_published_is_said_in_the_authors_call() -> None:
    async with harness(paying()) as app, app.service.transaction() as tx:
        with pytest.raises(PublishError, match="empty"):
            tx.publish(Wide(id=""))
        with pytest.raises(PublishError):
            tx.publish(Wide(id="1", text="x" * 2_000_000))
        with pytest.raises(PublishError):
            tx.publish("not an event")


@pytest.mark.parametrize(
    "sql", ["begin", "commit", " /* x */ rollback", "savepoint a", "attach 'x' as y", "select 1; select 2", "select ?"]
)
async def test_statements_that_belong_to_the_engine_are_refused(sql: str) -> None:
    async with harness(paying()) as app, app.service.transaction() as tx:
        with pytest.raises(StatementRefused):
            tx.write(sql)


async def test_values_come_back_as_they_went_in() -> None:
    service = paying()
    service.schema += (
        "create table if not exists kinds (a numeric, u uuid, t timestamp, b boolean, raw blob, s text, i bigint)",
    )
    moment, id = datetime(2026, 11, 23, 20, 0, 0, 123456, UTC), uuid4()
    values = {"a": Decimal("99.90"), "u": id, "t": moment, "b": True, "raw": b"\x00\xff", "s": "ü", "i": 2**53 + 1}
    async with harness(service) as app, app.service.transaction() as tx:
        tx.write("insert into kinds values (:a, :u, :t, :b, :raw, :s, :i)", values)
        row = await tx.fetch_one("select * from kinds")
        assert row == tuple(values.values())
        assert [type(value) for value in row or ()][:4] == [Decimal, UUID, datetime, bool]
        with pytest.raises(TransactionError, match="amount"):
            tx.write("insert into kinds (a) values (:a)", {"a": Decimal("NaN")})
        with pytest.raises(TransactionError, match="time zone"):
            tx.write("insert into kinds (t) values (:t)", {"t": moment.replace(tzinfo=None)})
        with pytest.raises(TransactionError, match="no value for :b"):
            tx.write("insert into kinds (b) values (:b)", {"a": 1})


async def test_a_service_runs_inside_a_users_web_process(tmp_path: Path) -> None:
    """FastAPI(lifespan=service.lifespan): relay and handlers run as long as the application serves."""
    service = paying().configure(data=str(tmp_path))
    app: Any = object()
    async with service.lifespan(app):
        async with service.transaction() as tx:
            tx.publish(ordered(1))
        deadline = asyncio.get_running_loop().time() + 20
        while True:
            async with service.transaction() as tx:
                if await tx.fetch_value("select count(*) from payments"):
                    break
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.01)
    with pytest.raises(ConfigurationError, match="not open"):
        service.transaction()


async def test_stopping_finishes_the_running_delivery_and_counts_no_attempt() -> None:
    service = Service("drained", schema=SCHEMA)
    began, attempts = asyncio.Event(), list[int]()

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)
        began.set()
        await asyncio.sleep(0.05)

    async with harness(service) as app:
        await app.publish(*[Noted(customer=f"c{n}", step=n) for n in range(20)])
        await began.wait()
        await app.runtime.stop()
        done = len(attempts)
        assert done < 20
        app.runtime = app._make()
        await app.runtime.start()
        await app.until_quiet()
        assert await app.rows("select count(*), count(distinct step) from steps") == [(20, 20)]
        assert set(attempts) == {1}
        assert len(attempts) == 20


async def test_a_renamed_handler_is_found_out_at_start_up(tmp_path: Path) -> None:
    async with harness(paying(), folder=tmp_path) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
    renamed = Service("paying", schema=SCHEMA)

    @renamed.on(Ordered)
    async def take_payment(order: Ordered, tx: Transaction) -> None: ...

    with pytest.raises(ConfigurationError, match='name="pay"'):
        async with harness(renamed, folder=tmp_path):
            pass


async def test_two_services_in_one_file_are_refused(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/both.sqlite3"
    async with harness(paying(), folder=tmp_path, store=store):
        pass
    with pytest.raises(ConfigurationError, match="belongs to service 'paying'"):
        async with harness(Service("other"), folder=tmp_path, store=store):
            pass


@pytest.mark.sqlite_only
async def test_a_store_restored_without_its_group_stops_and_names_the_choices(tmp_path: Path) -> None:
    async with harness(paying(), folder=tmp_path) as app:
        await app.publish(*[ordered(n, f"c{n}") for n in range(20)])
        await app.until_quiet()
    lost = tmp_path / "paying.sqlite3"
    store_id = None
    import sqlite3

    with contextlib.closing(sqlite3.connect(lost)) as db:
        (store_id,) = db.execute("select value from eventkeel_meta where name = 'store_id'").fetchone()
        db.execute("delete from eventkeel_owner")
        db.commit()
    assert store_id
    with pytest.raises(ConfigurationError, match="--start earliest"):
        async with harness(paying(), folder=tmp_path):
            pass
    async with harness(paying(), folder=tmp_path, start="earliest") as app:
        await app.until_quiet()
        assert await app.rows("select count(*) from payments") == [(20,)]
