"""From the broker's URL to options, and the names of things on the broker.

amqp[s]://[user[:password]@]host[:port][,host[:port]…][/vhost][?option=value&…]
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from urllib.parse import unquote

import msgspec

from eventkeel.errors import ConfigurationError

MAX_KEY = 255
"""Bytes of a routing key."""
HEARTBEAT = 5
"""Seconds; a peer that says nothing for twice as long is gone."""
CATCH_UP = 15.0
"""Seconds that a message may be under way when a group is bound: the relay's deadline and a bit."""
SETTLE = 1.5
"""Seconds after which a node cannot forget a new queue any more. Before RabbitMQ 3.13.4 it writes down late what queues
it has: killed within a second, it comes back with a new one empty, or with its first stream unusable for ever."""

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]@/]+)(?::(\d{1,5}))?")
_AGE = re.compile(r"[1-9]\d*[YMDhms]")
_UNITS = {"Y": 365 * 86400, "M": 30 * 86400, "D": 86400, "h": 3600, "m": 60, "s": 1}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a broker's URL says."""

    hosts: tuple[tuple[str, int], ...]
    user: str = "guest"
    password: str = "guest"
    vhost: str = "/"
    secure: bool = False
    cafile: str = ""
    certfile: str = ""
    keyfile: str = ""
    prefix: str = ""
    """In front of every name on the broker, so that several systems can share one virtual host."""
    heartbeat: int = HEARTBEAT
    prefetch: int = 1000
    """Messages of one slice that may be on their way to this process."""
    max_body: int = 1_000_000
    history: str = "7D"
    """How long a topic's history is kept (``x-max-age``)."""
    catch_up: float = CATCH_UP
    settle: float = SETTLE
    delivery_limit: int = 100
    """Hand-overs of one message that ended without an answer, after which the broker takes it aside."""
    replication: int = 0
    """Members of a new queue; 0: the broker's default."""
    management: str = ""
    """URL of the management API, or several with commas between them; ``no``: do not look for it; empty: the usual
    port."""

    @property
    def name(self) -> str:
        """The broker as people are told of it: without user, password and options."""
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        vhost = "" if self.vhost == "/" else f"/{self.vhost}"
        return f"amqp{'s' if self.secure else ''}://{hosts}{vhost}"

    @property
    def history_age(self) -> float:
        """``history`` in seconds."""
        return float(int(self.history[:-1]) * _UNITS[self.history[-1]])

    def context(self) -> ssl.SSLContext | None:
        """How to encrypt. Raises ConfigurationError where a file cannot be read."""
        if not self.secure:
            return None
        try:
            context = ssl.create_default_context(cafile=self.cafile or None)
            if self.certfile:
                context.load_cert_chain(self.certfile, self.keyfile or None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{self.name}: cafile, certfile or keyfile cannot be used: {error}") from error
        return context

    # -- names on the broker

    def exchange(self, topic: str) -> str:
        return self.prefix + topic

    def history_of(self, topic: str) -> str:
        return f"{self.prefix}{topic}.history"

    def generation(self, group: str, topic: str, number: int) -> str:
        """A generation's hash exchange."""
        return f"{self.prefix}{group}.{topic}.g{number}"

    def queue(self, group: str, topic: str, number: int, shard: int) -> str:
        return f"{self.generation(group, topic, number)}.{shard}"

    def dead(self, group: str) -> str:
        """Where the broker puts what it has handed over too often: an exchange and its queue."""
        return f"{self.prefix}{group}.dead"

    @property
    def registry(self) -> str:
        return f"{self.prefix}eventkeel.registry"


def parse(rest: str, *, secure: bool = False) -> Options:
    """Read what follows ``amqp:``. Raises ConfigurationError, never with a secret in it."""
    address, _, query = rest.removeprefix("//").partition("?")
    place, _, vhost = address.partition("/")
    login, _, hosts = place.rpartition("@")
    user, colon, password = login.partition(":")
    options = dict(_pairs(query))
    made = Options(
        hosts=tuple(_host(text, secure) for text in hosts.split(",")),
        user=unquote(user) if user else "guest",
        password=unquote(password) if colon else "guest",
        vhost=unquote(vhost) or "/",
        secure=secure,
        cafile=options.pop("cafile", ""),
        certfile=options.pop("certfile", ""),
        keyfile=options.pop("keyfile", ""),
        prefix=options.pop("prefix", ""),
        heartbeat=_number(options, "heartbeat", HEARTBEAT, 2, 600),
        prefetch=_number(options, "prefetch", 1000, 1, 60_000),
        max_body=_number(options, "max_body", 1_000_000, 1, 134_217_728),
        history=options.pop("history", "7D"),
        catch_up=_number(options, "catch_up_ms", int(CATCH_UP * 1000), 0, 3_600_000) / 1000,
        settle=_number(options, "settle_ms", int(SETTLE * 1000), 0, 60_000) / 1000,
        delivery_limit=_number(options, "delivery_limit", 100, 20, 1_000_000),
        replication=_number(options, "replication", 0, 1, 99),
        management=options.pop("management", ""),
    )
    if options:
        raise ConfigurationError(
            f"{', '.join(sorted(options))} in the broker's URL is no option of RabbitMQ's transport; there are cafile, "
            "catch_up_ms, certfile, delivery_limit, heartbeat, history, keyfile, management, max_body, prefetch, "
            "prefix, replication, settle_ms"
        )
    if not _AGE.fullmatch(made.history):
        raise ConfigurationError(f"history={made.history} in the broker's URL is no age, such as 7D or 12h")
    return made


def _host(text: str, secure: bool) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    port = int(found[2] or (5671 if secure else 5672)) if found else 0
    if found is None or not 0 < port < 65536:
        raise ConfigurationError("a broker URL is amqp://[USER:PASSWORD@]HOST[:PORT][,HOST…][/VHOST][?option=value&…]")
    return found[1].strip("[]"), port


def _pairs(query: str) -> Iterable[tuple[str, str]]:
    for part in query.split("&"):
        if part:
            name, equals, value = part.partition("=")
            if not equals or not name:
                raise ConfigurationError("the options of a broker URL are name=value, with & between them")
            yield unquote(name), unquote(value)


def _number(options: dict[str, str], name: str, default: int, least: int, most: int) -> int:
    text = options.pop(name, None)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise ConfigurationError(f"{name}={text} in the broker's URL is no number from {least:,} to {most:,}")
    return int(text)


_BALANCED = {"x-queue-leader-locator": "balanced"}
"""Leaders are spread over the nodes of a cluster, not all put where the declaring process happens to be connected."""


def stream_arguments(options: Options, *, age: bool) -> dict[str, object]:
    """Of a stream that is declared."""
    arguments: dict[str, object] = {"x-queue-type": "stream", **_BALANCED}
    if age:
        arguments["x-max-age"] = options.history
    if options.replication:
        arguments["x-initial-cluster-size"] = options.replication
    return arguments


def quorum_arguments(options: Options) -> dict[str, object]:
    """Of a queue that survives the loss of a minority of its members."""
    arguments: dict[str, object] = {"x-queue-type": "quorum", **_BALANCED}
    if options.replication:
        arguments["x-quorum-initial-group-size"] = options.replication
    return arguments


def shard_arguments(options: Options, group: str) -> dict[str, object]:
    """Of a shard queue that is declared."""
    return {
        **quorum_arguments(options),
        "x-single-active-consumer": True,
        "x-overflow": "reject-publish",
        "x-delivery-limit": options.delivery_limit,
        "x-dead-letter-exchange": options.dead(group),
        "x-dead-letter-strategy": "at-least-once",
    }
