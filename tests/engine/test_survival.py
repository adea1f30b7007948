"""What user code does to its consumer: no error, however strange, ends a loop or holds up a neighbour."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest

from eventkeel import Fenced, Retry, Service, StoreUnavailable, SyncTransaction, Transaction, event
from eventkeel.testing.harness import harness

from .domain import SCHEMA, Noted
from .test_failures import together

LISTS = "create table if not exists lists (name text, size int)"
ALL = "select step from steps order by step"
HELD = "select state, reason, attempts, error from eventkeel_held order by number"


class Aborted(BaseException):
    """Not an Exception, as some libraries raise to get past ``except Exception``."""


class Mute(Exception):
    """Its text cannot be made."""

    def __str__(self) -> str:
        raise AttributeError("no text")


class Unspeakable(Exception):
    """Its text is no Unicode, as a file name may be."""

    def __init__(self) -> None:
        super().__init__("order \ud800 \x00 is not there")


@pytest.mark.parametrize(
    "raised", [Aborted, GeneratorExit, asyncio.CancelledError, Mute, Unspeakable, Fenced, SystemExit, StoreUnavailable]
)
@pytest.mark.parametrize("attempts", [1, 3])
async def test_no_error_ends_the_loops_that_run_handlers(raised: type[BaseException], attempts: int) -> None:
    service = Service("wild", schema=SCHEMA, retry=Retry(attempts=attempts, first=1.0, in_place=()))
    runs: list[int] = []

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction) -> None:
        if noted.step == 1:
            runs.append(1)
            raise raised()
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)

    async with harness(service) as app:
        await app.publish(*[Noted(customer=f"c{n}", step=n) for n in range(3)])
        await app.until_quiet()
        assert await app.rows(ALL) == [(0,), (2,)]
        assert [row[0] for row in await app.rows(HELD)] == ["dead"]
        await app.publish(Noted(customer="later", step=9))
        await app.until_quiet()
        assert await app.rows(ALL) == [(0,), (2,), (9,)]


def passing(call: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that does not know of coroutines."""

    @functools.wraps(call)
    def wrapper(*args: Any, **named: Any) -> Any:
        return call(*args, **named)

    return wrapper


async def test_a_handler_that_was_never_run_is_not_applied() -> None:
    service = Service("undone", retry=Retry(attempts=1, in_place=()))
    done: list[int] = []

    @service.on(Noted)
    @passing
    async def decorated(noted: Noted) -> None:
        done.append(noted.step)

    @service.on(Noted)
    def generator(noted: Noted) -> Generator[None, None, None]:
        done.append(noted.step)
        yield

    async with harness(service) as app:
        await app.publish(Noted(customer="c", step=1))
        await app.until_quiet()
        assert done == []
        rows = await app.rows(HELD)
        assert [row[0] for row in rows] == ["dead", "dead"]
        assert all("nothing was done" in row[3] for row in rows)


async def test_a_synchronous_retry_that_takes_too_long_touches_no_other_unit() -> None:
    service = Service("stuck", schema=SCHEMA, retry=Retry(attempts=3, first=1.0, in_place=()), deadline=0.3)
    go, late = threading.Event(), list[BaseException | None]()
    runs: list[int] = []

    @service.on(Noted)
    def note(noted: Noted, tx: SyncTransaction) -> None:
        if noted.step == 1:
            runs.append(1)
            if len(runs) == 1:
                raise RuntimeError("once, so that it is parked")
            go.wait(20)
            try:
                tx.execute("insert into steps (customer, step) values ('too late', 0)")
            except Exception as error:
                late.append(error)
                raise
            late.append(None)
            return
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)

    async with harness(service) as app:
        began = time.monotonic()
        await app.publish(*[Noted(customer=f"c{n}", step=n) for n in range(3)])
        await app.until_quiet()
        assert time.monotonic() - began < 10
        assert [row[:3] for row in await app.rows(HELD)] == [("dead", "error", 3)]
        go.set()
        # One run more than attempts where it first ran, and failed, in company: that one counts no attempt.
        await app.until(lambda: len(late) == len(runs) - 1)
        await app.publish(Noted(customer="later", step=9))
        await app.until_quiet()
        assert None not in late
        assert await app.rows(ALL) == [(0,), (2,), (9,)]


async def test_waiting_for_the_database_is_not_the_handlers_time() -> None:
    service = Service("patient", schema=SCHEMA, retry=Retry(attempts=1, in_place=()), deadline=0.3)

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction) -> None:
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)

    async with harness(service) as app:
        import apsw

        other = apsw.Connection(str(app.folder / "patient.sqlite3"))
        other.execute("begin immediate")  # somebody's shell
        await app.publish(*[Noted(customer=f"c{n}", step=n) for n in range(3)])
        await asyncio.sleep(1.0)
        other.execute("rollback")
        other.close()
        await app.until_quiet()
        assert await app.rows(HELD) == []
        assert await app.rows(ALL) == [(0,), (1,), (2,)]


@event(topic="lists", key="name")
@dataclasses.dataclass
class Listed:
    name: str
    items: list[int]


async def test_what_a_handler_changes_in_its_event_is_gone_with_its_unit() -> None:
    service = Service("lists", schema=LISTS, retry=Retry(attempts=1, in_place=()))

    @service.on(Listed)
    async def extend(listed: Listed, tx: Transaction) -> None:
        listed.items.append(0)
        tx.write("insert into lists values (:name, :size)", {"name": listed.name, "size": len(listed.items)})
        if listed.name == "bad":
            raise RuntimeError("and the whole batch is rolled back")

    async with harness(service, partitions=1) as app:
        await together(app, Listed("a", []), Listed("bad", []), Listed("b", []))
        assert await app.rows("select name, size from lists order by name") == [("a", 1), ("b", 1)]


async def test_a_write_that_fails_after_native_was_asked_for_cannot_be_swallowed() -> None:
    service = Service("direct", schema=SCHEMA, retry=Retry(attempts=1, in_place=()))

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction) -> None:
        await tx.native()
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)
        with contextlib.suppress(Exception):
            tx.write("insert into payments values (null, null, null)")

    async with harness(service) as app:
        await app.publish(Noted(customer="c", step=1))
        await app.until_quiet()
        assert await app.rows(ALL) == []
        assert [row[0] for row in await app.rows(HELD)] == ["dead"]
