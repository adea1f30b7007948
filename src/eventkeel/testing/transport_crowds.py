"""What every transport has to do for many at once: publishers, readers and topics that come and go. Part of
``TransportSuite``."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from eventkeel.message import Delivery, Headers, Outgoing, Position, Slice
from eventkeel.ports.transport import Assigned, Budget, Deliveries, Lost, Revoking, Transport
from eventkeel.testing.transport_kit import (
    PATIENCE,
    Brokerage,
    Member,
    message,
    numbers,
    scenario,
    send,
)

STORM = 1500
"""Messages in a storm."""


@pytest.mark.asyncio
class CrowdSuite:
    """See ``transport_suite.TransportSuite``."""

    def brokerage(self, place: Path) -> AbstractAsyncContextManager[Brokerage]:
        raise NotImplementedError

    @scenario("W1")
    async def test_a_hundred_messages_come_back_with_all_that_was_said(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            member = await broker.member(transport)
            sent = [
                Outgoing("orders", b"%d" % (n % 9), Headers([("n", b"%d" % n), ("x", b"y" * n)]), b"body %d" % n)
                for n in range(100)
            ]
            await send(transport, sent)
            got = {numbers([each])[0]: each for each in await member.take(100)}
            for number, expected in enumerate(sent):
                found = got[number]
                assert (found.key, found.headers, found.body) == (expected.key, expected.headers, expected.body)

    @scenario("W3")
    async def test_many_topics_at_once_over_one_connection_do_not_mix(self, tmp_path: Path) -> None:
        topics = [f"topic-{number}" for number in range(8)]
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready(topics=topics)
            member = await broker.member(transport, topics=topics)
            await asyncio.gather(
                *(
                    send(transport, [message(n, topic=topic, key=b"%d" % n, body=topic.encode()) for n in range(50)])
                    for topic in topics
                )
            )
            got = await member.take(50 * len(topics))
            for topic in topics:
                mine = [each for each in got if each.topic == topic]
                assert sorted(numbers(mine)) == list(range(50))
                assert {each.body for each in mine} == {topic.encode()}

    @scenario("W2", "W10")
    async def test_publishers_that_close_as_soon_as_they_are_confirmed_have_lost_nothing(self, tmp_path: Path) -> None:
        publishers, each_sends = 12, 50
        async with self.brokerage(tmp_path) as broker:
            await broker.ready()

            async def publish(name: int) -> None:
                own = await broker.transport()
                first = name * each_sends
                await send(own, [message(n, key=b"%d" % n) for n in range(first, first + each_sends)], wave=10)
                await own.close(5.0)

            await asyncio.gather(*(publish(name) for name in range(publishers)))
            member = await broker.member(await broker.transport())
            assert sorted(numbers(await member.take(publishers * each_sends))) == list(range(publishers * each_sends))
            await member.quiet()

    @scenario("W5")
    async def test_with_room_for_one_the_next_comes_when_the_first_is_settled(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            member = await broker.member(transport, budget=Budget(count=1))
            await send(transport, [message(n) for n in range(3)])
            for expected in range(3):
                got = await member.take(1)
                assert numbers(got) == [expected]
                await member.quiet()
                await member.settle(got)

    @scenario("W7")
    async def test_readers_that_come_and_go_at_once_do_no_harm_to_the_next_one(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()

            async def come_and_go() -> None:
                own = await broker.transport()
                passing = own.subscribe("billing", ["orders"], Budget())
                waiting = asyncio.ensure_future(passing.next())
                await asyncio.sleep(0)
                await passing.close(5.0)
                await asyncio.wait({waiting}, timeout=PATIENCE)
                assert waiting.done()
                with contextlib.suppress(Exception):
                    waiting.result()

            await asyncio.gather(*(come_and_go() for _ in range(10)))
            member = await broker.member(transport)
            await send(transport, [message(n, key=b"%d" % n) for n in range(50)])
            assert sorted(numbers(await member.take(50))) == list(range(50))

    @scenario("W13")
    async def test_what_was_handed_over_and_not_settled_comes_again_to_the_next_reader(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            first = await broker.member(transport)
            await send(transport, [message(n) for n in range(20)])
            assert numbers(await first.take(20)) == list(range(20))
            await first.subscription.close(5.0)
            again = await broker.member(transport)
            assert numbers(await again.take(20)) == list(range(20))

    @scenario("K4")
    async def test_slices_that_change_hands_in_a_storm_lose_nothing_and_keep_their_order(self, tmp_path: Path) -> None:
        """One position for each slice is kept, as a store does. Where the broker assigns, members come and go; where
        the engine does, they take slices from each other."""
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            messages = [message(n, key=b"%d" % (n % 13)) for n in range(STORM)]
            if transport.caps.assigns:
                done = await _members_come_and_go(broker, transport, messages)
            else:
                sending = asyncio.ensure_future(send(transport, messages, wave=10))
                done = await _slices_change_hands(broker)
                await sending
            assert sorted(numbers(done)) == list(range(STORM))
            for key in {each.key for each in done}:
                run = numbers(each for each in done if each.key == key)
                assert run == sorted(run)


async def _slices_change_hands(broker: Brokerage) -> list[Delivery]:
    dice = random.Random(7)
    members = [await broker.member(await broker.transport(), begin=False) for _ in range(3)]
    slices = members[0].slices
    owner: dict[Slice, Member] = {}
    at: dict[Slice, Position] = {}
    done: list[Delivery] = []
    async with asyncio.timeout(3 * PATIENCE):
        while len(done) < STORM:
            slice, member = dice.choice(slices), dice.choice(members)
            if dice.random() < 0.5 and owner.get(slice) is not member:
                if slice in owner:
                    await owner[slice].subscription.release([slice])
                await member.subscription.begin(slice, at.get(slice))
                owner[slice] = member
            with contextlib.suppress(TimeoutError):
                arrival = await asyncio.wait_for(member.subscription.next(), 0.005)
                assert isinstance(arrival, Deliveries), arrival
                assert owner[arrival.slice] is member, "from a slice that was released"
                some = arrival.items[: dice.randint(0, len(arrival.items))]
                if some:
                    after = [Position(each.position + (not arrival.each), arrival.incarnation) for each in some]
                    if not arrival.each:
                        at[arrival.slice] = after[-1]
                    await member.subscription.settle(arrival.slice, after if arrival.each else after[-1:])
                if len(some) < len(arrival.items):  # the rest is forgotten, as by a crash
                    await member.subscription.release([arrival.slice])
                    await member.subscription.begin(arrival.slice, at.get(arrival.slice))
                done += some
    return done


async def _members_come_and_go(broker: Brokerage, transport: Transport, messages: list[Outgoing]) -> list[Delivery]:
    """One member stays; others join, and leave while messages flow."""
    at: dict[Slice, Position] = {}
    done: list[Delivery] = []
    part = len(messages) // 3

    async def until(enough: Callable[[], bool]) -> None:
        while not enough():
            await asyncio.sleep(0.01)

    async with asyncio.timeout(3 * PATIENCE):
        staying = _Passing(await broker.transport(), at, done)
        await send(transport, messages[:part], wave=10)
        for first in (part, 2 * part):
            passing = _Passing(await broker.transport(), at, done)
            await until(lambda one=passing: bool(one.mine))  # type: ignore[misc]
            assert staying.mine.isdisjoint(passing.mine)
            sending = asyncio.ensure_future(send(transport, messages[first : first + part], wave=10))
            await until(lambda first=first: len(done) > first + part // 4)  # type: ignore[misc]
            await passing.leave()
            await sending
        await until(lambda: len(done) >= len(messages))
        await staying.leave()
    return done


class _Passing:
    """A member of a group whose broker assigns; ``at`` and ``done`` are what all members keep in the store."""

    def __init__(self, transport: Transport, at: dict[Slice, Position], done: list[Delivery]) -> None:
        self.mine: set[Slice] = set()
        self._at, self._done = at, done
        self._subscription = transport.subscribe("billing", ["orders"], Budget(count=40))
        self._running = asyncio.ensure_future(self._run())

    async def leave(self) -> None:
        self._running.cancel()
        await asyncio.wait({self._running})
        self.mine.clear()
        await self._subscription.close(5.0)

    async def _run(self) -> None:
        subscription = self._subscription
        while True:
            match await subscription.next():
                case Assigned(slices):
                    for slice in slices:
                        await subscription.begin(slice, self._at.get(slice))
                        self.mine.add(slice)
                case Revoking(slices, _):
                    self.mine.difference_update(slices)
                    await subscription.release(slices)
                case Lost(slices):
                    self.mine.difference_update(slices)
                case Deliveries(slice, incarnation, items) if slice in self.mine:
                    self._at[slice] = Position(items[-1].position + 1, incarnation)
                    self._done.extend(items)
                    await subscription.settle(slice, [self._at[slice]])
