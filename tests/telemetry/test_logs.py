"""Log lines: what they say, how they look, and that they cost nothing when off."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from collections.abc import Iterator
from uuid import UUID

import msgspec
import pytest

from eventkeel.errors import UnknownType
from eventkeel.message import Delivery, Headers, Slice
from eventkeel.telemetry.logs import Logs, setup

DELIVERY = Delivery(
    slice=Slice("order_events", 3),
    position=17,
    key=b"ORD1",
    headers=Headers([("authorization", b"hush")]),
    body=b'{"card": "4111"}',
    time=0.0,
    id=UUID(int=1),
    type="OrderCreated",
    consumer="payments/take_payment",
)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("eventkeel")
    before = (root.handlers[:], root.level, own.level)
    yield
    root.handlers[:], root.level = before[0], before[1]
    own.setLevel(before[2])


def written(level: str = "info", form: str = "text") -> io.StringIO:
    stream = io.StringIO()
    setup(level, form, "payments", stream)
    return stream


def test_received_and_done_are_one_line_each() -> None:
    stream = written()
    Logs().received(DELIVERY)
    Logs().done(DELIVERY, "applied", 0.0021)
    received, done = [line.partition("Z ")[2] for line in stream.getvalue().splitlines()]
    what = (
        "topic=order_events partition=3 position=17 key=ORD1 id=00000000-0000-0000-0000-000000000001 "
        "type=OrderCreated attempt=1"
    )
    assert received == f"INFO received service=payments {what}"
    assert done == (f"INFO done service=payments ending=applied consumer=payments/take_payment {what} duration=0.0021")


def test_json_lines_carry_the_same_fields() -> None:
    stream = written(form="json")
    Logs().done(DELIVERY, "dead", 0.5, "not-json: ends early")
    line = json.loads(stream.getvalue())
    assert (line["level"], line["message"], line["service"], line["ending"]) == ("error", "done", "payments", "dead")
    assert (line["topic"], line["partition"], line["position"], line["key"]) == ("order_events", 3, 17, "ORD1")
    assert (line["attempt"], line["duration"], line["error"]) == (1, 0.5, "not-json: ends early")


@pytest.mark.parametrize("form", ["text", "json"])
def test_bodies_and_headers_are_never_written(form: str) -> None:
    stream = written("debug", form)
    logs = Logs()
    logs.received(DELIVERY)
    logs.done(DELIVERY, "dead", 0.1, "wrong")
    logs.failed(DELIVERY, ValueError("no"), 1.0)
    assert "hush" not in stream.getvalue()
    assert "4111" not in stream.getvalue()


@pytest.mark.parametrize("form", ["text", "json"])
def test_foreign_text_cannot_forge_a_line_or_colour_a_screen(form: str) -> None:
    stream = written(form=form)
    Logs().received(msgspec.structs.replace(DELIVERY, key=b'a" b=c\n2026 INFO \x1b[31m\xff', type="x" * 5000))
    (line,) = stream.getvalue().splitlines()
    assert "\x1b" not in line
    assert len(line) < 1000


def test_a_failure_shows_where_it_happened_once() -> None:
    stream = written()
    try:
        raise ValueError("no such card")
    except ValueError as error:
        Logs().failed(DELIVERY, error, 1.5)
        Logs().failed(msgspec.structs.replace(DELIVERY, attempt=2), error, 3.0)
    text = stream.getvalue()
    assert text.count("WARNING failed") == 2
    assert text.count("Traceback") == 1
    assert 'error="ValueError: no such card"' in text
    assert "again_in=1.5" in text


def test_a_dead_letter_is_one_short_line_and_a_type_that_nobody_knows_shows_none_of_our_code() -> None:
    stream = written()
    Logs().done(DELIVERY, "dead", 0.5, 'ValueError: no such card\nTraceback (most recent call last):\n  File "x"')
    try:
        raise UnknownType("order_events", "OrderMoved")
    except UnknownType as error:
        Logs().failed(DELIVERY, error, 5.0)
    assert len(stream.getvalue().splitlines()) == 2
    assert "Traceback" not in stream.getvalue()


def test_a_level_that_is_off_builds_nothing() -> None:
    @dataclasses.dataclass
    class Untouchable:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"{name} was read although nothing is written")

    stream = written("error")
    untouchable: Delivery = Untouchable()  # type: ignore[assignment]
    logs = Logs()
    logs.received(untouchable)
    logs.done(untouchable, "applied", 0.1)
    logs.failed(untouchable, ValueError(), 1.0)
    assert stream.getvalue() == ""


def test_a_handlers_own_lines_carry_the_deliverys_ids() -> None:
    stream = written()
    DELIVERY.log.info("charging\nthe card")
    (line,) = stream.getvalue().splitlines()
    assert "INFO charging\\nthe card service=payments topic=order_events position=17" in line
