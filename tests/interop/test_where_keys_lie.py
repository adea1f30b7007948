"""A key of ours lies where Java's client, and others that follow it, look for it."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator

import pytest

from eventkeel.message import Headers, Outgoing
from eventkeel.ports.transport import Sent, TopicWant, Topology
from eventkeel.transports.kafka import KafkaTransport
from interop.programs import Programs
from tests.interop.kit import PARTITIONS, Street, run

pytestmark = [pytest.mark.timeout(900)]  # the first test may have to bring and build the programs
TOPIC = "keys"
HEADERS = Headers([("ce_type", b"Key"), ("n", b"1"), ("n", "zwei ü".encode()), ("empty", b""), ("raw", b"\xff\x00")])


def _keys() -> list[bytes]:
    rng = random.Random(20)
    made = [b"ORD%d" % number for number in range(100)]
    made += [text.encode() for text in ("Bestellung-ä", "注文-1", "заказ 7", "🛒", "é" * 60, "a", "ab", "abc", "21")]
    made += [b"k" * 255, bytes(range(256)), b"\x00", b"\xff\xfe", b"\x80" * 17]
    made += [rng.randbytes(length) for length in range(1, 41)]
    return list(dict.fromkeys(made))


KEYS = _keys()
LINES = "\n".join(base64.b64encode(key).decode() for key in KEYS)


def _read(printed: str) -> list[int]:
    return [int(line) for line in printed.split()]


def _differing(found: list[int], expected: dict[bytes, int]) -> list[tuple[bytes, int, int]]:
    assert len(found) == len(KEYS)
    return [(key, at, expected[key]) for key, at in zip(KEYS, found, strict=True) if expected[key] != at]


@pytest.fixture
async def ours(street: Street) -> dict[bytes, int]:
    """Key -> the partition in which it lies after it was published through the transport."""
    transport = KafkaTransport(street.broker_url.removeprefix("kafka:"))
    await transport.open()
    try:
        await transport.topology(Topology((TopicWant(TOPIC, PARTITIONS),), ()), apply=True)
        outcomes = await transport.publish([Outgoing(TOPIC, key, HEADERS, key) for key in KEYS], 60)
        assert all(isinstance(outcome, Sent) for outcome in outcomes)
    finally:
        await transport.close(10)
    places = {message.key or b"": message.partition for message in street.messages(TOPIC)}
    assert places.keys() == set(KEYS) and set(places.values()) == set(range(PARTITIONS))
    return places


def test_java_would_have_put_every_key_where_we_put_it(
    programs: Programs, street: Street, ours: dict[bytes, int]
) -> None:
    computed = _read(run([*programs.where_java, "partitions", str(PARTITIONS)], LINES))
    assert _differing(computed, ours) == []
    sent = _read(run([*programs.where_java, "produce", street.address, street.topic(TOPIC)], LINES))
    assert _differing(sent, ours) == []


def test_a_java_consumer_reads_our_messages_byte_for_byte(
    programs: Programs, street: Street, ours: dict[bytes, int]
) -> None:
    printed = run([*programs.where_java, "consume", street.address, street.topic(TOPIC)])
    read = [line.split("\t") for line in printed.splitlines()]
    assert {base64.b64decode(key): int(partition) for partition, key, *_ in read} == ours
    assert all(body == key for _, key, body, *_ in read)
    assert {tuple(_pairs(headers)) for _, _, _, *headers in read} == {HEADERS.pairs}


def _pairs(headers: list[str]) -> Iterator[tuple[str, bytes]]:
    for header in headers:
        name, _, value = header.partition("=")
        yield name, base64.b64decode(value)


def test_a_go_program_with_murmur2_would_have_put_every_key_where_we_put_it(
    programs: Programs, ours: dict[bytes, int]
) -> None:
    assert _differing(_read(run([*programs.where_go, str(PARTITIONS)], LINES)), ours) == []
