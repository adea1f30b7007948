"""A user's SQL: where a placeholder is one, and what belongs to the engine."""

from __future__ import annotations

import contextlib

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventkeel.errors import StatementRefused
from eventkeel.stores.placeholders import brief, compile_sql, first_word
from eventkeel.stores.sqlite.migrate import statements


def test_names_become_numbers_and_the_same_name_the_same_number() -> None:
    compiled = compile_sql("select :a, :b, :a where :größe > 1")
    assert compiled.sql == "select ?1, ?2, ?1 where ?3 > 1"
    assert compiled.names == ("a", "b", "größe")


@pytest.mark.parametrize(
    "sql",
    [
        "select ':a'",
        "select 'it''s :a'",
        'select ":a"',
        'select "x"":a"',
        "select `:a`",
        "select 1 -- :a ? ; commit",
        "select 1 /* :a ? ; \n commit */",
        "select $$ :a ? ; $$",
        "select $tag$ :a $$ ? $tag$",
        "select x::text",
        "select '2026-01-01 12:30:00'",
    ],
)
def test_what_only_looks_like_a_placeholder_is_left_alone(sql: str) -> None:
    assert compile_sql(sql) == (sql, (), sql)


@pytest.mark.parametrize("mark", ["?", "?1", "%s", "@a", "$a", "$1", ":1"])
def test_foreign_placeholders_are_refused_with_what_to_write(mark: str) -> None:
    with pytest.raises(StatementRefused, match="written :name"):
        compile_sql(f"select * from t where a = {mark}")


@pytest.mark.parametrize("word", ["begin", "commit", "end", "rollback", "attach", "detach", "pragma", "vacuum"])
@pytest.mark.parametrize("before", ["", "  \n\t", "-- a comment\n", "/* one */ /* two\n */", "/**/-- x\n"])
def test_the_engines_own_statements_are_refused_behind_comments_too(word: str, before: str) -> None:
    with pytest.raises(StatementRefused, match="belongs to the engine"):
        compile_sql(before + word.upper() + " x")


@pytest.mark.parametrize("word", ["savepoint", "release", "rollback"])
def test_who_wants_a_savepoint_is_told_how(word: str) -> None:
    with pytest.raises(StatementRefused, match=r"use tx\.savepoint\(\)"):
        compile_sql(f"{word} to x")


def test_those_words_are_harmless_elsewhere() -> None:
    for sql in ("select commit from begin", "select 'rollback'", "update t set end = :end", "select a or b"):
        compile_sql(sql)


@pytest.mark.parametrize("sql", ["insert or rollback into t values (1)", "update OR -- x\n ROLLBACK t set a = 1"])
def test_a_conflict_clause_that_ends_the_transaction_is_refused(sql: str) -> None:
    with pytest.raises(StatementRefused, match="would end the engine's transaction"):
        compile_sql(sql)
    compile_sql("insert or ignore into t values (1)")
    compile_sql("select 'x' or 'rollback'")


def test_one_statement_at_a_time() -> None:
    for sql in ("select 1; select 2", "select 1;; select 2", "select 1; -- x\n delete from t"):
        with pytest.raises(StatementRefused, match="one statement"):
            compile_sql(sql)
    for sql in ("select 1;", "select 1; -- the end", "select 1 ; /* ; */ ;"):
        compile_sql(sql)


@pytest.mark.parametrize("sql", ["", "  ", ";", "-- x", "/* select 1 */"])
def test_nothing_is_not_a_statement(sql: str) -> None:
    with pytest.raises(StatementRefused, match="no statement"):
        compile_sql(sql)


NAMES = ["a", "b", "order_id", "größe"]
QUIET = st.text(alphabet=":?;ab'\"`-/* \n%@", max_size=12)
PIECES = st.one_of(
    st.sampled_from(NAMES).map(lambda name: (f":{name}", name)),
    QUIET.map(lambda text: ("'" + text.replace("'", "''") + "'", text)),
    QUIET.filter(lambda text: "*/" not in text and not text.endswith("*")).map(lambda text: (f"/*{text}*/ 1", 1)),
    QUIET.filter(lambda text: "\n" not in text).map(lambda text: (f"--{text}\n2", 2)),
)


@given(st.lists(PIECES, min_size=1, max_size=8))
def test_sqlite_reads_every_compiled_statement_as_it_was_meant(pieces: list[tuple[str, object]]) -> None:
    compiled = compile_sql("select " + ", ".join(text for text, _ in pieces))
    values = [f"<{name}>" for name in compiled.names]
    (row,) = apsw.Connection(":memory:").execute(compiled.sql, values).fetchall()
    expected = [f"<{value}>" if text.startswith(":") else value for text, value in pieces]
    assert list(row) == expected


@given(st.text(max_size=60))
def test_any_text_is_compiled_or_refused(text: str) -> None:
    compiled = None
    with contextlib.suppress(StatementRefused):
        compiled = compile_sql(text)
    assert compiled is None or (first_word(text) and compiled.text == text)


def test_a_long_statement_is_quoted_in_one_short_line() -> None:
    text = brief("select\n  " + "a, " * 1000)
    assert len(text) == 120 and "\n" not in text


SCRIPT = """
create table if not exists a (x text default ';'); -- one; two
create trigger if not exists t after insert on a begin
  update a set x = 'end;'; delete from a where x = ''; end;
/* ; */ create index if not exists i on a (x)
"""


def test_a_schema_is_split_where_sqlite_says_that_a_statement_ends() -> None:
    pieces = list(statements(SCRIPT))
    assert [first_word(piece) for piece in pieces] == ["create"] * 3
    db = apsw.Connection(":memory:")
    for piece in pieces:
        db.execute(piece)
    assert list(statements(";;  ; -- nothing\n")) == []
