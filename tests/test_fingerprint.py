"""Fingerprints: the same fact again, or another one under the same identity."""

from __future__ import annotations

import json
import random
from decimal import Decimal, localcontext
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventkeel import codec
from eventkeel.event import Event
from eventkeel.fingerprint import MAX_MEMBERS, Number, compute, conflicts
from tests.codec.samples import OrderCreated, encode, envelope, message

_read = msgspec.json.Decoder(dict[str, Any], float_hook=Number).decode


def of(body: str, *, version: int = 1, content_type: str = "application/json") -> bytes:
    return compute(_read(body), version=version, content_type=content_type)


def same(a: str, b: str) -> bool:
    return not conflicts(of(f'{{"v":{a}}}'), of(f'{{"v":{b}}}'))


ONE_VALUE = [
    ["100", "100.0", "1.0E2", "1e2", "1E+2", "1000e-1", "100.00000000000000000000000000000000000000"],
    ["0", "0.0", "-0", "-0.0", "0e999", "0e99999999999999999999999"],
    ["-5", "-5.0", "-50e-1"],
    ["9007199254740993", "9007199254740993.0", "9.007199254740993e15"],
    ["1e999999999", "10e999999998", "0.1e1000000000"],
    ["1e-999999999", "0.1e-999999998"],
    ["123456789012345678901234567890123456789", "123456789012345678901234567890123456789.0"],
    ['"\\u00e4"', '"ä"'],
    ['{"a":1,"b":[1.0]}', '{"b":[1e0],"a":1.00}', '{ "b": [ 1 ] , "a" : 1 }'],
]


@pytest.mark.parametrize("spellings", ONE_VALUE)
def test_a_value_has_one_fingerprint_however_it_is_written(spellings: list[str]) -> None:
    assert len({of(f'{{"v":{each}}}') for each in spellings}) == 1


def test_different_values_differ() -> None:
    values = [group[0] for group in ONE_VALUE]
    values += ["1", "10", "0.1", "9007199254740992", "123456789012345678901234567890123456780", "1e999999998"]
    values += [
        '"100"',
        '"1"',
        '""',
        "null",
        "true",
        "false",
        "[]",
        "{}",
        "[1]",
        "[[1]]",
        '["1"]',
        '{"a":1}',
        '{"a":null}',
    ]
    values += ["[1,23]", "[12,3]", '["a","b"]', '["a,b"]', '"a\\u0308"', '"n"', '"t"', "[null]", "[[],[]]", "[[[]]]"]
    assert len({of(f'{{"v":{each}}}') for each in values}) == len(values)


def test_only_members_that_both_have_are_compared() -> None:
    first = of('{"id":"1","amount":5}')
    assert not conflicts(first, of('{"id":"1","amount":5.0,"currency":"EUR"}'))
    assert not conflicts(of('{"id":"1","amount":5.0,"currency":"EUR"}'), first)
    assert conflicts(first, of('{"id":"1","amount":6,"currency":"EUR"}'))
    assert conflicts(of('{"id":"1","amount":6,"currency":"EUR"}'), first)


def test_another_version_or_content_type_is_never_compared() -> None:
    first = of('{"amount":5}')
    assert not conflicts(first, of('{"amount":6}', version=2))
    assert not conflicts(first, of('{"amount":6}', content_type="application/vnd.shop+json"))


def test_what_is_no_fingerprint_conflicts_with_nothing() -> None:
    for odd in (b"", b"\x01", b"\x02" + of('{"a":1}')[1:], of('{"a":1}')[:7]):
        assert not conflicts(odd, of('{"a":2}'))
        assert not conflicts(of('{"a":2}'), odd)


PINNED = "011148080114b4e13228140f78a7af142cba15e566a90120b511236a80b1ba07e53a150211"


def test_a_fingerprint_does_not_change_between_releases() -> None:
    """They lie in inboxes for weeks: change this only together with ``fingerprint.VERSION``."""
    found = of('{"order_id":"ORD12345","user_id":"USR001","amount":99.99,"x":[null,true,{"a":-1}]}')
    assert found.hex() == PINNED


def test_a_large_message_keeps_a_bounded_fingerprint_that_still_compares() -> None:
    members = {f"m{n}": n for n in range(10_000)}
    first = compute(members, version=1, content_type="application/json")
    assert len(first) == 5 + 8 * MAX_MEMBERS
    assert first == compute(dict(reversed(members.items())), version=1, content_type="application/json")
    changed = compute({name: n + 1 for name, n in members.items()}, version=1, content_type="application/json")
    assert conflicts(first, changed)


def test_very_long_integers_are_compared_too() -> None:
    assert conflicts(*(compute({"v": 10**5000 + n}, version=1, content_type="x") for n in (0, 1)))
    assert compute({"v": 10**5000}, version=1, content_type="x") == compute(
        {"v": Number("1e5000")}, version=1, content_type="x"
    )


def test_decimals_and_floats_count_by_value_without_a_context() -> None:
    with localcontext() as context:
        context.prec = 3
        a, b = Decimal("123456.789"), Decimal("123456.780")
        assert conflicts(*(compute({"v": each}, version=1, content_type="x") for each in (a, b)))
    texts: list[Any] = [Number("2.5"), Decimal("2.50"), 2.5]
    assert len({compute({"v": each}, version=1, content_type="x") for each in texts}) == 1


def test_what_json_does_not_have_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot hold a object"):
        compute({"v": object()}, version=1, content_type="x")


numbers = st.tuples(st.integers(-(10**40), 10**40), st.integers(-50, 50))


@given(numbers, numbers)
def test_numbers_conflict_exactly_where_their_values_differ(a: tuple[int, int], b: tuple[int, int]) -> None:
    texts = [f"{digits}e{power}" for digits, power in (a, b)]
    exact = [digits * 10 ** (power + 50) for digits, power in (a, b)]
    assert same(*texts) == (exact[0] == exact[1])


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), values, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_names_and_the_spelling_of_text_do_not_matter(
    members: dict[str, Any], dice: random.Random
) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            pairs = [(name, shuffled(each)) for name, each in value.items()]
            dice.shuffle(pairs)
            return dict(pairs)
        return [shuffled(each) for each in value] if isinstance(value, list) else value

    plain, escaped = json.dumps(members, ensure_ascii=False), json.dumps(shuffled(members), ensure_ascii=True, indent=1)
    assert of(plain) == of(escaped)


@given(st.dictionaries(st.text(), values, max_size=6), st.dictionaries(st.text(), values, max_size=6))
def test_conflict_is_symmetric_and_means_a_common_member_that_differs(a: dict[str, Any], b: dict[str, Any]) -> None:
    one, two = of(json.dumps(a)), of(json.dumps(b))
    differs = any(
        json.dumps(a[name], sort_keys=True) != json.dumps(b[name], sort_keys=True) for name in a.keys() & b.keys()
    )
    assert conflicts(one, two) == conflicts(two, one) == differs


# ------------------------------------------------------------------ as the codec takes them


def fingerprint(body: bytes, **headers: str) -> bytes:
    made = codec.decode(message(body, headers or None)).fingerprint
    assert made is not None
    return made


def test_producers_in_four_languages_tell_one_fact() -> None:
    spellings = [b"100", b"100.0", b"1.0E2", b"1e+2"]
    bodies = [b'{"order_id":"O1","user_id":"U1","amount":%b}' % each for each in spellings]
    ours = codec.decode(
        message(encode(OrderCreated(order_id="O1", user_id="U1", amount=Decimal("100.00"))).body)
    ).fingerprint
    assert {fingerprint(body) for body in bodies} == {ours}


def test_the_same_order_with_another_amount_is_a_conflict() -> None:
    one, two = (b'{"order_id":"O1","user_id":"U1","amount":%b}' % each for each in (b"100", b"100.01"))
    assert conflicts(fingerprint(one), fingerprint(two))


def test_binary_structured_and_plain_are_compared_with_each_other() -> None:
    body = b'{"order_id":"O1","user_id":"U1","amount":1}'
    outer = b'{"specversion":"1.0","id":"1","source":"/x","type":"OrderCreated","data":%b}' % body
    structured = codec.decode(message(outer, {"content-type": "application/cloudevents+json"})).fingerprint
    binary = codec.decode(message(body, envelope(ce_type="OrderCreated"))).fingerprint
    assert structured == binary == fingerprint(body)


def test_a_deploy_that_adds_a_field_makes_no_conflict() -> None:
    """Old messages are delivered again to the new class, and new ones to the old class."""

    def declare(new: bool) -> None:
        if new:

            class Charged(Event, topic="codec.deploy", key="k", identity="k", accept="plain"):
                k: str
                amount: Decimal
                currency: str = "EUR"

        else:

            class Charged(Event, topic="codec.deploy", key="k", identity="k", accept="plain"):  # type: ignore[no-redef]
                k: str
                amount: Decimal

    def seen(body: bytes) -> bytes:
        made = codec.decode(message(body, topic="codec.deploy")).fingerprint
        assert made is not None
        return made

    old_body, new_body = b'{"k":"1","amount":5}', b'{"amount":5.0,"k":"1","currency":"USD"}'
    declare(new=False)
    old_old, old_new = seen(old_body), seen(new_body)
    declare(new=True)
    new_old, new_new = seen(old_body), seen(new_body)
    for before in (old_old, old_new):
        for after in (new_old, new_new):
            assert not conflicts(before, after)
    assert conflicts(old_old, seen(b'{"k":"1","amount":6,"currency":"USD"}'))
