"""The same queue on Kafka, as the client's documentation begins: subscribe, consume, let it commit by itself."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from shop.brokers import PATIENCE, KafkaBroker, client_options, prefix
from shop.databases import Unreadable

MOST = 20
"""Messages that one call receives."""
QUICK = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}
"""A killed consumer's partitions go to another after 6 s. All else is as the client has it: offsets are committed every
five seconds, up to what was received."""


class KafkaQueue:
    """Topics and groups are named with the ``prefix=`` of the URL."""

    def __init__(self, url: str) -> None:
        self._url, self._prefix = url, prefix(url)
        self._looking = KafkaBroker(url)

    def publish(self, topic: str, key: str, body: str) -> None:
        """Returns when the broker has it."""
        producer = _producer(self._url)
        producer.produce(self._prefix + topic, body, key)
        producer.flush()

    def consume(self, group: str, topic: str) -> Iterator[str]:
        """For ever."""
        consumer = Consumer(
            {
                **client_options(self._url),
                "group.id": self._prefix + group,
                "auto.offset.reset": "earliest",
                **QUICK,
            }
        )
        consumer.subscribe([self._prefix + topic])
        while True:
            for message in consumer.consume(MOST, 0.05):
                if message.error() is None:
                    yield (message.value() or b"").decode()

    def close(self) -> None:
        self._looking.close()

    def make(self, *topics: str) -> None:
        """Empty topics. Raises Unreadable."""
        admin = AdminClient(client_options(self._url))
        asked = admin.create_topics([NewTopic(self._prefix + topic, num_partitions=4) for topic in topics])
        _done(asked)

    def drop(self, *topics: str) -> None:
        admin = AdminClient(client_options(self._url))
        asked = admin.delete_topics([self._prefix + topic for topic in topics])
        _done(asked)

    def waiting(self, group: str, topic: str) -> int:
        """Messages that the group has not received, as far as the broker was told."""
        return self._looking.waiting({group: (topic,)})

    def published(self, topic: str) -> int:
        """Messages of the topic."""
        return self._looking.waiting({"nobody": (topic,)})

    def repeated(self, topic: str) -> int:
        """Messages whose key the topic had before."""
        return self._looking.repeated(topic)


def _done(asked: dict[str, Any]) -> None:
    try:
        for each in asked.values():
            each.result(PATIENCE)
    except (KafkaException, TimeoutError) as error:
        raise Unreadable(f"the Kafka broker: {str(error) or f'no answer in {PATIENCE:g} s'}") from error


@functools.cache
def _producer(url: str) -> Any:
    """One for the process: its threads share it."""
    return Producer(client_options(url))
