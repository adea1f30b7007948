"""What every part of one running service shares: its ports, its policies' numbers, its ids."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from eventkeel import codec
from eventkeel.codec.identity import as_text
from eventkeel.engine.quarantine import Quarantine
from eventkeel.engine.work import Work
from eventkeel.errors import PublishError
from eventkeel.handling import Encode, Scope
from eventkeel.message import Slice
from eventkeel.policy.crowding import Crowding
from eventkeel.ports.clock import Clock
from eventkeel.ports.observer import Observer, Shielded
from eventkeel.ports.store import Record, Store, Unit
from eventkeel.ports.transport import Transport
from eventkeel.routing import Routes

RELAY = "$outbox"
"""Topic of the slices that relays own: the outbox's shards, leased like partitions."""

SENDS_ONLY = "relay/"
"""How the names of members begin that send and do not consume: no partition is kept for them."""


class Numbers(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's options, resolved (config.py declares them)."""

    batch_size: int = 100
    lanes: int = 1
    lease: float = 5.0
    """Seconds without a renewal after which others may take over."""
    unit_seconds: float = 0.1
    """A unit takes no further delivery after this long."""
    deadline: float = 30.0
    budget_count: int = 2000
    budget_bytes: int = 16 * 1024 * 1024
    relay_wave: int = 5000
    publish_deadline: float = 10.0
    steps: int = 16
    """Deliveries of handlers with steps that run at once."""
    key_cap: int = 1000
    """Deliveries that may wait behind one failed one; at more, their partition waits (never dropped)."""
    poll: float = 0.2
    """Net below the wake-ups, seconds."""
    settle_every: float = 1.0
    retention: float = 30 * 86400.0
    start: str = "none"


class Context:
    """Made once per running service and process; handed to every part."""

    def __init__(
        self,
        *,
        service: str,
        group: str,
        member: str,
        store: Store,
        transport: Transport,
        routes: Routes,
        clock: Clock,
        dice: Callable[[], float],
        new_id: Callable[[], bytes],
        observers: Sequence[Observer],
        numbers: Numbers,
    ) -> None:
        self.service, self.group, self.member = service, group, member
        self.store, self.transport, self.routes = store, transport, routes
        self.clock, self.dice, self.new_id = clock, dice, new_id
        self.observers = tuple(Shielded(observer) for observer in observers)
        self.numbers = numbers
        self._max_key = transport.caps.max_key
        self.undecided = f"{service}/*"
        self.source = f"/{service}"
        self.quarantine = Quarantine()
        self._paces: dict[str, Pace] = {}
        self._crowding: dict[str, Crowding] = {}

    def scope(self, unit: Unit, works: Sequence[Work], name: str) -> Scope:
        return Scope(self.store, unit, self._encode(works), self.clock.now(), name, shared=bool(works))

    def _encode(self, works: Sequence[Work]) -> Encode:
        def encode(event: object, scope: Scope, index: int, time: float) -> Record:
            correlation = causation = None
            if works:
                work = works[index]
                causation = as_text(work.event_id)
                correlation = work.correlation or causation
            return self.record(event, time, correlation, causation)

        return encode

    def record(self, event: object, now: float, correlation: str | None = None, causation: str | None = None) -> Record:
        """An event as the outbox takes it. Raises PublishError, in the author's call: in the outbox a key that no relay
        could ever send would stop every later event of it."""
        record = codec.encode(
            event, new_id=self.new_id, source=self.source, now=now, correlation=correlation, causation=causation
        )
        if len(record.key) > self._max_key:
            raise PublishError(
                f"{type(event).__name__}: its key has {len(record.key)} bytes, and on this broker a key has at most "
                f"{self._max_key}; order by something shorter"
            )
        return record

    def pace(self, consumer: str) -> Pace:
        pace = self._paces.get(consumer)
        if pace is None:
            pace = self._paces[consumer] = Pace(self.numbers.unit_seconds / 4)
        return pace

    def crowding(self, consumer: str) -> Crowding:
        crowding = self._crowding.get(consumer)
        if crowding is None:
            crowding = self._crowding[consumer] = Crowding(self.numbers.batch_size)
        return crowding


class Pace:
    """How long a consumer's handler takes: a slow one runs alone, so that it holds up nobody's transaction."""

    def __init__(self, slow: float) -> None:
        self._slow = slow
        self._recent: deque[float] = deque(maxlen=20)
        self.alone = False

    def note(self, seconds: float, count: int) -> None:
        self._recent.append(seconds / count)
        ordered = sorted(self._recent)
        # Never the largest one: on a busy machine a single call may have waited for the processor, and calls that run
        # alone would go on to prove it.
        self.alone = len(ordered) >= 3 and ordered[int((len(ordered) - 1) * 0.95)] > self._slow


def relay_slices(shards: int) -> tuple[Slice, ...]:
    return tuple(Slice(RELAY, shard) for shard in range(shards))
