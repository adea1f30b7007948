"""What comes to a broker from now on, in all the shop's topics."""

from __future__ import annotations

import time
from typing import Any, Protocol

from shop.brokers import READS, Message, client_options, is_kafka, open_broker, prefix
from shop.databases import Unreadable

TOPICS = sorted({topic for topics in READS.values() for topic in topics})
GLANCE = 0.4
"""Seconds that a look takes where nothing is new."""


class Tail(Protocol):
    def new(self) -> list[tuple[str, Message]]:
        """What has come since the last time, with its topic; waits a moment for it."""

    def close(self) -> None: ...


def tail(broker: str) -> Tail:
    """From here on. Raises Unreadable."""
    return KafkaTail(broker) if is_kafka(broker) else PlainTail(broker)


class PlainTail:
    """Reads a topic whenever it is asked, and passes over what it has seen."""

    def __init__(self, broker: str) -> None:
        self._broker = open_broker(broker)
        self._next: dict[tuple[str, int], int] = {}
        self._read()

    def new(self) -> list[tuple[str, Message]]:
        time.sleep(GLANCE)
        return self._read()

    def _read(self) -> list[tuple[str, Message]]:
        return [(topic, message) for topic in TOPICS for message in self._read_topic(topic)]

    def _read_topic(self, topic: str) -> list[Message]:
        try:
            lies_there = self._broker.messages(topic)
        except Unreadable:  # not there yet
            return []
        new = [each for each in lies_there if each.position >= self._next.get((topic, each.partition), 0)]
        for each in new:
            self._next[topic, each.partition] = each.position + 1
        return new

    def close(self) -> None:
        self._broker.close()


class KafkaTail:
    """One consumer that joins no group."""

    def __init__(self, broker: str) -> None:
        from confluent_kafka import Consumer, KafkaException, TopicPartition

        self._prefix = prefix(broker)
        group = {"group.id": f"{self._prefix}shop-onlooker", "enable.auto.commit": False, "log_level": 2}
        self._consumer: Any = Consumer({**client_options(broker), **group})
        try:
            known = self._consumer.list_topics(timeout=10).topics
            places = [
                TopicPartition(name, partition)
                for name in (self._prefix + topic for topic in TOPICS)
                if name in known
                for partition in known[name].partitions
            ]
            for place in places:
                _, place.offset = self._consumer.get_watermark_offsets(place, 10)
            self._consumer.assign(places)
        except KafkaException as error:
            self._consumer.close()
            raise Unreadable(f"the Kafka broker: {error.args[0].str()}") from error

    def new(self) -> list[tuple[str, Message]]:
        found = [each for each in self._consumer.consume(500, GLANCE) if each.error() is None]
        return [(each.topic().removeprefix(self._prefix), _message(each)) for each in found]

    def close(self) -> None:
        self._consumer.close()


def _message(each: Any) -> Message:
    headers = tuple((name, value or b"") for name, value in each.headers() or ())
    return Message(each.partition(), each.offset(), each.key(), each.value(), headers)
