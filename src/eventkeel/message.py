"""Messages and deliveries: frozen values, no I/O.

A *message* is an event on the wire. A *delivery* is one hand-over of a message. A *slice* is one
partition (or shard queue) of a topic in one generation: what a process is assigned.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from uuid import UUID

import msgspec

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[tuple[str, bytes], ...]).decode


class Headers:
    """Names and values beside a body: in order, byte for byte, names may repeat.

    Packed and unpacked at most once each, so that a message can pass from a store to a broker
    without being taken apart. ``packed`` is a MessagePack array of ``[name, bytes]`` pairs.
    """

    __slots__ = ("_packed", "_pairs")

    def __init__(self, pairs: Iterable[tuple[str, bytes]] = ()) -> None:
        self._pairs: tuple[tuple[str, bytes], ...] | None = tuple(pairs)
        self._packed: bytes | None = None

    @classmethod
    def from_packed(cls, packed: bytes) -> Headers:
        """Take what ``packed`` gave; it is not read until somebody looks."""
        self = cls.__new__(cls)
        self._packed, self._pairs = packed, None
        return self

    @property
    def packed(self) -> bytes:
        if self._packed is None:
            self._packed = _pack(self._pairs)
        return self._packed

    @property
    def pairs(self) -> tuple[tuple[str, bytes], ...]:
        if self._pairs is None:
            assert self._packed is not None
            self._pairs = _unpack(self._packed)
        return self._pairs

    def get(self, name: str) -> bytes | None:
        """The last value of ``name`` (any case), or None."""
        wanted = name.lower()
        found = None
        for each, value in self.pairs:
            if each.lower() == wanted:
                found = value
        return found

    def text(self, name: str) -> str | None:
        """Like ``get``, as text; bytes that are not UTF-8 become U+FFFD instead of an error."""
        value = self.get(name)
        return None if value is None else value.decode("utf-8", "replace")

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Headers) and self.pairs == other.pairs

    def __hash__(self) -> int:
        return hash(self.pairs)

    def __repr__(self) -> str:
        return f"Headers({list(self.pairs)!r})"


class Slice(NamedTuple):
    """One partition or shard queue of a topic, in one generation: what leases and owner rows name."""

    topic: str
    partition: int
    generation: int = 1

    def __str__(self) -> str:
        tail = f" (generation {self.generation})" if self.generation != 1 else ""
        return f"{self.topic}/{self.partition}{tail}"


class Position(NamedTuple):
    """A place in a slice, bound to the incarnation (topic id, channel) in which it means something."""

    at: int
    incarnation: str


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A message to send, exactly as it shall lie on the broker."""

    topic: str
    key: bytes | None
    headers: Headers
    body: bytes


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """One hand-over of a message.

    Transports fill the upper part. A handler that asks for a ``Delivery`` finds the lower part
    filled too: the event's id and type, and the attempt (1 for the first).
    """

    slice: Slice
    position: int
    key: bytes | None
    headers: Headers
    body: bytes | None
    """None is a tombstone: a message with no body at all."""
    time: float
    """When the broker took it, in Unix seconds (0.0: unknown)."""
    id: UUID | None = None
    type: str = ""
    attempt: int = 1
    consumer: str = ""

    @property
    def topic(self) -> str:
        return self.slice.topic

    @property
    def correlation_id(self) -> str | None:
        return self.headers.text("ce_correlationid")

    @property
    def causation_id(self) -> str | None:
        return self.headers.text("ce_causationid")

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that adds this delivery's ids to every line."""
        extra = {"topic": self.topic, "position": self.position, "event_id": str(self.id), "attempt": self.attempt}
        return logging.LoggerAdapter(logging.getLogger(f"eventkeel.handler.{self.consumer}"), extra)
