"""From the subscription into the lanes: decode once, find the consumers, never run a handler."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from uuid import UUID, uuid5

from eventkeel import codec
from eventkeel.engine.context import Context
from eventkeel.engine.faults import point
from eventkeel.engine.lanes import Lane
from eventkeel.engine.lifecycle import Part
from eventkeel.engine.ownership import Ownership
from eventkeel.engine.step_lane import StepLane
from eventkeel.engine.work import Arrived, Refusal, Share, Work, tell
from eventkeel.errors import ConfigurationError, MalformedMessage, UnknownType
from eventkeel.message import Delivery
from eventkeel.ports.transport import Assigned, Broken, Deliveries, Halted, Lost, Resumed, Revoking, Subscription

LINGER = 0.25
"""Seconds that new deliveries may wait, at most, while every lane is at work: the first lane that turns ends it. So
they are taken together, and a process that waits for the database does not disturb the one that has it."""
PLACE = UUID("8f5d1c7e-52a4-5c0f-9b57-0a5a3c0f6d21")
"""Namespace of the ids that undecodable messages get from where they lie."""


class Intake(Part):
    """Takes what arrives and puts it into lanes. What is not finished yet is bounded by the
    subscription's budget: when that is used up, ``next`` waits, and that is the backpressure."""

    name = "intake"

    def __init__(self, context: Context, subscription: Subscription, lanes: list[Lane], ownership: Ownership) -> None:
        super().__init__(context)
        self._subscription, self._ownership = subscription, ownership
        self._lanes = [lane for lane in lanes if not isinstance(lane, StepLane)]
        self._steps = [lane for lane in lanes if isinstance(lane, StepLane)]
        self._waiting = False
        self._taken = False
        for lane in lanes:
            lane.turned = self.wake

    async def stop(self) -> None:
        """Stop taking. A call of ``next`` under way is cancelled; it has handed nothing over."""
        self._stopping = True
        if self._waiting and self._task is not None:
            self._task.cancel()
        await super().stop()

    async def run_once(self) -> None:
        if self._taken and all(lane.working for lane in self._lanes):
            self._taken = False
            await self.pause(LINGER)
            if self._stopping:
                return
        # Not in a task of its own: between its end and our turn a slice could be lost and begun anew,
        # and what was handed over would count for the new beginning.
        self._waiting = True
        try:
            arrival = await self._subscription.next()
        finally:
            self._waiting = False
        match arrival:
            case Deliveries():
                self._taken = True
                self._deliver(arrival)
            case Assigned(slices):
                await self._ownership.given(slices)
            case Revoking(slices, _):
                await self._ownership.revoked(slices)
            case Lost(slices):
                await self._ownership.taken_away(slices)
            case Halted(reason):
                await self._ownership.halt(reason)
            case Resumed():
                self._ownership.resume()
            case Broken(reason, fatal):
                if fatal:
                    raise ConfigurationError(f"service {self.context.service}: {reason}")
                raise RuntimeError(reason)

    def _deliver(self, arrival: Deliveries) -> None:
        share = self._ownership.shares.get(arrival.slice)
        if share is None or not share.live:
            return  # taken away meanwhile; its next owner gets them
        if share.handled is not None:
            self._refuse_forgotten(arrival.items, share)
        share.incarnation, share.each = arrival.incarnation, arrival.each
        now = self.context.clock.monotonic()
        for delivery in arrival.items:
            share.watermark.take(delivery.position)
            self._route(delivery, share, now)
        point("intake.taken")

    def _refuse_forgotten(self, items: Sequence[Delivery], share: Share) -> None:
        """What the store has handled and the inbox may have forgotten since would take effect once more."""
        assert share.handled is not None
        remembered = self.context.numbers.retention
        horizon = self.context.clock.now() - remembered
        for each in items:
            if each.position >= share.handled:
                share.handled = None
                return
            if 0 < each.time < horizon:
                raise ConfigurationError(
                    f"service {self.context.service}: the broker has group {self.context.group!r} at position "
                    f"{each.position} of {share.slice}, the store has handled all before {share.handled}, and this "
                    f"message is older than the {remembered / 86400:g} days that the inbox remembers: it would take "
                    "effect again. Start once with --start store to go on where the store is, or move the group at the "
                    "broker to a younger position"
                )

    def _route(self, delivery: Delivery, share: Share, now: float) -> None:
        topic = delivery.slice.topic
        try:
            decoded = codec.decode(delivery)
        except UnknownType as unknown:
            if (topic, unknown.type) in self.context.routes.ignored:
                self._pass_over(delivery, share, now, unknown.type)
            else:
                refusal = Refusal("unknown-type", str(unknown), waits=True)
                self._put_refusal(delivery, share, now, refusal, unknown.type)
            return
        except MalformedMessage as malformed:
            refusal = Refusal(malformed.reason, str(malformed), waits=False)
            self._put_refusal(delivery, share, now, refusal, _claimed_type(delivery))
            return
        consumers = self.context.routes.of(topic, decoded.type)
        if not consumers:
            self._pass_over(delivery, share, now, decoded.type)
            return
        arrived = Arrived(delivery, share, len(consumers), now)
        event_id, key = decoded.id, decoded.key
        for observer in self.context.observers:
            observer.received(tell(delivery, event_id, decoded.type, 1, ""))
        lane = self._lanes[hash((topic, key)) % len(self._lanes)]
        for consumer in consumers:
            at = self._steps[0] if consumer.steps else lane
            at.put(
                Work(
                    arrived,
                    consumer,
                    consumer.name,
                    decoded.event,
                    event_id,
                    key,
                    decoded.type,
                    decoded.fingerprint,
                    correlation=decoded.correlation,
                )
            )

    def _put_refusal(self, delivery: Delivery, share: Share, now: float, refusal: Refusal, type: str) -> None:
        event_id = uuid5(PLACE, _place(delivery, share)).bytes
        for observer in self.context.observers:
            observer.received(tell(delivery, event_id, type, 1, ""))
        key = delivery.key or event_id
        lane = self._lanes[hash((delivery.slice.topic, key)) % len(self._lanes)]
        arrived = Arrived(delivery, share, 1, now)
        lane.put(Work(arrived, None, self.context.undecided, None, event_id, key, type, None, refusal))

    def _pass_over(self, delivery: Delivery, share: Share, now: float, type: str) -> None:
        """A type that this service has nothing to do with: finished at once."""
        Arrived(delivery, share, 1, now).finish()
        self._ownership.passed_over(share)
        for observer in self.context.observers:
            observer.done(tell(delivery, PLACE.bytes, type, 1, ""), "ignored", 0.0)


def _place(delivery: Delivery, share: Share) -> str:
    """What tells an undecodable message from any other: where it lies, or what it is where it lies nowhere for long."""
    if not share.each:
        return f"{share.incarnation}/{delivery.slice}/{delivery.position}"
    content = blake2b(delivery.headers.packed, digest_size=32)
    content.update(delivery.body or b"")
    return f"{delivery.slice.topic}/{(delivery.key or b'').hex()}/{content.hexdigest()}"


def _claimed_type(delivery: Delivery) -> str:
    """What a message that cannot be read says it is: for people who look at its dead letter."""
    try:
        return (delivery.headers.text("ce_type") or "")[:200]
    except Exception:  # its headers cannot be read either
        return ""
