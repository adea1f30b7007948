"""A broker that assigns slices, as Kafka does: here the embedded one, whose subscription says what a test wants."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from eventkeel import app as eventkeel_app
from eventkeel.engine import ownership as ownership_module
from eventkeel.errors import PositionError, StoreUnavailable
from eventkeel.message import Position, Slice
from eventkeel.ports.transport import Arrival, Assigned, Budget, Caps, Lost, Revoking, SliceLag, Subscription
from eventkeel.testing.harness import Harness, harness
from eventkeel.transports.sqlite import SQLiteTransport

from .domain import ordered, paying

pytestmark = pytest.mark.sqlite_only

ALL = tuple(Slice("ordered", number) for number in range(8))


class Scripted:
    """A subscription that hands over what the test says, before what arrives."""

    def __init__(self, inner: Subscription) -> None:
        self._inner = inner
        self._said: deque[Arrival] = deque()
        self._news = asyncio.Event()
        self.begun: list[tuple[Slice, Position | None]] = []
        self.released: list[Slice] = []
        self.closed = False

    def say(self, arrival: Arrival) -> None:
        self._said.append(arrival)
        self._news.set()

    async def next(self) -> Arrival:
        while not self._said:
            self._news.clear()
            reading = asyncio.ensure_future(self._inner.next())
            told = asyncio.ensure_future(self._news.wait())
            try:
                await asyncio.wait([reading, told], return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    return reading.result()
            finally:
                reading.cancel()
                told.cancel()
        return self._said.popleft()

    async def begin(self, slice: Slice, at: Position | None) -> None:
        self.begun.append((slice, at))
        await self._inner.begin(slice, at)

    async def release(self, slices: Collection[Slice]) -> None:
        self.released += slices
        await self._inner.release(slices)

    async def close(self, deadline: float) -> None:
        self.closed = True
        await self._inner.close(deadline)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Assigning(SQLiteTransport):
    made: list[Scripted]
    hints: dict[Slice, int]
    """What the broker says is settled, where it says something of its own."""

    @property
    def caps(self) -> Caps:
        return msgspec.structs.replace(super().caps, assigns=True)

    def subscribe(self, group: str, topics: Sequence[str], budget: Budget) -> Any:
        self.made.append(Scripted(super().subscribe(group, topics, budget)))
        return self.made[-1]

    async def lag(self, group: str) -> Sequence[SliceLag]:
        return [
            msgspec.structs.replace(lag, settled=self.hints.get(lag.slice, lag.settled))
            for lag in await super().lag(group)
        ]


class World:
    def __init__(self, app: Harness, made: list[Scripted], hints: dict[Slice, int]) -> None:
        self.app, self.made, self.hints = app, made, hints

    @property
    def subscription(self) -> Scripted:
        return self.made[-1]

    @property
    def ownership(self) -> ownership_module.Ownership:
        assert self.app.runtime.ownership is not None
        return self.app.runtime.ownership

    async def paid(self, count: int) -> None:
        async def enough() -> bool:
            return await self.app.rows("select count(*) from payments") == [(count,)]

        await self.app.until(enough)

    async def steal(self, slice: Slice) -> None:
        """What another process does to which the broker has given the slice too."""
        context = self.app.runtime.context
        await context.store.take(context.group, "another", [slice], ttl=5.0, now=context.clock.now(), force=True)
        self.ownership.fenced([slice])


@asynccontextmanager
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    made: list[Scripted] = []
    hints: dict[Slice, int] = {}

    def open_transport(url: str, clock: Any = None) -> Assigning:
        transport = Assigning(url.removeprefix("sqlite:///"), clock=clock)
        transport.made, transport.hints = made, hints
        return transport

    monkeypatch.setattr(eventkeel_app, "open_transport", open_transport)
    async with harness(paying()) as app:
        yield World(app, made, hints)


async def test_nothing_is_taken_before_the_broker_gives_it_and_all_of_it_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(monkeypatch) as here:
        await here.app.publish(*[ordered(n, f"c{n}") for n in range(40)])
        await here.ownership.balance()
        await asyncio.sleep(0.3)
        assert not here.ownership.shares
        assert await here.app.rows("select count(*) from payments") == [(0,)]
        here.subscription.say(Assigned(ALL[:3]))
        here.subscription.say(Assigned(ALL[3:]))
        await here.paid(40)
        assert sorted(slice for slice, _ in here.subscription.begun) == sorted(ALL)


async def test_what_is_revoked_is_given_back_begun_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as here:
        here.subscription.say(Assigned(ALL[:4]))
        here.subscription.say(Revoking(ALL[2:6], 10.0))
        await here.app.until(lambda: set(here.subscription.released) >= set(ALL[2:6]))
        assert set(here.ownership.shares) == set(ALL[:2])
        here.subscription.say(Lost(ALL[:1]))
        await here.app.until(lambda: set(here.ownership.shares) == {ALL[1]})
        here.app.clock.advance(60.0)
        await here.ownership.run_once()
        assert set(here.ownership.shares) == {ALL[1]}, "taken again, though the broker gave it to another"


async def test_what_is_lost_while_it_is_begun_flows_when_it_is_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a broker dies in the moment in which it has given them: its answer to a question comes late."""
    async with world(monkeypatch) as here:
        lag, asked, answered = here.app.runtime.transport.lag, asyncio.Event(), asyncio.Event()

        async def late(group: str) -> Sequence[SliceLag]:
            asked.set()
            await answered.wait()
            return await lag(group)

        monkeypatch.setattr(here.app.runtime.transport, "lag", late)
        here.ownership._given.update(ALL)
        here.ownership.wake()  # its own turn begins what could not be begun when it was given
        await asyncio.wait_for(asked.wait(), 10)
        here.subscription.say(Lost(ALL))
        await here.app.until(lambda: not here.ownership._given)
        answered.set()
        await here.app.publish(*[ordered(n, f"c{n}") for n in range(40)])
        await here.app.until(lambda: not here.ownership._moving.locked())
        assert not here.ownership.shares
        here.subscription.say(Assigned(ALL))
        await here.paid(40)


async def test_what_was_given_is_begun_when_the_store_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as here:
        take, failed = here.app.runtime.store.take, 0

        async def failing(*args: Any, **more: Any) -> Any:
            nonlocal failed
            if args[2] and args[2][0].topic == "ordered" and failed < 2:
                failed += 1
                raise StoreUnavailable("the database restarts")
            return await take(*args, **more)

        monkeypatch.setattr(here.app.runtime.store, "take", failing)
        await here.app.publish(*[ordered(n, f"c{n}") for n in range(40)])
        here.subscription.say(Assigned(ALL))
        await here.paid(40)
        assert failed == 2


async def test_a_slice_lost_to_a_fence_is_taken_again_while_the_broker_gives_it_to_us(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(monkeypatch) as here:
        here.subscription.say(Assigned(ALL))
        await here.app.until(lambda: len(here.ownership.shares) == 8)
        before = here.ownership.shares[ALL[0]].epoch
        await here.steal(ALL[0])
        await here.app.until(lambda: ALL[0] not in here.ownership.shares)
        here.app.clock.advance(10.0)
        here.ownership.wake()
        await here.app.until(lambda: ALL[0] in here.ownership.shares)
        assert here.ownership.shares[ALL[0]].epoch == before + 2
        await here.app.publish(*[ordered(n, f"c{n}") for n in range(40)])
        await here.paid(40)
        assert len(here.made) == 1


async def test_two_that_are_given_the_same_do_not_take_it_from_each_other_at_every_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(monkeypatch) as here:
        here.subscription.say(Assigned(ALL))
        await here.app.until(lambda: len(here.ownership.shares) == 8)
        await here.steal(ALL[0])
        await here.ownership.balance()
        for _ in range(3):
            await here.ownership._take_what_was_given()
            assert ALL[0] not in here.ownership.shares


async def test_after_repeated_fences_the_group_is_left_and_joined_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as here:
        here.subscription.say(Assigned(ALL))
        for _ in range(ownership_module.REJOIN):
            await here.app.until(lambda: len(here.ownership.shares) == 8)
            await here.steal(ALL[0])
            await here.app.until(lambda: ALL[0] not in here.ownership.shares)
            here.app.clock.advance(20.0)
            here.ownership.wake()
        await here.app.until(lambda: len(here.made) == 2)
        first, second = here.made
        assert first.closed
        await here.app.until(lambda: not here.ownership.shares)
        second.say(Assigned(ALL))
        await here.app.publish(*[ordered(n, f"c{n}") for n in range(40)])
        await here.paid(40)


async def test_the_lower_one_of_two_positions_is_where_a_slice_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(monkeypatch) as here:
        await here.app.publish(*[ordered(n, "c") for n in range(10)])
        here.subscription.say(Assigned(ALL))
        await here.paid(10)
        (slice,) = [slice for slice, share in here.ownership.shares.items() if share.watermark.base]
        here.subscription.say(Revoking((slice,), 10.0))
        await here.app.until(lambda: slice not in here.ownership.shares)
        here.hints[slice] = 4
        here.subscription.begun.clear()
        here.subscription.say(Assigned((slice,)))
        await here.app.until(lambda: bool(here.subscription.begun))
        (_, at) = here.subscription.begun[0]
        assert at is not None
        assert at.at == 4


async def test_a_brokers_position_that_retention_has_passed_is_no_obstacle_where_the_store_knows_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(monkeypatch) as here:
        await here.app.publish(*[ordered(n, "c") for n in range(10)])
        here.subscription.say(Assigned(ALL))
        await here.paid(10)
        (slice,) = [slice for slice, share in here.ownership.shares.items() if share.watermark.base]
        here.subscription.say(Revoking((slice,), 10.0))
        await here.app.until(lambda: slice not in here.ownership.shares)
        begin = here.subscription._inner.begin

        async def cut(slice: Slice, at: Position | None) -> None:
            if at is not None and at.at < 8:
                raise PositionError("retention")
            await begin(slice, at)

        monkeypatch.setattr(here.subscription._inner, "begin", cut)
        here.hints[slice] = 4
        here.subscription.say(Assigned((slice,)))
        await here.app.until(lambda: slice in here.ownership.shares)
        assert here.ownership.shares[slice].watermark.base == 10
