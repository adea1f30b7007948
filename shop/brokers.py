"""A broker as an outsider sees it: which messages lie there, and how far the groups have read. Reads only, by
plain SQL or a plain consumer that joins no group. Nothing of Eventkeel in here.

    sqlite:///PATH        kafka://host:port[,host:port]?option=value&…        amqp://user:password@host:port/vhost?…
"""

from __future__ import annotations

import collections
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

import msgspec

from shop.databases import Unreadable, file_of, read_only
from shop.rabbit import RabbitBroker, is_rabbit

READS = {
    "orders": (
        "order_events",
        "order_status_events",
        "order_timeouts",
        "inventory_events",
        "payment_events",
        "shipping_events",
    ),
    "inventory": ("order_status_events",),
    "payment-service-group": ("order_events", "order_status_events", "payment_requests"),
    "shipping": ("order_status_events",),
    "notifications": ("order_status_events", "user_events", "mail_requests"),
    "loyalty": ("order_status_events", "user_events"),
}
"""Which group of the shop reads which topics: a service that somebody ran beside it and stopped is behind for ever."""

PATIENCE = 10.0
"""Seconds in which a broker has to answer."""


class Message(NamedTuple):
    partition: int
    position: int
    key: bytes | None
    body: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class Broker(Protocol):
    """Every method raises shop.databases.Unreadable."""

    def repeated(self, topic: str) -> int:
        """Messages whose key the topic had before."""

    def delivered(self, topic: str, key: str) -> int:
        """Messages of the topic with this key."""

    def unread(self, group: str, topic: str, key: str) -> int:
        """Of these, those that the group has not settled, as far as the broker was told."""

    def waiting(self, reads: Mapping[str, Sequence[str]]) -> int:
        """Messages of the topics that the groups have not settled."""

    def messages(self, topic: str) -> Sequence[Message]:
        """Everything that lies there, each partition in its order."""

    def close(self) -> None: ...


def open_broker(url: Path | str) -> Broker:
    """Connects when it is asked something."""
    if is_rabbit(url):
        return RabbitBroker(str(url), prefix(str(url)), Message)
    return KafkaBroker(str(url)) if is_kafka(url) else SQLiteBroker(file_of(url))


def is_kafka(url: Path | str) -> bool:
    return str(url).startswith("kafka:")


class SQLiteBroker:
    def __init__(self, path: Path) -> None:
        self._path = path

    def repeated(self, topic: str) -> int:
        return self._number(
            "select count(*) from (select row_number() over (partition by key order by position) as nth "
            "from messages where topic = ?) where nth > 1",
            topic,
        )

    def delivered(self, topic: str, key: str) -> int:
        return self._number("select count(*) from messages where topic = ? and key = ?", topic, key)

    def unread(self, group: str, topic: str, key: str) -> int:
        return self._number(
            """
            select (select count(*) from inbound where topic = ?2 and key = ?3)
                 + (select count(*) from messages m
                    left join progress g on g.grp = ?1 and g.topic = m.topic and g.partition = m.partition
                    where m.topic = ?2 and m.key = ?3 and m.position >= coalesce(g.position, 0))""",
            group,
            topic,
            key,
        )

    def waiting(self, reads: Mapping[str, Sequence[str]]) -> int:
        unread = """
            select coalesce(sum(p.next - coalesce(g.position, 0)), 0)
            from partitions p
            left join progress g on g.grp = ? and g.topic = p.topic and g.partition = p.partition
            where p.topic = ?"""
        taken = "select count(*) from inbound where topic in (select name from topics)"
        return self._number(taken) + sum(
            self._number(unread, group, topic) for group, topics in reads.items() for topic in topics
        )

    def messages(self, topic: str) -> Sequence[Message]:
        sql = """select m.partition, m.position, l.key, l.body, l.headers
                 from messages m join log l on l.id = m.id where m.topic = ? order by m.id"""
        rows = self._rows(sql, topic)
        return [Message(part, at, key, body, unpack(packed)) for part, at, key, body, packed in rows]

    def close(self) -> None:
        pass

    def _number(self, sql: str, *parameters: str) -> int:
        return int(self._rows(sql, *parameters)[0][0])

    def _rows(self, sql: str, *parameters: str) -> list[tuple[Any, ...]]:
        try:
            connection = sqlite3.connect(read_only(self._path), uri=True)
            try:
                return connection.execute(sql, parameters).fetchall()
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise Unreadable(f"{self._path}: {error}") from error


unpack = msgspec.msgpack.Decoder(tuple[tuple[str, bytes], ...]).decode
"""Headers as they lie in a broker's file."""


class KafkaBroker:
    """Keeps what it has read, and reads on from there."""

    def __init__(self, url: str) -> None:
        self._options, self._prefix = client_options(url), prefix(url)
        self._seen: dict[str, list[Message]] = collections.defaultdict(list)
        self._next: dict[tuple[str, int], int] = {}
        self._consumers: dict[str, Any] = {}

    def repeated(self, topic: str) -> int:
        keys = collections.Counter(message.key for message in self.messages(topic))
        return sum(keys.values()) - len(keys)

    def delivered(self, topic: str, key: str) -> int:
        return sum(message.key == key.encode() for message in self.messages(topic))

    def unread(self, group: str, topic: str, key: str) -> int:
        mine = [message for message in self.messages(topic) if message.key == key.encode()]
        with _answering():
            settled = self._settled(group, topic)
        return sum(message.position >= settled[message.partition] for message in mine)

    def waiting(self, reads: Mapping[str, Sequence[str]]) -> int:
        from confluent_kafka import TopicPartition

        left = 0
        with _answering():
            for group, topics in reads.items():
                for topic in topics:
                    for partition, settled in self._settled(group, topic).items():
                        place = TopicPartition(self._prefix + topic, partition)
                        first, end = self._consumer("").get_watermark_offsets(place, PATIENCE)
                        left += end - max(first, settled)
        return left

    def messages(self, topic: str) -> Sequence[Message]:
        with _answering():
            self._read_on(topic)
        return self._seen[topic]

    def close(self) -> None:
        for consumer in self._consumers.values():
            consumer.close()
        self._consumers.clear()

    def _settled(self, group: str, topic: str) -> dict[int, int]:
        """Where the group goes on in each partition, as it has committed; -1001 where it never did."""
        from confluent_kafka import TopicPartition

        places = [TopicPartition(self._prefix + topic, partition) for partition in self._partitions(topic)]
        found = self._consumer(group).committed(places, PATIENCE)
        return {place.partition: place.offset for place in found}

    def _read_on(self, topic: str) -> None:
        """Up to the end of every partition as it is now."""
        from confluent_kafka import KafkaError, KafkaException, TopicPartition

        consumer = self._consumer("")
        left = self._partitions(topic)
        name, following = self._prefix + topic, self._next
        consumer.assign([TopicPartition(name, each, following.get((topic, each), 0)) for each in left])
        deadline = time.monotonic() + PATIENCE
        while left:
            for message in consumer.consume(1000, 0.05):
                error = message.error()
                if error is not None and error.code() == KafkaError._PARTITION_EOF:
                    left.discard(message.partition())
                elif error is not None:
                    raise KafkaException(error)
                else:
                    self._note(topic, message)
                    deadline = time.monotonic() + PATIENCE
            if time.monotonic() > deadline:
                raise Unreadable(f"the Kafka broker sends nothing of {topic}, partitions {sorted(left)}")
        consumer.unassign()

    def _note(self, topic: str, message: Any) -> None:
        if message.offset() < self._next.get((topic, message.partition()), 0):
            return
        self._next[topic, message.partition()] = message.offset() + 1
        headers = tuple((name, value or b"") for name, value in message.headers() or ())
        kept = Message(message.partition(), message.offset(), message.key(), message.value(), headers)
        self._seen[topic].append(kept)

    def _partitions(self, topic: str) -> set[int]:
        found = self._consumer("").list_topics(self._prefix + topic, PATIENCE).topics[self._prefix + topic]
        if found.error is not None:
            raise Unreadable(f"the Kafka broker has no topic {topic}")
        return set(found.partitions)

    def _consumer(self, group: str) -> Any:
        if group not in self._consumers:
            from confluent_kafka import Consumer

            # Named after a group only to be told its offsets: it never subscribes, so it never joins.
            settings = {"group.id": self._prefix + (group or "shop-onlooker"), "enable.auto.commit": False}
            more = {"auto.offset.reset": "earliest", "enable.partition.eof": True, "logger": _silent()}
            self._consumers[group] = Consumer({**self._options, **settings, **more})
        return self._consumers[group]


def _silent() -> Any:
    """A broker that is down is told by exceptions; the client would also write lines to the terminal."""
    import logging

    logger = logging.getLogger("shop.kafka")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger


@contextmanager
def _answering() -> Iterator[None]:
    try:
        from confluent_kafka import KafkaException
    except ImportError as error:
        raise Unreadable("reading Kafka needs confluent-kafka: pip install 'eventkeel[kafka]'") from error
    try:
        yield
    except KafkaException as error:
        raise Unreadable(f"the Kafka broker: {error.args[0].str()}") from error


def client_options(url: str) -> dict[str, Any]:
    """What it takes to reach the brokers of the URL: its address and security, nothing else of its options."""
    options = {name: value for name, value in _options(url) if name.startswith(("security.", "sasl.", "ssl."))}
    return {"bootstrap.servers": _address(url), **options}


def prefix(url: str) -> str:
    """What the names of topics and groups begin with on the broker."""
    return dict(_options(url)).get("prefix", "")


def with_options(url: str, options: Mapping[str, str]) -> str:
    """And those of them that the URL does not say already."""
    said = dict(_options(url))
    missing = [f"{name}={value}" for name, value in options.items() if name not in said]
    return url + ("&" if "?" in url else "?") * bool(missing) + "&".join(missing)


def _options(url: str) -> list[tuple[str, str]]:
    pairs = (part.partition("=") for part in url.partition("?")[2].split("&"))
    return [(unquote(name), unquote(value)) for name, _, value in pairs]  # a plus is a plus: passwords have some


def _address(url: str) -> str:
    return url.partition("?")[0].removeprefix("kafka:").strip("/")


QUICK = {"session.timeout.ms": "6000", "heartbeat.interval.ms": "500"}
"""For runs in which processes are killed: the least that Kafka allows before others take what they had."""
