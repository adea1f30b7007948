"""One transaction and its enemies, on two real connections: what fails in it, and who is in its way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator

import psycopg
import pytest

from eventkeel.drive import drive_sync
from eventkeel.errors import (
    CommitUnknown,
    Contention,
    StatementRefused,
    StoreUnavailable,
    TransactionAborted,
    TransactionClosed,
)
from eventkeel.ports.store import PipelineFailed, Reply, Statement, Verdict
from eventkeel.stores.postgres import PostgresStore
from eventkeel.stores.postgres.connection import Handle
from eventkeel.testing.store_kit import MAIL, PATIENCE, PAY, TABLE, Transacted, Workbench, claim, event_id, record
from eventkeel.testing.store_suite import INSERT, NOTES
from tests.stores.postgres_kit import Place, ended, one, until

NEW, DONE = Verdict.NEW, Verdict.DONE
DEFERRED = (
    TABLE,
    "create table if not exists parent (id integer primary key)",
    """create table if not exists child (
         id integer primary key, parent integer references parent deferrable initially deferred)""",
)
UPDATE = "update paid set note = note || :more where number = :number"


async def test_a_swallowed_sql_error_takes_the_whole_transaction_with_it(pg: Workbench, place: Place) -> None:
    store = await pg.store()
    async with pg.begun(store) as unit:
        assert await unit.claim(claim(1)) == [NEW]
        await unit.sql(INSERT, {"number": 1, "note": "first"})
        with pytest.raises(psycopg.errors.UniqueViolation):
            await unit.sql(INSERT, {"number": 1, "note": "again"})
        assert not unit.alive
        with pytest.raises(TransactionAborted, match="nothing of it was applied"):
            await unit.run(unit.unit.commit())
    assert place.ask("select (select count(*) from paid), (select count(*) from eventkeel_inbox)") == [(0, 0)]
    async with pg.unit(store) as unit:
        assert await unit.claim(claim(1)) == [NEW]


async def test_a_commit_that_is_answered_with_rollback_is_no_commit(
    pg: Workbench, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What decides is the command tag, however much the transaction looked alive before."""
    store = await pg.store()
    async with pg.begun(store) as unit:
        assert await unit.claim(claim(1)) == [NEW]
        with pytest.raises(psycopg.errors.DivisionByZero):
            await unit.sql("select 1/0")
        monkeypatch.setattr(Handle, "alive", property(lambda self: True))
        with pytest.raises(TransactionAborted, match="ROLLBACK"):
            await unit.run(unit.unit.commit())
        monkeypatch.undo()
    assert place.ask("select count(*) from eventkeel_inbox") == [(0,)]


async def test_a_transaction_ended_on_the_drivers_connection_is_not_taken_for_a_commit(
    pg: Workbench, place: Place
) -> None:
    store = await pg.store()
    for verb in ("rollback", "commit"):
        async with pg.begun(store) as unit:
            assert await unit.claim(claim(1)) == [NEW]
            native = unit.unit.native
            made = native.execute(verb)  # no statement of ours: written on the driver's own connection
            if not isinstance(native, psycopg.Connection):
                await made
            assert not unit.alive
            with pytest.raises(TransactionAborted):
                await unit.run(unit.unit.commit())
        place.do("delete from eventkeel_inbox")


async def test_the_drivers_connection_refuses_to_end_the_transaction(pg: Workbench) -> None:
    store = await pg.store()
    async with pg.begun(store) as unit:
        await unit.claim(claim(1))
        native = unit.unit.native
        for verb in (native.commit, native.rollback, native.close):
            with pytest.raises(StatementRefused):
                verb()
        assert unit.alive


async def test_the_drivers_connection_may_prepare_in_every_unit(pg: Workbench) -> None:
    """Each view of one connection begins to count its prepared statements anew."""
    store = await pg.store()
    async with pg.begun(store) as unit:
        for _ in range(3):
            await unit.claim(claim(1))
            native = unit.unit.native
            for _ in range(8):
                made = native.execute("select 1")
                if not isinstance(native, psycopg.Connection):
                    await made
            await unit.run(unit.unit.rollback())
            await unit.run(unit.unit.begin(speculative=False))


async def test_two_units_that_update_two_rows_in_opposite_order_blame_nobody(pg: Workbench) -> None:
    """Crossed rows: one of both is told that another transaction was in the way, and the other goes through."""
    store, other = await pg.store(), await pg.store()
    async with pg.unit(store) as unit:
        for number in (1, 2):
            await unit.sql(INSERT, {"number": number, "note": ""})

    both = asyncio.Barrier(2)

    async def cross(whose: str, mine: PostgresStore, order: tuple[int, int]) -> str:
        async with pg.begun(mine) as unit:
            try:
                await unit.sql(UPDATE, {"more": whose, "number": order[0]})
                await both.wait()
                await unit.sql(UPDATE, {"more": whose, "number": order[1]})
                await unit.run(unit.unit.commit())
            except Contention as error:
                met.append(error.__cause__)
                await unit.run(unit.unit.rollback())
                return ""
            return whose

    met: list[BaseException | None] = []

    assert isinstance(store, PostgresStore) and isinstance(other, PostgresStore)
    won = await asyncio.gather(cross("a", store, (1, 2)), cross("b", other, (2, 1)))
    winner = "".join(won)
    assert winner in ("a", "b")
    assert [type(error) for error in met] == [psycopg.errors.DeadlockDetected]
    assert await pg.rows(store, NOTES) == [(1, winner), (2, winner)]


async def test_in_company_nobody_waits_for_a_lock(pg: Workbench) -> None:
    """A unit over several deliveries gives up at once, one over a single delivery waits."""
    store, other = await pg.store(), await pg.store()
    async with pg.unit(store) as unit:
        await unit.sql(INSERT, {"number": 1, "note": ""})
    async with pg.begun(store) as holder:
        await holder.sql(UPDATE, {"more": "a", "number": 1})
        async with pg.begun(other) as unit:
            await unit.run(unit.unit.rollback())
            await unit.run(unit.unit.begin(speculative=True))
            with pytest.raises(Contention) as told:
                async with asyncio.timeout(2):
                    await unit.sql(UPDATE, {"more": "b", "number": 1})
            assert isinstance(told.value.__cause__, psycopg.errors.LockNotAvailable)
            await unit.run(unit.unit.rollback())
            await unit.run(unit.unit.begin(speculative=False))
            waiting = asyncio.create_task(unit.sql(UPDATE, {"more": "b", "number": 1}))
            done, _ = await asyncio.wait({waiting}, timeout=0.3)
            assert not done
            await holder.run(holder.unit.commit())
            await waiting
            await unit.run(unit.unit.commit())
    assert await pg.rows(store, NOTES) == [(1, "ab")]


async def test_a_failed_flush_names_its_statement_and_leaves_nothing(pg: Workbench, place: Place) -> None:
    store = await pg.store()
    async with pg.begun(store) as unit:
        assert await unit.claim(claim(1), claim(2), claim(3)) == [NEW] * 3
        with pytest.raises(PipelineFailed) as failed:
            await unit.pipeline(*[(INSERT, {"number": number, "note": ""}) for number in (1, 2, 1, 3)])
        assert failed.value.index == 2
        assert isinstance(failed.value.__cause__, psycopg.errors.UniqueViolation)
        with pytest.raises(TransactionAborted):
            await unit.run(unit.unit.commit())
    assert place.ask("select (select count(*) from paid), (select count(*) from eventkeel_inbox)") == [(0, 0)]


async def test_a_failed_first_statement_of_a_queue_is_number_0(pg: Workbench) -> None:
    store = await pg.store()
    for queue in ([(1, 1)], [(1, 1), (2, 2)]):
        async with pg.unit(store) as unit:
            with pytest.raises(PipelineFailed) as failed:
                await unit.pipeline(*[("select :a / 0 + :b", {"a": a, "b": b}) for a, b in queue])
            assert failed.value.index == 0
            await unit.run(unit.unit.rollback())
            await unit.run(unit.unit.begin(speculative=False))


async def test_a_deferred_constraint_fails_the_commit_and_the_whole(pg: Workbench, place: Place) -> None:
    store = await pg.store(ddl=DEFERRED)
    async with pg.begun(store) as unit:
        assert await unit.claim(claim(1)) == [NEW]
        await unit.append(record(1))
        await unit.sql("insert into child values (1, 99)")
        assert unit.alive
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            await unit.run(unit.unit.commit())
        await unit.run(unit.unit.rollback())
        await unit.run(unit.unit.begin(speculative=False))  # and its connection is as good as before
        assert await unit.claim(claim(1)) == [NEW]
        await unit.run(unit.unit.commit())
    rows = place.ask("select (select count(*) from child), (select count(*) from eventkeel_outbox)")
    assert rows == [(0, 0)]


async def test_of_two_workers_with_the_same_event_one_has_it(pg: Workbench) -> None:
    """The second waits for the first, whose end decides."""
    store, other = await pg.store(), await pg.store()
    for number, ends in enumerate(("commit", "rollback")):
        async with pg.begun(store) as first, pg.begun(other) as second:
            assert await first.claim(claim(number)) == [NEW]
            waiting = asyncio.create_task(second.claim(claim(number), claim(100 + number)))
            done, _ = await asyncio.wait({waiting}, timeout=0.3)
            assert not done
            await first.run(getattr(first.unit, ends)())
            assert await waiting == [DONE if ends == "commit" else NEW, NEW]
            await second.run(second.unit.commit())


async def test_the_same_events_in_other_order_never_deadlock(pg: Workbench) -> None:
    """Claims are written in one order, whatever order they came in."""
    store, other = await pg.store(), await pg.store()
    numbers = list(range(40))

    async def take(mine: PostgresStore, order: list[int]) -> int:
        async with pg.unit(mine) as unit:
            return (await unit.claim(*[claim(number, key=b"%d" % number) for number in order])).count(NEW)

    assert isinstance(store, PostgresStore) and isinstance(other, PostgresStore)
    for shift in range(5):
        order = [1000 * shift + number for number in numbers]
        won = await asyncio.gather(take(store, order), take(other, order[::-1]), take(store, order[20:] + order[:20]))
        assert sum(won) == 40


async def test_an_exclusive_key_lets_one_unit_in_at_a_time_over_all_processes(pg: Workbench) -> None:
    """Beside it other keys, the outbox and the fence of the same names go on."""
    store, other = await pg.store(), await pg.store()
    async with pg.begun(store) as first, pg.begun(other) as second:
        await first.run(first.unit.exclude(PAY, [b"b", b"a"]))
        assert await first.claim(claim(1, key=b"a")) == [NEW]
        await second.run(second.unit.exclude(PAY, [b"c"]))
        await second.run(second.unit.exclude(MAIL, [b"a"]))
        async with asyncio.timeout(3):
            assert await second.claim(claim(2, key=b"c")) == [NEW]
            await second.append(record(2, key=b"a"))
            await second.run(second.unit.commit())
        await second.run(second.unit.begin(speculative=True))
        await second.run(second.unit.exclude(PAY, [b"a"]))
        with pytest.raises(Contention):  # in company nobody waits for it: the batch is split
            await second.claim(claim(3, key=b"a"))
        await second.run(second.unit.rollback())
        await second.run(second.unit.begin(speculative=False))
        await second.run(second.unit.exclude(PAY, [b"a", b"b"]))
        waiting = asyncio.create_task(second.claim(claim(3, key=b"a")))
        done, _ = await asyncio.wait({waiting}, timeout=0.3)
        assert not done
        await first.run(first.unit.commit())
        assert await waiting == [NEW]


async def test_a_thread_that_was_given_up_writes_into_nobodys_transaction(place: Place) -> None:
    """A handler's thread goes on after its deadline, while its connection would be the next unit's."""
    async with place.bench("async", pool=2) as bench:
        store = await bench.store()
        for inside in ("user code", "statement", "native"):
            unit = store.unit()
            begun, go_on = threading.Event(), threading.Event()

            def program() -> Generator[Statement, Reply, None]:
                yield from unit.begin(speculative=False)  # noqa: B023
                yield from unit.claim("billing/pay", [claim(1)], 0.0)  # noqa: B023
                native = unit.native if inside == "native" else None  # noqa: B023
                begun.set()  # noqa: B023
                if inside == "statement":  # noqa: B023
                    yield Statement("select pg_sleep(20)")
                elif native is not None:
                    native.execute("select pg_sleep(20)")
                go_on.wait(PATIENCE)  # noqa: B023
                if native is not None:
                    native.execute("insert into paid values (1, 'zombie')")
                yield store.prepare(INSERT, {"number": 1, "note": "zombie"})
                yield from unit.commit()  # noqa: B023

            running = asyncio.create_task(asyncio.to_thread(drive_sync, program(), unit.sync_connection))
            await asyncio.to_thread(begun.wait, PATIENCE)
            if inside != "user code":
                await until(lambda: place.backends(query="%pg_sleep%", state="active"))
            started = asyncio.get_running_loop().time()
            unit.close(discard=True)
            async with bench.unit(store) as other:
                assert await other.claim(claim(1)) == [NEW]  # nobody's locks are left
                await other.sql(INSERT, {"number": 2, "note": "mine"})
                go_on.set()
                error = await ended(running)
                assert isinstance(error, TransactionClosed | TransactionAborted | StoreUnavailable | psycopg.Error)
            assert asyncio.get_running_loop().time() - started < 10
            assert await bench.rows(store, NOTES) == [(2, "mine")]
            place.do("delete from paid; delete from eventkeel_inbox")


async def test_giving_up_a_thread_at_any_moment_harms_no_neighbour(place: Place) -> None:
    """Closing from the event loop races with whatever the thread does: libpq must never be freed under it."""
    async with place.bench("async", pool=4) as bench:
        store = await bench.store()
        statement = store.prepare("select :n::integer + 1", {"n": 1})

        def program(transacted: Transacted) -> Generator[Statement, Reply, None]:
            yield from transacted.unit.begin(speculative=False)
            for _ in range(10_000):
                yield statement

        for attempt in range(60):
            transacted = Transacted(store, store.unit(), "sync")
            running = asyncio.create_task(transacted.run(program(transacted)))
            await asyncio.sleep(0.002 + attempt * 0.0003)
            transacted.unit.close(discard=True)
            error = await ended(running)
            assert isinstance(error, TransactionClosed | TransactionAborted | StoreUnavailable), error
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(1)) == [NEW]


async def test_a_statement_the_database_does_not_support_is_its_authors_fault(pg: Workbench) -> None:
    """It has the SQLSTATE of a stale plan, and trying again for ever would help nobody."""
    store = await pg.store()
    async with pg.begun(store) as unit:
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            await unit.sql("select count(*) from paid for update")


async def test_a_table_altered_behind_a_plan_heals_by_trying_again(pg: Workbench, place: Place) -> None:
    store = await pg.store()
    async with pg.begun(store) as unit:
        for number in range(6):  # more plans than one, so that a name given twice would be noticed
            await unit.sql(f"select {number}, * from paid")
        await unit.run(unit.unit.commit())
        place.do("alter table paid add column more integer")
        for number in range(6):
            await unit.run(unit.unit.begin(speculative=False))
            with pytest.raises(StoreUnavailable, match="out of date"):
                await unit.sql(f"select {number}, * from paid")
            await unit.run(unit.unit.rollback())
            await unit.run(unit.unit.begin(speculative=False))
            assert await unit.sql(f"select {number}, * from paid") == []
            assert await unit.sql(f"select 'new {number}'") == [(f"new {number}",)]
            await unit.run(unit.unit.commit())


async def test_plans_that_somebody_threw_away_are_made_anew(pg: Workbench) -> None:
    store = await pg.store()
    async with pg.begun(store) as unit:
        await unit.claim(claim(1))
        native = unit.unit.native
        made = native.execute("deallocate all")
        if not isinstance(native, psycopg.Connection):
            await made
        with pytest.raises(StoreUnavailable):
            await unit.claim(claim(2))
        await unit.run(unit.unit.rollback())
        await unit.run(unit.unit.begin(speculative=False))
        assert await unit.claim(claim(1)) == [NEW]
        await unit.append(record(1))
        await unit.run(unit.unit.commit())


async def test_more_different_statements_than_are_prepared(pg: Workbench, place: Place) -> None:
    store = await pg.store()
    async with pg.unit(store) as unit:
        for number in range(450):
            assert await unit.sql(f"select {number} + :n", {"n": 1}) == [(number + 1,)]
        assert await unit.claim(claim(1)) == [NEW]
        assert (await unit.sql("select count(*) <= 400 from pg_prepared_statements")) == [(True,)]
        assert await unit.pipeline(*[(f"select {n} + :n", {"n": 1}) for n in range(440, 460)]) == [(1,)] * 20


async def test_what_failed_before_its_commit_is_known_not_to_have_happened(pg: Workbench, place: Place) -> None:
    """The append travels with the commit: its failure is an answer, and no reason for doubt."""
    store = await pg.store()
    place.do(
        "create function no() returns trigger language plpgsql as "
        "$$ begin raise exception 'full' using errcode = '53100'; end $$; "
        "create trigger no before insert on eventkeel_outbox execute function no()"
    )
    async with pg.begun(store) as unit:
        await unit.claim(claim(1))
        await unit.append(record(1))
        with pytest.raises(StoreUnavailable) as told:
            await unit.run(unit.unit.commit())
        assert not isinstance(told.value, CommitUnknown)
    assert place.ask("select count(*) from eventkeel_inbox") == [(0,)]


async def test_a_unit_that_was_never_asked_anything_costs_nothing(pg: Workbench) -> None:
    store = await pg.store()
    async with pg.unit(store):
        pass
    async with pg.unit(store) as unit:
        assert await unit.claim(claim(1)) == [NEW]
        reply = await unit.run(one(store.prepare("select :id::uuid", {"id": event_id(1).hex()})))
        assert reply.rows[0][0].bytes == event_id(1)


async def test_statements_of_one_unit_that_are_sent_at_once_get_each_its_own_answer(pg: Workbench) -> None:
    """A handler that gathers: one after another, in some order, and nobody gets another one's rows."""
    store = await pg.store()
    async with pg.unit(store) as unit:
        answers = await asyncio.gather(
            *(unit.sql("select :n::int from pg_sleep(:s)", {"n": n, "s": 0.001 * (n % 3)}) for n in range(20))
        )
        assert answers == [[(n,)] for n in range(20)]
        assert await unit.claim(claim(1)) == [NEW]


async def test_a_statement_cut_off_by_a_timeout_of_the_handlers_own_spoils_the_unit(
    pga: Workbench, place: Place
) -> None:
    """Whoever goes on after it must not be given the answer of the statement before."""
    store = await pga.store()
    async with pga.begun(store) as unit:
        assert await unit.claim(claim(1)) == [NEW]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await unit.sql("select 'slow' from pg_sleep(0.3)")
        assert not unit.alive
        for _ in range(3):
            with pytest.raises(TransactionAborted, match="cut off"):
                await unit.sql("select 'next'")
            await asyncio.sleep(0.2)
        with pytest.raises(TransactionAborted):
            await unit.run(unit.unit.commit())
        await unit.run(unit.unit.rollback())
        await unit.run(unit.unit.begin(speculative=False))  # on another connection
        assert await unit.sql("select 'next'") == [("next",)]
        assert await unit.claim(claim(1)) == [NEW]


async def test_a_task_left_behind_by_a_handler_is_no_part_of_the_next_transaction(pga: Workbench) -> None:
    store = await pga.store()
    async with pga.begun(store) as unit:
        left = asyncio.create_task(unit.sql("select pg_sleep(0.2)"))
        await asyncio.sleep(0.05)
        await unit.run(unit.unit.rollback())  # does not wait for it
        await unit.run(unit.unit.begin(speculative=False))
        assert await unit.sql("select 'mine'") == [("mine",)]
        assert await unit.claim(claim(1)) == [NEW]
        error = await ended(left)
        assert error is None or isinstance(error, StoreUnavailable | TransactionAborted | TransactionClosed)


async def test_every_statement_on_a_lost_connection_says_that_it_is_lost(pg: Workbench, place: Place) -> None:
    """A handler that caught the first is told the same by the next: it is no fault of its own."""
    store = await pg.store()
    async with pg.begun(store) as unit:
        assert await unit.claim(claim(1)) == [NEW]
        place.terminate(*place.backends(state="idle in transaction"))
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await unit.sql("select 1")
        await unit.run(unit.unit.rollback())
        await unit.run(unit.unit.begin(speculative=False))
        assert await unit.claim(claim(1)) == [NEW]
