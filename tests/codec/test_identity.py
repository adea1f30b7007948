"""Event ids and keys: what makes two messages one event, and what orders them."""

from __future__ import annotations

import datetime
import enum
import random
from dataclasses import dataclass, make_dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from eventkeel import codec
from eventkeel.codec.identity import as_uuid, plain_text, uuid7
from eventkeel.errors import ConfigurationError, MalformedMessage, PublishError
from eventkeel.event import Event, event, spec_of
from tests.codec.samples import NOW, ORDER, OrderCreated, OrderPaid, SensorRead, delivered, encode, envelope, message


def test_two_publishes_of_one_fact_have_one_id_and_it_does_not_change_between_releases() -> None:
    first = encode(OrderCreated(order_id="ORD12345", user_id="USR001", amount=Decimal("99.99")), now=1.0)
    second = encode(OrderCreated(order_id="ORD12345", user_id="USR002", amount=Decimal(1)), now=2.0)
    assert first.event_id == second.event_id
    assert UUID(bytes=first.event_id) == UUID("d6d015f7-5aae-51b7-8e20-a2d0657c7c56")  # never edit this line


def test_a_foreign_producer_makes_the_same_fact() -> None:
    ours = encode(OrderCreated(order_id="ORD12345", user_id="USR001", amount=Decimal("99.99")))
    assert codec.decode(message(ORDER)).id == ours.event_id
    assert codec.decode(message(ORDER, envelope(ce_type="OrderCreated", ce_id="other"))).id == ours.event_id
    assert codec.decode(delivered(ours)).id == ours.event_id


def test_the_id_depends_on_topic_type_and_value() -> None:
    class There(Event, topic="codec.there", key="k", identity="k", type="A"):
        k: str

    class Elsewhere(Event, topic="codec.elsewhere", key="k", identity="k", type="A"):
        k: str

    class Other(Event, topic="codec.there", key="k", identity="k", type="B"):
        k: str

    ids = {encode(made).event_id for made in (There("1"), There("2"), Elsewhere("1"), Other("1"))}
    assert len(ids) == 4


def test_each_publish_without_identity_is_its_own_event() -> None:
    ids = iter([b"1" * 16, b"2" * 16])
    paid = OrderPaid(order_id="O1", amount=Decimal(1))
    records = [codec.encode(paid, new_id=lambda: next(ids), source="/s", now=NOW) for _ in range(2)]
    assert records[0].event_id != records[1].event_id


def test_position_identity_tells_messages_apart_by_their_place() -> None:
    body = b'{"sensor":"s1","value":1.5}'
    topic = "codec.sensor_events"
    here = codec.decode(message(body, topic=topic, position=1))
    assert here.id == codec.decode(message(body, topic=topic, position=1)).id
    assert here.id != codec.decode(message(body, topic=topic, position=2)).id
    assert here.id != codec.decode(message(body, topic=topic, position=1, time=NOW + 1)).id, "the topic was made anew"
    assert here.fingerprint is None


def test_position_identity_gives_way_to_an_envelope() -> None:
    """The relay may send twice: the second copy lies elsewhere and is the same event."""
    record = encode(SensorRead(sensor="s1", value=1.5))
    assert codec.decode(delivered(record, position=1)).id == codec.decode(delivered(record, position=2)).id


def test_the_messages_key_orders_and_the_events_own_fills_in() -> None:
    assert codec.decode(message(ORDER, key=b"other")).key == b"other"
    assert codec.decode(message(ORDER, key=b"")).key == b"ORD12345"
    assert codec.decode(message(ORDER, key=None)).key == b"ORD12345"
    assert codec.decode(message(ORDER, key=b"\xff\x00")).key == b"\xff\x00"


def test_an_identity_without_a_value_is_malformed_here_and_refused_at_publish() -> None:
    class Charged(Event, topic="codec.charged", key="k", identity="charge", accept="plain"):
        k: str
        charge: str | None = None

    for body in (b'{"k":"1"}', b'{"k":"1","charge":""}'):
        with pytest.raises(MalformedMessage) as raised:
            codec.decode(message(body, topic="codec.charged"))
        assert raised.value.reason == "no-identity"
    with pytest.raises(PublishError, match="identity charge is nothing"):
        encode(Charged(k="1"))


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        (5, "5"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Colour.RED, "red"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (
            datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.timezone(datetime.timedelta(hours=1))),
            "2026-01-02T02:00:00+00:00",
        ),
    ],
)
def test_keys_have_one_spelling(value: object, text: str) -> None:
    assert plain_text(value) == text


@pytest.mark.parametrize("value", [None, 1.5, Decimal(1), True, b"x", ["a"], datetime.datetime(2026, 1, 1)])  # noqa: DTZ001
def test_values_with_several_spellings_are_no_keys(value: object) -> None:
    with pytest.raises(TypeError):
        plain_text(value)


@pytest.mark.parametrize("kind", [float, Decimal, bool, bytes, list[str], Decimal | None])
def test_a_key_without_one_spelling_is_refused_at_start_up(kind: Any) -> None:
    made: type[Any] = event(topic="codec.unfit", key="k")(make_dataclass("Made", [("k", kind)]))
    with pytest.raises(ConfigurationError, match=r"key='k' is a \w+, and its values have no one spelling"):
        codec.prepare(spec_of(made))


def test_a_key_of_whole_numbers_is_written_as_text() -> None:
    @event(topic="codec.numbers", key="account")
    @dataclass(frozen=True)
    class Moved:
        account: int

    record = encode(Moved(account=12))
    assert record.key == b"12"
    assert codec.decode(delivered(record)).event == Moved(account=12)


def test_uuid7_is_version_7_and_sorts_by_time() -> None:
    dice = random.Random(1)
    made = [uuid7(1_764_000_000 + n / 10_000, dice.randbytes) for n in range(1000)]
    assert made == sorted(made)
    assert len(set(made)) == 1000
    assert {(id.version, id.variant) for id in map(as_uuid, made)} == {(7, "specified in RFC 4122")}
    assert as_uuid(made[0]).int >> 80 == 1_764_000_000_000


def test_uuid7_of_one_moment_differ() -> None:
    assert len({uuid7(NOW) for _ in range(1000)}) == 1000
