"""CloudEvents as the SDKs of four languages write them, and as we do."""

from __future__ import annotations

import json
from base64 import b64encode
from decimal import Decimal
from uuid import UUID

import pytest

from eventkeel import codec
from eventkeel.errors import MalformedMessage
from eventkeel.message import Headers
from tests.codec.samples import OrderCreated, OrderPaid, OrderShipped, delivered, encode, envelope, message, new_id

PAID = b'{"order_id":"O1","amount":1.50}'
TOPIC = "codec.status_events"
CAUSE = "0190b3a0-0000-7000-8000-000000000000"


def test_we_write_lower_case_names_once_each_and_no_empty_value() -> None:
    record = encode(OrderPaid(order_id="O1", amount=Decimal("1.50")), correlation="c-1", causation=CAUSE)
    assert Headers.from_packed(record.headers).pairs == (
        ("content-type", b"application/json"),
        ("ce_specversion", b"1.0"),
        ("ce_type", b"OrderPaid"),
        ("ce_source", b"/shop"),
        ("ce_id", str(UUID(bytes=new_id())).encode()),
        ("ce_time", b"2025-11-24T16:00:00.123456Z"),
        ("ce_subject", b"O1"),
        ("ce_correlationid", b"c-1"),
        ("ce_causationid", CAUSE.encode()),
    )
    assert (record.topic, record.key, record.body) == (TOPIC, b"O1", PAID)
    assert record.event_id == new_id()


def test_what_we_pack_by_hand_is_what_headers_would_pack() -> None:
    long = "k" * 300
    for record in (
        encode(OrderPaid(order_id=long, amount=Decimal(1))),
        encode(OrderPaid(order_id="ä€", amount=Decimal(1)), correlation="c" * 255, causation="d" * 256),
        encode(OrderShipped(order_id="1"), correlation="c", causation="d"),
    ):
        packed = Headers.from_packed(record.headers)
        assert Headers(packed.pairs).packed == record.headers


def test_correlation_and_causation_are_left_out_where_they_are_not_known() -> None:
    names = [name for name, _ in Headers.from_packed(encode(OrderShipped(order_id="1")).headers)]
    assert not any("correlation" in name or "causation" in name for name in names)


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (0.0, b"1970-01-01T00:00:00.000000Z"),
        (1_764_000_000.0, b"2025-11-24T16:00:00.000000Z"),
        (1_764_000_000.999999, b"2025-11-24T16:00:00.999999Z"),
    ],
)
def test_times_have_six_digits_always(now: float, text: bytes) -> None:
    headers = Headers.from_packed(encode(OrderShipped(order_id="1"), now=now).headers)
    assert headers.get("ce_time") == text


def test_a_version_is_written_only_where_it_is_not_the_first() -> None:
    assert Headers.from_packed(encode(OrderShipped(order_id="1")).headers).get("ce_dataversion") == b"2"
    assert Headers.from_packed(encode(OrderPaid(order_id="1", amount=Decimal(1))).headers).get("ce_dataversion") is None


def test_what_we_publish_is_read_as_it_was() -> None:
    event = OrderPaid(order_id="O1", amount=Decimal("12345678901234567890.123456789"))
    decoded = codec.decode(delivered(encode(event, correlation="c-1")))
    assert decoded.event == event
    assert (decoded.id, decoded.key, decoded.type) == (new_id(), b"O1", "OrderPaid")
    assert (decoded.correlation, decoded.fingerprint) == ("c-1", None)


@pytest.mark.parametrize("prefix", ["ce_", "ce-", "cloudEvents_", "cloudEvents:", "CE_", "CLOUDEVENTS_", "Ce-"])
def test_every_prefix_in_use_is_read_in_any_case(prefix: str) -> None:
    headers = {prefix + name[3:] if name.startswith("ce_") else name: value for name, value in envelope().items()}
    decoded = codec.decode(message(PAID, headers, topic=TOPIC))
    assert decoded.event == OrderPaid(order_id="O1", amount=Decimal("1.5"))


def test_names_are_read_without_regard_to_case() -> None:
    headers = {name.upper(): value for name, value in envelope().items()}
    assert codec.decode(message(PAID, headers, topic=TOPIC)).type == "OrderPaid"


def test_of_a_header_that_comes_twice_the_last_counts() -> None:
    headers = [("ce_type", b"Nonsense"), *((n, v.encode()) for n, v in envelope().items()), ("CE_ID", b"last")]
    decoded = codec.decode(message(PAID, headers, topic=TOPIC))
    again = codec.decode(message(PAID, envelope(ce_id="last"), topic=TOPIC))
    assert decoded.id == again.id


def test_headers_that_mean_nothing_to_us_do_no_harm() -> None:
    headers = envelope(
        ce_time="yesterday", ce_subject="undefined", ce_datacontentencoding="undefined", traceparent="00-x", ce_x="y"
    )
    headers["ce_datacontenttype"] = "text/plain"  # beside content-type, which wins
    assert codec.decode(message(PAID, headers, topic=TOPIC)).type == "OrderPaid"


@pytest.mark.parametrize("missing", ["ce_id", "ce_source", "ce_type"])
def test_a_missing_attribute_is_malformed_and_named(missing: str) -> None:
    for value in (None, ""):
        with pytest.raises(MalformedMessage, match=f"no {missing}$") as raised:
            codec.decode(message(PAID, envelope(**{missing: value}), topic=TOPIC))
        assert raised.value.reason == "not-a-cloudevent"


@pytest.mark.parametrize(
    ("specversion", "read"), [(None, True), ("1.0", True), ("1.0.2", True), ("0.3", True), ("2.0", False)]
)
def test_specversions(specversion: str | None, read: bool) -> None:
    delivery = message(PAID, envelope(ce_specversion=specversion), topic=TOPIC)
    if read:
        assert codec.decode(delivery).type == "OrderPaid"
    else:
        with pytest.raises(MalformedMessage, match=r"2\.0"):
            codec.decode(delivery)


@pytest.mark.parametrize("name", ["ce_id", "ce_type"])
def test_control_characters_in_ids_and_types_are_malformed(name: str) -> None:
    with pytest.raises(MalformedMessage) as raised:
        codec.decode(message(PAID, envelope(**{name: "a\x00b"}), topic=TOPIC))
    assert raised.value.reason == "not-a-cloudevent"


def test_header_text_that_is_not_utf8_never_raises() -> None:
    headers = [*((n, v.encode()) for n, v in envelope(ce_id=None).items()), ("ce_id", b"\xff\xfe"), ("x", b"\xff")]
    assert codec.decode(message(PAID, headers, topic=TOPIC)).type == "OrderPaid"


@pytest.mark.parametrize("version", ["x", "0", "-1", "1.5", "²", "9999999999"])
def test_a_senseless_version_is_malformed(version: str) -> None:
    with pytest.raises(MalformedMessage, match="whole number"):
        codec.decode(message(PAID, envelope(ce_dataversion=version), topic=TOPIC))


def test_content_type_alone_is_a_plain_foreign_message() -> None:
    body = b'{"order_id":"O1","user_id":"U1","amount":1}'
    faststream = {"content-type": "application/json", "correlation_id": "8f7b"}
    assert codec.decode(message(body, faststream)).event == OrderCreated(order_id="O1", user_id="U1", amount=Decimal(1))


def test_an_envelope_is_believed_on_a_plain_topic_too() -> None:
    body = b'{"order_id":"O1","user_id":"U1","amount":1}'
    decoded = codec.decode(message(body, envelope(ce_type="OrderCreated")))
    assert decoded.id == codec.decode(message(body)).id, "identity decides, not the envelope's id"


# ------------------------------------------------------------------ structured mode


def structured(**changes: object) -> bytes:
    outer = {"specversion": "1.0", "id": "a-1", "source": "/go", "type": "OrderPaid", "data": json.loads(PAID)}
    outer.update(changes)
    return json.dumps({name: value for name, value in outer.items() if value != ...}).encode()


STRUCTURED = {"content-type": "application/cloudevents+json"}


@pytest.mark.parametrize(
    "content_type",
    [
        "application/cloudevents+json",
        "application/cloudevents+json; charset=utf-8",
        "Application/CloudEvents+JSON;charset=UTF-8",
    ],
)
def test_structured_mode_says_the_same_as_binary(content_type: str) -> None:
    binary = codec.decode(message(PAID, envelope(), topic=TOPIC))
    decoded = codec.decode(message(structured(), {"content-type": content_type}, topic=TOPIC))
    assert (decoded.event, decoded.id, decoded.key) == (binary.event, binary.id, binary.key)


def test_structured_amounts_are_never_rounded() -> None:
    body = structured(data=...)[:-1] + b',"data":{"order_id":"O1","amount":12345678901234567890.123456789}}'
    decoded = codec.decode(message(body, STRUCTURED, topic=TOPIC))
    assert decoded.event.amount == Decimal("12345678901234567890.123456789")


def test_structured_data_may_be_base64() -> None:
    body = structured(data=..., data_base64=b64encode(PAID).decode(), datacontenttype="application/json")
    assert codec.decode(message(body, STRUCTURED, topic=TOPIC)).event.order_id == "O1"


def test_a_structured_correlation_is_read() -> None:
    decoded = codec.decode(message(structured(correlationid="c-9"), STRUCTURED, topic=TOPIC))
    assert decoded.correlation == "c-9"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (structured(id=...), "not-a-cloudevent"),
        (structured(id=None), "not-a-cloudevent"),
        (structured(type=""), "not-a-cloudevent"),
        (structured(specversion=...), "not-a-cloudevent"),
        (structured(specversion="2.0"), "not-a-cloudevent"),
        (structured(data_base64="!"), "not-a-cloudevent"),
        (structured(data=..., data_base64="!"), "not-a-cloudevent"),
        (structured(data=..., data_base64=b64encode(b"\xff").decode()), "not-json"),
        (structured(data=...), "no-body"),
        (structured(data="{}"), "wrong-fields"),
        (structured(data=None), "wrong-fields"),
        (structured(id=5), "wrong-fields"),
        (b"[]", "wrong-fields"),
        (b"nope", "not-json"),
        (b"", "no-body"),
        (b'{"data":' + b"[" * 10_000, "too-deep"),
    ],
)
def test_a_broken_structured_event_is_malformed(body: bytes, reason: str) -> None:
    with pytest.raises(MalformedMessage) as raised:
        codec.decode(message(body, STRUCTURED, topic=TOPIC))
    assert raised.value.reason == reason


# ------------------------------------------------------------------ ids


def test_a_foreign_id_that_is_a_uuid_is_the_events_id() -> None:
    decoded = codec.decode(message(PAID, envelope(ce_id=CAUSE.upper()), topic=TOPIC))
    assert decoded.id == UUID(CAUSE).bytes


def test_another_foreign_id_counts_together_with_its_source() -> None:
    ids = {
        codec.decode(message(PAID, envelope(ce_id=id, ce_source=source), topic=TOPIC)).id
        for id in ("1", "2", "{" + CAUSE + "}", CAUSE.replace("-", ""))
        for source in ("/go", "/java")
    }
    assert len(ids) == 8
    assert {UUID(bytes=id).version for id in ids} == {5}
