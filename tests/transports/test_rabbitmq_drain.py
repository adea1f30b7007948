"""RabbitMQ: an older generation is given up only when nothing of it can come any more, and a history only says what a
group may not know."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pamqp import commands

from eventkeel.message import Delivery
from eventkeel.ports.transport import Broken, Budget, Deliveries, Halted
from eventkeel.testing.transport_kit import Brokerage, Member, message, numbers, send
from eventkeel.transports.rabbitmq import RabbitTransport, subscription
from tests.rabbit import wipe

from .test_rabbitmq import own, url_of


@pytest.fixture
async def place(rabbitmq_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Brokerage]:
    monkeypatch.setattr(subscription, "LOOK_EVERY", 0.2)

    async def make() -> RabbitTransport:
        return own(rabbitmq_url, tmp_path)

    async with contextlib.AsyncExitStack() as stack:
        yield Brokerage(make, stack)
    await wipe(url_of(rabbitmq_url, tmp_path))


async def _opened(place: Brokerage) -> RabbitTransport:
    transport = await place.ready()
    assert isinstance(transport, RabbitTransport)
    return transport


async def _looks(transport: RabbitTransport, count: int) -> None:
    """So many looks of its subscription have come to their end."""
    made = transport.declarer.damage
    seen = 0

    async def counting(group: str, topics: object) -> str:
        nonlocal seen
        seen += 1
        return await made(group, topics)  # type: ignore[arg-type]

    transport.declarer.damage = counting  # type: ignore[method-assign]
    async with asyncio.timeout(30):
        while seen <= count:
            await asyncio.sleep(0.05)
    transport.declarer.damage = made  # type: ignore[method-assign]


async def _until(member: Member, transport: RabbitTransport, wanted: int) -> list[Delivery]:
    """As the engine does: begin what there is to consume, settle what comes."""
    got: list[Delivery] = []
    begun = set(member.slices)
    async with asyncio.timeout(30):
        while len(got) < wanted:
            for slice in await transport.slices("billing", ["orders"]):
                if slice not in begun:
                    await member.subscription.begin(slice, None)
                    begun.add(slice)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    arrival = await member.subscription.next()
                    assert not isinstance(arrival, (Broken, Halted)), arrival
                    if isinstance(arrival, Deliveries):
                        member.note(arrival)
                        got += arrival.items
                        await member.settle(arrival.items)
    return got


async def test_a_generation_is_not_drained_while_another_process_holds_some_of_it(place: Brokerage) -> None:
    """Its owner lost its lease, and lives: what it holds is not ready in the queue, and the next owner gets nothing."""
    first = await _opened(place)
    zombie = await place.member(first)
    await send(first, [message(1)])
    assert numbers(await zombie.take(1)) == [1]

    second = await _opened(place)
    await second.refill("billing", "orders", 2)
    member = Member(
        second, second.subscribe("billing", ["orders"], Budget()), await second.slices("billing", ["orders"])
    )
    await member.begin()
    await asyncio.sleep(second.options.catch_up)
    await _looks(second, 3)
    await zombie.subscription.close(5.0)  # found out, or dead
    assert numbers(await _until(member, second, 1)) == [1]
    await send(first, [message(2)])
    assert numbers(await _until(member, second, 1)) == [2]
    await member.subscription.close(5.0)


async def test_an_older_generation_that_lost_a_queue_is_not_taken_for_drained(place: Brokerage) -> None:
    transport = await _opened(place)
    await send(transport, [message(n, key=b"%d" % n) for n in range(20)])
    await transport.refill("billing", "orders", 2)
    channel = await (await transport.asking.get()).channel()
    queue = transport.options.queue("billing", "orders", 1, 0)
    await channel.ask(commands.Queue.Delete(queue=queue), commands.Queue.DeleteOk)
    channel.close()
    subscribed = transport.subscribe("billing", ["orders"], Budget())
    async with asyncio.timeout(20):
        arrival = await subscribed.next()
    assert isinstance(arrival, Halted)
    assert queue in arrival.reason
    assert "eventkeel refill" in arrival.reason
    await subscribed.close(5.0)
    await transport.refill("billing", "orders")
    member = Member(transport, transport.subscribe("billing", ["orders"], Budget()), ())
    assert set(numbers(await _until(member, transport, 20))) == set(range(20))
    await member.subscription.close(5.0)


async def test_a_refill_while_a_history_is_read_is_filled_as_well(place: Brokerage) -> None:
    transport = await _opened(place)
    await send(transport, [message(1)])
    await transport.refill("billing", "orders")
    member = await place.member(transport)
    assert numbers(await _until(member, transport, 1)) == [1]
    await transport.refill("billing", "orders")
    async with asyncio.timeout(20):
        while transport.registry.state.unfilled("billing", "orders"):
            for slice in await transport.slices("billing", ["orders"]):
                if slice not in transport._subscriptions[0].flows:
                    await member.subscription.begin(slice, None)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    arrival = await member.subscription.next()
                    if isinstance(arrival, Deliveries):
                        member.note(arrival)
                        await member.settle(arrival.items)


async def test_a_history_does_not_tell_what_is_older_than_it_should_be(rabbitmq_url: str, tmp_path: Path) -> None:
    """A stream forgets by whole segments: a quiet topic's keeps everything, and the inbox does not."""
    try:
        async with contextlib.AsyncExitStack() as stack:

            async def make() -> RabbitTransport:
                return own(rabbitmq_url, tmp_path, "&history=2s")

            place = Brokerage(make, stack)
            transport = await _opened(place)
            await send(transport, [message(1, key=b"old")])
            await asyncio.sleep(4)
            await send(transport, [message(2, key=b"new")])
            await transport.refill("billing", "orders")
            member = await place.member(transport)
            assert numbers(await member.take(1)) == [2]
    finally:
        await wipe(url_of(rabbitmq_url, tmp_path))
