"""Whatever bytes lie under the name of Protobuf: an event that is as the bytes say, or one error with a short word."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given, settings
from hypothesis import strategies as st

from eventkeel import codec
from eventkeel.codec.protobuf_wire import prefixed, varint
from eventkeel.errors import MalformedMessage
from tests.codec.protos import shop_pb2 as pb
from tests.codec.samples import delivered, encode, message
from tests.codec.test_protobuf import PROTOBUF, Basket, Line, Status, basket, foreign

TOPICS: dict[str, Any] = {
    "pb.order_events": pb.OrderCreated,
    "pb.baskets": pb.Basket,
    "pb.whole": pb.Basket,
    "pb.trees": pb.Tree,
}
GOOD = [foreign(), encode(basket()).body, pb.Tree(id="1", inner=pb.Tree(id="2")).SerializeToString()]

fields: st.SearchStrategy[bytes] = st.deferred(
    lambda: (
        st.tuples(st.integers(1, 25), st.integers(0, 1 << 64)).map(lambda of: varint(of[0] << 3) + varint(of[1]))
        | st.tuples(st.integers(1, 25), st.binary(max_size=12)).map(lambda of: prefixed(*of))
        | st.tuples(st.integers(1, 25), st.lists(fields, max_size=4)).map(lambda of: prefixed(of[0], b"".join(of[1])))
        | st.tuples(st.integers(1, 25), st.binary(min_size=8, max_size=8)).map(
            lambda of: varint(of[0] << 3 | 1) + of[1]
        )
        | st.tuples(st.integers(1, 25), st.lists(fields, max_size=2)).map(
            lambda of: varint(of[0] << 3 | 3) + b"".join(of[1]) + varint(of[0] << 3 | 4)
        )
    )
)
changed = st.sampled_from(GOOD).flatmap(
    lambda body: st.tuples(st.integers(0, len(body)), st.integers(0, 3), st.binary(max_size=4)).map(
        lambda at: body[: at[0]] + at[2] + body[at[0] + at[1] :]
    )
)
mixed = st.tuples(st.sampled_from([*GOOD, b""]), st.lists(fields, max_size=6)).map(lambda of: of[0] + b"".join(of[1]))


@settings(max_examples=1500)
@given(st.binary(max_size=120) | changed | mixed, st.sampled_from(sorted(TOPICS)))
def test_an_event_as_the_bytes_say_or_one_error(body: bytes, topic: str) -> None:
    outcome: codec.Decoded | MalformedMessage
    try:
        outcome = codec.decode(message(body, PROTOBUF, topic=topic))
    except MalformedMessage as error:
        outcome = error
    if isinstance(outcome, MalformedMessage):
        assert outcome.reason.replace("-", "").isalnum()
        assert len(str(outcome)) < 1000
        return
    if body[:1] == b"\0":
        return  # in a frame: what is inside is looked at by the same code
    parsed: Any = TOPICS[topic].FromString(body)
    known = {field.number for field in parsed.DESCRIPTOR.fields}
    unknown: Any = UnknownFieldSet(parsed)
    assert not known & {field.field_number for field in unknown}
    if topic == "pb.order_events":
        assert (outcome.event.order_id, outcome.event.user_id) == (parsed.order_id, parsed.user_id)
        assert outcome.event.amount == Decimal(repr(parsed.amount))


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
amounts = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30)
numbers = st.integers(-(1 << 31), (1 << 31) - 1)
statuses = st.sampled_from(Status)
lines = st.builds(Line, sku=texts, quantity=numbers, price=amounts)
baskets = st.builds(
    Basket,
    id=texts.filter(bool),
    total=amounts,
    weight=st.floats(allow_nan=False),
    count=st.integers(-(1 << 63), (1 << 63) - 1),
    paid=st.booleans(),
    raw=st.binary(max_size=8),
    status=statuses,
    at=st.datetimes(timezones=st.just(datetime.UTC)),
    took=st.timedeltas(),
    uuid=st.uuids(),
    main=lines,
    note=st.none() | texts,
    lines=st.lists(lines, max_size=3),
    tags=st.lists(texts, max_size=3),
    stock=st.dictionaries(texts, numbers, max_size=3),
    by_name=st.dictionaries(texts, lines, max_size=3),
    by_number=st.dictionaries(st.integers(-(1 << 63), (1 << 63) - 1), lines, max_size=2),
    by_shelf=st.dictionaries(st.integers(0, (1 << 32) - 1), lines, max_size=2),
    by_floor=st.dictionaries(numbers, lines, max_size=2),
    by_choice=st.dictionaries(st.booleans(), lines, max_size=2),
    priority=numbers,
    web=st.none() | texts,
    shop=st.none(),
    history=st.lists(statuses, max_size=3),
)


@settings(max_examples=300)
@given(baskets)
def test_what_is_published_comes_back_as_it_was(event: Basket) -> None:
    record = encode(event)
    decoded = codec.decode(delivered(record))
    assert decoded.event == event
    assert decoded.id == record.event_id
    again = codec.decode(message(record.body, PROTOBUF, topic="pb.baskets"))
    assert again.fingerprint == decoded.fingerprint
    assert pb.Basket.FromString(record.body).id == event.id  # any parser takes it
