"""Whatever lies on a broker: decode answers with an event or with one of its errors, never with anything else."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from eventkeel import codec
from eventkeel.errors import EventkeelError, MalformedMessage, PublishError, UnknownType
from eventkeel.event import Event
from eventkeel.message import Delivery, Headers, Slice
from tests.codec.samples import ORDER, delivered, encode, envelope

TOPICS = ["codec.order_events", "codec.status_events", "codec.sensor_events", "codec.baskets", "codec.nobody"]
NAMES = [
    "ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "ce_dataversion", "ce_correlationid",
    "content-type", "CE-ID", "cloudEvents:type", "cloudEvents_source", "ce_datacontenttype", "x", "",
]  # fmt: skip
VALUES = [b"1.0", b"OrderPaid", b"OrderCreated", b"OrderShipped", b"Basket", b"application/json", b"2", b"", b"\xff"]
VALUES += [b"application/cloudevents+json", b"application/protobuf"]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.sampled_from(["order_id", "user_id", "amount", "k", "items", "data"]), inner)
    ),
    max_leaves=15,
)
fields = st.fixed_dictionaries(
    {},
    optional={
        name: json_values | st.text() for name in ("order_id", "user_id", "amount", "sensor", "value", "k", "items")
    },
)
envelopes = st.fixed_dictionaries(
    {},
    optional={name: st.text() | json_values for name in ("id", "type", "source", "specversion", "data", "data_base64")},
)
bodies = (
    st.none()
    | st.binary(max_size=200)
    | (json_values | fields | envelopes).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    | st.tuples(st.integers(0, len(ORDER)), st.binary(max_size=4)).map(
        lambda cut: ORDER[: cut[0]] + cut[1] + ORDER[cut[0] + 1 :]
    )
    | st.text('[]{},:"\\0123e.-nulltruefals ').map(str.encode)
)
headers = st.lists(st.tuples(st.sampled_from(NAMES) | st.text(), st.sampled_from(VALUES) | st.binary(max_size=40)))
whole = headers | headers.map(lambda more: [*((n, v.encode()) for n, v in envelope().items()), *more])


@settings(max_examples=600)
@given(bodies, whole, st.none() | st.binary(max_size=40), st.sampled_from(TOPICS))
def test_nothing_but_the_three_errors(
    body: bytes | None, pairs: list[tuple[str, bytes]], key: bytes | None, topic: str
) -> None:
    delivery = Delivery(Slice(topic, 0), 0, key, Headers(pairs), body, 0.0)
    outcome: codec.Decoded | EventkeelError
    try:
        outcome = codec.decode(delivery)
    except (MalformedMessage, UnknownType) as error:
        outcome = error
    if isinstance(outcome, codec.Decoded):
        assert outcome.key
        assert outcome.spec.topic == topic
    elif isinstance(outcome, MalformedMessage):
        assert outcome.reason.islower()
        assert outcome.reason.replace("-", "").isalnum()
        assert len(str(outcome)) < 2000


class Full(Event, topic="codec.full", key="name", identity="name", accept="plain", kw_only=True):
    name: str
    amount: Decimal
    count: int = 0
    ratio: float = 0.0
    flag: bool = False
    id: UUID | None = None
    at: datetime.datetime | None = None
    raw: bytes = b""
    tags: list[str] = msgspec.field(default_factory=list)
    more: dict[str, Decimal] = msgspec.field(default_factory=dict)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
decimals = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30)
full = st.builds(
    Full,
    name=texts.filter(lambda text: 0 < len(text.encode()) <= 1024),
    amount=decimals,
    count=st.integers(-(2**63), 2**63 - 1),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    flag=st.booleans(),
    id=st.none() | st.uuids(),
    at=st.none() | st.datetimes(timezones=st.just(datetime.UTC)),
    raw=st.binary(max_size=50),
    tags=st.lists(texts, max_size=4),
    more=st.dictionaries(texts, decimals, max_size=4),
)


@given(full)
def test_what_is_published_comes_back_as_it_was(event: Full) -> None:
    record = encode(event)
    decoded = codec.decode(delivered(record))
    assert decoded.event == event
    assert decoded.id == record.event_id
    assert decoded.key == record.key == event.name.encode()
    plain = codec.decode(Delivery(Slice("codec.full", 0), 0, None, Headers(), record.body, 0.0))
    assert (plain.event, plain.id, plain.fingerprint) == (event, decoded.id, decoded.fingerprint)


class Loose(Event, topic="codec.loose", key="k"):
    k: str
    what: Any = None


@given(st.text(st.characters(codec=None), max_size=20), json_values)
def test_what_can_be_published_can_be_read(k: str, what: Any) -> None:
    try:
        record = encode(Loose(k=k, what=what))
    except PublishError:
        return
    assert codec.decode(delivered(record)).event.k == k
