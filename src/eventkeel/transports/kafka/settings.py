"""From the broker's URL to the clients' settings, and the names of topics and groups on the broker.

    kafka://host:port[,host:port][?option=value&…]

An option is the client library's own (``security.protocol=SASL_SSL``, ``fetch.wait.max.ms=50``), for
producer and consumer alike; ``producer.X`` and ``consumer.X`` are for one of them. Ours are
``replication``, ``prefix`` and ``create.X``, a setting of the topics that are created.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

import msgspec

from eventkeel.errors import ConfigurationError

log = logging.getLogger("eventkeel.transports.kafka")

LARGEST_BATCH = 1_048_588
"""What a broker takes in one batch unless it is told otherwise (``max.message.bytes``)."""
SPARE = 1_024
"""Bytes of a batch that are neither key, headers nor body of its message, generously."""
MAX_BODY = 1_000_000
MAX_KEY = 1_024
_HEADROOM = LARGEST_BATCH - MAX_BODY
"""Kept free of the largest message for its key and headers."""

_COMMON: dict[str, Any] = {
    "client.id": "eventkeel",
    "socket.keepalive.enable": True,
    "socket.nagle.disable": True,
    "reconnect.backoff.max.ms": 2_000,  # 10 s unless told: a broker that is back is to be noticed soon
    "allow.auto.create.topics": False,
}
_PRODUCER: dict[str, Any] = {
    "enable.idempotence": True,
    "acks": "all",
    # Never a local expiry, which would leave a gap: ``publish`` has its own deadline, and purges.
    "message.timeout.ms": 0,
    "enable.gapless.guarantee": True,
    "partitioner": "murmur2_random",  # where Java, Go and Node look for a key
    "linger.ms": 0,
    "queue.buffering.max.kbytes": 32_768,
    "message.max.bytes": LARGEST_BATCH,
}
_CONSUMER: dict[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    "check.crcs": True,
    "max.poll.interval.ms": 300_000,
    "queued.min.messages": 5_000,
    "queued.max.messages.kbytes": 16_384,
    "fetch.max.bytes": 8 * 1024 * 1024,
    "fetch.message.max.bytes": 1024 * 1024,
    # Where the queue was full, the next fetch waits this long; the default of a second starves a quick consumer.
    "fetch.queue.backoff.ms": 10,
    "fetch.wait.max.ms": 500,
    "topic.metadata.refresh.interval.ms": 30_000,
}
_CLASSIC: dict[str, Any] = {
    "partition.assignment.strategy": "cooperative-sticky",
    # Heartbeats come from the library's own thread, so no handler can starve them, and the store's fence judges
    # whoever was wrongly given up: what a killed process had is taken over after this long.
    "session.timeout.ms": 10_000,
    "heartbeat.interval.ms": 2_500,
}
_OURS_ALONE = frozenset(
    {
        *("enable.idempotence", "acks", "request.required.acks", "message.timeout.ms", "delivery.timeout.ms"),
        *("enable.gapless.guarantee", "delivery.report.only.error", "transactional.id", "bootstrap.servers"),
        *("metadata.broker.list", "group.id", "enable.auto.commit", "auto.commit.enable"),
        *("enable.auto.offset.store", "auto.offset.reset", "isolation.level", "partition.assignment.strategy"),
        *("enable.partition.eof", "allow.auto.create.topics", "partitioner"),
    }
)
"""Whose change would lose messages, their order, or what is settled."""
_SECRET = ("password", "secret", "token", ".pem", "ssl.key", "oauthbearer.config")


class Options(msgspec.Struct, frozen=True):
    """What a broker's URL says."""

    servers: str
    common: Mapping[str, str]
    producer: Mapping[str, str]
    consumer: Mapping[str, str]
    create: Mapping[str, str]
    """Settings of topics that are created."""
    replication: int = -1
    """Of topics that are created; -1: the broker's default."""
    prefix: str = ""
    """In front of the name of every topic and group, so that several systems can share one cluster."""

    @property
    def name(self) -> str:
        """The broker as people are told of it: without options, so without secrets."""
        return f"kafka://{self.servers}"

    @property
    def max_body(self) -> int:
        return self._largest() - _HEADROOM

    def _largest(self) -> int:
        given = self.producer.get("message.max.bytes", self.common.get("message.max.bytes", LARGEST_BATCH))
        try:
            largest = int(given)
        except ValueError:
            largest = 0
        if largest < 2 * _HEADROOM:
            raise ConfigurationError(
                f"{self.name}: message.max.bytes={given} is not a number of at least {2 * _HEADROOM:,}"
            )
        return largest

    @property
    def consumer_protocol(self) -> bool:
        """The group protocol of KIP-848 is asked for, in which the broker alone decides."""
        return self.consumer.get("group.protocol", self.common.get("group.protocol", "")).lower() == "consumer"

    def for_producer(self, largest_batch: int) -> dict[str, Any]:
        batch = {"batch.size": largest_batch} if largest_batch < LARGEST_BATCH - SPARE else {}
        return {**self._clients(), **_PRODUCER, **batch, **self.common, **self.producer}

    def for_consumer(self, group: str) -> dict[str, Any]:
        classic = {} if self.consumer_protocol else _CLASSIC
        return {**self._clients(), **_CONSUMER, **classic, "group.id": group, **self.common, **self.consumer}

    def for_admin(self) -> dict[str, Any]:
        """``log_level`` 2: what goes wrong is raised; the library would print it besides."""
        return {**self._clients(), "log_level": 2, **self.common, "socket.timeout.ms": 10_000}

    def _clients(self) -> dict[str, Any]:
        return {**_COMMON, "bootstrap.servers": self.servers}

    def masked(self, text: str) -> str:
        """``text`` without the secrets of the URL."""
        for options in (self.common, self.producer, self.consumer):
            for name, value in options.items():
                if value and any(word in name for word in _SECRET):
                    text = text.replace(value, "***")
        return text

    # -- names

    def on_broker(self, name: str) -> str:
        return self.prefix + name

    def from_broker(self, name: str) -> str | None:
        """None: not one of ours."""
        return name[len(self.prefix) :] if name.startswith(self.prefix) else None


def parse(rest: str) -> Options:
    """Read what follows ``kafka:``. Raises ConfigurationError, never with a secret in it."""
    address, _, query = rest.removeprefix("//").partition("?")
    servers = address.rstrip("/")
    if "@" in servers:
        raise ConfigurationError(
            "a broker URL kafka://… has no user in front of its host: write sasl.username=…&sasl.password=… behind "
            "a question mark, beside sasl.mechanism and security.protocol"
        )
    if not servers or "/" in servers or not all(map(_is_server, servers.split(","))):
        raise ConfigurationError("a broker URL is kafka://HOST:PORT[,HOST:PORT…][?option=value&…]")
    common: dict[str, str] = {}
    producer: dict[str, str] = {}
    consumer: dict[str, str] = {}
    create: dict[str, str] = {}
    own: dict[str, str] = {}
    for name, value in _pairs(query):
        if name in ("replication", "prefix"):
            own[name] = value
        elif name.startswith("create."):
            create[name.removeprefix("create.")] = value
        elif name.startswith("producer."):
            producer[name.removeprefix("producer.")] = value
        elif name.startswith("consumer."):
            consumer[name.removeprefix("consumer.")] = value
        else:
            common[name] = value
    _refuse_ours([*common, *producer, *consumer])
    return Options(
        servers, common, producer, consumer, create, _replication(own.get("replication")), own.get("prefix", "")
    )


def _is_server(text: str) -> bool:
    host, colon, port = text.rpartition(":")
    return bool(host) and port.isdigit() if colon else bool(port)


def _pairs(query: str) -> Iterable[tuple[str, str]]:
    for part in query.split("&"):
        if not part:
            continue
        name, equals, value = part.partition("=")
        if not equals or not name:
            raise ConfigurationError("the options of a broker URL are name=value, with & between them")
        yield unquote(name), unquote(value)  # a plus is a plus: passwords have some


def _replication(text: str | None) -> int:
    if text is None:
        return -1
    if not text.isdigit() or not 0 < int(text) < 100:
        raise ConfigurationError(f"replication={text} in the broker's URL is no number of copies; leave it out for the "
                                 "broker's default")  # fmt: skip
    return int(text)


def _refuse_ours(names: Iterable[str]) -> None:
    for name in names:
        if name in _OURS_ALONE:
            raise ConfigurationError(
                f"{name} in the broker's URL cannot be chosen: messages, their order or what is settled could be lost"
            )


_USUAL = ("CONFWARN", "FAIL ", "ERROR ", "GETPID ", "REQTMOUT ", "TERMINATE ", "METADATAUPDATE ")


class _Quieter(logging.Filter):
    """What the library says of settings that are as they should be, and of every attempt to connect, is for those
    who look for it: what lasts is told by the transport."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG or record.levelno >= logging.CRITICAL:
            return True
        text = record.getMessage()
        if not any(word in text for word in _USUAL):
            return True
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


def client_log() -> logging.Logger:
    """Where the library's own log goes: ``eventkeel.transports.kafka.client``."""
    logger = logging.getLogger("eventkeel.transports.kafka.client")
    if not any(isinstance(each, _Quieter) for each in logger.filters):
        logger.addFilter(_Quieter())
    return logger
