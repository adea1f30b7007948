"""The official ``cloudevents`` package reads our messages as events, and what it writes is handled once."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import pytest
from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

from eventkeel import codec
from eventkeel.message import Delivery, Headers, Slice
from shop.brokers import Message
from shop.orders.events import OrderCreated
from tests.interop.kit import PAYMENTS, Street
from tests.interop.notes import NoteTaken

NOW = 1_764_000_000.123456
ID = UUID("01900000-0000-7000-8000-000000000001")
Write = Callable[[BaseCloudEvent], KafkaMessage]
MODES = pytest.mark.parametrize("write", [to_binary_event, to_structured_event], ids=["binary", "structured"])


def event(
    data: dict[str, object], *, type: str = "NoteTaken", source: str = "/elsewhere", id: str = "n-1"
) -> CloudEvent:
    key = str(data.get("note_id", data.get("order_id")))
    attributes = {"type": type, "source": source, "id": id, "partitionkey": key, "datacontenttype": "application/json"}
    return CloudEvent({**attributes, "subject": "ä/1", "retries": 3, "sampled": True}, data)


def delivered(topic: str, message: KafkaMessage) -> Delivery:
    key = message.key.encode() if isinstance(message.key, str) else message.key
    return Delivery(Slice(topic, 0), 0, key, Headers(message.headers.items()), message.value, NOW)


def as_read(message: Message) -> KafkaMessage:
    return KafkaMessage(dict(message.headers), message.key, message.body or b"")


# ------------------------------------------------------------------ without a broker


def test_what_we_encode_is_the_same_event_to_the_package() -> None:
    record = codec.encode(
        NoteTaken(note_id="N-ä", text="ü"),
        new_id=lambda: ID.bytes,
        source="/notes",
        now=NOW,
        correlation="c-1",
        causation="k-1",
    )
    pairs = Headers.from_packed(record.headers).pairs
    read = from_kafka_event(KafkaMessage(dict(pairs), record.key, record.body))
    assert len(dict(pairs)) == len(pairs)
    assert (read.get_id(), read.get_type(), read.get_source()) == (str(ID), "NoteTaken", "/notes")
    assert read.get_time() == datetime(2025, 11, 24, 16, 0, 0, 123456, tzinfo=UTC)
    assert (read.get_subject(), read.get_datacontenttype()) == ("N-ä", "application/json")
    assert read.get_data() == {"note_id": "N-ä", "text": "ü"}
    assert (read.get_extension("correlationid"), read.get_extension("causationid")) == ("c-1", "k-1")


@MODES
def test_what_the_package_writes_is_decoded(write: Write) -> None:
    decoded = codec.decode(delivered("note_events", write(event({"note_id": "N-ä", "text": "ü"}))))
    assert (decoded.event, decoded.type, decoded.key) == (
        NoteTaken(note_id="N-ä", text="ü"),
        "NoteTaken",
        "N-ä".encode(),
    )


def test_an_event_is_the_same_in_both_modes_and_another_from_another_source() -> None:
    note: dict[str, object] = {"note_id": "1", "text": "t"}
    ids = [
        codec.decode(delivered("note_events", message)).id
        for message in (
            to_binary_event(event(note)),
            to_structured_event(event(note)),
            to_binary_event(event(note, source="/somewhere")),
            to_binary_event(event(note, id="n-2")),
        )
    ]
    assert ids[0] == ids[1] and len(set(ids)) == 3


@MODES
def test_an_id_that_is_a_uuid_stays_as_it_is(write: Write) -> None:
    assert (
        codec.decode(delivered("note_events", write(event({"note_id": "1", "text": "t"}, id=str(ID))))).id == ID.bytes
    )


@MODES
def test_an_order_is_one_fact_with_and_without_an_envelope(write: Write) -> None:
    order: dict[str, object] = {"order_id": "C1", "user_id": "U1", "amount": 99.99}
    enveloped = codec.decode(delivered("order_events", write(event(order, type="OrderCreated"))))
    plain = codec.decode(Delivery(Slice("order_events", 1), 4, b"C1", Headers(), json.dumps(order).encode(), NOW))
    assert enveloped.event == OrderCreated(order_id="C1", user_id="U1", amount=Decimal("99.99"))
    assert enveloped.id == plain.id
    assert enveloped.fingerprint == plain.fingerprint


@MODES
def test_times_with_zones_and_attributes_of_others_change_nothing(write: Write) -> None:
    made = event({"note_id": "1", "text": "t"})
    zoned = CloudEvent(
        {
            **made.get_attributes(),
            "time": datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1))),
            "tenant": "x" * 200,
        },
        {"note_id": "1", "text": "t"},
    )
    assert (
        codec.decode(delivered("note_events", write(zoned))).id
        == codec.decode(delivered("note_events", write(made))).id
    )


# ------------------------------------------------------------------ through Kafka, by processes


def test_events_of_the_package_are_handled_once_and_ours_are_events_to_it(street: Street) -> None:
    with street.services("shop.payments:service", "--workers", "2") as shop:
        street.until_there(shop, "order_events", "payment_events")
        expected = []
        for number, write in enumerate((to_binary_event, to_structured_event), 1):
            order: dict[str, object] = {"order_id": f"C{number}", "user_id": "Ü1", "amount": 10.25 + number}
            message = write(event(order, type="OrderCreated", id=f"o-{number}"))
            for partition in (0, 3):  # a producer's own duplicate, on two partitions
                _put(street, "order_events", message, partition)
            expected.append((f"C{number}", "Ü1", Decimal("10.25") + number))
        paid = "select order_id, user_id, amount from payments order by order_id"
        shop.until(lambda: street.rows(paid, "payment-service") == expected, "both orders are paid")
        street.until_handled(shop, PAYMENTS, "order_events")
        street.until_sent(shop, "payment-service")
        assert street.rows(paid, "payment-service") == expected
        assert street.rows("select count(*) from eventkeel_held", "payment-service") == [(0,)]

    messages = street.messages("payment_events")
    read = [from_kafka_event(as_read(message)) for message in messages]
    assert sorted(each.get_data()["order_id"] for each in read) == ["C1", "C2"]  # type: ignore[index, call-overload]
    for ours, theirs in zip(messages, read, strict=True):
        headers = {name: value.decode() for name, value in ours.headers}
        assert (theirs.get_id(), theirs.get_type()) == (headers["ce_id"], "PaymentSucceeded")
        assert theirs.get_source() == "/payment-service"
        assert theirs.get_time() == datetime.fromisoformat(headers["ce_time"])
        assert theirs.get_subject() == theirs.get_extension("partitionkey") == (ours.key or b"").decode()


def test_an_event_without_identity_is_handled_once_by_its_id_alone(street: Street) -> None:
    with street.services("tests.interop.notes:service", "--workers", "2") as notes:
        street.until_there(notes, "note_events")
        same = event({"note_id": "1", "text": "same"})
        for partition, write in enumerate((to_binary_event, to_structured_event, to_binary_event)):
            _put(street, "note_events", write(same), partition)
        other = event({"note_id": "1", "text": "other source"}, source="/third")
        _put(street, "note_events", to_structured_event(other), 5)
        found = "select note_id, text from notes order by text"
        expected = [("1", "other source"), ("1", "same")]
        notes.until(lambda: len(street.rows(found, "notes")) >= 2, "two notes")
        street.until_handled(notes, "notes", "note_events")
        assert street.rows(found, "notes") == expected
        assert street.rows("select count(*) from eventkeel_held", "notes") == [(0,)]


def _put(street: Street, topic: str, message: KafkaMessage, partition: int) -> None:
    street.put(topic, message.value, key=message.key, headers=message.headers, partition=partition)
