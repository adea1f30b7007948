"""Brokers as an outsider sees them, and the program that writes past Eventkeel."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from shop.brokers import KafkaBroker, client_options, with_options
from shop.databases import Unreadable
from shop.foreign import Foreigner, ForeignerGone

PARTITIONS = 3


@pytest.fixture
def topic(kafka_url: str) -> Iterator[str]:
    admin = AdminClient(client_options(kafka_url))
    name = f"shop-{uuid.uuid4().hex[:8]}"
    admin.create_topics([NewTopic(name, PARTITIONS, 1)])[name].result(30)
    yield name
    admin.delete_topics([name])[name].result(30)


@pytest.fixture
def foreigner(kafka_url: str) -> Iterator[Foreigner]:
    made = Foreigner(kafka_url)
    yield made
    made.close()


def settle(url: str, group: str, topic: str, partition: int, position: int) -> None:
    consumer = Consumer({**client_options(url), "group.id": group, "enable.auto.commit": False})
    consumer.commit(offsets=[TopicPartition(topic, partition, position)], asynchronous=False)
    consumer.close()


@pytest.mark.servers
def test_messages_that_repeat_a_key_are_counted(kafka_url: str, topic: str, foreigner: Foreigner) -> None:
    with contextlib.closing(KafkaBroker(kafka_url)) as broker:
        assert broker.repeated(topic) == 0
        for key in "abcab":
            foreigner.append(topic, key, "{}")
        assert (broker.repeated(topic), broker.delivered(topic, "a"), broker.delivered(topic, "x")) == (2, 2, 0)
        foreigner.append(topic, "b", "{}")
        assert (broker.repeated(topic), broker.delivered(topic, "b")) == (3, 3)


@pytest.mark.servers
def test_what_a_group_has_not_settled_is_waiting(kafka_url: str, topic: str, foreigner: Foreigner) -> None:
    group = topic
    with contextlib.closing(KafkaBroker(kafka_url)) as broker:
        for number in range(6):
            foreigner.append(topic, "a", str(number), {"number": str(number)})
        got = broker.messages(topic)
        assert [(message.body, message.headers) for message in got] == [
            (b"%d" % number, (("number", b"%d" % number),)) for number in range(6)
        ]
        assert (broker.waiting({group: [topic]}), broker.unread(group, topic, "a")) == (6, 6)
        settle(kafka_url, group, topic, got[0].partition, 4)
        assert (broker.waiting({group: [topic]}), broker.unread(group, topic, "a")) == (2, 2)
        settle(kafka_url, group, topic, got[0].partition, 6)
        assert (broker.waiting({group: [topic]}), broker.unread(group, topic, "a")) == (0, 0)


@pytest.mark.servers
def test_a_key_lies_where_javas_partitioner_puts_it(kafka_url: str, topic: str, foreigner: Foreigner) -> None:
    """Reference: murmur2 of Kafka's own Utils, modulo 3."""
    javas = {"ORD000001": 2, "ORD12345": 2, "21": 0, "foobar": 0}
    for key in javas:
        foreigner.append(topic, key, "{}")
    with contextlib.closing(KafkaBroker(kafka_url)) as broker:
        assert {(message.key or b"").decode(): message.partition for message in broker.messages(topic)} == javas


@pytest.mark.servers
def test_a_topic_that_is_not_there_is_unreadable(kafka_url: str) -> None:
    with contextlib.closing(KafkaBroker(kafka_url)) as broker, pytest.raises(Unreadable, match="nothing-here"):
        broker.waiting({"nobody": ["nothing-here"]})


def test_a_broker_that_does_not_answer_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shop.brokers.PATIENCE", 0.2)
    with contextlib.closing(KafkaBroker("kafka://127.0.0.1:1")) as broker, pytest.raises(Unreadable, match="Kafka"):
        broker.repeated("topic")


def test_only_what_it_takes_to_reach_the_brokers_is_taken_from_the_url() -> None:
    url = "kafka://a:1,b:2?security.protocol=ssl&ssl.key.password=x%20+y&session.timeout.ms=1&consumer.sasl.x=1&security=1"
    assert client_options(url) == {
        "bootstrap.servers": "a:1,b:2",
        "security.protocol": "ssl",
        "ssl.key.password": "x +y",
    }


def test_options_are_added_where_the_url_does_not_say_them() -> None:
    assert with_options("kafka://a:1", {"x.y": "1"}) == "kafka://a:1?x.y=1"
    assert with_options("kafka://a:1?x.y=2&z=3", {"x.y": "1", "u": "4"}) == "kafka://a:1?x.y=2&z=3&u=4"
    assert with_options("kafka://a:1?x.y=2", {"x.y": "1"}) == "kafka://a:1?x.y=2"


@pytest.mark.servers
def test_a_prefix_is_in_front_of_every_name_on_the_broker(kafka_url: str, topic: str) -> None:
    url, rest = f"{kafka_url}?prefix={topic[:5]}", topic[5:]
    foreigner = Foreigner(url)
    foreigner.append(rest, "a", "{}")
    foreigner.close()
    with contextlib.closing(KafkaBroker(url)) as prefixed, contextlib.closing(KafkaBroker(kafka_url)) as plain:
        assert prefixed.delivered(rest, "a") == plain.delivered(topic, "a") == 1
        settle(kafka_url, topic[:5] + "group", topic, plain.messages(topic)[0].partition, 1)
        assert prefixed.waiting({"group": [rest]}) == 0


def test_a_foreigner_that_cannot_write_says_so() -> None:
    foreigner = Foreigner("kafka://")
    with pytest.raises(ForeignerGone):
        foreigner.append("topic", "key", "{}")
    foreigner.close()
