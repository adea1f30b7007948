"""RabbitMQ as an outsider sees it, with pika: a topic's history, and the queues of the groups.

amqp://user:password@host:port/vhost?option=value&…
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from shop.databases import Unreadable

if TYPE_CHECKING:
    from shop.brokers import Message

_QUIET = 0.25
"""Seconds without a message after which a history counts as read."""
_MARKER = "x-eventkeel-marker"
"""A header of messages that are none: they mark places in a history."""
_PREFETCH = 500


def is_rabbit(url: object) -> bool:
    return str(url).startswith(("amqp:", "amqps:"))


class RabbitBroker:
    """Keeps what it has read, and reads on from there. A connection for each question: they are rare."""

    def __init__(self, url: str, prefix: str, message: Callable[..., Message]) -> None:
        self._url, self._prefix, self._message = url, prefix, message
        self._seen: dict[str, list[Message]] = collections.defaultdict(list)
        self._next: dict[str, int] = {}
        self._generation: dict[tuple[str, str], int] = {}

    def repeated(self, topic: str) -> int:
        keys = collections.Counter(message.key for message in self.messages(topic))
        return sum(keys.values()) - len(keys)

    def delivered(self, topic: str, key: str) -> int:
        return sum(message.key == key.encode() for message in self.messages(topic))

    def unread(self, group: str, topic: str, key: str) -> int:
        """A queue does not tell its keys: as many as lie in the group's queues of the topic."""
        return self.waiting({group: (topic,)}) if self.delivered(topic, key) else 0

    def waiting(self, reads: Mapping[str, Sequence[str]]) -> int:
        with connected(self._url) as connection:
            return sum(self._ready(connection, group, topic) for group, topics in reads.items() for topic in topics)

    def messages(self, topic: str) -> Sequence[Message]:
        with connected(self._url) as connection:
            self._read_on(connection, topic)
        return self._seen[topic]

    def close(self) -> None:
        pass

    def _ready(self, connection: Any, group: str, topic: str) -> int:
        """What lies in the group's queues of the topic: those of its generation, which may have been replaced."""
        place = (group, topic)
        first = self._generation.get(place, 1)
        for generation in range(first, first + 5):
            found = self._shards(connection, f"{self._prefix}{group}.{topic}.g{generation}")
            if found is not None:
                self._generation[place] = generation
                later = self._shards(connection, f"{self._prefix}{group}.{topic}.g{generation + 1}")
                return found + (later or 0)
        raise Unreadable(f"RabbitMQ has no queues of group {group} for topic {topic}")

    def _shards(self, connection: Any, name: str) -> int | None:
        from pika.exceptions import ChannelClosedByBroker  # type: ignore[import-untyped]

        total: int | None = None
        channel = connection.channel()
        for shard in range(1000):
            try:
                ready = channel.queue_declare(f"{name}.{shard}", passive=True).method.message_count
            except ChannelClosedByBroker:
                return total
            total = (total or 0) + int(ready)
        return total

    def _read_on(self, connection: Any, topic: str) -> None:
        from pika.exceptions import ChannelClosedByBroker

        channel = connection.channel()
        channel.basic_qos(prefetch_count=_PREFETCH)
        offset: int | str = self._next.get(topic, "first")
        history = f"{self._prefix}{topic}.history"
        try:
            for method, properties, body in channel.consume(
                history, arguments={"x-stream-offset": offset}, inactivity_timeout=_QUIET
            ):
                if method is None:
                    break
                self._note(topic, method, properties, body)
                channel.basic_ack(method.delivery_tag)
        except ChannelClosedByBroker as error:
            raise Unreadable(f"RabbitMQ has no history of topic {topic}: {error}") from error
        channel.close()

    def _note(self, topic: str, method: Any, properties: Any, body: bytes) -> None:
        headers = dict(properties.headers or {})
        at = int(headers.pop("x-stream-offset"))
        if at < self._next.get(topic, 0):
            return
        self._next[topic] = at + 1
        if _MARKER in headers:
            return
        told = tuple((name, _bytes(value)) for name, value in headers.items())
        self._seen[topic].append(self._message(0, at, method.routing_key.encode(), body, told))


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def connect(url: str) -> Any:
    """A connection of pika's, by what pika knows of the URL. Raises Unreadable."""
    try:
        import pika  # type: ignore[import-untyped]
        from pika.exceptions import AMQPError
    except ImportError as error:
        raise Unreadable("reading RabbitMQ needs pika: pip install pika") from error
    scheme, _, rest = url.partition("?")[0].partition("://")
    place, _, vhost = rest.partition("/")
    login, at, hosts = place.rpartition("@")
    nodes = [pika.URLParameters(f"{scheme}://{login}{at}{host}/{vhost or '%2f'}") for host in hosts.split(",")]
    try:
        return pika.BlockingConnection(nodes)
    except (AMQPError, OSError) as error:
        raise Unreadable(f"RabbitMQ does not answer: {error!r}") from error


@contextmanager
def connected(url: str) -> Iterator[Any]:
    connection = connect(url)
    from pika.exceptions import AMQPError

    try:
        yield connection
    except AMQPError as error:
        raise Unreadable(f"RabbitMQ: {error!r}") from error
    finally:
        if connection.is_open:
            connection.close()


@contextmanager
def writing_to_rabbit(
    url: str, prefix: str, patience: float = 120.0
) -> Iterator[Callable[[str, str, dict[str, str] | None, str], None]]:
    """An ordinary publisher: the order's id is the routing key. Raises SystemExit for a message that the broker does
    not take within ``patience`` seconds."""
    import pika
    from pika.exceptions import AMQPError

    channel: Any = None

    def open_channel() -> Any:
        nonlocal channel
        if channel is None or not channel.is_open:
            channel = connect(url).channel()
            channel.confirm_delivery()
        return channel

    def write(topic: str, key: str, headers: dict[str, str] | None, body: str) -> None:
        nonlocal channel
        deadline = time.monotonic() + patience
        properties = pika.BasicProperties(headers=headers, delivery_mode=2, timestamp=int(time.time()))
        while True:
            try:
                open_channel().basic_publish(prefix + topic, key, body.encode(), properties, mandatory=True)
                return
            except (AMQPError, Unreadable) as error:
                channel = None
                if time.monotonic() > deadline:
                    raise SystemExit(f"the broker did not take a message for {topic}: {error!r}") from error
                time.sleep(0.2)

    yield write
