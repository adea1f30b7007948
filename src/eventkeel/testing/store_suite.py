"""What every store has to do, as tests: subclass ``StoreSuite`` and pytest runs all of them, with the
asynchronous and with the synchronous driver.

    class TestMyStore(StoreSuite):
        async def make(self, place: Path, service: str) -> Store:
            return MyStore(url_of_a_database_for(place), service)

        def catalogue(self, store: Store) -> Catalogue:
            return MyCatalogue(store)

Needs pytest and pytest-asyncio, and ``pytest.register_assert_rewrite(*eventkeel.testing.conformance.REWRITTEN)`` in
conftest.py, so that failing asserts show their values. Waiting keys, dead letters and operators: ``store_keys``; steps
and timers: ``store_later``.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from eventkeel.errors import ConfigurationError, StatementRefused, TransactionAborted, TransactionError
from eventkeel.message import Slice
from eventkeel.ports.catalogue import Catalogue
from eventkeel.ports.store import ConsumerName, PipelineFailed, Store, Verdict
from eventkeel.testing.store_keys import KeySuite
from eventkeel.testing.store_kit import (
    CONSUMERS,
    FIRST,
    GROUP,
    MAIL,
    ME,
    NOW,
    OTHER,
    OUTBOX,
    PAY,
    SECOND,
    TABLE,
    TTL,
    Workbench,
    claim,
    event_id,
    eventually,
    mark,
    record,
    scenario,
    wanted,
)
from eventkeel.testing.store_later import LaterSuite

NEW, DONE, CONFLICT = Verdict.NEW, Verdict.DONE, Verdict.CONFLICT
INSERT = "insert into paid (number, note) values (:number, :note)"
NOTES = "select number, note from paid order by number"
REFUSED = [
    *("begin", " COMMIT;", "-- so\nrollback", "/* x */ savepoint a", "release a", "end"),
    *("insert into paid values (?)", "select 1; select 2", "", "-- nothing"),
]


@pytest.mark.asyncio
class StoreSuite(KeySuite, LaterSuite):
    """Subclass it and say how a store is made."""

    store = ""
    """What the store is called on the page of results."""

    types = "exact numeric, flag boolean, id uuid, at timestamp, raw blob, word text, whole integer, part real"
    """Columns of the types that the table of types names, as this database declares them."""

    async def make(self, place: Path, service: str) -> Store:
        """A closed store. The same ``place`` (a folder of one test) means the same database."""
        raise NotImplementedError

    def catalogue(self, store: Store) -> Catalogue:
        raise NotImplementedError

    @pytest_asyncio.fixture(params=["async", "sync"])
    async def bench(self, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Workbench]:
        async with contextlib.AsyncExitStack() as stack:
            yield Workbench(lambda service: self.make(tmp_path, service), stack, request.param)

    # -- transactions

    @scenario("S2")
    async def test_what_was_committed_is_there_and_what_was_rolled_back_is_not(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            await unit.sql(INSERT, {"number": 1, "note": "kept"})
        async with bench.begun(store) as unit:
            await unit.sql(INSERT, {"number": 2, "note": "not kept"})
            await unit.run(unit.unit.rollback())
            assert not unit.alive
        async with bench.begun(store) as unit:
            await unit.sql(INSERT, {"number": 3, "note": "neither"})
            assert unit.alive  # and then it is only closed
        assert await bench.rows(await bench.store(), NOTES) == [(1, "kept")]

    @scenario("S2")
    async def test_a_unit_can_be_used_again_after_its_end(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.begun(store) as unit:
            for number in range(3):
                if number:
                    await unit.run(unit.unit.begin(speculative=True))
                await unit.sql(INSERT, {"number": number, "note": ""})
                await unit.run(unit.unit.commit())
        assert len(await bench.rows(store, NOTES)) == 3

    async def test_a_commit_without_a_transaction_is_an_error(self, bench: Workbench) -> None:
        async with bench.begun(await bench.store()) as unit:
            await unit.run(unit.unit.rollback())
            await unit.run(unit.unit.rollback())  # which never is
            with pytest.raises(TransactionAborted):
                await unit.run(unit.unit.commit())

    @scenario("S2")
    async def test_a_savepoint_undoes_its_own_part_only(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            await unit.sql(INSERT, {"number": 1, "note": "before"})
            await unit.run(unit.unit.savepoint("eventkeel_0"))
            await unit.sql(INSERT, {"number": 2, "note": "inside"})
            with pytest.raises(Exception, match=r"(?i)unique"):
                await unit.sql(INSERT, {"number": 1, "note": "again"})
            await unit.run(unit.unit.rollback_to("eventkeel_0"))
            await unit.run(unit.unit.release("eventkeel_0"))
            await unit.sql(INSERT, {"number": 3, "note": "after"})
        assert await bench.rows(store, NOTES) == [(1, "before"), (3, "after")]

    async def test_queued_statements_run_in_order_and_tell_how_many_rows_they_touched(self, bench: Workbench) -> None:
        store = await bench.store()
        update = "update paid set note = note || :more where number <= :most"
        async with bench.unit(store) as unit:
            assert await unit.pipeline(
                (INSERT, {"number": 1, "note": "a"}),
                (INSERT, {"number": 2, "note": "b"}),
                (update, {"more": "!", "most": 2}),
                (update, {"more": "?", "most": 0}),
                (INSERT + " returning number", {"number": 3, "note": "c"}),
            ) == [(1,), (1,), (2,), (0,), (1,)]
        assert await bench.rows(store, NOTES) == [(1, "a!"), (2, "b!"), (3, "c")]

    async def test_a_queued_statement_that_fails_is_named_and_none_after_it_runs(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.begun(store) as unit:
            await unit.run(unit.unit.savepoint("eventkeel_0"))
            with pytest.raises(PipelineFailed) as failed:
                await unit.pipeline(*[(INSERT, {"number": number, "note": ""}) for number in (1, 2, 1, 3)])
            assert failed.value.index == 2
            assert "unique" in str(failed.value.__cause__).lower()
            if store.caps.parallel_units:
                await unit.run(unit.unit.rollback_to("eventkeel_0"))
            assert (3, "") not in await unit.sql(NOTES)

    async def test_two_units_at_once_both_come_to_their_end(self, bench: Workbench) -> None:
        stores = [await bench.store(), await bench.store()]

        async def write(worker: int) -> None:
            for number in range(20):
                async with bench.unit(stores[worker % 2]) as unit:
                    await unit.sql(INSERT, {"number": worker * 100 + number, "note": ""})

        await asyncio.gather(*[write(worker) for worker in range(4)])
        assert len(await bench.rows(stores[0], NOTES)) == 80

    # -- what a user may say

    @pytest.mark.parametrize("sql", REFUSED)
    async def test_statements_of_the_engine_and_foreign_placeholders_are_refused(
        self, bench: Workbench, sql: str
    ) -> None:
        store = await bench.store()
        with pytest.raises(StatementRefused):
            store.prepare(sql, {})

    async def test_parameters_come_from_a_mapping_or_from_attributes(self, bench: Workbench) -> None:
        class Paid:
            number, note = 7, "as :number, '7' -- it's"

        store = await bench.store()
        async with bench.unit(store) as unit:
            await unit.sql(INSERT, Paid())
            await unit.sql(INSERT, {"number": 8, "note": "x", "more": object()})
        assert await bench.rows(store, NOTES) == [(7, Paid.note), (8, "x")]
        found = await bench.rows(store, "select ':note', note /* :none */ from paid where number = :n", {"n": 8})
        assert found == [(":note", "x")]

    async def test_a_missing_parameter_is_named(self, bench: Workbench) -> None:
        store = await bench.store()
        for params in ({"number": 1}, object(), ()):
            with pytest.raises(TransactionError, match=":n"):
                store.prepare(INSERT, params)

    async def test_values_come_back_as_the_table_of_types_says(self, bench: Workbench) -> None:
        store = await bench.store(ddl=[f"create table if not exists kinds (number integer primary key, {self.types})"])
        values: dict[str, Any] = {
            "exact": Decimal("99.99"),
            "flag": True,
            "id": UUID("0199c0de-0000-7000-8000-000000000001"),
            "at": datetime(2026, 11, 23, 21, 30, 0, 123456, tzinfo=timezone(timedelta(hours=2))),
            "raw": bytes(range(256)),
            "word": "grün 'x' :y",
            "whole": 2**53 + 1,
            "part": 0.1,
        }
        names = ", ".join(values)
        marks = ", ".join(f":{name}" for name in values)
        async with bench.unit(store) as unit:
            await unit.sql(f"insert into kinds (number, {names}) values (1, {marks})", values)
            await unit.sql(f"insert into kinds (number, {names}) values (2, {marks})", dict.fromkeys(values))
            await unit.sql(f"insert into kinds (number, {names}) values (3, {marks})", values | {"exact": Decimal(100)})
            got = await unit.sql(f"select {names} from kinds order by number")
        assert got[0] == tuple(values.values())
        assert [type(value) for value in got[0]] == [type(value) for value in values.values()]
        assert got[0][3].tzinfo is UTC
        assert got[1] == (None,) * len(values)
        assert got[2][0] == 100 and isinstance(got[2][0], Decimal)

    async def test_values_that_could_not_be_kept_are_refused_by_name(self, bench: Workbench) -> None:
        store = await bench.store()
        for value in (Decimal("NaN"), datetime(2026, 1, 1), object(), float("nan"), {"a": 1}):  # noqa: DTZ001
            with pytest.raises(TransactionError, match=":note"):
                store.prepare(INSERT, {"number": 1, "note": value})

    # -- claims

    @scenario("S1")
    async def test_an_event_is_new_once(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(1), claim(2), claim(3)) == [NEW] * 3
        async with bench.unit(await bench.store()) as unit:
            assert await unit.claim(claim(3), claim(4), claim(1)) == [DONE, NEW, DONE]

    @scenario("S1", "S2")
    async def test_a_claim_that_was_rolled_back_is_new_again(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.begun(store) as unit:
            await unit.claim(claim(1))
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(1)) == [NEW]

    @scenario("S1")
    async def test_of_two_in_one_list_the_first_is_new(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(1), claim(1), claim(2), claim(1)) == [NEW, DONE, NEW, DONE]

    @scenario("S1")
    async def test_each_consumer_has_its_own_inbox(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(1)) == [NEW]
            assert await unit.claim(claim(1), consumer=MAIL) == [NEW]

    @scenario("S1")
    async def test_the_same_identity_with_other_facts_is_a_conflict(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(1, amount=100), claim(1, amount=200)) == [NEW, CONFLICT]
        async with bench.unit(store) as unit:
            again = claim(1, amount=100), claim(1, amount=200), claim(1), claim(2, amount=100)
            assert await unit.claim(*again) == [DONE, CONFLICT, DONE, NEW]

    @scenario("S1")
    async def test_a_long_list_gets_each_its_own_verdict(self, bench: Workbench) -> None:
        store = await bench.store()
        dice = random.Random(7)
        known: set[int] = set()
        for _ in range(5):
            numbers = [dice.randrange(600) for _ in range(300)]
            expected = []
            for number in numbers:
                expected.append(DONE if number in known else NEW)
                known.add(number)
            async with bench.unit(store) as unit:
                keyed = [claim(number, key=b"%d" % number) for number in numbers]
                assert await unit.claim(*keyed) == expected

    @scenario("S1")
    async def test_claims_that_were_taken_back_are_new_again(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            await unit.claim(claim(1), claim(2), claim(3))
            await unit.run(unit.unit.unclaim(PAY, [event_id(2), event_id(3)]))
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(1), claim(2), claim(3)) == [DONE, NEW, NEW]

    @scenario("S1", "C3")
    async def test_of_two_processes_one_gets_the_event(self, bench: Workbench) -> None:
        stores = [await bench.store(), await bench.store()]

        async def handle(store: Store, numbers: list[int]) -> int:
            won = 0
            for number in numbers:
                async with bench.unit(store) as unit:
                    won += (await unit.claim(claim(number, key=b"%d" % number))).count(NEW)
            return won

        order = list(range(30))
        counts = await asyncio.gather(handle(stores[0], order), handle(stores[1], order), handle(stores[1], order))
        assert sum(counts) == 30

    async def test_an_exclusive_consumers_unit_may_ask_for_its_keys(self, bench: Workbench) -> None:
        async with bench.unit(await bench.store()) as unit:
            await unit.run(unit.unit.exclude(PAY, [b"a", b"b"]))
            assert await unit.claim(claim(1)) == [NEW]

    # -- outbox

    @scenario("S2")
    async def test_what_is_appended_waits_in_order_once_committed(self, bench: Workbench) -> None:
        store = await bench.store()
        everything = bytes(range(256))
        async with bench.begun(store) as unit:
            await unit.append(record(99))
        async with bench.unit(store) as unit:
            await unit.append(record(1), record(2, key=everything, body=everything))
        async with bench.unit(store) as unit:
            await unit.append()
            await unit.append(record(3, topic="mails"))
        rows = await store.unsent([0], 10)
        assert [(row.topic, row.key, row.headers, row.body) for row in rows] == [
            ("payments", b"k", b"\x90", b"1"),
            ("payments", everything, b"\x90", everything),
            ("mails", b"k", b"\x90", b"3"),
        ]
        assert sorted(row.id for row in rows) == [row.id for row in rows]
        assert [row.id for row in await store.unsent([0], 2)] == [row.id for row in rows[:2]]
        assert await store.unsent([], 10) == []

    @scenario("S3", "X3")
    async def test_confirmed_rows_go_while_the_epoch_lives(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            await unit.append(*[record(number) for number in range(6)])
        ids = [row.id for row in await store.unsent([0], 10)]
        (mine,) = await bench.owned(store, OUTBOX)
        assert await store.sent(GROUP, {OUTBOX: mine.epoch}, [ids[0], ids[1]]) == ()
        assert await store.sent(GROUP, {OUTBOX: mine.epoch}, [ids[5], ids[3]]) == ()
        assert [row.id for row in await store.unsent([0], 10)] == [ids[2], ids[4]]
        (theirs,) = await bench.owned(store, OUTBOX, member=OTHER, now=NOW + TTL + 1)
        assert await store.sent(GROUP, {OUTBOX: mine.epoch}, [ids[2]]) == (OUTBOX,)
        assert not await store.stuck(GROUP, OUTBOX, mine.epoch, ids[2], "too large")
        assert len(await store.unsent([0], 10)) == 2
        assert await store.sent(GROUP, {OUTBOX: theirs.epoch}, [ids[2], ids[4]]) == ()
        assert await store.unsent([0], 10) == []

    @scenario("S3")
    async def test_a_refused_row_blocks_its_key_and_no_other(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            keys = [b"a", b"b", b"a", b"b", b"c"]
            await unit.append(*[record(number, key=key) for number, key in enumerate(keys)])
            await unit.append(record(9, key=b"b", topic="mails"))
        rows = await store.unsent([0], 10)
        (mine,) = await bench.owned(store, OUTBOX)
        assert await store.stuck(GROUP, OUTBOX, mine.epoch, rows[1].id, "too large")
        assert [row.body for row in await store.unsent([0], 10)] == [b"0", b"2", b"4", b"9"]
        assert [row.body for row in await store.unsent([0], 10, heads_only=True)] == [b"0", b"4", b"9"]
        (stuck,) = (await self.catalogue(store).lag()).stuck
        assert (stuck.id, stuck.topic, stuck.key, stuck.reason) == (rows[1].id, "payments", "b", "too large")

    async def test_of_each_key_only_the_first_where_one_may_be_outstanding(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            await unit.append(*[record(number, key=b"hot") for number in range(50)], record(50, key=b"cold"))
        assert [row.body for row in await store.unsent([0], 10, heads_only=True)] == [b"0", b"50"]
        assert [row.body for row in await store.unsent([0], 1, heads_only=True)] == [b"0"]

    @scenario("C3")
    async def test_commits_wake_who_waits_for_them(self, bench: Workbench) -> None:
        store, other = await bench.store(), await bench.store()
        woken: list[str] = []
        store.on_commit(outbox=lambda: woken.append("own outbox"), gates=lambda: woken.append("own gates"))
        other.on_commit(outbox=lambda: woken.append("outbox"), gates=lambda: woken.append("gates"))
        async with bench.unit(store) as unit:
            await unit.append(record(1))
        await eventually(lambda: {"own outbox", "outbox"} <= set(woken))
        woken.clear()
        await bench.park(store, 5)
        await eventually(lambda: {"own gates", "gates"} <= set(woken))

    # -- ownership and fence

    @scenario("C3")
    async def test_a_free_slice_is_taken_with_the_next_epoch(self, bench: Workbench) -> None:
        store = await bench.store()
        first = await bench.owned(store, FIRST, SECOND)
        assert [(one.slice, one.position, one.suspect) for one in first] == [
            (FIRST, None, False),
            (SECOND, None, False),
        ]
        (again,) = await bench.owned(store, FIRST)
        assert again.epoch > first[0].epoch and not again.suspect

    @scenario("C3", "S3")
    async def test_a_leased_slice_is_left_to_its_owner_until_the_lease_runs_out(self, bench: Workbench) -> None:
        store, other = await bench.store(), await bench.store()
        (mine,) = await bench.owned(store, FIRST)
        assert await bench.owned(other, FIRST, member=OTHER, now=NOW + TTL - 1) == []
        (theirs,) = await bench.owned(other, FIRST, member=OTHER, now=NOW + TTL + 1)
        assert theirs.epoch > mine.epoch and theirs.suspect
        (taken,) = await store.take(GROUP, ME, [FIRST], ttl=TTL, now=NOW + TTL + 2, force=True)
        assert taken.epoch > theirs.epoch

    @scenario("C3")
    async def test_a_released_slice_is_free_at_once_and_above_suspicion(self, bench: Workbench) -> None:
        store, other = await bench.store(), await bench.store()
        (mine,) = await bench.owned(store, FIRST)
        assert await store.progress(GROUP, [mark(mine, 42)], release=True, now=NOW) == ()
        (theirs,) = await bench.owned(other, FIRST, member=OTHER)
        assert (theirs.position, theirs.incarnation, theirs.suspect) == (42, "a", False)
        assert theirs.epoch > mine.epoch

    @scenario("C3", "X3")
    async def test_the_fence_tells_who_is_no_longer_the_owner(self, bench: Workbench) -> None:
        store, other = await bench.store(), await bench.store()
        first, second = await bench.owned(store, FIRST, SECOND)
        epochs = {FIRST: first.epoch, SECOND: second.epoch}
        async with bench.unit(store) as unit:
            assert await unit.fence(epochs) == ()
            assert await unit.fence({}) == ()
        await bench.owned(other, SECOND, member=OTHER, now=NOW + TTL + 1)
        async with bench.unit(store) as unit:
            assert await unit.fence(epochs) == (SECOND,)
            assert await unit.fence({FIRST: first.epoch - 1}) == (FIRST,)
            unknown = Slice("orders", 7)
            assert unknown in await unit.fence(epochs | {unknown: 1})
            assert await unit.fence({Slice("orders", 0, generation=2): first.epoch}) != ()

    @scenario("C3")
    async def test_renewing_changes_no_epoch_and_tells_what_was_lost(self, bench: Workbench) -> None:
        store, other = await bench.store(), await bench.store()
        first, second = await bench.owned(store, FIRST, SECOND)
        held = {FIRST: first.epoch, SECOND: second.epoch}
        view = await store.lease(GROUP, ME, held, ttl=TTL, now=NOW + 20)
        assert view.lost == () and view.members == (ME,)
        assert {row.slice: (row.owner, row.epoch) for row in view.owners} == {s: (ME, e) for s, e in held.items()}
        assert await bench.owned(other, FIRST, member=OTHER, now=NOW + TTL + 1) == []  # it was renewed
        await other.take(GROUP, OTHER, [SECOND], ttl=TTL, now=NOW + 21, force=True)
        view = await other.lease(GROUP, OTHER, {}, ttl=TTL, now=NOW + 22)
        assert view.members == (ME, OTHER)
        view = await store.lease(GROUP, ME, held, ttl=TTL, now=NOW + 25)
        assert view.lost == (SECOND,)
        async with bench.unit(store) as unit:
            assert await unit.fence({FIRST: first.epoch}) == ()

    @scenario("C3")
    async def test_members_are_those_who_said_so_lately(self, bench: Workbench) -> None:
        store = await bench.store()
        await bench.alive(store, OTHER)
        view = await store.lease(GROUP, ME, {}, ttl=TTL, now=NOW + 10)
        assert view.members == (ME, OTHER)
        view = await store.lease(GROUP, ME, {}, ttl=TTL, now=NOW + TTL + 1)
        assert view.members == (ME,)
        assert (await store.lease("another-group", "x", {}, ttl=TTL, now=NOW)).members == ("x",)
        await bench.alive(store, OTHER, now=NOW + 40)
        await bench.owned(store, FIRST, member=OTHER, now=NOW + 40)
        await store.leave(GROUP, OTHER)
        assert (await store.lease(GROUP, ME, {}, ttl=TTL, now=NOW + 41)).members == (ME,)
        (mine,) = await bench.owned(store, FIRST, now=NOW + 42)  # what it had is free, and it went in good order
        assert not mine.suspect

    @scenario("K3", "C3")
    async def test_progress_goes_forwards_only_and_only_under_a_live_epoch(self, bench: Workbench) -> None:
        store = await bench.store()

        async def position() -> int | None:
            (row,) = (await store.lease(GROUP, ME, {}, ttl=TTL, now=NOW)).owners
            return row.position

        (mine,) = await bench.owned(store, FIRST)
        steps: list[tuple[int | None, int | None]] = [(None, None), (10, 10), (7, 10), (None, 10), (11, 11)]
        for told, stored in steps:
            assert await store.progress(GROUP, [mark(mine, told)], release=False, now=NOW) == ()
            assert await position() == stored
        refused = await store.progress(GROUP, [mark(mine, 50, epoch=mine.epoch - 1)], release=True, now=NOW)
        assert refused == (FIRST,)
        assert await position() == 11
        assert await store.progress("another-group", [mark(mine, 60)], release=False, now=NOW) == (FIRST,)

    @scenario("K3")
    async def test_a_topic_that_was_made_anew_is_counted_anew(self, bench: Workbench) -> None:
        store = await bench.store()
        (mine,) = await bench.owned(store, FIRST)
        await store.progress(GROUP, [mark(mine, 500, "a")], release=False, now=NOW)
        await store.progress(GROUP, [mark(mine, 3, "b")], release=False, now=NOW)
        (again,) = await bench.owned(store, FIRST)
        assert (again.position, again.incarnation) == (3, "b")

    # -- start and end

    @scenario("K3")
    async def test_a_database_keeps_its_random_id(self, bench: Workbench) -> None:
        first, second = await bench.open(), await bench.open()
        assert first.store_id and first.store_id == second.store_id

    @scenario("X9")
    async def test_another_service_is_refused(self, bench: Workbench) -> None:
        await bench.store()
        other = await bench.open("shipping")
        with pytest.raises(ConfigurationError, match="belongs to service 'billing'"):
            await other.migrate(wanted(service="shipping", consumers=()), apply=True)

    @scenario("X9")
    async def test_a_renamed_consumer_is_refused_and_a_removed_one_is_not(self, bench: Workbench) -> None:
        renamed = ConsumerName("billing/take", CONSUMERS[0].handles)
        store = await bench.store()
        with pytest.raises(ConfigurationError, match=r'name="pay"'):
            await store.migrate(wanted(consumers=(renamed, CONSUMERS[1])), apply=True)
        await store.migrate(wanted(consumers=(*CONSUMERS, renamed)), apply=True)  # one more on the same event
        await store.migrate(wanted(consumers=()), apply=True)
        await store.migrate(wanted(consumers=(ConsumerName("billing/new", CONSUMERS[0].handles),)), apply=True)

    @scenario("X9")
    async def test_a_start_that_may_change_nothing_only_looks(self, bench: Workbench) -> None:
        store = await bench.open()
        with pytest.raises(ConfigurationError):
            await store.migrate(wanted(), apply=False)
        await store.migrate(wanted(), apply=True)
        await store.migrate(wanted(), apply=False)
        more = ConsumerName("billing/more", ("other/Event",))
        with pytest.raises(ConfigurationError, match="billing/more"):
            await store.migrate(wanted(consumers=(*CONSUMERS, more)), apply=False)

    async def test_the_users_schema_is_run_at_every_start_as_a_whole(self, bench: Workbench) -> None:
        store = await bench.store()
        await store.migrate(wanted(ddl=(TABLE + "; create table if not exists more (a integer)",)), apply=True)
        assert await bench.rows(store, "select count(*) from more") == [(0,)]
        with pytest.raises(ConfigurationError, match="create broken"):
            await store.migrate(wanted(ddl=("create table half (a integer)", "create broken")), apply=True)
        with pytest.raises(Exception, match="half"):
            await bench.rows(store, "select count(*) from half")
        with pytest.raises(ConfigurationError, match="COMMIT"):
            await store.migrate(wanted(ddl=("create table half (a integer); commit",)), apply=True)

    async def test_closing_twice_is_closing_once(self, bench: Workbench) -> None:
        store = await bench.store()
        await store.close()
        await store.close()
        with pytest.raises(ConfigurationError):
            store.unit()
        await store.open()
        await store.migrate(wanted(), apply=True)
        assert await bench.rows(store, NOTES) == []
