"""The seam to a broker.

Pulled, in lists, without callbacks: every change of ownership is an item in the same stream as the
deliveries. What Kafka, RabbitMQ and SQLite do in each method: docs/adr/0002-transport-port.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Literal, Protocol, runtime_checkable

import msgspec

from eventkeel.message import Delivery, Outgoing, Position, Slice


class Caps(msgspec.Struct, frozen=True):
    """What a broker can do. What it cannot is refused at start-up, never ignored."""

    settle: Literal["prefix", "each"]
    """What its slices usually do. ``prefix``: settling a position settles all before it. ``each``: one
    by one. A single slice may differ: ``Deliveries.each``."""
    log: bool
    """Messages can be read again."""
    ordered_pipeline: bool
    """A whole wave of one key may be in flight at once without losing its order."""
    assigns: bool
    """The broker assigns slices; otherwise the engine does, by leases in the store."""
    max_body: int
    """Largest body in bytes."""
    max_key: int = 1024
    """Largest key in bytes."""
    memory: float = 0.0
    """Seconds back that the broker may bring again, by itself or by an operator's command, what a group has handled:
    an inbox that forgets sooner would let it take effect twice."""


class TopicWant(msgspec.Struct, frozen=True):
    name: str
    partitions: int


class GroupWant(msgspec.Struct, frozen=True):
    """A consumer group, bound to one store: another store under the same name is refused."""

    name: str
    store_id: str
    topics: tuple[str, ...]


class Topology(msgspec.Struct, frozen=True):
    topics: tuple[TopicWant, ...] = ()
    groups: tuple[GroupWant, ...] = ()


class Finding(msgspec.Struct, frozen=True):
    """Something that was declared (``created``) or that does not fit (``refused``)."""

    kind: Literal["created", "same", "refused"]
    what: str
    detail: str = ""


class Sent(msgspec.Struct, frozen=True, gc=False):
    """The broker has it durably."""


class Unrouted(msgspec.Struct, frozen=True):
    """The broker took it, and no queue would hold it. Nothing was stored."""

    reason: str


class Refused(msgspec.Struct, frozen=True):
    """The broker will never take this one (too large, no such topic, forbidden)."""

    reason: str
    final: bool = True


class Unknown(msgspec.Struct, frozen=True):
    """No answer: it may or may not be stored. Send it again, with the same id."""

    reason: str


Outcome = Sent | Unrouted | Refused | Unknown


class Budget(msgspec.Struct, frozen=True):
    """How much a subscription may hand over that is not finished yet."""

    count: int = 2000
    bytes: int = 16 * 1024 * 1024


class Assigned(msgspec.Struct, frozen=True):
    slices: tuple[Slice, ...]


class Revoking(msgspec.Struct, frozen=True):
    """Finish or abandon what runs from these slices, then ``release`` them before the deadline."""

    slices: tuple[Slice, ...]
    deadline: float
    """Seconds from now."""


class Lost(msgspec.Struct, frozen=True):
    """These slices belong to somebody else already: commit nothing more from them."""

    slices: tuple[Slice, ...]


class Deliveries(msgspec.Struct, frozen=True, gc=False):
    slice: Slice
    incarnation: str
    """Opaque to the engine, which never makes or compares one: ``settle`` gets it back inside each
    ``Position`` and drops an old one; ``begin`` compares only the part of it that outlives a session."""
    items: Sequence[Delivery]
    each: bool = False
    """Deliveries of this slice are settled one by one, and have no position that could be stored."""


class Broken(msgspec.Struct, frozen=True):
    """The subscription cannot go on. ``fatal``: not by reconnecting either; an operator has to act."""

    reason: str
    fatal: bool


class Halted(msgspec.Struct, frozen=True):
    """The group stands still until an operator has done what ``reason`` says: give up its slices, begin none. Only
    this subscription: what else the process does goes on. ``Resumed`` follows."""

    reason: str


class Resumed(msgspec.Struct, frozen=True):
    """What halted the group has been mended: its slices may be begun again."""


Arrival = Assigned | Revoking | Lost | Deliveries | Halted | Resumed | Broken


class SliceLag(msgspec.Struct, frozen=True):
    slice: Slice
    settled: int | None
    """Next position the group has told the broker about (a hint; the store is the judge); None: never."""
    end: int
    """Position that the next message will get."""
    incarnation: str = ""
    """Of the topic now; empty: the broker has no such thing."""
    oldest: float | None = None
    """Broker time (Unix seconds) of the oldest message that is not settled."""


class Span(msgspec.Struct, frozen=True):
    """What to read again: positions from ``first`` up to and without ``last`` of one partition (None: all)."""

    partition: int | None = None
    first: int = 0
    last: int | None = None


class Subscription(Protocol):
    """One process's membership in a consumer group."""

    async def next(self) -> Arrival:
        """The next thing that happened; waits for it. Not calling it is backpressure. May be cancelled."""
        ...

    async def begin(self, slice: Slice, at: Position | None) -> None:
        """Let a slice flow from ``at`` (None: from its earliest message). Nothing flows from it before.

        Raises PositionError where ``at`` cannot be: the topic was re-created, the position is gone
        by retention or lies beyond the end.
        """
        ...

    async def settle(self, slice: Slice, positions: Sequence[Position]) -> None:
        """These positions are finished: their outcome is durable in the store. Never waits for the
        broker's disk. With ``caps.settle == "prefix"`` a position means: all before it are finished
        (``at`` is the next position wanted); with ``each`` it means that one delivery."""
        ...

    async def pause(self, slices: Collection[Slice], on: bool) -> None: ...

    async def release(self, slices: Collection[Slice]) -> None:
        """Give slices back; nothing of them is handed over afterwards."""
        ...

    async def close(self, deadline: float) -> None: ...


class Transport(Protocol):
    """One broker. Made closed; ``open`` before use."""

    @property
    def caps(self) -> Caps: ...

    async def open(self) -> None: ...

    async def close(self, deadline: float) -> None: ...

    async def topology(self, want: Topology, *, apply: bool) -> list[Finding]:
        """Declare what is missing (``apply``) or only compare. Never alters what exists."""
        ...

    async def publish(self, wave: Sequence[Outgoing], deadline: float) -> Sequence[Outcome]:
        """Send a wave, in order per key; one outcome each; returns when all are decided or
        ``deadline`` seconds have passed (the rest is Unknown). Never raises for a single message.
        Behind a message that was not sent, nothing of its (topic, key) is ``Sent`` in this wave, unless
        the broker had it in flight already; the relay sends again from the first unsent of the key."""
        ...

    def subscribe(self, group: str, topics: Sequence[str], budget: Budget) -> Subscription: ...

    async def slices(self, group: str, topics: Sequence[str]) -> Sequence[Slice]:
        """What can be leased, where the broker does not assign."""
        ...

    async def lag(self, group: str) -> Sequence[SliceLag]: ...

    def read(self, topic: str, span: Span) -> AsyncIterator[Sequence[Delivery]]:
        """Read a topic again, without a group and without settling anything."""
        ...


@runtime_checkable
class Refills(Protocol):
    """A transport whose queues have no positions: what they lost can only come from the topic's history."""

    async def refill(self, group: str, topic: str, partitions: int | None = None) -> str:
        """Give a group new queues for a topic, which begin with what the history holds. What was done, for people.
        Raises ConfigurationError: no such group or topic."""
        ...
