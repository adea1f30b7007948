"""Questions: what waits, what is dead, how far behind a service is. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from eventkeel.admin.access import Actor
from eventkeel.ports.catalogue import Catalogue, DeadLetter, State, StoreLag, Waiting
from eventkeel.ports.clock import Clock
from eventkeel.ports.transport import SliceLag, Transport


class Behind(msgspec.Struct, frozen=True):
    """How far a group is behind on one slice."""

    topic: str
    partition: int
    settled: int | None
    """Next position wanted, as the broker was last told; None: nothing was ever settled."""
    end: int
    messages: int
    seconds: float
    """Age of the oldest message that is not settled."""


class Lag(msgspec.Struct, frozen=True):
    """A service's lag: on the broker, and in its own store."""

    service: str
    group: str
    messages: int
    seconds: float
    slices: tuple[Behind, ...]
    store: StoreLag
    oldest_unsent_seconds: float


class Ask:
    """One service's answers, for one actor, who needs the right ``ask``."""

    def __init__(
        self, service: str, group: str, catalogue: Catalogue, transport: Transport, clock: Clock, actor: Actor
    ) -> None:
        actor.require("ask", f"look into {service}")
        self._service, self._group = service, group
        self._catalogue, self._transport, self._clock = catalogue, transport, clock

    async def dead_letters(
        self, *, consumer: str | None = None, state: State | None = None, after: int = 0, limit: int = 100
    ) -> list[DeadLetter]:
        """In order of number, without bodies; ``state`` None: dead and conflict."""
        return await self._catalogue.dead_letters(consumer=consumer, state=state, after=after, limit=limit)

    async def dead_letter(self, number: int) -> DeadLetter | None:
        """With its body; parked deliveries too."""
        return await self._catalogue.dead_letter(number)

    async def waiting(self, *, after: int = 0, limit: int = 100) -> list[Waiting]:
        """The keys that wait."""
        return await self._catalogue.waiting(after=after, limit=limit)

    async def lag(self) -> Lag:
        """In messages and in seconds."""
        now = self._clock.now()
        slices = tuple(_behind(lag, now) for lag in await self._transport.lag(self._group))
        store = await self._catalogue.lag()
        return Lag(
            self._service,
            self._group,
            sum(one.messages for one in slices),
            max((one.seconds for one in slices), default=0.0),
            slices,
            store,
            _age(store.oldest_unsent, now),
        )


def _behind(lag: SliceLag, now: float) -> Behind:
    messages = lag.end - (lag.settled or 0)
    return Behind(
        lag.slice.topic,
        lag.slice.partition,
        lag.settled,
        lag.end,
        messages,
        _age(lag.oldest, now) if messages else 0.0,
    )


def _age(since: float | None, now: float) -> float:
    return 0.0 if since is None else round(max(0.0, now - since), 3)


def by_topic(slices: Sequence[Behind]) -> list[tuple[str, int, int, float]]:
    """(topic, partitions, messages, seconds) of each topic, sorted."""
    topics = sorted({one.topic for one in slices})
    grouped = [(topic, [one for one in slices if one.topic == topic]) for topic in topics]
    return [
        (topic, len(own), sum(one.messages for one in own), max(one.seconds for one in own)) for topic, own in grouped
    ]
