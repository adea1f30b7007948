"""What users write and read on PostgreSQL: types, placeholders, and text that no column takes."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from urllib.parse import quote
from uuid import UUID

import psycopg
import pytest
from msgspec.structs import replace

from eventkeel.errors import StatementRefused, TransactionError
from eventkeel.ports.store import Verdict
from eventkeel.testing.store_kit import ANYBODY, NOW, TABLE, Workbench, claim, held
from eventkeel.testing.store_suite import INSERT, NOTES
from tests.stores.postgres_kit import Place

NEW = Verdict.NEW


@pytest.mark.parametrize(
    ("sql", "params", "expected"),
    [
        ("select '{\"a\": [1, null]}'::jsonb", {}, {"a": [1, None]}),
        ("select array['a', null, 'b']::text[]", {}, ["a", None, "b"]),
        ("select array[1, 2]::bigint[]", {}, [1, 2]),
        ("select '2026-11-25'::date", {}, date(2026, 11, 25)),
        ("select '10:20:30'::time", {}, time(10, 20, 30)),
        ("select '1 day 02:00'::interval", {}, timedelta(days=1, hours=2)),
        ("select 1.50::numeric(10, 2)", {}, Decimal("1.50")),
        ("select :n::numeric", {"n": Decimal("1E+400")}, Decimal("1E+400")),
        ("select :n::numeric", {"n": Decimal("-0.000000000000000000000000000001")}, Decimal("-1E-30")),
        ("select 1::smallint + 1", {}, 2),
        ("select 1.5::float4", {}, 1.5),
        ("select 'x'::varchar(5)", {}, "x"),
        ("select 'ab'::char(4)", {}, "ab  "),
        ("select ''::text", {}, ""),
        ("select null::integer", {}, None),
        ("select :b::bytea", {"b": bytearray(b"\x00\xff'\\")}, b"\x00\xff'\\"),
        ("select :b::bytea", {"b": memoryview(b"ab")}, b"ab"),
        ("select :b::boolean", {"b": False}, False),
        ("select :f::float8", {"f": 1e-320}, 1e-320),
        ("select :n::bigint", {"n": -(2**63)}, -(2**63)),
        ("select :t", {"t": "ünï 🜁 'quotes' \\ $1 %s"}, "ünï 🜁 'quotes' \\ $1 %s"),
        ("select :u::uuid", {"u": UUID(int=5)}, UUID(int=5)),
        ("select :a::int + :a::int * :b::int", {"a": 2, "b": 3}, 8),
        ("select :a || :a", {"a": "x"}, "xx"),
        ("select $$ :a ; '$$ || :a", {"a": "x"}, " :a ; 'x"),
        ("select $q$ $$ :a $q$ || ':a' /* :a */ -- :a", {}, " $$ :a :a"),
        ("select count(*) from paid where number = any(:ids::int[])", {"ids": "{1,2}"}, 0),
        ("select :j::jsonb -> 'a' ->> 'b'", {"j": '{"a": {"b": 7}}'}, "7"),
        ("select jsonb_exists(:j::jsonb, 'a')", {"j": '{"a": 1}'}, True),
        ("select '{\"a\": 1}'::jsonb @> '{\"a\": 1}'", {}, True),
        ("select 5 % 3, 5%3", {}, 2),
        ('select "one".x from (select 1 as x) as "one"', {}, 1),
        ("with moved as (select 1 as x) select x from moved", {}, 1),
        ("values (1)", {}, 1),
        (r"select E'it\'s ; :a' || :a", {"a": "x"}, "it's ; :ax"),
        (r"select e'\\' || :a || 'E' || 'e' || :a", {"a": "x"}, r"\xEex"),
    ],
)
async def test_what_is_read(pga: Workbench, sql: str, params: dict[str, Any], expected: object) -> None:
    store = await pga.store()
    async with pga.unit(store) as unit:
        ((got, *_),) = await unit.sql(sql, params)
    assert got == expected and type(got) is type(expected)


async def test_a_name_used_twice_may_stand_for_two_types(pga: Workbench) -> None:
    """PostgreSQL gives a parameter one type; 'inconsistent types deduced' is nobody's business."""
    store = await pga.store()
    twice = "insert into paid (number, note) values (:n, 'x' || :n) on conflict (number) do update set note = :n || '!'"
    async with pga.unit(store) as unit:
        await unit.sql(twice, {"n": 5})
        await unit.sql(twice, {"n": 5})
        guarded = "insert into paid select :n, :t where not exists (select 1 from paid where number = :n)"
        await unit.sql(guarded, {"n": 6, "t": 7})
        await unit.pipeline((twice, {"n": 8}))
    assert await pga.rows(store, NOTES) == [(5, "5!"), (6, "7"), (8, "x8")]


async def test_times_are_utc_whatever_zone_a_transaction_sets(pga: Workbench) -> None:
    store = await pga.store(ddl=(TABLE, "create table if not exists times (a timestamptz, b timestamp)"))
    noon = datetime(2026, 7, 1, 12, tzinfo=UTC)
    async with pga.unit(store) as unit:
        await unit.sql("set local timezone = 'Europe/Berlin'")
        there = noon.astimezone(timezone(timedelta(hours=-7)))
        await unit.sql("insert into times values (:t, :u)", {"t": there, "u": noon})
        ((at, _),) = await unit.sql("select a, b from times")
        assert at == noon and at.tzinfo is UTC
    ((at, plain),) = await pga.rows(store, "select a, b from times")
    assert at == noon and at.tzinfo is UTC and plain.tzinfo is UTC


async def test_what_a_server_or_a_user_has_set_changes_nothing(place: Place) -> None:
    strange = "-c DateStyle=German -c IntervalStyle=iso_8601 -c TimeZone=Asia/Tokyo -c bytea_output=escape"
    more = "-c default_transaction_isolation=serializable -c statement_timeout=500 -c lock_timeout=1"
    async with place.bench(options=quote(f"{strange} {more}")) as bench:
        store = await bench.store()
        async with bench.unit(store) as unit:
            asked = "select timestamptz '2026-01-02 03:04:05+00', interval '1 day 02:00', :b::bytea, pg_sleep(0.7)"
            ((at, span, raw, _),) = await unit.sql(asked, {"b": b"\x00\xff"})
            assert at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC) and span == timedelta(days=1, hours=2)
            assert raw == b"\x00\xff"
            assert await unit.sql("show transaction_isolation") == [("read committed",)]


async def test_a_time_that_python_has_not_is_said_and_spoils_nothing(pga: Workbench) -> None:
    store = await pga.store()
    async with pga.unit(store) as unit:
        for text in ("infinity", "0044-03-15 BC", "20000-01-01"):
            with pytest.raises(TransactionError, match="read it as text"):
                await unit.sql(f"select '{text}'::timestamptz")
        assert await unit.sql("select 'infinity'::timestamptz::text") == [("infinity",)]
        assert await unit.claim(claim(1)) == [NEW]


@pytest.mark.parametrize("bad", ["a\0b", "\udc80", "x\ud800y"])
async def test_text_that_no_column_takes_is_refused_by_name(pga: Workbench, bad: str) -> None:
    store = await pga.store()
    with pytest.raises(TransactionError, match=":note"):
        store.prepare(INSERT, {"number": 1, "note": bad})


async def test_foreign_text_of_any_kind_can_be_kept(pg: Workbench) -> None:
    """Types, reasons and errors come from messages and handlers: whatever is in them, the bytes are kept."""
    store = await pg.store()
    awful = "a\0b \udc80 ünï"
    what = replace(held(1, key=b"\0\xff"), type=awful, reason=awful, error=awful)
    async with pg.unit(store) as unit:
        await unit.park(what)
    head = await pg.head(store)
    assert head.held.key == b"\0\xff" and head.held.body == what.body
    assert "\\x00" in head.held.error and "ünï" in head.held.type
    async with pg.unit(store) as unit:
        await unit.bury(replace(held(2, key=None), type=awful, reason=awful, error=awful))
        await unit.bury(held(3, reason="not-json"), consumer=ANYBODY)


async def test_numbers_that_do_not_fit_are_their_statements_fault(pg: Workbench) -> None:
    store = await pg.store()
    for params in ({"number": 2**31, "note": ""}, {"number": 2**200, "note": ""}, {"number": "x", "note": ""}):
        async with pg.begun(store) as unit:
            with pytest.raises(psycopg.DataError):
                await unit.sql(INSERT, params)


async def test_enums_and_subclasses_are_what_they_stand_for(pga: Workbench) -> None:
    class Colour(Enum):
        RED = "red"

    class Special(str):
        pass

    store = await pga.store()
    async with pga.unit(store) as unit:
        await unit.sql(INSERT, {"number": 1, "note": Colour.RED})
        await unit.sql(INSERT, {"number": 2, "note": Special("s")})
    assert await pga.rows(store, NOTES) == [(1, "red"), (2, "s")]


async def test_large_values_go_both_ways(pg: Workbench) -> None:
    """Far more than any buffer, in both directions at once."""
    store = await pg.store()
    big = "0123456789abcdef" * 200_000
    async with pg.unit(store) as unit:
        assert await unit.pipeline(*[(INSERT, {"number": n, "note": big}) for n in range(5)]) == [(1,)] * 5
        rows = await unit.sql("select note from paid union all select :more", {"more": big})
        assert [row for (row,) in rows] == [big] * 6


async def test_long_answers_to_long_queued_statements_do_not_choke(pg: Workbench) -> None:
    """Answers fill the way back while we still send: who only sends would wait for ever, and so would the server."""
    store = await pg.store()
    long: tuple[str, dict[str, Any]] = ("select :t || ''", {"t": "x" * 150_000})
    async with pg.unit(store) as unit:
        assert await unit.pipeline(*[long] * 50) == [(1,)] * 50
        assert await unit.claim(claim(1)) == [NEW]


@pytest.mark.parametrize(
    "sql",
    [
        *("select $1", "select ?", "select %s", "select @x"),
        *("select 1; select 2", "commit", "prepare a as select 1", "listen x", "copy paid from stdin", "discard all"),
        *("set search_path = x", "set session lock_timeout = 0", "reset all", "deallocate all"),
        "start transaction",
    ],
)
async def test_what_would_outlive_the_transaction_is_refused(pga: Workbench, sql: str) -> None:
    store = await pga.store()
    with pytest.raises(StatementRefused):
        store.prepare(sql, {})


async def test_deferred_constraints_may_be_asked_for_at_once(pga: Workbench) -> None:
    """Before the commit, where the one that failed can be blamed."""
    ddl = "create table if not exists child (parent integer references paid deferrable initially deferred)"
    store = await pga.store(ddl=(TABLE, ddl))
    async with pga.begun(store) as unit:
        await unit.sql("insert into child values (99)")
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            await unit.sql("set constraints all immediate")


async def test_what_a_unit_sets_for_itself_is_gone_with_it(place: Place) -> None:
    async with place.bench(pool=2) as bench:
        store = await bench.store()
        async with bench.unit(store) as unit:
            await unit.sql("set local lock_timeout = '1ms'")
            await unit.sql("set local search_path = pg_catalog")
        for speculative, timeout in ((True, "20ms"), (False, "5s")):
            async with bench.begun(store) as unit:
                await unit.run(unit.unit.rollback())
                await unit.run(unit.unit.begin(speculative=speculative))
                assert await unit.sql("show lock_timeout") == [(timeout,)]
                assert await unit.sql("select count(*) from paid") == [(0,)]


async def test_purging_forgets_what_is_old_and_applied_only(pg: Workbench) -> None:
    store, other = await pg.store(), await pg.store()
    async with pg.unit(store) as unit:
        await unit.run(unit.unit.claim("billing/pay", [claim(n, key=None) for n in range(50)], NOW - 1000))
        await unit.run(unit.unit.claim("billing/pay", [claim(100, key=None)], NOW))
        await unit.park(held(200), now=NOW - 1000)
        await unit.bury(held(201, key=b"d"), now=NOW - 1000)
    gone = await asyncio.gather(store.purge(before=NOW - 10, limit=30), other.purge(before=NOW - 10, limit=30))
    assert sum(gone) <= 50
    assert sum(gone) + await store.purge(before=NOW - 10, limit=100) == 50
    async with pg.unit(store) as unit:
        told = await unit.claim(claim(1, key=None), claim(100, key=None), claim(200), claim(201, key=b"d"))
        assert told == [NEW, Verdict.DONE, Verdict.DONE, Verdict.DONE]
