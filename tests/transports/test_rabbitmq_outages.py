"""RabbitMQ in trouble: connections that are killed, a node that stops, alarms, bindings and queues that go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from pamqp import commands

from eventkeel.errors import BrokerUnavailable
from eventkeel.message import Delivery, Slice
from eventkeel.ports.transport import (
    Broken,
    Budget,
    Deliveries,
    GroupWant,
    Lost,
    Sent,
    TopicWant,
    Topology,
    Transport,
    Unknown,
    Unrouted,
)
from eventkeel.testing.transport_kit import PATIENCE, Brokerage, Member, message, numbers, refusals, send
from eventkeel.transports.rabbitmq import RabbitTransport, subscription
from eventkeel.transports.rabbitmq.connection import connect
from eventkeel.transports.rabbitmq.registry import exists
from eventkeel.transports.rabbitmq.settings import parse
from tests.transports.test_rabbitmq import QUICK
from tools.realservers.rabbitmq import RabbitMQ

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


class Place:
    """A RabbitMQ of this test's own, and transports to it."""

    def __init__(self, server: RabbitMQ, stack_of: Brokerage) -> None:
        self.server, self.broker = server, stack_of

    async def ctl(self, *words: str) -> str:
        return await asyncio.to_thread(self.server.ctl, *words)


@asynccontextmanager
async def _place(server: RabbitMQ) -> AsyncIterator[Place]:
    async def make() -> RabbitTransport:
        return RabbitTransport(f"{server.url.removeprefix('amqp:')}?{QUICK}&management={server.management}")

    async with AsyncExitStack() as stack:
        yield Place(server, Brokerage(make, stack))


@pytest.fixture
def server(own_rabbitmq: RabbitMQ, monkeypatch: pytest.MonkeyPatch) -> RabbitMQ:
    monkeypatch.setattr(subscription, "LOOK_EVERY", 1.0)
    return own_rabbitmq


async def keep_sending(transport: Transport, count: int) -> list[int]:
    """As a relay does: each message again until it is confirmed; the numbers that were."""
    sent: list[int] = []
    number = 0
    while number < count:
        wave = [message(n, key=b"%d" % (n % 20)) for n in range(number, min(count, number + 20))]
        outcomes = await transport.publish(wave, 5.0)
        if all(isinstance(each, Sent) for each in outcomes):
            sent += range(number, number + len(wave))
            number += len(wave)
        else:
            await asyncio.sleep(0.1)
    return sent


async def take_all(member: Member, count: int, patience: float = 90.0) -> list[Delivery]:
    """As the engine does: what is lost is begun again; all are settled at once. Ends when each came at least once."""
    got: list[Delivery] = []
    seen: set[int] = set()
    async with asyncio.timeout(patience):
        while len(seen) < count:
            arrival = await member.subscription.next()
            if isinstance(arrival, Lost):
                for slice in arrival.slices:
                    await begin_again(member, slice)
            elif isinstance(arrival, Deliveries):
                member.note(arrival)
                items = await member.take(len(arrival.items))
                await member.settle(items)
                got += items
                seen.update(numbers(items))
            else:
                raise AssertionError(arrival)
    return got


async def begin_again(member: Member, slice: Slice) -> None:
    while True:
        try:
            await member.subscription.begin(slice, None)
            return
        except BrokerUnavailable:
            await asyncio.sleep(0.2)


def in_order(got: list[Delivery]) -> bool:
    """First hand-overs of each key rise."""
    for key in {each.key for each in got}:
        first = list(dict.fromkeys(numbers(each for each in got if each.key == key)))
        if first != sorted(first):
            return False
    return True


async def test_killed_connections_lose_nothing_and_keep_the_order(server: RabbitMQ) -> None:
    async with _place(server) as place:
        transport = await place.broker.ready()
        member = await place.broker.member(transport)
        sending = asyncio.create_task(keep_sending(transport, 4000))
        taking = asyncio.create_task(take_all(member, 4000))
        for _ in range(4):
            await asyncio.sleep(1.0)
            await place.ctl("close_all_connections", "for a test")
        assert await sending == list(range(4000))
        got = await taking
        assert in_order(got)


async def test_a_node_that_stops_for_some_seconds_loses_nothing(server: RabbitMQ) -> None:
    async with _place(server) as place:
        transport = await place.broker.ready()
        member = await place.broker.member(transport)
        sending = asyncio.create_task(keep_sending(transport, 4000))
        taking = asyncio.create_task(take_all(member, 4000, 150.0))
        await place.ctl("stop_app")
        await asyncio.sleep(5.0)
        await place.ctl("start_app")
        back = time.monotonic()
        assert await sending == list(range(4000))
        assert in_order(await taking)
        print(f"recovered {time.monotonic() - back:.1f} s after start_app")


async def test_a_killed_node_loses_nothing_that_was_confirmed(server: RabbitMQ) -> None:
    async with _place(server) as place:
        await place.broker.ready()
        # RabbitMQ 3.10 forgets queues that were made in the second before it was killed; that is not asked here.
        await asyncio.to_thread(server.restart)
        transport = await place.broker.ready()
        member = await place.broker.member(transport)
        sending = asyncio.create_task(keep_sending(transport, 4000))
        taking = asyncio.create_task(take_all(member, 4000, 150.0))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(server.kill9)
        await asyncio.to_thread(server.start)
        assert await sending == list(range(4000))
        assert in_order(await taking)


async def test_a_topic_without_any_binding_takes_nothing_and_says_so(server: RabbitMQ) -> None:
    async with _place(server) as place:
        transport = await place.broker.ready()
        await send(transport, [message(0)])
        asking = await connect(parse(server.url.removeprefix("amqp:")), "test")
        channel = await asking.channel()
        history = commands.Queue.Unbind(queue="orders.history", exchange="orders", routing_key="#")
        group = commands.Exchange.Unbind(destination="billing.orders.g1", source="orders", routing_key="#")
        await channel.ask(history, commands.Queue.UnbindOk)
        await channel.ask(group, commands.Exchange.UnbindOk)
        outcomes = await transport.publish([message(1), message(2, key=b"other")], PATIENCE)
        assert [type(each) for each in outcomes] == [Unrouted, Unrouted]
        assert "orders" in outcomes[0].reason  # type: ignore[union-attr]
        await asking.close(1.0)


async def test_a_memory_alarm_delays_and_loses_nothing(server: RabbitMQ) -> None:
    async with _place(server) as place:
        transport = await place.broker.ready()
        member = await place.broker.member(transport)
        await send(transport, [message(0)])
        await place.ctl("set_vm_memory_high_watermark", "0.0001")
        began = time.monotonic()
        outcomes = await transport.publish([message(1)], 2.0)
        outcomes = await transport.publish([message(1)], 2.0)
        assert isinstance(outcomes[0], Unknown)
        assert "takes nothing now" in outcomes[0].reason
        assert time.monotonic() - began < 6
        assert numbers(await member.take(1)) == [0], "who consumes is not held up"
        await place.ctl("set_vm_memory_high_watermark", "0.4")
        await send(transport, [message(2)])
        got = await take_all(member, 2)
        assert list(dict.fromkeys(numbers(got))) == [1, 2]


async def next_broken(member: Member, patience: float) -> Broken:
    async with asyncio.timeout(patience):
        while True:
            arrival = await member.subscription.next()
            if isinstance(arrival, Broken):
                return arrival


async def test_a_deleted_queue_stops_the_group_with_the_command_that_mends_it(server: RabbitMQ) -> None:
    async with _place(server) as place:
        transport = await place.broker.ready("billing", "shipping")
        member = await place.broker.member(transport)
        other = await place.broker.member(transport, "shipping")
        await send(transport, [message(n, key=b"%d" % n) for n in range(100)])
        first = await member.take(100)
        await member.settle(first[:50])
        await place.ctl("delete_queue", "billing.orders.g1.1")
        await send(transport, [message(n, key=b"%d" % (n - 100)) for n in range(100, 200)])
        broken = await next_broken(member, 10.0)
        assert broken.fatal
        assert "billing.orders.g1.1" in broken.reason
        assert "eventkeel refill" in broken.reason
        assert sorted(numbers(await other.take(200))) == list(range(200)), "the other group does not notice"
        await member.subscription.close(5.0)

        assert isinstance(transport, RabbitTransport)
        await transport.refill("billing", "orders")
        await send(transport, [message(n, key=b"%d" % (n - 200)) for n in range(200, 300)])
        again = Member(transport, transport.subscribe("billing", ["orders"], Budget()), ())
        got = await drive(again, transport, 300, lambda: _is_gone(transport, "billing.orders.g1.0"))
        assert in_order([*first[:50], *got])
        assert set(numbers([*first[:50], *got])) == set(range(300))
        await again.subscription.close(5.0)


async def test_a_lost_binding_is_found(server: RabbitMQ) -> None:
    async with _place(server) as place:
        transport = await place.broker.ready()
        member = await place.broker.member(transport)
        asking = await connect(parse(server.url.removeprefix("amqp:")), "test")
        channel = await asking.channel()
        group = commands.Exchange.Unbind(destination="billing.orders.g1", source="orders", routing_key="#")
        await channel.ask(group, commands.Exchange.UnbindOk)
        broken = await next_broken(member, 10.0)
        assert "binding" in broken.reason
        assert "eventkeel refill" in broken.reason
        await asking.close(1.0)


async def test_another_number_of_partitions_is_a_new_generation(server: RabbitMQ) -> None:
    async with _place(server) as place:
        transport = await place.broker.ready()
        await send(transport, [message(n, key=b"%d" % (n % 10)) for n in range(100)])
        assert isinstance(transport, RabbitTransport)
        await transport.refill("billing", "orders", 7)
        await send(transport, [message(n, key=b"%d" % (n % 10)) for n in range(100, 200)])
        member = Member(transport, transport.subscribe("billing", ["orders"], Budget()), ())
        got = await drive(member, transport, 200, lambda: _has_slices(transport, 7))
        assert in_order(got)
        want = Topology((TopicWant("orders", 7),), (GroupWant("billing", "store of billing", ("orders",)),))
        assert not refusals(await transport.topology(want, apply=False))
        await member.subscription.close(5.0)


async def _is_gone(transport: RabbitTransport, queue: str) -> bool:
    channel = await (await transport.asking.get()).channel()
    try:
        return not await exists(channel, queue)
    finally:
        channel.close()


async def _has_slices(transport: RabbitTransport, count: int) -> bool:
    return len(await transport.slices("billing", ["orders"])) == count


async def drive(
    member: Member, transport: RabbitTransport, count: int, until: Callable[[], Awaitable[bool]]
) -> list[Delivery]:
    """As the engine does: begin what there is to consume now, whenever that changes; settle everything."""
    got: list[Delivery] = []
    seen: set[int] = set()
    begun: set[Slice] = set()
    async with asyncio.timeout(60.0):
        while len(seen) < count or not await until():
            for slice in await transport.slices("billing", ["orders"]):
                if slice not in begun:
                    await member.subscription.begin(slice, None)
                    begun.add(slice)
            try:
                arrival = await asyncio.wait_for(member.subscription.next(), 0.2)
            except TimeoutError:
                continue
            if isinstance(arrival, Lost):
                begun.difference_update(arrival.slices)
            elif isinstance(arrival, Deliveries):
                member.note(arrival)
                items = await member.take(len(arrival.items))
                await member.settle(items)
                got += items
                seen.update(numbers(items))
            else:
                raise AssertionError(arrival)
    return got
