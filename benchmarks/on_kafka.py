"""Topics of a run on Kafka: made, filled, counted, dropped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from benchmarks.job import PARTITIONS, Input
from benchmarks.servers import Place


def make(here: Place) -> None:
    admin = AdminClient({"bootstrap.servers": here.servers.bootstrap})
    names = (here.topic_in, here.topic_out)
    for made in admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in names]).values():
        made.result()
    time.sleep(0.3)  # until every partition has its leader; nothing tells


def drop(here: Place) -> None:
    admin = AdminClient({"bootstrap.servers": here.servers.bootstrap})
    for dropped in admin.delete_topics([here.topic_in, here.topic_out]).values():
        with contextlib.suppress(Exception):  # a topic that is not there is gone
            dropped.result()


def fill(here: Place, inputs: Iterable[Input]) -> int:
    """Put messages on the topic in, partitioned as a Java client would, and say how many. Not measured."""
    producer = Producer(
        {
            "bootstrap.servers": here.servers.bootstrap,
            "acks": "all",
            "linger.ms": 20,
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": 200_000,
        }
    )
    count = 0
    for each in inputs:
        count += 1
        producer.produce(here.topic_in, each.body, each.key, headers=list(each.headers))
        while len(producer) > 100_000:
            producer.poll(0.1)
    if producer.flush(120):
        raise SystemExit(f"{here.topic_in}: not everything could be put on it within 120 s")
    return count


def out(here: Place) -> int:
    """Messages on the topic out."""
    return _size(here, here.topic_out)


def left(here: Place) -> int:
    """Of the messages in, those that are not there any more: a log keeps what was read."""
    return here.count - _size(here, here.topic_in)


def _size(here: Place, topic: str) -> int:
    consumer = Consumer({"bootstrap.servers": here.servers.bootstrap, "group.id": "benchmark-count"})
    try:
        total = 0
        for partition in range(PARTITIONS):
            ends = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
            assert ends is not None
            total += ends[1] - ends[0]
        return total
    finally:
        consumer.close()
