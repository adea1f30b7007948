"""What counts as malformed: each kind ends in one error with a short stable word, and nothing else ever escapes."""

from __future__ import annotations

import pytest

from eventkeel import codec
from eventkeel.errors import LimitExceeded, MalformedMessage, UnknownType
from eventkeel.event import Event
from tests.codec.samples import ORDER, envelope, message


def order(amount: bytes = b"1", order_id: bytes = b'"O1"', user_id: bytes = b'"U1"', more: bytes = b"") -> bytes:
    return b'{"order_id":%b,"user_id":%b,"amount":%b%b}' % (order_id, user_id, amount, more)


MALFORMED: dict[str, tuple[bytes | None, str]] = {
    "tombstone": (None, "no-body"),
    "empty": (b"", "no-body"),
    "blank": (b"  ", "not-json"),
    "text for a number": (order(b'"99.99"'), "wrong-fields"),
    "NaN as text": (order(b'"NaN"'), "wrong-fields"),
    "number for a text": (order(order_id=b"5"), "wrong-fields"),
    "boolean for a number": (order(b"true"), "wrong-fields"),
    "null for a number": (order(b"null"), "wrong-fields"),
    "null": (b"null", "wrong-fields"),
    "a list": (b"[]", "wrong-fields"),
    "a text": (b'"hello"', "wrong-fields"),
    "missing fields": (b'{"order_id":"O1"}', "wrong-fields"),
    "no fields": (b"{}", "wrong-fields"),
    "nested lists": (b"[" * 10_000 + b"]" * 10_000, "too-deep"),
    "nested lists, cut": (b"[" * 10_000, "too-deep"),
    "nested in an unknown field": (order(more=b',"x":' + b"[" * 100_000 + b"]" * 100_000), "too-deep"),
    "nested objects": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "too-deep"),
    "not UTF-8": (order(order_id=b'"\xff\xfe"'), "not-utf8"),
    "half a character": (order(order_id=b'"\xc3"'), "not-utf8"),
    "half a surrogate": (order(order_id=rb'"\ud800"'), "not-json"),
    "a number beyond a double": (order(b"1e999"), "wrong-fields"),
    "a number beyond everything": (order(b"1e999999999999999999999"), "wrong-fields"),
    "5000 digits": (order(b"1" * 5000), "wrong-fields"),
    "NaN": (order(b"NaN"), "not-json"),
    "Infinity": (order(b"-Infinity"), "not-json"),
    "trailing bytes": (order() + b"x", "not-json"),
    "two objects": (order() + order(), "not-json"),
    "trailing comma": (order(more=b","), "not-json"),
    "cut": (ORDER[:-5], "not-json"),
    "binary": (bytes(range(256)), "not-json"),
    "protobuf": (b"\x0a\x08ORD12345\x12\x06USR001", "not-json"),
    "byte order mark": (b"\xef\xbb\xbf" + order(), "not-json"),
    "UTF-16": (order().decode().encode("utf-16"), "not-json"),
    "single quotes": (b"{'order_id':'O1'}", "not-json"),
    "a NUL in a text": (order(order_id=rb'"O\u00001"'), "nul-character"),
    "a NUL in an unknown field": (order(more=rb',"x":"\u0000"'), "nul-character"),
    "a NUL behind a backslash": (order(order_id=rb'"O\\\u00001"'), "nul-character"),
    "a raw NUL": (order(order_id=b'"O\x001"'), "not-json"),
    "an empty key": (order(order_id=b'""'), "no-key"),
    "5 MB": (order(user_id=b'"' + b"x" * 5_000_000 + b'"'), "too-large"),
    "too many members": (b"{" + b",".join(b'"f%d":1' % n for n in range(10_001)) + b"}", "too-many-fields"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_body_is_refused_with_a_stable_word(kind: str) -> None:
    body, reason = MALFORMED[kind]
    with pytest.raises(MalformedMessage) as raised:
        codec.decode(message(body))
    assert raised.value.reason == reason
    assert raised.value.final
    assert len(str(raised.value)) < 500


ACCEPTED: dict[str, bytes] = {
    "the last of two equal names": b'{"order_id":"O0","order_id":"O1","user_id":"U1","amount":1}',
    "unknown members": order(more=b',"later":{"a":[1,2,{"b":null}]},"huge":1e999'),
    "white space": b' \n{ "order_id" : "O1",\t"user_id":"U1", "amount":1 }\r\n',
    "an exponent": order(b"1.0E0"),
    "many digits": order(b"1.00000000000000000000"),
    "escapes": order(order_id=rb'"\u004f\u0031"'),
    "an escaped backslash before u0000": order(user_id=rb'"\\u0000"'),
    "brackets inside a text": order(user_id=b'"' + b"[" * 500 + rb"\"" + b"{" * 500 + b'"'),
    "colons inside a text": order(user_id=b'"' + b":" * 20_000 + b'"'),
    "64 deep": order(more=b',"x":' + b"[" * 63 + b"]" * 63),
    "many lists, none deep": order(more=b',"x":[' + b",".join([b"[]"] * 5000) + b"]"),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_other_languages_read_is_read(kind: str) -> None:
    decoded = codec.decode(message(ACCEPTED[kind]))
    assert decoded.event.order_id == "O1"
    assert decoded.event.amount == 1


@pytest.mark.parametrize("amount", [b'"99.99"', b'"much"'])
def test_text_in_an_amounts_place_is_told_how_to_write_it(amount: bytes) -> None:
    with pytest.raises(MalformedMessage, match=r"Expected a number without quotes.* at `\$\.amount`"):
        codec.decode(message(order(amount)))


def test_limits_are_a_kind_of_malformed_and_say_the_number() -> None:
    with pytest.raises(LimitExceeded, match="at most 1000000"):
        codec.decode(message(b" " * 1_000_001))
    with pytest.raises(LimitExceeded, match="deeper than 64"):
        codec.decode(message(order(more=b',"x":' + b"[" * 64 + b"]" * 64)))


def test_a_body_of_exactly_the_limit_is_read() -> None:
    start = order(user_id=b'"%b"')
    body = start % (b"x" * (1_000_000 - len(start) + 2))
    assert len(body) == 1_000_000
    assert len(codec.decode(message(body)).event.user_id) > 999_000
    with pytest.raises(LimitExceeded, match="1000001 bytes"):
        codec.decode(message(body + b" "))


@pytest.mark.parametrize(
    ("key", "headers", "reason"),
    [
        (b"k" * 1025, [], "key-too-large"),
        (b"k", [(f"x-{n}", b"") for n in range(65)], "too-many-headers"),
        (b"k", [("ce_id", b"x")] * 65, "too-many-headers"),
        (b"k", [("x", b"v" * 4096)], "header-too-large"),
        (b"k", [("ce_subject", b"v" * 5000)], "header-too-large"),
    ],
)
def test_one_more_than_the_limit_is_refused(key: bytes, headers: list[tuple[str, bytes]], reason: str) -> None:
    with pytest.raises(LimitExceeded) as raised:
        codec.decode(message(ORDER, headers, key=key))
    assert raised.value.reason == reason


def test_just_within_the_limits_is_read() -> None:
    headers = [(f"x-{n}", b"v" * 4000) for n in range(64)]
    assert codec.decode(message(ORDER, headers, key=b"k" * 1024)).key == b"k" * 1024


def test_an_id_has_at_most_128_characters() -> None:
    paid = b'{"order_id":"O1","amount":1}'
    assert codec.decode(message(paid, envelope(ce_id="i" * 128), topic="codec.status_events")).key
    with pytest.raises(LimitExceeded, match="129 characters"):
        codec.decode(message(paid, envelope(ce_id="i" * 129), topic="codec.status_events"))


@pytest.mark.parametrize(
    ("content_type", "reason"),
    [
        ("application/protobuf", "protobuf-not-supported"),
        ("application/x-protobuf", "protobuf-not-supported"),
        ("Application/vnd.google.protobuf; proto=shop.OrderCreated", "protobuf-not-supported"),
        ("application/avro", "unsupported-content-type"),
        ("text/plain", "unsupported-content-type"),
        ("application/cloudevents-batch+json", "unsupported-content-type"),
        ("application/cloudevents+avro", "unsupported-content-type"),
    ],
)
def test_a_body_that_is_not_json_is_refused_by_its_content_type(content_type: str, reason: str) -> None:
    with pytest.raises(MalformedMessage) as raised:
        codec.decode(message(ORDER, {"content-type": content_type}))
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "APPLICATION/JSON; charset=utf-8", "application/vnd.shop+json", "", "text/json"],
)
def test_json_is_read_under_all_its_names(content_type: str) -> None:
    assert codec.decode(message(ORDER, {"Content-Type": content_type})).type == "OrderCreated"


def test_an_unknown_type_waits_instead_of_dying() -> None:
    with pytest.raises(UnknownType) as raised:
        codec.decode(message(b"{}", envelope(ce_type="OrderReturned"), topic="codec.status_events"))
    assert not raised.value.final
    assert (raised.value.topic, raised.value.type) == ("codec.status_events", "OrderReturned")


def test_a_newer_version_waits_and_says_which_one_is_known() -> None:
    headers = envelope(ce_type="OrderShipped", ce_dataversion="3")
    with pytest.raises(UnknownType, match=r"version 3.*is version 2.*waits until"):
        codec.decode(message(b'{"order_id":"O1"}', headers, topic="codec.status_events"))


def test_an_older_version_is_read() -> None:
    headers = envelope(ce_type="OrderShipped")
    assert codec.decode(message(b'{"order_id":"O1"}', headers, topic="codec.status_events")).event.parcels == 1


def test_without_envelope_and_without_a_plain_event_the_type_is_missing() -> None:
    for topic in ("codec.status_events", "codec.nobody_declared_this"):
        with pytest.raises(MalformedMessage) as raised:
            codec.decode(message(ORDER, topic=topic))
        assert raised.value.reason == "no-type"


def test_a_type_that_is_known_with_a_body_that_is_missing_is_malformed_not_unknown() -> None:
    with pytest.raises(MalformedMessage) as raised:
        codec.decode(message(None, envelope(ce_type="OrderReturned"), topic="codec.status_events"))
    assert raised.value.reason == "no-body"


def test_whatever_a_class_raises_in_its_own_checks_is_malformed() -> None:
    class Checked(Event, topic="codec.checked", key="k", identity="k", accept="plain"):
        k: str

        def __post_init__(self) -> None:
            raise KeyError("its own check")

    with pytest.raises(MalformedMessage, match="its own check") as raised:
        codec.decode(message(b'{"k":"1"}', topic="codec.checked"))
    assert raised.value.reason == "wrong-fields"


def test_a_class_that_cannot_be_used_makes_its_key_wait() -> None:
    class Broken(Event, topic="codec.broken", key="k", identity="k", accept="plain"):
        k: str
        what: NotThere  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(UnknownType, match="NotThere"):
        codec.decode(message(b'{"k":"1"}', topic="codec.broken"))
