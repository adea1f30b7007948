"""Sends the outbox: in order per key, never a transaction open during a send, never removed before confirmed.

Never a cursor either: what is unsent is asked for anew each time, so a row that becomes visible
late is simply found later. A zombie relay does no harm: it never sends the next event of a key
before the one before it was confirmed, repeats are absorbed by the inboxes, and its removal fails
at the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

from eventkeel.engine.context import RELAY, Context
from eventkeel.engine.faults import point
from eventkeel.engine.lifecycle import Part
from eventkeel.engine.ownership import Ownership
from eventkeel.errors import BrokerUnavailable
from eventkeel.message import Headers, Outgoing, Slice
from eventkeel.ports.store import Unsent
from eventkeel.ports.transport import Outcome, Refused, Sent, TopicWant, Topology

FIRST, SMALLEST = 500, 20
"""Rows of a relay's first wave, before it knows how large they are, and of the smallest one."""
WAVE_BYTES = 16 * 1024 * 1024


class Relay(Part):
    """One loop over all outbox shards that this process owns."""

    name = "relay"

    def __init__(self, context: Context, ownership: Ownership, partitions: int) -> None:
        super().__init__(context)
        self._ownership, self._partitions = ownership, partitions
        self._troubles = 0
        self._most = min(context.numbers.relay_wave, FIRST)

    async def run_once(self) -> None:
        more = await self.wave()
        if self._troubles:
            await self.pause(min(5.0, 0.05 * 2 ** min(self._troubles, 10)) * (0.5 + self.context.dice()))
        elif not more:
            await self.pause(self.context.numbers.poll)

    async def wave(self) -> bool:
        """Send one wave; True when there may be more to send at once."""
        shards = dict(self._ownership.relays)
        if not shards or not self._lease_is_fresh():
            return False
        numbers = self.context.numbers
        pipelined = self.context.transport.caps.ordered_pipeline
        most = self._most
        rows = await self.context.store.unsent([shard.partition for shard in shards], most, heads_only=not pipelined)
        if not rows:
            self._troubles = 0
            return False
        full = len(rows) == most
        self._most = self._next_size(rows)
        point("relay.selected")
        began = self.context.clock.monotonic()
        outcomes = await self.context.transport.publish([_outgoing(row) for row in rows], numbers.publish_deadline)
        point("relay.sent")
        sent = await self._record(rows, outcomes, shards)
        if sent:
            for observer in self.context.observers:
                observer.relayed(sent, self.context.clock.monotonic() - began)
        whole = sent == len(rows)
        if not whole:
            self._tell_why(outcomes)
        self._troubles = 0 if whole else self._troubles + 1
        return whole and (full or not pipelined)

    def _tell_why(self, outcomes: Sequence[Outcome]) -> None:
        """Why events wait in the outbox."""
        reason = next(each.reason for each in outcomes if not isinstance(each, Sent))
        self.tell(BrokerUnavailable(f"events wait in the outbox, and are sent again: {reason}"))

    def _next_size(self, rows: Sequence[Unsent]) -> int:
        """Rows of the next wave: as many as their bytes allow, if they are like these."""
        size = sum(len(row.body) + len(row.headers) for row in rows) // len(rows)
        return max(SMALLEST, min(self.context.numbers.relay_wave, WAVE_BYTES // (size + 1)))

    def _lease_is_fresh(self) -> bool:
        """Stop sending before anybody else may start: saves duplicates, is not what makes it safe."""
        age = self.context.clock.monotonic() - self._ownership.renewed_at
        return age < self.context.numbers.lease * 2 / 3

    async def _record(self, rows: Sequence[Unsent], outcomes: Sequence[Outcome], shards: dict[Slice, int]) -> int:
        """Remove what was confirmed, mark what was refused for good; the number confirmed."""
        confirmed: list[int] = []
        missing: set[str] = set()
        for row, outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, Sent):
                confirmed.append(row.id)
            elif isinstance(outcome, Refused) and outcome.final:
                shard = Slice(RELAY, row.shard)
                await self.context.store.stuck(self.context.group, shard, shards[shard], row.id, outcome.reason)
            elif isinstance(outcome, Refused):
                missing.add(row.topic)
        if lost := await self.context.store.sent(self.context.group, shards, confirmed):
            await self._ownership.lost(lost)
        point("relay.removed")
        if missing:
            wants = tuple(TopicWant(topic, self._partitions) for topic in sorted(missing))
            await self.context.transport.topology(Topology(topics=wants), apply=True)
        return len(confirmed)


def _outgoing(row: Unsent) -> Outgoing:
    return Outgoing(row.topic, row.key, Headers.from_packed(row.headers), row.body)
