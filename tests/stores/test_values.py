"""The table of types on SQLite: what goes in comes back, and what could not is refused."""

from __future__ import annotations

import enum
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventkeel.errors import TransactionError
from eventkeel.stores.sqlite.values import bind, read, reader


def through(declared: str, value: object) -> object:
    """Write and read a value in a column of this declared type."""
    db = apsw.Connection(":memory:")
    db.execute(f"create table t (v {declared})")
    db.execute("insert into t values (?)", (bind(value),))
    rows = db.execute("select v from t").fetchall()
    make = reader(declared)
    return rows[0][0] if make is None else read(rows, (make,))[0][0]


@st.composite
def amounts(draw: st.DrawFn) -> Decimal:
    digits = draw(st.integers(-(10**15) + 1, 10**15 - 1))
    return Decimal(digits).scaleb(draw(st.integers(-200, 200)))


@given(amounts())
def test_a_decimal_of_15_digits_comes_back_exactly(value: Decimal) -> None:
    for declared in ("numeric", "decimal(30, 10)", "NUMERIC not null"):
        got = through(declared, value)
        assert isinstance(got, Decimal) and got == value


@given(st.one_of(st.decimals(allow_nan=True, allow_infinity=True), amounts()))
def test_any_decimal_comes_back_or_is_refused(value: Decimal) -> None:
    try:
        bind(value)
    except TransactionError:
        return
    assert through("numeric", value) == value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("1234567890.123456", "column as text"),
        ("NaN", "no amount"),
        ("sNaN", "no amount"),
        ("-Infinity", "no amount"),
        ("1E+400", "beyond"),
        ("1E-400", "beyond"),
    ],
)
def test_a_decimal_that_a_number_could_not_hold_is_refused(value: str, says: str) -> None:
    with pytest.raises(TransactionError, match=says):
        bind(Decimal(value))


@pytest.mark.parametrize(
    "value", ["0", "-0", "0.00", "100", "99.99", "1E+2", "123456789012345000", "0.000001", "1e300"]
)
def test_decimals_as_people_write_them(value: str) -> None:
    assert through("numeric", Decimal(value)) == Decimal(value)


@given(st.datetimes(timezones=st.timezones() | st.just(UTC) | st.just(timezone(timedelta(hours=-11, minutes=-30)))))
def test_a_moment_comes_back_in_utc(value: datetime) -> None:
    try:
        expected = value.astimezone(UTC)
    except OverflowError:
        return
    text = bind(value)
    assert isinstance(text, str) and len(text) == 27 and text.endswith("Z")
    for declared in ("timestamp", "timestamptz", "datetime", "timestamp with time zone"):
        got = through(declared, value)
        assert isinstance(got, datetime) and got == expected and got.tzinfo is UTC


def test_moments_sort_as_their_texts_do() -> None:
    moments = [
        datetime(year, 1, 1, microsecond=micro, tzinfo=UTC) for year in (1, 999, 2026) for micro in (0, 5, 10**5)
    ]
    assert sorted(map(bind, moments)) == [bind(moment) for moment in sorted(moments)]


def test_a_moment_without_a_zone_is_refused() -> None:
    with pytest.raises(TransactionError, match=r"datetime\.now\(UTC\)"):
        bind(datetime(2026, 1, 1))  # noqa: DTZ001


def test_what_other_programs_wrote_is_read_too() -> None:
    make = reader("timestamp")
    assert make is not None
    assert make("2026-01-01 12:00:00") == make(1767268800) == datetime(2026, 1, 1, 12, tzinfo=UTC)
    make = reader("uuid")
    assert make is not None
    assert make(UUID(int=5).bytes) == make(str(UUID(int=5))) == UUID(int=5)


@given(st.one_of(st.none(), st.text(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.binary()))
def test_what_sqlite_knows_itself_passes_as_it_is(value: object) -> None:
    got = through("", value)
    assert got == value and type(got) is type(value)


@given(st.uuids())
def test_ids_come_back_as_ids(value: UUID) -> None:
    assert through("uuid", value) == value
    assert through("text", value) == str(value)


def test_truth_is_a_number_and_comes_back_as_truth() -> None:
    assert bind(True) == 1 and type(bind(True)) is int
    assert through("boolean", True) is True
    assert through("bool", False) is False
    assert through("integer", True) == 1


class Colour(enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    BIG = 3


class Name(str):
    __slots__ = ()


def test_kinds_of_the_known_types_are_taken_by_value() -> None:
    assert bind(Colour.RED) == "red"
    assert bind(Size.BIG) == 3
    assert bind(Name("x")) == "x"
    assert bind(memoryview(b"abc")) == b"abc"


def test_bytes_are_taken_as_they_are_when_they_are_queued() -> None:
    buffer = bytearray(b"now")
    bound = bind(buffer)
    buffer[:] = b"new"
    assert bound == b"now"


def test_what_no_column_could_give_back_is_refused() -> None:
    for value in (float("nan"), object(), [1], {"a": 1}, 1j):
        with pytest.raises(TransactionError):
            bind(value)


def test_a_decimal_of_more_digits_is_refused_by_sqlite() -> None:
    with pytest.raises(TransactionError, match="digits"):
        bind(Decimal("12345678901234567.89"))
