"""Protobuf bodies: one event class by content type, generated classes as events, and every wrong schema refused."""

from __future__ import annotations

import builtins
import datetime
import enum
import importlib
import json
import sys
from base64 import b64encode
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import pydantic
import pytest

from eventkeel import codec
from eventkeel.errors import ConfigurationError, LimitExceeded, MalformedMessage, PublishError, UnknownType
from eventkeel.event import Event, event, spec_of
from eventkeel.fingerprint import conflicts
from eventkeel.message import Headers
from tests.codec.protos import old_pb2 as old
from tests.codec.protos import shop_pb2 as pb
from tests.codec.samples import ORDER, delivered, encode, envelope, message

PROTOBUF = {"content-type": "application/protobuf"}
NAMES = [
    "application/protobuf",
    "application/x-protobuf",
    "Application/vnd.google.protobuf; proto=shop.OrderCreated",
    "application/vnd.shop.order+proto",
]
FOREIGN = pb.OrderCreated(order_id="O1", user_id="U1", amount=99.99).SerializeToString()


class OrderCreated(
    Event,
    topic="pb.order_events",
    key="order_id",
    identity="order_id",
    accept="plain",
    protobuf=pb.OrderCreated,
    content="json",
):
    order_id: str
    user_id: str
    amount: Decimal


class PaymentSucceeded(Event, topic="pb.payment_events", key="order_id", protobuf=pb.PaymentSucceeded):
    order_id: str
    amount: Decimal


Generated = event(topic="pb.generated", key="order_id", identity="order_id", accept="plain", required=["amount"])(
    pb.OrderCreatedInText
)
Whole = event(topic="pb.whole", key="id", identity="id", accept="plain")(pb.Basket)
Booking = event(topic="pb.bookings", key="id", identity="id", accept="plain")(old.Booking)
Tree = event(topic="pb.trees", key="id", identity="id", accept="plain")(pb.Tree)


class Status(enum.Enum):
    PLACED = "STATUS_PLACED"
    PAID = "STATUS_PAID"


class Line(Event):
    sku: str
    quantity: int
    price: Decimal


@dataclass
class Basket:
    id: str
    total: Decimal
    weight: float
    count: int
    paid: bool
    raw: bytes
    status: Status
    at: datetime.datetime
    took: datetime.timedelta
    uuid: UUID
    main: Line
    note: str | None = None
    lines: list[Line] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    stock: dict[str, int] = field(default_factory=dict)
    by_name: dict[str, Line] = field(default_factory=dict)
    by_number: dict[int, Line] = field(default_factory=dict)
    by_shelf: dict[int, Line] = field(default_factory=dict)
    by_floor: dict[int, Line] = field(default_factory=dict)
    by_choice: dict[bool, Line] = field(default_factory=dict)
    priority: int = 5
    web: str | None = None
    shop: int | None = None
    history: list[Status] = field(default_factory=list)


BasketFilled = event(topic="pb.baskets", key="id", identity="id", accept="plain", protobuf=pb.Basket)(Basket)


def line(quantity: int = 1) -> Line:
    return Line(sku="apple", quantity=quantity, price=Decimal("0.10"))


def basket(**changes: Any) -> Basket:
    said: dict[str, Any] = {
        "id": "B1",
        "total": Decimal("12345678901234567890.10"),
        "weight": 1.5,
        "count": -7,
        "paid": True,
        "raw": b"\x00\xff",
        "status": Status.PAID,
        "at": datetime.datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=datetime.UTC),
        "took": datetime.timedelta(seconds=-1, microseconds=-5),
        "uuid": UUID(int=7),
        "main": line(),
        "note": "ä",
        "lines": [line(), line(0)],
        "tags": ["", "a"],
        "stock": {"apple": 0, "pear": -1},
        "by_name": {"b": line(), "a": line(0)},
        "by_number": {-(1 << 63): line(), 0: line(), (1 << 63) - 1: line(2)},
        "by_shelf": {0: line(), (1 << 32) - 1: line(2)},
        "by_floor": {-1: line(), 0: line(), 300: line(2)},
        "by_choice": {False: line(), True: line(2)},
        "priority": 0,
        "web": "x",
        "history": [Status.PLACED, Status.PAID],
    }
    return Basket(**{**said, **changes})


WITHOUT_NOUGHT: dict[str, Any] = {"lines": [line()], "by_name": {"b": line()}}
"""What other serializers write again as it was: they leave out a field that is nought."""


def reason(body: bytes, topic: str = "pb.order_events") -> str:
    with pytest.raises(MalformedMessage) as raised:
        codec.decode(message(body, PROTOBUF, topic=topic))
    assert len(str(raised.value)) < 500
    return raised.value.reason


# ------------------------------------------------------------------ one class, by content type


@pytest.mark.parametrize("content_type", NAMES)
def test_a_foreign_body_is_the_same_event_as_its_json(content_type: str) -> None:
    read = codec.decode(message(FOREIGN, {"content-type": content_type}, topic="pb.order_events"))
    json = codec.decode(message(ORDER.replace(b"ORD12345", b"O1").replace(b"USR001", b"U1"), topic="pb.order_events"))
    assert read.event == json.event == OrderCreated(order_id="O1", user_id="U1", amount=Decimal("99.99"))
    assert read.id == json.id


def test_a_class_that_says_content_json_writes_json_and_takes_a_silent_message_for_json() -> None:
    record = encode(OrderCreated(order_id="O1", user_id="U1", amount=Decimal(1)))
    assert record.body == b'{"order_id":"O1","user_id":"U1","amount":1}'
    assert Headers.from_packed(record.headers).get("content-type") == b"application/json"
    assert codec.decode(message(record.body, topic="pb.order_events")).event.amount == 1


def test_one_word_switches_what_is_written_and_both_are_still_read() -> None:
    paid = PaymentSucceeded(order_id="O1", amount=Decimal("1.50"))
    record = encode(paid)
    assert Headers.from_packed(record.headers).get("content-type") == b"application/protobuf"
    assert pb.PaymentSucceeded.FromString(record.body) == pb.PaymentSucceeded(order_id="O1", amount="1.50")
    assert codec.decode(delivered(record)).event == paid
    older = message(b'{"order_id":"O1","amount":1.50}', envelope(ce_type="PaymentSucceeded"), topic="pb.payment_events")
    assert codec.decode(older).event == paid


def test_a_message_that_says_nothing_of_its_content_is_read_as_what_is_written() -> None:
    body = pb.PaymentSucceeded(order_id="O1", amount="2").SerializeToString()
    headers = {name: value for name, value in envelope(ce_type="PaymentSucceeded").items() if name != "content-type"}
    assert codec.decode(message(body, headers, topic="pb.payment_events")).event.amount == 2


def test_a_structured_event_carries_protobuf_as_base64() -> None:
    body = pb.PaymentSucceeded(order_id="O1", amount="2").SerializeToString()
    outer = {
        "specversion": "1.0",
        "id": "1",
        "source": "/go",
        "type": "PaymentSucceeded",
        "datacontenttype": "application/protobuf",
        "data_base64": b64encode(body).decode(),
    }
    structured = message(
        json.dumps(outer).encode(), {"content-type": "application/cloudevents+json"}, topic="pb.payment_events"
    )
    assert codec.decode(structured).event.amount == 2


@pytest.mark.parametrize("frame", [b"\0\0\0\0\x07\0", b"\0\0\0\0\x07\x02\x02", b"\0\0\1\0\x07\x04\x02\x00"])
def test_the_frame_of_confluents_serializers_is_taken_off(frame: bytes) -> None:
    assert codec.decode(message(frame + FOREIGN, PROTOBUF, topic="pb.order_events")).event.order_id == "O1"


@pytest.mark.parametrize("frame", [b"\0", b"\0\0\0\0\x07", b"\0\0\0\0\x07\x02", b"\0\0\0\0\x07\xfe\xff\xff\xff\x0f"])
def test_a_frame_that_is_cut_is_malformed(frame: bytes) -> None:
    assert reason(frame) in ("not-protobuf", "wrong-fields")


def test_a_type_whose_class_reads_no_protobuf_waits_for_one_that_does() -> None:
    headers = envelope(ce_type="OrderPaid", **{"content-type": "application/protobuf"})
    with pytest.raises(UnknownType, match=r"OrderPaid says no protobuf=.*its key waits"):
        codec.decode(message(FOREIGN, headers, topic="codec.status_events"))


def test_every_kind_of_field_comes_back_as_it_was() -> None:
    for each in (basket(), basket(note=None, web=None, shop=0, priority=5, lines=[], tags=[], stock={}, by_name={})):
        record = encode(each)
        assert codec.decode(delivered(record)).event == each


def test_nought_in_a_field_without_default_is_written_and_read() -> None:
    empty = basket(
        total=Decimal(0), weight=0.0, count=0, paid=False, raw=b"", main=Line(sku="", quantity=0, price=Decimal(0))
    )
    record = encode(empty)
    assert codec.decode(delivered(record)).event == empty
    others = pb.Basket.FromString(record.body)
    assert (others.count, others.paid, others.main.quantity) == (0, False, 0)


def test_what_only_looks_like_nought_is_written_once() -> None:
    """Serializers leave out 0.0 and write -0.0; a text of one nought is no empty text."""
    odd = basket(id="0", weight=-0.0, main=Line(sku="0", quantity=0, price=Decimal("-0")))
    assert codec.decode(delivered(encode(odd))).event == odd
    order = pb.OrderCreatedInText(order_id="0", amount="0")
    assert codec.decode(delivered(encode(order))).event == order


def test_times_with_a_zone_are_the_same_moment_and_nanoseconds_are_cut() -> None:
    berlin = datetime.timezone(datetime.timedelta(hours=2))
    at = datetime.datetime(2026, 11, 25, 8, 0, 0, 123_456, tzinfo=berlin)
    record = encode(basket(at=at, **WITHOUT_NOUGHT))
    body = pb.Basket.FromString(record.body)
    assert body.at.ToDatetime(datetime.UTC) == at
    body.at.nanos += 999
    assert codec.decode(message(body.SerializeToString(), PROTOBUF, topic="pb.baskets")).event.at == at


def test_a_pydantic_model_has_a_protobuf_body_too() -> None:
    class Paid(pydantic.BaseModel):
        order_id: str
        amount: Decimal = pydantic.Field(gt=0)

    event(topic="pb.pydantic", key="order_id", identity="order_id", accept="plain", protobuf=pb.PaymentSucceeded)(Paid)
    paid = Paid(order_id="O1", amount=Decimal("1.5"))
    assert codec.decode(delivered(encode(paid))).event == paid
    assert reason(pb.PaymentSucceeded(order_id="O1", amount="-1").SerializeToString(), "pb.pydantic") == "wrong-fields"


# ------------------------------------------------------------------ generated classes


def test_a_generated_class_is_an_event_itself() -> None:
    order = pb.OrderCreatedInText(order_id="O1", user_id="U1", amount="1.50")
    record = encode(order)
    assert record.key == b"O1"
    assert Headers.from_packed(record.headers).get("ce_type") == b"OrderCreatedInText"
    assert codec.decode(delivered(record)).event == order
    plain = codec.decode(message(record.body, PROTOBUF, topic="pb.generated"))
    assert (plain.event, plain.id) == (order, record.event_id)
    assert spec_of(order) is spec_of(pb.OrderCreatedInText) is spec_of(Generated)


def test_a_generated_class_is_read_from_json_as_protobuf_maps_it() -> None:
    json = {"content-type": "application/json"}
    body = b'{"orderId":"O1","user_id":"U1","amount":"1.50","later":{"a":1}}'
    assert codec.decode(message(body, json, topic="pb.generated")).event == pb.OrderCreatedInText(
        order_id="O1", user_id="U1", amount="1.50"
    )
    for body, why in (
        (b'{"order_id":"O1"}', "wrong-fields"),
        (b'{"order_id":7,"amount":"1"}', "wrong-fields"),
        (b'{"order_id":"O1","amount":"\\u0000"}', "nul-character"),
        (b"[1]", "wrong-fields"),
        (b"{", "not-json"),
    ):
        with pytest.raises(MalformedMessage) as raised:
            codec.decode(message(body, json, topic="pb.generated"))
        assert raised.value.reason == why


def test_a_generated_class_needs_its_key_its_identity_and_what_it_says_it_requires() -> None:
    assert reason(pb.OrderCreatedInText(order_id="O1").SerializeToString(), "pb.generated") == "wrong-fields"
    assert reason(pb.OrderCreatedInText(amount="1").SerializeToString(), "pb.generated") == "wrong-fields"
    body = pb.OrderCreatedInText(order_id="O1", amount="1").SerializeToString()
    assert codec.decode(message(body, PROTOBUF, topic="pb.generated")).event.user_id == ""


def test_a_generated_event_without_its_key_is_refused_where_it_is_published() -> None:
    with pytest.raises(PublishError, match="order_id is empty"):
        encode(pb.OrderCreatedInText(amount="1"))
    assert codec.decode(delivered(encode(pb.OrderCreatedInText(order_id="O1")))).event.amount == ""


def test_a_class_of_proto2_keeps_its_groups_and_its_defaults() -> None:
    booking = old.Booking(id="B1", guest=old.Booking.Guest(name="ä"))
    read = codec.decode(delivered(encode(booking))).event
    assert read == booking
    assert (read.nights, read.state) == (1, old.Booking.OPEN)
    good = booking.SerializeToString()
    assert reason(good + b"\x18\x07", "pb.bookings") == "unknown-enum"
    assert reason(good + b"\x22\x00", "pb.bookings") == "wrong-schema"
    assert reason(b"\x0a\x01B\x23\x2a\x01a", "pb.bookings") == "not-protobuf"
    assert reason(b"\x0a\x01B\x23\x24", "pb.bookings") == "wrong-fields"
    with pytest.raises(PublishError, match="Booking"):
        encode(old.Booking(nights=1))


def test_a_class_of_ones_own_reads_proto2_where_absence_is_said() -> None:
    class Booked(Event, topic="pb.booked", key="id", protobuf=old.Booking, rename="camel"):
        id: str
        nights: int = 0
        state: Literal["OPEN", "DONE"] | None = None

    for each in (Booked(id="B"), Booked(id="B", nights=7, state="DONE")):
        assert codec.decode(delivered(encode(each))).event == each

    class Guested(Event, topic="pb.guested", key="id", protobuf=old.Booking):
        id: str
        guest: dict[str, str] | None = None

    assert "guest is a dict here and a group in" in refused(Guested)


def test_json_that_a_person_writes_is_read_whatever_the_bodies_are() -> None:
    """As ``eventkeel publish`` does it."""
    paid = codec.read_json(spec_of(PaymentSucceeded), b'{"order_id":"O1","amount":1.50}')
    assert paid == PaymentSucceeded(order_id="O1", amount=Decimal("1.50"))
    order = codec.read_json(spec_of(pb.OrderCreatedInText), b'{"order_id":"O1","amount":"1.50"}')
    assert order == pb.OrderCreatedInText(order_id="O1", amount="1.50")


# ------------------------------------------------------------------ a wrong schema is malformed, not an amount of 0


def tail(*more: bytes) -> bytes:
    return b"".join([FOREIGN, *more])


def foreign(amount: float = 1, **said: Any) -> bytes:
    return pb.OrderCreated(**{"order_id": "O1", "user_id": "U1", "amount": amount, **said}).SerializeToString()


WRONG: dict[str, tuple[bytes, str]] = {
    "an amount in text": (
        pb.OrderCreatedInText(order_id="O1", user_id="U1", amount="99.99").SerializeToString(),
        "wrong-schema",
    ),
    "no amount": (pb.OrderCreated(order_id="O1", user_id="U1").SerializeToString(), "wrong-fields"),
    "an amount of 0 that nobody can tell from none": (foreign(amount=0), "wrong-fields"),
    "no key": (pb.OrderCreated(user_id="U1", amount=1).SerializeToString(), "wrong-fields"),
    "unknown fields only": (pb.Unrelated(remark="hello", count=3).SerializeToString(), "wrong-schema"),
    "cut": (FOREIGN[:-3], "not-protobuf"),
    "cut inside a text": (FOREIGN[:3], "not-protobuf"),
    "cut behind a field": (FOREIGN[:8], "wrong-fields"),
    "cut behind a tag": (tail(b"\x22"), "not-protobuf"),
    "trailing text": (tail(b"trailing"), "not-protobuf"),
    "a trailing nought": (tail(b"\0"), "not-protobuf"),
    "trailing end of group": (tail(b"\x4c"), "not-protobuf"),
    "two bodies": (FOREIGN + FOREIGN, "wrong-schema"),
    "a group without end": (tail(b"\x4b\x08\x01"), "not-protobuf"),
    "a group with the wrong end": (tail(b"\x4b\x08\x01\x54"), "not-protobuf"),
    "a number without end": (tail(b"\x20" + b"\xff" * 11), "not-protobuf"),
    "a number of 70 bits": (tail(b"\x20" + b"\xff" * 9 + b"\x7f"), "not-protobuf"),
    "a wire type of 7": (tail(b"\x27"), "not-protobuf"),
    "JSON under the wrong name": (ORDER, "not-protobuf"),
    "text that is not UTF-8": (b"\x0a\x02\xff\xfe", "not-utf8"),
    "a NUL in a text": (foreign(order_id="O\0"), "nul-character"),
    "an amount that is no number": (foreign(amount=float("nan")), "wrong-fields"),
    "an infinite amount": (foreign(amount=float("inf")), "wrong-fields"),
    "an empty key": (b"\x0a\x00" + pb.OrderCreated(user_id="U", amount=1).SerializeToString(), "no-key"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_body_of_another_schema_is_malformed(kind: str) -> None:
    body, why = WRONG[kind]
    assert reason(body) == why


def test_an_empty_body_is_malformed_before_all_that() -> None:
    for topic in ("pb.order_events", "pb.generated"):
        assert reason(b"", topic) == "no-body"
        assert reason(b"\0\0\0\0\7\0", topic) == "wrong-fields"


@pytest.mark.parametrize("cut", range(1, len(FOREIGN)))
def test_a_body_that_is_cut_anywhere_is_malformed(cut: int) -> None:
    assert reason(FOREIGN[:cut]) in ("not-protobuf", "wrong-fields", "not-utf8")


def test_unknown_fields_beside_the_known_ones_are_a_newer_producers() -> None:
    later = pb.OrderCreatedLater(order_id="O1", user_id="U1", amount=1, coupon="C").SerializeToString()
    assert codec.decode(message(later, PROTOBUF, topic="pb.order_events")).event.amount == 1
    group = tail(b"\x4b\x08\x01\x53\x54\x4c")  # a group with a group in it
    assert codec.decode(message(group, PROTOBUF, topic="pb.order_events")).event.order_id == "O1"


@pytest.mark.parametrize("topic", ["pb.baskets", "pb.whole"])
def test_enum_values_that_are_unknown_and_numbers_that_do_not_fit_are_malformed(topic: str) -> None:
    start = pb.Basket.FromString(encode(basket(**WITHOUT_NOUGHT)).body)
    for name in ("status", "history", "small"):
        start.ClearField(name)
    for more, why in (
        (pb.BasketLater(status=pb.LATER_STATUS_SENT), "unknown-enum"),
        (pb.BasketLater(history=[pb.LATER_STATUS_UNSPECIFIED, pb.LATER_STATUS_SENT]), "unknown-enum"),
        (pb.BasketLater(small=1 << 40), "wrong-fields"),
        (pb.BasketLater(small=1 << 31), "wrong-fields"),
    ):
        assert reason(start.SerializeToString() + more.SerializeToString(), topic) == why


def test_a_wrong_schema_inside_is_found_too() -> None:
    good = encode(basket()).body
    for inner, why in (
        (b"\x0a\x01a\x10\x01", "wrong-fields"),  # a line without its price
        (b"\x7a\x01a", "wrong-schema"),  # unknown fields only
        (b"\x08\x01", "wrong-schema"),  # a number for a text
        (b"\x0a\x05a", "not-protobuf"),  # a text beyond the line's end
    ):
        assert reason(good + b"\x62" + bytes([len(inner)]) + inner, "pb.baskets") == why


def test_an_entry_of_a_map_that_a_parser_would_pass_over_is_malformed() -> None:
    """Parsers put an entry with an unknown field among the unknown fields, with key and value."""
    good = encode(basket()).body
    for entry in (b"\x72\x02\x18\x00", b"\x7a\x04\x0a\x00\x18\x00"):
        assert reason(good + entry, "pb.baskets") == "wrong-schema"
        assert reason(b"\x0a\x01B" + entry, "pb.whole") == "wrong-schema"


def test_two_members_of_a_oneof_are_not_both_taken() -> None:
    good = encode(basket()).body
    assert reason(good + pb.Basket(shop=1).SerializeToString(), "pb.baskets") == "wrong-schema"


# ------------------------------------------------------------------ limits, before anything is parsed


def test_limits_hold_before_it_is_parsed() -> None:
    assert reason(pb.OrderCreated(order_id="x" * 1_000_000).SerializeToString()) == "too-large"
    deep = pb.Tree(id="x")
    for _ in range(64):
        deep = pb.Tree(id="x", inner=deep)
    assert reason(deep.SerializeToString(), "pb.trees") == "too-deep"
    assert codec.decode(message(deep.inner.SerializeToString(), PROTOBUF, topic="pb.trees")).event == deep.inner
    assert reason(tail(b"\x4b" * 100), "pb.order_events") == "too-deep"
    assert reason(tail(b"\x20\x01" * 10_001)) == "too-many-fields"
    history = pb.Basket(id="B", history=[pb.STATUS_PAID] * 10_001).SerializeToString()
    assert reason(history, "pb.whole") == "too-many-fields"
    with pytest.raises(PublishError, match="at most 1000000"):
        encode(basket(raw=bytes(1_000_001)))
    with pytest.raises(LimitExceeded):
        codec.decode(message(bytes(1_000_001), PROTOBUF, topic="pb.order_events"))


# ------------------------------------------------------------------ the same fact


def fingerprint(body: bytes, topic: str = "pb.order_events") -> bytes:
    found = codec.decode(message(body, PROTOBUF, topic=topic)).fingerprint
    assert found is not None
    return found


def order(**said: Any) -> bytes:
    return pb.OrderCreatedLater(**{"order_id": "O1", "user_id": "U1", "amount": 1, **said}).SerializeToString()


def test_the_same_identity_with_other_facts_conflicts() -> None:
    first = fingerprint(order())
    assert fingerprint(order()) == first
    assert conflicts(first, fingerprint(order(amount=2)))
    assert not conflicts(first, fingerprint(order(coupon="C")))
    assert conflicts(fingerprint(order(coupon="C")), fingerprint(order(coupon="D")))
    parts = [order()[:4], order()[4:8], order()[8:]]
    assert fingerprint(b"".join(reversed(parts))) == first


def test_amounts_in_text_count_by_value_where_the_class_says_decimal() -> None:
    first = encode(basket(total=Decimal("1.0"))).body
    assert not conflicts(
        fingerprint(first, "pb.baskets"), fingerprint(encode(basket(total=Decimal(1))).body, "pb.baskets")
    )
    for other in (basket(total=Decimal(2)), basket(stock={"apple": 1}), basket(lines=[]), basket(note="b")):
        same = other.lines == []  # a list that is empty is not there, and what is not there is not compared
        assert conflicts(fingerprint(first, "pb.baskets"), fingerprint(encode(other).body, "pb.baskets")) or same


# ------------------------------------------------------------------ refused in the author's own call


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"total": Decimal("NaN")}, "total: NaN"),
        ({"at": datetime.datetime(2026, 1, 1)}, "at: a time without zone"),  # noqa: DTZ001
        ({"count": 1 << 70}, "count|out of range"),
        ({"tags": ["\0"]}, "NUL"),
        ({"tags": ["\ud800"]}, "surrogates|utf-8|UTF-8"),
        ({"status": "PAID"}, "status"),
        ({"web": "x", "shop": 1}, "twice|not the same|without"),
        ({"total": "5"}, "total"),
    ],
)
def test_what_the_message_cannot_hold_is_refused_at_publish(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(PublishError, match=why):
        encode(basket(**changes))


def test_an_amount_that_a_double_would_round_is_refused_at_publish() -> None:
    class Rounded(Event, topic="pb.rounded", key="order_id", protobuf=pb.OrderCreated):
        order_id: str
        user_id: str
        amount: Decimal

    assert codec.decode(
        delivered(encode(Rounded(order_id="1", user_id="", amount=Decimal("0.10"))))
    ).event.amount == Decimal("0.1")
    with pytest.raises(PublishError, match="more digits than a double keeps"):
        encode(Rounded(order_id="1", user_id="", amount=Decimal("0.12345678901234567890")))


# ------------------------------------------------------------------ refused at start-up


def refused(cls: Any) -> str:
    with pytest.raises(ConfigurationError) as raised:
        codec.prepare(spec_of(cls))
    return str(raised.value)


def test_what_class_and_message_disagree_about_is_refused_at_start_up() -> None:
    class Missing(Event, topic="pb.missing", key="order_id", protobuf=pb.PaymentSucceeded):
        order_id: str
        currency: str = ""

    assert "currency is no field of eventkeel.tests.shop.PaymentSucceeded, which has order_id, amount" in refused(
        Missing
    )

    class Kind(Event, topic="pb.kind", key="order_id", protobuf=pb.PaymentSucceeded):
        order_id: str
        amount: float

    assert "amount is a float here and a string in" in refused(Kind)

    class Default(Event, topic="pb.default", key="id", protobuf=pb.Basket):
        id: str
        count: int = 1

    assert "write `optional` in front of it" in refused(Default)

    class Nothing(Event, topic="pb.nothing", key="id", protobuf=pb.Basket):
        id: str
        count: int | None = None

    assert "count may be left out and is then None" in refused(Nothing)

    class Single(Event, topic="pb.single", key="id", protobuf=pb.Basket):
        id: str
        tags: str

    assert "tags is repeated" in refused(Single)

    class Choice(Event, topic="pb.choice", key="id", protobuf=pb.Basket):
        id: str
        stock: list[str]

    assert "stock is a map" in refused(Choice)
    event(topic="pb.weight", key="weight")(pb.Basket)
    assert "weight is key or identity" in refused(pb.Basket)


@pytest.mark.parametrize(
    ("keywords", "why"),
    [
        ({"content": "protobuf"}, 'content="protobuf" needs protobuf='),
        ({"content": "xml"}, "content='xml' is unknown"),
        ({"protobuf": int}, "is no class that a Protobuf compiler made"),
        ({"protobuf": pb}, "is no class that a Protobuf compiler made"),
    ],
)
def test_a_wrong_declaration_says_what_to_write(keywords: dict[str, Any], why: str) -> None:
    @dataclass
    class Wrong:
        order_id: str

    with pytest.raises(ConfigurationError, match=why):
        event(topic="pb.wrong", key="order_id", **keywords)(Wrong)
    with pytest.raises(ConfigurationError, match="required= is for generated classes"):
        event(topic="pb.wrong", key="order_id", required=["order_id"])(Wrong)
    with pytest.raises(ConfigurationError, match="required='nope' is none of its fields"):
        event(topic="pb.wrong", key="order_id", required=["nope"])(pb.OrderCreated)
    with pytest.raises(ConfigurationError, match="is a generated Protobuf class"):
        event(topic="pb.wrong", key="order_id", content="json")(pb.OrderCreated)


def test_without_the_package_it_says_which_one_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    really = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("google"):
            raise ModuleNotFoundError("No module named 'google'")
        return really(name, *rest, **more)

    monkeypatch.delitem(sys.modules, "eventkeel.codec.protobuf", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigurationError, match=r"pip install 'eventkeel\[protobuf\]'"):
        importlib.import_module("eventkeel.codec.protobuf")
