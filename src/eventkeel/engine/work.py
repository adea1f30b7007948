"""What travels through the engine: slices as this process owns them, and works (delivery × consumer)."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid5

from eventkeel import codec
from eventkeel.message import Delivery, Position, Slice
from eventkeel.policy.watermark import Watermark
from eventkeel.ports.store import Claim, Held
from eventkeel.routing import Consumer


class Share:
    """A slice as this process owns it: the epoch that fences it, and how far it is finished."""

    __slots__ = (
        "dirty",
        "each",
        "epoch",
        "finished",
        "handled",
        "incarnation",
        "live",
        "slice",
        "stalled",
        "stored",
        "suspect",
        "watermark",
    )

    def __init__(self, slice: Slice, epoch: int, incarnation: str, base: int | None, suspect: int) -> None:
        self.slice, self.epoch, self.incarnation = slice, epoch, incarnation
        self.watermark = Watermark(base)
        self.stored = base
        """Next position as the store knows it."""
        self.handled: int | None = None
        """Next position as the store knows it, where the broker begins before it: until then the inbox absorbs."""
        self.finished: list[int] = []
        """Positions finished since the last settle, for brokers that settle each."""
        self.suspect = suspect
        """How many more fresh deliveries run alone, because the last owner did not release it."""
        self.live = True
        """False as soon as it is revoked, lost or fenced: nothing of it may begin any more."""
        self.dirty = False
        self.stalled = False
        """As many of one of its keys are parked as may be: it waits, until ownership lets it go on."""
        self.each = False
        """Its broker settles each delivery by itself and stores no position."""

    def finish(self, position: int) -> None:
        self.watermark.finish(position)
        self.finished.append(position)
        self.dirty = True

    def to_settle(self) -> list[Position]:
        """What the broker may be told now."""
        self.dirty = False
        finished, self.finished = self.finished, []
        if self.each:
            return [Position(position, self.incarnation) for position in finished]
        return [] if self.watermark.base is None else [Position(self.watermark.base, self.incarnation)]


class Arrived:
    """A delivery that came in; finished when each of its consumers is."""

    __slots__ = ("at", "delivery", "left", "share")

    def __init__(self, delivery: Delivery, share: Share, left: int, at: float) -> None:
        self.delivery, self.share, self.left, self.at = delivery, share, left, at

    def finish(self) -> bool:
        """One consumer is done with it; True when it was the last."""
        self.left -= 1
        if self.left:
            return False
        self.share.finish(self.delivery.position)
        return True


class Work:
    """One delivery for one consumer (None: nobody can be told; see ``refusal``)."""

    __slots__ = (
        "arrived",
        "attempt",
        "consumer",
        "correlation",
        "event",
        "event_id",
        "fingerprint",
        "finished",
        "key",
        "marked",
        "name",
        "refusal",
        "share",
        "type",
    )

    def __init__(
        self,
        arrived: Arrived,
        consumer: Consumer | None,
        name: str,
        event: Any,
        event_id: bytes,
        key: bytes | None,
        type: str,
        fingerprint: bytes | None = None,
        refusal: Refusal | None = None,
        correlation: str | None = None,
    ) -> None:
        self.arrived, self.share, self.consumer, self.name, self.event = arrived, arrived.share, consumer, name, event
        self.event_id, self.key, self.type, self.fingerprint = event_id, key, type, fingerprint
        self.refusal, self.correlation = refusal, correlation
        self.attempt = 1
        self.finished = False
        self.marked = False
        """Its start was counted, because it may kill its process."""

    @property
    def delivery(self) -> Delivery:
        return self.arrived.delivery

    def renew(self) -> None:
        """Read the event again: a handler may have changed it before its unit was rolled back."""
        if self.consumer is not None:
            self.event = codec.decode(self.arrived.delivery).event

    def claim(self) -> Claim:
        share, position = self.share, self.arrived.delivery.position
        return Claim(self.event_id, share.slice, position, share.epoch, self.key, self.fingerprint)

    def told(self) -> Delivery:
        """The delivery as a handler (or an observer) sees it, with ids and attempt."""
        return tell(self.arrived.delivery, self.event_id, self.type, self.attempt, self.name)

    def held(self, *, attempts: int = 0, reason: str = "", error: str = "", event_id: bytes | None = None) -> Held:
        delivery = self.arrived.delivery
        return Held(
            event_id=event_id or self.event_id,
            slice=delivery.slice,
            position=delivery.position,
            key=self.key,
            headers=delivery.headers.packed,
            body=delivery.body,
            time=delivery.time,
            type=self.type,
            fingerprint=self.fingerprint,
            attempts=attempts,
            reason=reason,
            error=error,
        )


class Refusal:
    """Why no consumer can be told: an unknown type (its key waits) or bytes that are no event (dead)."""

    __slots__ = ("error", "reason", "waits")

    def __init__(self, reason: str, error: str, waits: bool) -> None:
        self.reason, self.error, self.waits = reason, error, waits


def tell(delivery: Delivery, event_id: bytes, type: str, attempt: int, consumer: str) -> Delivery:
    return Delivery(
        delivery.slice,
        delivery.position,
        delivery.key,
        delivery.headers,
        delivery.body,
        delivery.time,
        UUID(bytes=event_id),
        type,
        attempt,
        consumer,
    )


def conflict_id(event_id: bytes, fingerprint: bytes) -> bytes:
    """The id of an event that has the identity of another one and other facts."""
    return uuid5(UUID(bytes=event_id), fingerprint.hex()).bytes
