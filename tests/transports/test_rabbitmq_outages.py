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
    Budget,
    Deliveries,
    GroupWant,
    Halted,
    Lost,
    Resumed,
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
        return RabbitTransport(f"{server.url.removeprefix('amqp:')}?catch_up_ms=300&management={server.management}")

    async with AsyncExitStack() as stack:
        yield Place(server, Brokerage(make, stack))


@pytest.fixture
def server(own_rabbitmq: RabbitMQ, monkeypatch: pytest.MonkeyPatch) -> RabbitMQ:
    monkeypatch.setattr(subscription, "LOOK_EVERY", 1.0)
    return own_rabbitmq


class Traffic:
    """A relay that sends each message until it is confirmed, and an engine that begins again what is lost and settles
    all that comes; both until ``end``."""

    def __init__(self, transport: Transport, member: Member) -> None:
        self._transport, self._member = transport, member
        self.sent = 0
        self.got: list[Delivery] = []
        self._seen: set[int] = set()
        self._stop = asyncio.Event()
        self._sending = asyncio.create_task(self._send())
        self._taking = asyncio.create_task(self._take())

    async def until_sent(self, more: int) -> float:
        """Returns when so many more are confirmed; the seconds that it took."""
        began, wanted = time.monotonic(), self.sent + more
        async with asyncio.timeout(60.0):
            while self.sent < wanted:
                await asyncio.sleep(0.01)
        return time.monotonic() - began

    async def end(self) -> None:
        """Every one that was confirmed comes, in the order of its key."""
        self._stop.set()
        await self._sending
        async with asyncio.timeout(60.0):
            while len(self._seen) < self.sent:
                await asyncio.sleep(0.01)
        self._taking.cancel()
        assert in_order(self.got)

    async def _send(self) -> None:
        while not self._stop.is_set():
            wave = [message(n, key=b"%d" % (n % 20)) for n in range(self.sent, self.sent + 20)]
            outcomes = await self._transport.publish(wave, 5.0)
            if all(isinstance(each, Sent) for each in outcomes):
                self.sent += len(wave)
            else:
                await asyncio.sleep(0.1)

    async def _take(self) -> None:
        while True:
            arrival = await self._member.subscription.next()
            if isinstance(arrival, Lost):
                for slice in arrival.slices:
                    await begin_again(self._member, slice)
                continue
            assert isinstance(arrival, Deliveries), arrival
            self._member.note(arrival)
            items = await self._member.take(len(arrival.items))
            await self._member.settle(items)
            self.got += items
            self._seen.update(numbers(items))


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
        traffic = Traffic(transport, await place.broker.member(transport))
        for _ in range(4):
            await traffic.until_sent(200)
            await place.ctl("close_all_connections", "for a test")
        await traffic.until_sent(200)
        await traffic.end()


async def test_a_node_that_stops_for_some_seconds_loses_nothing(server: RabbitMQ) -> None:
    async with _place(server) as place:
        transport = await place.broker.ready()
        traffic = Traffic(transport, await place.broker.member(transport))
        await traffic.until_sent(200)
        await place.ctl("stop_app")
        before = traffic.sent
        await asyncio.sleep(5.0)  # the outage itself
        assert traffic.sent == before
        await place.ctl("start_app")
        print(f"recovered {await traffic.until_sent(200):.1f} s after start_app")
        await traffic.end()


async def test_a_killed_node_loses_nothing_that_was_confirmed(server: RabbitMQ) -> None:
    async with _place(server) as place:
        transport = await place.broker.ready()
        traffic = Traffic(transport, await place.broker.member(transport))
        await asyncio.to_thread(server.kill9)  # its queues and streams are as young as can be
        await asyncio.to_thread(server.start)
        print(f"recovered {await traffic.until_sent(200):.1f} s after it answered")
        await asyncio.to_thread(server.kill9)
        await asyncio.to_thread(server.start)
        print(f"recovered {await traffic.until_sent(200):.1f} s after it answered")
        await traffic.end()


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
        got = await member.take(2)
        while numbers(got[-1:]) != [2]:  # the one that was under way may have come twice
            got += await member.take(1)
        assert list(dict.fromkeys(numbers(got))) == [1, 2]


async def next_halt(member: Member, patience: float) -> Halted:
    async with asyncio.timeout(patience):
        while True:
            arrival = await member.subscription.next()
            if isinstance(arrival, Halted):
                return arrival


async def test_a_deleted_queue_halts_the_group_until_the_command_that_it_names_was_run(server: RabbitMQ) -> None:
    async with _place(server) as place:
        transport = await place.broker.ready("billing", "shipping")
        member = await place.broker.member(transport)
        other = await place.broker.member(transport, "shipping")
        await send(transport, [message(n, key=b"%d" % n) for n in range(100)])
        first = await member.take(100)
        await member.settle(first[:50])
        await place.ctl("delete_queue", "billing.orders.g1.1")
        await send(transport, [message(n, key=b"%d" % (n - 100)) for n in range(100, 200)])
        halted = await next_halt(member, 10.0)
        assert "billing.orders.g1.1" in halted.reason
        assert "eventkeel refill MODULE:SERVICE --topic orders" in halted.reason
        assert sorted(numbers(await other.take(200))) == list(range(200)), "the other group does not notice"
        with pytest.raises(BrokerUnavailable, match="eventkeel refill"):
            await member.subscription.begin(member.slices[0], None)

        await member.subscription.release(member.slices)  # as the engine does
        assert isinstance(transport, RabbitTransport)
        await transport.refill("billing", "orders")
        await send(transport, [message(n, key=b"%d" % (n - 200)) for n in range(200, 300)])
        async with asyncio.timeout(10.0):
            assert isinstance(await member.subscription.next(), Resumed)
        got = await drive(member, transport, 300, lambda: _is_gone(transport, "billing.orders.g1.0"))
        assert in_order([*first[:50], *got])
        assert set(numbers([*first[:50], *got])) == set(range(300))


async def test_a_lost_binding_is_found(server: RabbitMQ) -> None:
    async with _place(server) as place:
        transport = await place.broker.ready()
        member = await place.broker.member(transport)
        asking = await connect(parse(server.url.removeprefix("amqp:")), "test")
        channel = await asking.channel()
        group = commands.Exchange.Unbind(destination="billing.orders.g1", source="orders", routing_key="#")
        await channel.ask(group, commands.Exchange.UnbindOk)
        halted = await next_halt(member, 10.0)
        assert "binding" in halted.reason
        assert "eventkeel refill" in halted.reason
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
